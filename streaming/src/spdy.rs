//! SPDY/3.1 as `kubectl`, the API server and container runtimes speak it: frames in, frames out, no I/O. Called by
//! `mux` and by fuzzers; a decoder and an encoder each belong to one direction of one connection.
//!
//! What those peers do decides what is here: no one sends WINDOW_UPDATE or heeds windows, so only TCP holds a writer
//! back; headers are one zlib stream per direction. Data comes out as it arrives, never a whole frame at once: a
//! frame may be 16 MiB, and memory must not follow it.

mod decode;
mod dictionary;
mod encode;
mod headers;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use decode::Decoder;
pub use encode::Encoder;
pub use headers::{Headers, MAX_HEADER_BLOCK};

/// The longest control frame that is taken, in bytes. What is spoken here needs less than a hundred.
pub const MAX_CONTROL_FRAME: usize = 16 * 1024;

/// Why a stream ended before its time (SPDY/3.1, 2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetStatus {
    /// The peer broke the protocol.
    ProtocolError,
    /// No such stream.
    InvalidStream,
    /// The stream was not taken.
    RefusedStream,
    /// The stream is no longer wanted.
    Cancel,
    /// The sender failed.
    InternalError,
    /// Any other code.
    Other(u32),
}

impl ResetStatus {
    fn from_code(code: u32) -> Self {
        match code {
            1 => Self::ProtocolError,
            2 => Self::InvalidStream,
            3 => Self::RefusedStream,
            5 => Self::Cancel,
            6 => Self::InternalError,
            other => Self::Other(other),
        }
    }

    fn code(self) -> u32 {
        match self {
            Self::ProtocolError => 1,
            Self::InvalidStream => 2,
            Self::RefusedStream => 3,
            Self::Cancel => 5,
            Self::InternalError => 6,
            Self::Other(code) => code,
        }
    }
}

/// One frame, or a part of a DATA frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// SYN_STREAM: the peer opens a stream.
    SynStream {
        /// The new stream; odd ones are the client's.
        stream: u32,
        /// The sender has nothing to send on it.
        fin: bool,
        /// The receiver may not send on it.
        unidirectional: bool,
        /// What the stream is for.
        headers: Headers,
    },
    /// SYN_REPLY: the peer took a stream.
    SynReply {
        /// The stream that was taken.
        stream: u32,
        /// The sender has nothing to send on it.
        fin: bool,
        /// Empty as these peers speak it.
        headers: Headers,
    },
    /// RST_STREAM: both directions of a stream are over.
    RstStream {
        /// Which stream.
        stream: u32,
        /// Why.
        status: ResetStatus,
    },
    /// SETTINGS, as pairs of identifier and value. Nothing here heeds them.
    Settings(Vec<(u32, u32)>),
    /// PING: to be sent back as it came if its number is of the peer's parity.
    Ping(u32),
    /// GOAWAY: no more streams are taken.
    GoAway {
        /// The last stream that was.
        last_stream: u32,
        /// Zero if all is well.
        status: u32,
    },
    /// HEADERS: more headers for a stream.
    Headers {
        /// Which stream.
        stream: u32,
        /// The sender is done with it.
        fin: bool,
        /// What to add.
        headers: Headers,
    },
    /// WINDOW_UPDATE. Nothing here heeds it.
    WindowUpdate {
        /// Which stream; zero is the connection.
        stream: u32,
        /// How much wider, in bytes.
        delta: u32,
    },
    /// Data of a stream: as much of a DATA frame as has arrived, and `fin` with the last of it.
    Data {
        /// Which stream.
        stream: u32,
        /// The sender is done with it.
        fin: bool,
        /// The bytes.
        data: Bytes,
    },
}

/// What a peer did wrong. The connection cannot go on after it: headers are one compressed stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpdyError {
    /// Not version 3.
    #[error("frame of SPDY version {0}")]
    Version(u16),
    /// Longer than anything that is spoken here.
    #[error("control frame of {0} bytes; at most {MAX_CONTROL_FRAME} are taken")]
    TooLong(usize),
    /// Shorter than its kind, or with a field that cannot be.
    #[error("malformed {0} frame")]
    Malformed(&'static str),
    /// The zlib stream is broken or asks for another dictionary.
    #[error("header block cannot be decompressed")]
    Compression,
    /// The block's lengths do not add up, or it is too long.
    #[error("malformed header block: {0}")]
    HeaderBlock(&'static str),
}
