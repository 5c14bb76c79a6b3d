//! One stream as its holder sees it: bytes to read, bytes to write, each side closed by itself.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{CHUNK, INBOX_LIMIT, OUT_LIMIT, Phase, Shared, State, StreamState};

/// A stream of a connection. `shutdown` half-closes it; dropping it before that resets it.
pub struct Stream {
    id: u32,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Stream").field(&self.id).finish()
    }
}

const HELD: &str = "a connection keeps the state of each stream that is held";

impl Stream {
    pub(super) fn new(id: u32, shared: Arc<Shared>) -> Self {
        Self { id, shared }
    }

    /// Its number on the wire.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Drops what the peer sends on it, so that nothing waits for a reader that never comes.
    pub(crate) fn write_only(self) -> Self {
        let mut state = self.shared.lock();
        let stream = state.streams.get_mut(&self.id).expect(HELD);
        stream.write_only = true;
        let dropped = std::mem::take(&mut stream.inbox).len();
        state.unread -= dropped;
        drop(state);
        self
    }

    /// Sends a message without bytes, which over WebSocket tells that the command is there.
    pub(crate) fn announce(&self) {
        let mut state = self.shared.lock();
        let State { wire, out, .. } = &mut *state;
        wire.data(self.id, &[], out);
        state.wake_driver();
    }

    pub(super) async fn opened(&self) -> io::Result<()> {
        std::future::poll_fn(|context| {
            let mut state = self.shared.lock();
            let phase = state.phase;
            let stream = state.streams.get_mut(&self.id).expect(HELD);
            // Taken and at once ended is taken: what was said in between is for the reader.
            if stream.opened {
                return Poll::Ready(Ok(()));
            }
            if stream.reset {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    "the peer refused the stream",
                )));
            }
            if phase != Phase::Open {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            stream.opener = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits until the peer has ended both directions at once, which a half-close does not, or the connection is over.
    pub fn broken(&self) -> impl Future<Output = ()> + Send + use<> {
        let (id, shared) = (self.id, self.shared.clone());
        std::future::poll_fn(move |context| {
            let mut state = shared.lock();
            let is_open = state.phase == Phase::Open;
            match state.streams.get_mut(&id).filter(|stream| is_open && !stream.reset) {
                Some(stream) => {
                    stream.watcher = Some(context.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(()),
            }
        })
    }

    /// Ends both directions at once.
    pub fn reset(&self) {
        let mut state = self.shared.lock();
        let State { wire, out, streams, .. } = &mut *state;
        let stream = streams.get_mut(&self.id).expect(HELD);
        if !stream.reset {
            stream.reset = true;
            stream.local_done = true;
            stream.remote_done = true;
            wire.reset(self.id, out);
        }
        state.wake_driver();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        let phase = state.phase;
        let stream = state.streams.get_mut(&self.id).expect(HELD);
        if !stream.inbox.is_empty() {
            let (front, _) = stream.inbox.as_slices();
            let taken = front.len().min(into.remaining());
            into.put_slice(&front[..taken]);
            stream.inbox.drain(..taken);
            if stream.inbox.is_empty() {
                stream.inbox = Default::default();
            }
            let stalled = state.unread >= INBOX_LIMIT;
            state.unread -= taken;
            if stalled && state.unread < INBOX_LIMIT {
                state.wake_driver();
            }
            return Poll::Ready(Ok(()));
        }
        // A reset is an end too: the kubelet ends its error stream so after the last word.
        if stream.remote_done {
            return Poll::Ready(Ok(()));
        }
        match phase {
            Phase::Open => {
                stream.reader = Some(context.waker().clone());
                Poll::Pending
            }
            Phase::Closing | Phase::Ended { clean: true } => Poll::Ready(Ok(())),
            Phase::Ended { clean: false } => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// Why nothing can be written, if so.
fn writable(phase: Phase, stream: &StreamState) -> io::Result<()> {
    if phase != Phase::Open || stream.local_done || stream.reset {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        let State { wire, out, streams, phase, writers, .. } = &mut *state;
        writable(*phase, streams.get(&self.id).expect(HELD))?;
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if out.len() >= OUT_LIMIT {
            if !writers.iter().any(|waker| waker.will_wake(context.waker())) {
                writers.push(context.waker().clone());
            }
            return Poll::Pending;
        }
        let taken = data.len().min(CHUNK);
        wire.data(self.id, &data[..taken], out);
        state.wake_driver();
        Poll::Ready(Ok(taken))
    }

    /// Nothing to do: the driver sends what is written as soon as the socket takes it.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        let State { wire, out, streams, phase, .. } = &mut *state;
        let stream = streams.get_mut(&self.id).expect(HELD);
        if writable(*phase, stream).is_ok() {
            stream.local_done = true;
            wire.finish(self.id, out);
            state.wake_driver();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let Some(stream) = state.streams.remove(&self.id) else { return };
        let stalled = state.unread >= INBOX_LIMIT;
        state.unread -= stream.inbox.len();
        // A side that was closed in order is not reset after it, as with the peers.
        let over = stream.reset || stream.local_done;
        if !over && state.phase == Phase::Open {
            let State { wire, out, .. } = &mut *state;
            wire.reset(self.id, out);
        }
        if stalled || !over {
            state.wake_driver();
        }
    }
}
