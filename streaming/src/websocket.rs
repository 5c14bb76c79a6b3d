//! WebSocket (RFC 6455) without I/O, as both sides: the handshake's headers, frames in, frames out. Called by `mux`,
//! `server` and `client`, and by fuzzers; a decoder belongs to one direction of one connection.
//!
//! Messages come out as they arrive, never whole, so that memory does not follow their size. Extensions are never
//! offered and never taken.

mod handshake;
#[cfg(test)]
mod tests;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use handshake::{accept_key, request_key};

/// Which end of the connection this is. A client masks what it sends, a server does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The end that answered.
    Server,
    /// The end that asked.
    Client,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A part of a message.
    Part {
        /// This is the message's first part.
        first: bool,
        /// This is its last.
        last: bool,
        /// The bytes; may be none.
        data: Bytes,
    },
    /// To be answered by a pong with the same bytes.
    Ping(Bytes),
    /// An answer to a ping.
    Pong(Bytes),
    /// The peer is done. Its code, if it gave one.
    Close(Option<u16>),
}

/// What a peer did wrong. The connection cannot go on after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebSocketError {
    /// Bits that an extension would define; there is none.
    #[error("frame with reserved bits")]
    Reserved,
    /// A kind of frame that does not exist.
    #[error("frame of unknown kind {0}")]
    Opcode(u8),
    /// A client's frame without a mask, or a server's with one.
    #[error("frame masked as the other side does")]
    Mask,
    /// A ping, pong or close that is fragmented or longer than 125 bytes.
    #[error("malformed control frame")]
    Control,
    /// A continuation of nothing, or a message within another.
    #[error("fragments out of order")]
    Fragments,
    /// More than 63 bits of length.
    #[error("frame length out of range")]
    Length,
}

/// A kind of frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// The message goes on.
    Continuation,
    /// A message of text.
    Text,
    /// A message of bytes.
    Binary,
    /// The end.
    Close,
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
}

impl Opcode {
    fn code(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    fn from_code(code: u8) -> Result<Self, WebSocketError> {
        Ok(match code {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            other => return Err(WebSocketError::Opcode(other)),
        })
    }

    fn is_control(self) -> bool {
        self.code() >= 8
    }
}

struct Head {
    fin: bool,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    length: u64,
    /// How long the head itself is.
    size: usize,
}

/// What is left of a message's frame.
struct Partial {
    left: u64,
    fin: bool,
    /// The mask, turned so that its first byte is for the next byte.
    mask: Option<[u8; 4]>,
}

/// Reads frames.
///
/// ```text
///   between frames ──(head of a data frame)──► within it ──(its last byte)──► between frames
/// ```
pub struct Decoder {
    role: Role,
    within: Option<Partial>,
    /// A message has begun and its last frame has not ended.
    message: bool,
    /// No part of the message has been handed out.
    fresh: bool,
}

impl Decoder {
    /// A decoder for what arrives at this end.
    pub fn new(role: Role) -> Self {
        Self { role, within: None, message: false, fresh: false }
    }

    /// Takes one event from the front of `input`; `None` asks for more bytes. At most 139 bytes ever wait in `input`.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, WebSocketError> {
        loop {
            if let Some(partial) = self.within.take() {
                return Ok(self.part(partial, input));
            }
            let Some(head) = head(input, self.role)? else { return Ok(None) };
            if head.opcode.is_control() {
                // The head has been checked: at most 125 bytes.
                let whole = head.size + head.length as usize;
                if input.len() < whole {
                    return Ok(None);
                }
                input.advance(head.size);
                let mut data = input.split_to(head.length as usize);
                unmask(&mut data, head.mask);
                return control(head.opcode, data.freeze()).map(Some);
            }
            if (head.opcode == Opcode::Continuation) != self.message {
                return Err(WebSocketError::Fragments);
            }
            self.fresh = self.fresh || !self.message;
            self.message = true;
            input.advance(head.size);
            if head.length == 0 {
                if head.fin {
                    return Ok(Some(self.hand_out(true, Bytes::new())));
                }
                continue;
            }
            self.within = Some(Partial { left: head.length, fin: head.fin, mask: head.mask });
        }
    }

