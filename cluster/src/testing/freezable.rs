//! Connections that stall on request: those of the fake API server, and of a proxy before a real one. No task of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// A connection that neither reads nor writes any more once it was told so, and does not end.
pub struct Freezable<S> {
    inner: S,
    frozen: watch::Receiver<u64>,
    stalled: bool,
}

impl<S> Freezable<S> {
    /// Stalls with the next change of `frozen`.
    pub fn new(inner: S, frozen: watch::Receiver<u64>) -> Self {
        Self { inner, frozen, stalled: false }
    }

    /// Whoever is woken after a freeze finds the socket dead; nothing wakes it again.
    fn is_stalled(&mut self) -> bool {
        self.stalled |= self.frozen.has_changed().unwrap_or(true);
        self.stalled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Freezable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_stalled() {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Freezable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_stalled() {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_stalled() {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_stalled() {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
