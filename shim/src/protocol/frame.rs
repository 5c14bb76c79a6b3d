//! ttrpc's framing: a header of ten bytes, then the payload. Used by both sides; no I/O, no state beyond a buffer.
//!
//! ```text
//! 0        4        8      9       10
//! | length | stream | kind | flags | payload …   (big endian)
//! ```

/// Bytes of a header.
pub const HEADER_LEN: usize = 10;

/// The longest payload that ttrpc allows: 4 MiB.
pub const MAX_PAYLOAD: usize = 4 << 20;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`Request`](super::Request).
    Request,
    /// A [`Response`](super::Response).
    Response,
    /// A message of a stream; the Task API has none.
    Data,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Data => 3,
        }
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the payload.
    pub len: u32,
    /// Which call the frame belongs to. A client uses odd numbers that grow.
    pub stream_id: u32,
    /// What the payload is.
    pub kind: Kind,
    /// Flags of streaming calls; a unary call ignores them.
    pub flags: u8,
}

/// Bytes that cannot be a frame. The connection is of no use after one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A payload longer than [`MAX_PAYLOAD`].
    #[error("ttrpc frame of {0} bytes, more than {MAX_PAYLOAD}")]
    TooLong(u32),
    /// A kind of frame that does not exist.
    #[error("ttrpc frame of unknown kind {0}")]
    UnknownKind(u8),
}

impl Header {
    /// Reads a header, and refuses one that no well-behaved peer sends.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let kind = match bytes[8] {
            1 => Kind::Request,
            2 => Kind::Response,
            3 => Kind::Data,
            other => return Err(FrameError::UnknownKind(other)),
        };
        let len = word(0);
        if len as usize > MAX_PAYLOAD {
            return Err(FrameError::TooLong(len));
        }
        Ok(Self { len, stream_id: word(4), kind, flags: bytes[9] })
    }

    /// The ten bytes of this header.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.len.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream_id.to_be_bytes());
        bytes[8] = self.kind.byte();
        bytes[9] = self.flags;
        bytes
    }
}

/// Encodes one frame around a message.
///
/// # Panics
/// When the message is longer than 4 GiB, which no message of this protocol can be.
pub fn encode(kind: Kind, stream_id: u32, message: &impl prost::Message) -> Vec<u8> {
    let len = u32::try_from(message.encoded_len()).expect("a message of the Task API is far below 4 GiB");
    let mut bytes = Vec::with_capacity(HEADER_LEN + len as usize);
    bytes.extend_from_slice(&Header { len, stream_id, kind, flags: 0 }.encode());
    message.encode(&mut bytes).expect("a Vec takes any length");
    bytes
}

/// A whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its payload, `header.len` bytes.
    pub payload: Vec<u8>,
}

/// Cuts a stream of bytes into frames.
///
/// Holds what has arrived and nothing more: a header that promises 4 MiB reserves nothing until they come.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that wait for the rest of their frame.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Takes the next whole frame out, `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes cannot be a frame; every further call answers the same.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(first) = self.buffer.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::parse(first)?;
        let end = HEADER_LEN + header.len as usize;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let payload = self.buffer[HEADER_LEN..end].to_vec();
        self.buffer.drain(..end);
        if self.buffer.is_empty() {
            // One 4 MiB message must not stay in memory for the life of the connection.
            self.buffer = Vec::new();
        }
        Ok(Some(Frame { header, payload }))
    }
}

#[cfg(test)]
mod tests;
