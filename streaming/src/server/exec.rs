//! A command's streams on the serving side. One session per request; who runs the command owns it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{ExecProtocol, Timeouts};
use crate::Stream;
use crate::channel::{ExecOptions, Outcome, ResizeDecoder, STREAM_TYPE, StreamKind, TerminalSize, Version};
use crate::mux::{ChannelWire, Connection, SpdyWire};
use crate::websocket::Role;

/// A command's streams. Those that were not asked for are `None`.
#[derive(Debug)]
pub struct ExecSession {
    /// To be read until its end and given to the command.
    pub stdin: Option<Stream>,
    /// To be written; `shutdown` at the end.
    pub stdout: Option<Stream>,
    /// To be written; `shutdown` at the end.
    pub stderr: Option<Stream>,
    /// The terminal's sizes.
    pub resize: Option<Resizes>,
    /// How it ends.
    pub exit: Exit,
}

/// The terminal's sizes as they change.
#[derive(Debug)]
pub struct Resizes {
    stream: Stream,
    decoder: ResizeDecoder,
}

impl Resizes {
    /// The next size; `None` when there will be no more. Of sizes that came at once only the newest is returned.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<TerminalSize> {
        let mut buffer = [0; 256];
        loop {
            let read = self.stream.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
            if let Some(size) = self.decoder.push(&buffer[..read]) {
                return Some(size);
            }
        }
    }
}

/// The session's end. Dropping it ends the connection at once.
pub struct Exit {
    error: Stream,
    connection: Connection,
    version: Version,
}

impl std::fmt::Debug for Exit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Exit").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Exit {
    /// Waits until the client is gone, so that its command can be told.
    pub async fn client_gone(&self) {
        self.connection.ended().await;
    }

    /// Tells how the command ended and closes the connection. What was written before goes out first, as long as the
    /// client takes it.
    pub async fn finish(mut self, outcome: &Outcome) -> io::Result<()> {
        let told = async {
            self.error.write_all(&outcome.encode(self.version)).await?;
            self.error.shutdown().await
        }
        .await;
        self.connection.close().await;
        told
    }

    /// Bytes of buffers that the connection holds, full or not; a bound that does not depend on what is sent.
    pub fn footprint(&self) -> usize {
        self.connection.footprint()
    }
}

/// Why a session could not begin.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The client did not open its streams in time.
    #[error("client opened {opened} of {expected} streams within {}s", timeout.as_secs())]
    Timeout {
        /// What it opened.
        opened: usize,
        /// What it asked for.
        expected: usize,
        /// The time it had.
        timeout: Duration,
    },
    /// The client went away.
    #[error("client left after opening {opened} of {expected} streams")]
    Gone {
        /// What it opened.
        opened: usize,
        /// What it asked for.
        expected: usize,
    },
}

#[derive(Default)]
struct Streams([Option<Stream>; StreamKind::ALL.len()]);

impl Streams {
    fn put(&mut self, kind: StreamKind, stream: Stream) {
        // What a client sends on a stream that it only reads must not wait for a reader that never comes.
        let reads = matches!(kind, StreamKind::Stdin | StreamKind::Resize);
        self.0[kind as usize] = Some(if reads { stream } else { stream.write_only() });
    }

    fn has(&self, kind: StreamKind) -> bool {
        self.0[kind as usize].is_some()
    }

    fn opened(&self) -> usize {
        self.0.iter().flatten().count()
    }

    fn session(self, connection: Connection, version: Version) -> ExecSession {
        let [stdin, stdout, stderr, error, resize] = self.0;
        let error = error.expect("the error stream is always asked for");
        let resize = resize.map(|stream| Resizes { stream, decoder: ResizeDecoder::default() });
        ExecSession { stdin, stdout, stderr, resize, exit: Exit { error, connection, version } }
    }
}

/// Takes the upgraded connection of a granted request.
pub async fn exec<IO>(
    io: IO,
    protocol: ExecProtocol,
    options: ExecOptions,
    timeouts: &Timeouts,
) -> Result<ExecSession, SessionError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut streams = Streams::default();
    match protocol {
        ExecProtocol::Spdy(version) => {
            let connection =
                Connection::new(io, Box::new(SpdyWire::new(Role::Server)), true, Some(timeouts.idle));
            let timeout = timeouts.streams;
            let expected = options.streams(version).count();
            match tokio::time::timeout(timeout, collect(&connection, &mut streams, options, version)).await {
                Ok(true) => {}
                Ok(false) => return Err(SessionError::Gone { opened: streams.opened(), expected }),
                Err(_) => return Err(SessionError::Timeout { opened: streams.opened(), expected, timeout }),
            }
            connection.refuse_more();
            Ok(streams.session(connection, version))
        }
        ExecProtocol::WebSocket(version, encoding) => {
            let wire = ChannelWire::new(Role::Server, encoding, version >= Version::V5);
            let each = |kind, stream| streams.put(kind, stream);
            let kinds = options.streams(Version::V5);
            let connection = Connection::quiet(io, Box::new(wire), kinds, each, Some(timeouts.idle));
            let first = [StreamKind::Stdout, StreamKind::Stderr, StreamKind::Error];
            let first = first.into_iter().find_map(|kind| streams.0[kind as usize].as_ref());
            first.expect("the error stream is always there").announce();
            Ok(streams.session(connection, version))
        }
    }
}

/// False if the client left before it had opened all.
async fn collect(
    connection: &Connection,
    streams: &mut Streams,
    options: ExecOptions,
    version: Version,
) -> bool {
    while !options.streams(version).all(|kind| streams.has(kind)) {
        let Some((stream, headers)) = connection.accept().await else { return false };
        let kind = headers.get(STREAM_TYPE).and_then(StreamKind::from_name);
        match kind
            .filter(|kind| options.streams(version).any(|wanted| wanted == *kind) && !streams.has(*kind))
        {
            Some(kind) => streams.put(kind, stream),
            // Not asked for, or twice: dropped, which resets it.
            None => drop(stream),
        }
    }
    true
}