    fn part(&mut self, mut partial: Partial, input: &mut BytesMut) -> Option<Event> {
        if input.is_empty() {
            self.within = Some(partial);
            return None;
        }
        let length = usize::try_from(partial.left).unwrap_or(usize::MAX).min(input.len());
        let mut data = input.split_to(length);
        unmask(&mut data, partial.mask);
        partial.left -= length as u64;
        let last = partial.left == 0 && partial.fin;
        if partial.left > 0 {
            if let Some(mask) = &mut partial.mask {
                mask.rotate_left(length % 4);
            }
            self.within = Some(partial);
        }
        Some(self.hand_out(last, data.freeze()))
    }

    fn hand_out(&mut self, last: bool, data: Bytes) -> Event {
        let first = std::mem::take(&mut self.fresh);
        self.message = !last;
        Event::Part { first, last, data }
    }
}

fn head(input: &[u8], role: Role) -> Result<Option<Head>, WebSocketError> {
    let Some([first, second]) = input.first_chunk::<2>().copied() else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(WebSocketError::Reserved);
    }
    let opcode = Opcode::from_code(first & 0x0f)?;
    let fin = first & 0x80 != 0;
    let masked = second & 0x80 != 0;
    if masked != (role == Role::Server) {
        return Err(WebSocketError::Mask);
    }
    let short = second & 0x7f;
    if opcode.is_control() && (!fin || short > 125) {
        return Err(WebSocketError::Control);
    }
    let rest = &input[2..];
    let (length, mut size) = match short {
        126 => match rest.first_chunk::<2>() {
            Some(length) => (u64::from(u16::from_be_bytes(*length)), 4),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(length) => (u64::from_be_bytes(*length), 10),
            None => return Ok(None),
        },
        short => (u64::from(short), 2),
    };
    if length > i64::MAX as u64 {
        return Err(WebSocketError::Length);
    }
    let mut mask = None;
    if masked {
        let Some(key) = input[size..].first_chunk::<4>() else { return Ok(None) };
        mask = Some(*key);
        size += 4;
    }
    Ok(Some(Head { fin, opcode, mask, length, size }))
}

fn control(opcode: Opcode, data: Bytes) -> Result<Event, WebSocketError> {
    match opcode {
        Opcode::Ping => Ok(Event::Ping(data)),
        Opcode::Pong => Ok(Event::Pong(data)),
        _ if data.len() == 1 => Err(WebSocketError::Control),
        _ => Ok(Event::Close(data.first_chunk::<2>().map(|code| u16::from_be_bytes(*code)))),
    }
}

fn unmask(data: &mut [u8], mask: Option<[u8; 4]>) {
    let Some(mask) = mask else { return };
    for (byte, key) in data.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends one whole frame that carries `parts` one after the other. `mask` is a client's and new for each frame;
/// a server gives none.
pub fn encode(opcode: Opcode, parts: &[&[u8]], mask: Option<[u8; 4]>, out: &mut BytesMut) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let masked = if mask.is_some() { 0x80 } else { 0 };
    out.reserve(14 + length);
    out.put_u8(0x80 | opcode.code());
    match length {
        0..=125 => out.put_u8(masked | length as u8),
        126..=0xffff => {
            out.put_u8(masked | 126);
            out.put_u16(length as u16);
        }
        _ => {
            out.put_u8(masked | 127);
            out.put_u64(length as u64);
        }
    }
    if let Some(mask) = mask {
        out.put_slice(&mask);
    }
    let begin = out.len();
    for part in parts {
        out.put_slice(part);
    }
    unmask(&mut out[begin..], mask);
}

/// Appends a close frame with a code (RFC 6455, 7.4.1).
pub fn encode_close(code: u16, mask: Option<[u8; 4]>, out: &mut BytesMut) {
    encode(Opcode::Close, &[&code.to_be_bytes()], mask, out);
}
