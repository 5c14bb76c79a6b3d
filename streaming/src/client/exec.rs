//! A command's streams on the asking side.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::Stream;
use crate::channel::{ExecOptions, MAX_OUTCOME, Outcome, STREAM_TYPE, StreamKind, TerminalSize, Version};
use crate::mux::{ChannelWire, Connection, SpdyWire};
use crate::server::ExecProtocol;
use crate::spdy::Headers;
use crate::websocket::Role;

/// A command's streams. Those that were not asked for are `None`.
#[derive(Debug)]
pub struct ClientExec {
    /// To be written; `shutdown` is the command's end of input.
    pub stdin: Option<Stream>,
    /// To be read until its end.
    pub stdout: Option<Stream>,
    /// To be read until its end.
    pub stderr: Option<Stream>,
    /// For the terminal's sizes.
    pub resize: Option<ResizeSender>,
    /// How it ends.
    pub exit: ExitStatus,
}

/// Tells the terminal's sizes.
#[derive(Debug)]
pub struct ResizeSender(Stream);

impl ResizeSender {
    /// Tells a new size.
    pub async fn send(&mut self, size: TerminalSize) -> io::Result<()> {
        self.0.write_all(&size.encode()).await
    }
}

/// The command's end. Dropping it ends the connection at once.
pub struct ExitStatus {
    error: Stream,
    connection: Connection,
    version: Version,
}

impl std::fmt::Debug for ExitStatus {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ExitStatus").field("version", &self.version).finish_non_exhaustive()
    }
}

impl ExitStatus {
    /// Waits for the command's end and closes the connection. What it wrote must be read at the same time or before:
    /// unread output holds the end up behind it.
    pub async fn wait(self) -> io::Result<Outcome> {
        let mut said = Vec::new();
        let mut error = self.error.take(MAX_OUTCOME as u64);
        error.read_to_end(&mut said).await?;
        self.connection.close().await;
        Ok(Outcome::decode(self.version, &said))
    }

    /// Bytes of buffers that the connection holds, full or not.
    pub fn footprint(&self) -> usize {
        self.connection.footprint()
    }
}

/// Takes the upgraded connection of an answered request and opens the streams.
pub async fn exec<IO>(io: IO, protocol: ExecProtocol, options: ExecOptions) -> io::Result<ClientExec>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut streams = [const { None }; StreamKind::ALL.len()];
    let (connection, version) = match protocol {
        ExecProtocol::Spdy(version) => {
            let connection = Connection::new(io, Box::new(SpdyWire::new(Role::Client)), false, None);
            for kind in options.streams(version) {
                let headers = Headers::new().with(STREAM_TYPE, kind.name());
                streams[kind as usize] = Some(connection.open(&headers).await?);
            }
            (connection, version)
        }
        ExecProtocol::WebSocket(version, encoding) => {
            let wire = ChannelWire::new(Role::Client, encoding, version >= Version::V5);
            // Every WebSocket server reads sizes, whatever its version.
            let kinds = options.streams(Version::V5);
            let each = |kind: StreamKind, stream| streams[kind as usize] = Some(stream);
            let connection = Connection::quiet(io, Box::new(wire), kinds, each, None);
            (connection, version)
        }
    };
    let [stdin, stdout, stderr, error, resize] = streams;
    Ok(ClientExec {
        stdin: stdin.map(Stream::write_only),
        stdout,
        stderr,
        resize: resize.map(|stream| ResizeSender(stream.write_only())),
        exit: ExitStatus { error: error.expect("the error stream is always opened"), connection, version },
    })
}
