//! What is said over the codecs: protocol names, the streams of a command and of a forwarded port, how a command's
//! end and a terminal's size are written. Pure; called by `mux`, `server` and `client`.

mod message;
mod outcome;
mod pairing;
mod resize;
#[cfg(test)]
mod tests;

pub use message::{Encoding, MessageDecoder, MessageError, MessageItem};
pub use outcome::{MAX_OUTCOME, Outcome};
pub use pairing::{ForwardKind, ForwardRequest, Pairing, PairingError};
pub use resize::{ResizeDecoder, TerminalSize};

/// The header (and port-forward query parameter) that says what a SPDY stream is for.
pub const STREAM_TYPE: &str = "streamtype";
/// The header and query parameter with a port.
pub const PORT: &str = "port";
/// The header that ties the two streams of one forwarded connection together.
pub const REQUEST_ID: &str = "requestid";
/// Port-forward's only protocol over SPDY.
pub const PORT_FORWARD: &str = "portforward.k8s.io";
/// SPDY with [`PORT_FORWARD`] carried in binary WebSocket messages.
pub const PORT_FORWARD_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// A version of the remote command protocol. Later ones differ from earlier ones by what is named here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `channel.k8s.io`: the end of a command is text, and only if it failed.
    V1,
    /// Streams may be half-closed.
    V2,
    /// A terminal can be resized.
    V3,
    /// The end of a command is a Status with its exit code.
    V4,
    /// Over WebSocket, streams may be half-closed too.
    V5,
}

impl Version {
    /// From the latest to the first, as peers offer them over SPDY, where v5 is no different from v4.
    pub const SPDY: [Self; 4] = [Self::V4, Self::V3, Self::V2, Self::V1];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "channel.k8s.io",
            Self::V2 => "v2.channel.k8s.io",
            Self::V3 => "v3.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
            Self::V5 => "v5.channel.k8s.io",
        }
    }

    /// The version of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::V1, Self::V2, Self::V3, Self::V4, Self::V5].into_iter().find(|version| version.name() == name)
    }

    /// Whether there is a stream for a terminal's sizes.
    pub fn resizes(self) -> bool {
        self >= Self::V3
    }
}

/// One of a command's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// To the command.
    Stdin,
    /// From the command.
    Stdout,
    /// From the command, without a terminal.
    Stderr,
    /// How the command ended.
    Error,
    /// The terminal's sizes.
    Resize,
}

impl StreamKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Stdin, Self::Stdout, Self::Stderr, Self::Error, Self::Resize];

    /// Its name in a SPDY stream's headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Error => "error",
            Self::Resize => "resize",
        }
    }

    /// The kind of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its number in a WebSocket message.
    pub fn channel(self) -> u8 {
        self as u8
    }
}

impl From<StreamKind> for u32 {
    fn from(kind: StreamKind) -> Self {
        kind.channel().into()
    }
}

/// Which streams a command has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// It reads.
    pub stdin: bool,
    /// It writes.
    pub stdout: bool,
    /// It complains. Never with a terminal, where both are one.
    pub stderr: bool,
    /// It has a terminal.
    pub tty: bool,
}

impl ExecOptions {
    /// From a request's query, both as the API server has it (`stdin=true`) and as the kubelet (`input=1`). `None` if
    /// no stream is asked for, which is an error of the client.
    pub fn from_query(query: &str) -> Option<Self> {
        let on = |names: [&str; 2]| {
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .any(|(name, value)| names.contains(&name) && matches!(value, "1" | "true"))
        };
        let tty = on(["tty", "tty"]);
        let options = Self {
            stdin: on(["input", "stdin"]),
            stdout: on(["output", "stdout"]),
            stderr: on(["error", "stderr"]) && !tty,
            tty,
        };
        (options.stdin || options.stdout || options.stderr).then_some(options)
    }

    /// The streams that a client opens, the error stream first as `kubectl` does.
    pub fn streams(self, version: Version) -> impl Iterator<Item = StreamKind> {
        let wanted = move |kind: &StreamKind| match kind {
            StreamKind::Stdin => self.stdin,
            StreamKind::Stdout => self.stdout,
            StreamKind::Stderr => self.stderr && !self.tty,
            StreamKind::Error => true,
            StreamKind::Resize => self.tty && version.resizes(),
        };
        let order = [
            StreamKind::Error,
            StreamKind::Stdin,
            StreamKind::Stdout,
            StreamKind::Stderr,
            StreamKind::Resize,
        ];
        order.into_iter().filter(wanted)
    }
}
