//! The task that owns a connection's socket. Spawned by `Connection`, which aborts it; everything else it shares with
//! streams is in `State`.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

use super::{CHUNK, OUT_LIMIT, Phase, Shared, State};

pub(super) struct Driver<IO> {
    io: IO,
    shared: Arc<Shared>,
    /// Bytes were written and not flushed.
    unflushed: bool,
    /// Our side of the socket is shut down.
    shut: bool,
    idle: Option<Idle>,
}

/// Looks now and then whether anything moved, so that traffic does not cost a timer.
struct Idle {
    after: Duration,
    look: Pin<Box<Sleep>>,
    moved: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    pub(super) fn new(io: IO, shared: Arc<Shared>, idle: Option<Duration>) -> Self {
        let idle = idle.map(|after| Idle { after, look: Box::pin(tokio::time::sleep(after)), moved: false });
        Self { io, shared, unflushed: false, shut: false, idle }
    }

    fn moved(&mut self) {
        if let Some(idle) = &mut self.idle {
            idle.moved = true;
        }
    }

    /// Ready once nothing has moved for long enough.
    fn idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(idle) = &mut self.idle else { return Poll::Pending };
        loop {
            ready!(idle.look.as_mut().poll(context));
            if !std::mem::take(&mut idle.moved) {
                return Poll::Ready(());
            }
            idle.look.as_mut().reset(Instant::now() + idle.after);
        }
    }

    /// Moves what can be moved. Ready when the connection is over.
    fn turn(&mut self, state: &mut State, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let hungry = match state.process() {
                Ok(hungry) => hungry,
                Err(error) => return Poll::Ready(Err(error)),
            };
            if let Poll::Ready(Err(error)) = self.write(state, context) {
                return Poll::Ready(Err(error));
            }
            if !hungry {
                if state.stalled() {
                    return Poll::Pending;
                }
                continue;
            }
            if ready!(self.read(state, context))? == 0 {
                return Poll::Ready(Ok(()));
            }
            self.moved();
        }
    }

    fn write(&mut self, state: &mut State, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !state.out.is_empty() {
            let wrote = ready!(Pin::new(&mut self.io).poll_write(context, &state.out))?;
            if wrote == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.out.advance(wrote);
            state.sent += wrote as u64;
            self.moved();
            self.unflushed = true;
            if state.out.len() < OUT_LIMIT {
                state.wake_writers();
            }
        }
        if state.out.capacity() > 0 {
            // An idle connection holds no buffer.
            state.out = BytesMut::new();
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(context))?;
            self.unflushed = false;
        }
        // Shut down and then read on until the peer hangs up: closing with unread bytes would reset the connection
        // and take what is on its way, such as an exit code, with it.
        if state.phase == Phase::Closing && !self.shut {
            ready!(Pin::new(&mut self.io).poll_shutdown(context))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }

    fn read(&mut self, state: &mut State, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        state.input.reserve(CHUNK);
        let read = poll_read_buf(Pin::new(&mut self.io), context, &mut state.input);
        if read.is_pending() && state.input.is_empty() {
            state.input = BytesMut::new();
        }
        read
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Future for Driver<IO> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let shared = this.shared.clone();
        let mut state = shared.lock();
        state.driver = Some(context.waker().clone());
        let outcome = this.turn(&mut state, context);
        match outcome {
            Poll::Pending => {
                ready!(this.idle(context));
                state.end(true);
                Poll::Ready(())
            }
            Poll::Ready(result) => {
                state.end(result.is_err());
                Poll::Ready(())
            }
        }
    }
}
