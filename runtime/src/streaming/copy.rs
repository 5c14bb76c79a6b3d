//! Copies between a session's streams and pipes, and sees whether they stand still and for whom.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coracle_streaming::Stream;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::{tcp, unix::pipe};

/// Bytes of one read. The buffer lives from a read to its write alone, so that a quiet session holds none.
const CHUNK: usize = 16 * 1024;

/// Output that does not come for so long after the end of its process belongs to a child that lives on.
const SILENCE: Duration = Duration::from_secs(5);

/// The shim lets go who takes nothing for half a minute; a write that took nearly as long was such a one.
const STALL: Duration = Duration::from_secs(25);

/// How the copies of one session fare.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    /// Grows with every read and write.
    moves: AtomicU64,
    /// Copies that wait for the client.
    writing: AtomicUsize,
    stalled: AtomicBool,
}

impl Gauge {
    /// Waits until nothing comes any more, while the client would take it.
    pub(super) async fn silent(&self) {
        let mut seen = None;
        loop {
            let now = (self.writing.load(Ordering::Relaxed) == 0).then(|| self.moves.load(Ordering::Relaxed));
            if now.is_some() && now == seen {
                return;
            }
            seen = now;
            tokio::time::sleep(SILENCE).await;
        }
    }

    /// Whether the client once took nothing for so long that the shim let it go.
    pub(super) fn stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }
}

/// What can be waited for without a buffer at hand.
pub(super) trait Source {
    fn readable(&self) -> impl Future<Output = std::io::Result<()>> + Send;
    fn try_read(&self, into: &mut [u8]) -> std::io::Result<usize>;
}

impl Source for pipe::Receiver {
    fn readable(&self) -> impl Future<Output = std::io::Result<()>> + Send {
        self.readable()
    }

    fn try_read(&self, into: &mut [u8]) -> std::io::Result<usize> {
        self.try_read(into)
    }
}

impl Source for tcp::ReadHalf<'_> {
    fn readable(&self) -> impl Future<Output = std::io::Result<()>> + Send {
        self.readable()
    }

    fn try_read(&self, into: &mut [u8]) -> std::io::Result<usize> {
        self.try_read(into)
    }
}

/// Copies output to the client until its end. A client that takes no more loses the pipe too, so that the process does
/// not wait for it.
pub(super) async fn output(from: Option<pipe::Receiver>, to: Option<Stream>, gauge: &Gauge) {
    let (Some(from), Some(mut to)) = (from, to) else { return };
    if until_end(&from, &mut to, gauge).await.is_ok() {
        let _ = to.shutdown().await;
    }
}

/// Copies until the end of what is read. An error is the client's.
pub(super) async fn until_end(
    from: &impl Source,
    to: &mut (impl AsyncWrite + Unpin),
    gauge: &Gauge,
) -> std::io::Result<()> {
    while from.readable().await.is_ok() {
        let mut buffer = vec![0; CHUNK];
        let bytes = match from.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        };
        gauge.writing.fetch_add(1, Ordering::Relaxed);
        gauge.moves.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let written = to.write_all(bytes).await;
        gauge.writing.fetch_sub(1, Ordering::Relaxed);
        if begun.elapsed() > STALL {
            gauge.stalled.store(true, Ordering::Relaxed);
        }
        written?;
    }
    Ok(())
}

/// Copies input from the client until its end, or until nobody reads it any more.
pub(super) async fn input(from: Option<Stream>, to: Option<pipe::Sender>) {
    if let (Some(mut from), Some(mut to)) = (from, to) {
        // Either side's end is the end.
        let _ = tokio::io::copy(&mut from, &mut to).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_told_from_a_slow_client() {
        let gauge = Gauge::default();
        gauge.writing.store(1, Ordering::Relaxed);
        assert!(tokio::time::timeout(Duration::from_secs(600), gauge.silent()).await.is_err());
        gauge.writing.store(0, Ordering::Relaxed);
        let moving = async {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                gauge.moves.fetch_add(1, Ordering::Relaxed);
            }
            std::future::pending::<()>().await;
        };
        let start = tokio::time::Instant::now();
        tokio::select! {
            () = gauge.silent() => {}
            () = moving => unreachable!(),
        }
        assert!(start.elapsed() >= Duration::from_secs(105), "{:?}", start.elapsed());
    }
}
