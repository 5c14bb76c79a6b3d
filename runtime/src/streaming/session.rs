//! What a command's session and an attachment have in common: the client's streams, and whether the client is still
//! there. Both begin with [`Session::begin`] in a task of their own; nothing is shared between sessions.

use std::future::pending;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use coracle_streaming::Stream;
use coracle_streaming::channel::{ExecOptions, Outcome};
use coracle_streaming::server::{self, ExecProtocol, Exit, Resizes, SessionError, Timeouts};
use rustix::net::sockopt;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::serve::Io;

/// How long what a client sent before it hung up may still find its reader.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// A client that is silent for so long is asked by the kernel whether it is there; one that hung up amid what nobody
/// reads is found by this alone, since its farewell waits behind its words.
const SILENCE: Duration = Duration::from_secs(60);
/// How long such a client has to answer, and how often it is asked.
const ANSWER: (Duration, u32) = (Duration::from_secs(15), 3);

/// The socket of a client beside those who read it. Who reads no further, since nobody takes what came, sees no end of
/// the stream either; the kernel does.
#[derive(Clone)]
pub(super) struct Line(Arc<TcpStream>);

impl Line {
    pub(super) fn new(stream: &TcpStream) -> io::Result<Line> {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, SILENCE)?;
        sockopt::set_tcp_keepintvl(stream, ANSWER.0)?;
        sockopt::set_tcp_keepcnt(stream, ANSWER.1)?;
        let beside = stream.as_fd().try_clone_to_owned()?;
        Ok(Line(Arc::new(TcpStream::from_std(beside.into())?)))
    }

    /// Waits until the client has hung up, however much of what it said is unread.
    async fn hung_up(&self) -> io::Result<()> {
        while !self.0.ready(Interest::READABLE).await?.is_read_closed() {
            // Nothing is read here: what has come is forgotten until more comes.
            let _ = self.0.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
        Ok(())
    }
}

/// The client's streams of a session.
pub(super) struct Streams {
    pub(super) stdin: Option<Stream>,
    pub(super) stdout: Option<Stream>,
    pub(super) stderr: Option<Stream>,
    pub(super) resize: Option<Resizes>,
}

/// A client that waits for the end.
pub(super) struct Session {
    line: Line,
    exit: Exit,
}

impl Session {
    /// Waits for the client's streams.
    pub(super) async fn begin(
        (io, line): (Io, Line),
        protocol: ExecProtocol,
        options: ExecOptions,
    ) -> Result<(Session, Streams), SessionError> {
        let session = server::exec(io, protocol, options, &Timeouts::default()).await?;
        let streams = Streams {
            stdin: session.stdin,
            stdout: session.stdout,
            stderr: session.stderr,
            resize: session.resize,
        };
        Ok((Session { line, exit: session.exit }, streams))
    }

    /// Waits until the client is gone: by its farewell, or cut off, or with words that nobody takes.
    pub(super) async fn client_gone(&self) {
        let hung_up = async {
            match self.line.hung_up().await {
                Ok(()) => tokio::time::sleep(LAST_WORDS).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot watch the line of a client");
                    pending().await
                }
            }
        };
        tokio::select! {
            () = self.exit.client_gone() => {}
            () = hung_up => {}
        }
    }

    /// Tells how it ended. A client that left at the last moment does not want to know.
    pub(super) async fn finish(self, outcome: &Outcome) {
        let _ = self.exit.finish(outcome).await;
    }
}
