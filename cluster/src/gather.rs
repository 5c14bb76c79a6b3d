//! Puts what is written in one go into one packet.
//!
//! HTTP/2 queues the head of a request, lets it go, and has the body a moment later: two TLS records in two packets,
//! for a request of a hundred bytes. A write that waits until the other tasks had their turn takes both.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose writes wait for one turn of the scheduler.
pub(crate) struct Gather<S> {
    stream: S,
    waited: bool,
}

impl<S> Gather<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, waited: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !std::mem::replace(&mut self.waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.waited = false;
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Without waiting the first write would be seen alone.
    #[tokio::test]
    async fn what_another_task_adds_meanwhile_goes_along() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let queue = std::sync::Arc::new(std::sync::Mutex::new(b"head ".to_vec()));
        let later = queue.clone();
        tokio::spawn(async move { later.lock().unwrap().extend_from_slice(b"body") });
        let mut gather = Gather::new(ours);
        std::future::poll_fn(|cx| {
            let bytes = queue.lock().unwrap();
            Pin::new(&mut gather).poll_write(cx, &bytes)
        })
        .await
        .unwrap();
        let mut read = [0; 64];
        let length = theirs.read(&mut read).await.unwrap();
        assert_eq!(&read[..length], b"head body");
        theirs.write_all(b"answer").await.unwrap();
        let length = gather.read(&mut read).await.unwrap();
        assert_eq!(&read[..length], b"answer");
    }
}
