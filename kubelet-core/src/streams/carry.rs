//! Bytes between a client and a runtime that speak the same protocol. One future, no task; the session's own.
//!
//! Invariant: what is held does not depend on how much is sent, and nothing is held while nothing moves. A piece is read
//! onto the stack, and kept only if the other side does not take it at once.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::Instant;

/// So much is read at a time.
const PIECE: usize = 16 * 1024;
/// How long a client may take to hang up after the last word.
const GOODBYE: Duration = Duration::from_secs(5);

/// One direction.
#[derive(Default)]
struct Way {
    /// What was read and not taken yet, from `taken` on.
    rest: Vec<u8>,
    taken: usize,
    unflushed: bool,
    /// Something moved since it was last looked.
    moved: bool,
}

impl Way {
    /// Copies what there is. Ready at the end of `from`, once all of it has been taken by `to`.
    fn poll(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut piece = [0; PIECE];
        loop {
            while self.taken < self.rest.len() {
                self.taken += ready!(write(to, &self.rest[self.taken..], context))?;
                self.moved = true;
            }
            (self.rest, self.taken) = (Vec::new(), 0);
            let mut buffer = ReadBuf::new(&mut piece);
            let read = Pin::new(&mut *from).poll_read(context, &mut buffer)?;
            let read_nothing = buffer.filled().is_empty();
            if read.is_pending() || read_nothing {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(context))?;
                    self.unflushed = false;
                }
                ready!(read);
                return Poll::Ready(Ok(()));
            }
            self.unflushed = true;
            self.moved = true;
            let mut left = buffer.filled();
            while !left.is_empty() {
                match write(to, left, context)? {
                    Poll::Ready(wrote) => left = &left[wrote..],
                    Poll::Pending => {
                        self.rest = left.to_vec();
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

fn write(
    to: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(context, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        wrote => Poll::Ready(Ok(wrote)),
    }
}

/// Copies both ways until one of the two ends, or nothing has moved for `idle` (to twice that). The runtime's last words
/// reach a client that takes them; a client that goes away takes the runtime's connection with it.
pub async fn carry<C, R>(mut client: C, mut runtime: R, idle: Duration) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Way::default(), Way::default());
    let mut look = std::pin::pin!(tokio::time::sleep(idle));
    let runtime_ended = poll_fn(|context| {
        if let Poll::Ready(ended) = down.poll(&mut runtime, &mut client, context) {
            return Poll::Ready(ended.map(|()| true));
        }
        if let Poll::Ready(ended) = up.poll(&mut client, &mut runtime, context) {
            return Poll::Ready(ended.map(|()| false));
        }
        loop {
            ready!(look.as_mut().poll(context));
            let moved = std::mem::take(&mut up.moved) | std::mem::take(&mut down.moved);
            if !moved {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            look.as_mut().reset(Instant::now() + idle);
        }
    })
    .await?;
    drop(runtime);
    if runtime_ended {
        // Closing with unread bytes would reset the connection and take what is on its way, such as an exit code, with
        // it. So the client hangs up first.
        let goodbye = async {
            client.shutdown().await?;
            let mut piece = [0; 1024];
            while client.read(&mut piece).await? > 0 {}
            Ok::<_, io::Error>(())
        };
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn both_ways_until_the_runtime_ends() {
        let (mut client, near) = tokio::io::duplex(1000);
        let (mut runtime, far) = tokio::io::duplex(1000);
        let carried = tokio::spawn(carry(near, far, IDLE));
        let sent: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        let serve = async {
            let mut head = [0; 5];
            runtime.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"hello");
            runtime.write_all(&sent).await.unwrap();
            drop(runtime);
        };
        let ask = async {
            client.write_all(b"hello").await.unwrap();
            let mut seen = Vec::new();
            client.read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, expected);
            drop(client);
        };
        tokio::join!(serve, ask);
        carried.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_goes_takes_the_runtime_with_it() {
        let (client, near) = tokio::io::duplex(1000);
        let (mut runtime, far) = tokio::io::duplex(1000);
        let carried = tokio::spawn(carry(near, far, IDLE));
        drop(client);
        assert_eq!(runtime.read(&mut [0; 8]).await.unwrap(), 0);
        carried.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_in_which_nothing_moves_ends() {
        let (mut client, near) = tokio::io::duplex(1000);
        let (mut runtime, far) = tokio::io::duplex(1000);
        let begun = Instant::now();
        let carried = tokio::spawn(carry(near, far, IDLE));
        tokio::time::sleep(IDLE / 2).await;
        client.write_all(b"x").await.unwrap();
        runtime.read_exact(&mut [0; 1]).await.unwrap();
        let error = carried.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 2 * IDLE.as_secs());
    }
}
