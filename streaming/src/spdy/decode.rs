//! Bytes to frames. One decoder per direction of a connection: it holds the state of the header compression and of a
//! DATA frame that is not whole yet.
//!
//! ```text
//!   Head ──(control frame whole)──► Head
//!     └──(head of a DATA frame)──► Data ──(its last byte)──► Head
//! ```

use bytes::{Buf, Bytes, BytesMut};

use super::encode::{
    FLAG_FIN, FLAG_UNIDIRECTIONAL, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, SYN_REPLY, SYN_STREAM,
    WINDOW_UPDATE,
};
use super::headers::Inflater;
use super::{Frame, MAX_CONTROL_FRAME, ResetStatus, SpdyError};

enum State {
    Head,
    Data { stream: u32, fin: bool, left: usize },
}

/// Reads frames.
pub struct Decoder {
    state: State,
    headers: Inflater,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: State::Head, headers: Inflater::default() }
    }
}

impl Decoder {
    /// A decoder at the beginning of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one frame from the front of `input`; `None` asks for more bytes. At most [`MAX_CONTROL_FRAME`] bytes and
    /// a head ever wait in `input`. After an error the connection is over.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        loop {
            match self.state {
                State::Data { stream, fin, left } => return Ok(self.part(stream, fin, left, input)),
                State::Head => {
                    let Some(head) = input.first_chunk::<8>().copied() else { return Ok(None) };
                    let length =
                        usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
                    if head[0] & 0x80 == 0 {
                        let stream = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
                        if stream == 0 {
                            return Err(SpdyError::Malformed("DATA"));
                        }
                        input.advance(8);
                        let fin = head[4] & FLAG_FIN != 0;
                        if length > 0 {
                            self.state = State::Data { stream, fin, left: length };
                        } else if fin {
                            return Ok(Some(Frame::Data { stream, fin, data: Bytes::new() }));
                        }
                        continue;
                    }
                    let version = u16::from_be_bytes([head[0] & 0x7f, head[1]]);
                    if version != 3 {
                        return Err(SpdyError::Version(version));
                    }
                    if length > MAX_CONTROL_FRAME {
                        return Err(SpdyError::TooLong(length));
                    }
                    if input.len() < 8 + length {
                        return Ok(None);
                    }
                    input.advance(8);
                    let body = input.split_to(length);
                    if let Some(frame) =
                        self.control(u16::from_be_bytes([head[2], head[3]]), head[4], &body)?
                    {
                        return Ok(Some(frame));
                    }
                }
            }
        }
    }

    fn part(&mut self, stream: u32, fin: bool, left: usize, input: &mut BytesMut) -> Option<Frame> {
        if input.is_empty() {
            return None;
        }
        let data = input.split_to(left.min(input.len())).freeze();
        let left = left - data.len();
        self.state = if left == 0 { State::Head } else { State::Data { stream, fin, left } };
        Some(Frame::Data { stream, fin: fin && left == 0, data })
    }

    /// `None` is a kind of frame that nobody here knows, which the draft tells to ignore.
    fn control(&mut self, kind: u16, flags: u8, mut body: &[u8]) -> Result<Option<Frame>, SpdyError> {
        let fin = flags & FLAG_FIN != 0;
        Ok(Some(match kind {
            SYN_STREAM => {
                let stream = stream(&mut body, "SYN_STREAM")?;
                let rest = body.get(6..).ok_or(SpdyError::Malformed("SYN_STREAM"))?;
                let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
                Frame::SynStream { stream, fin, unidirectional, headers: self.headers.block(rest)? }
            }
            SYN_REPLY => {
                let stream = stream(&mut body, "SYN_REPLY")?;
                Frame::SynReply { stream, fin, headers: self.headers.block(body)? }
            }
            HEADERS => {
                let stream = stream(&mut body, "HEADERS")?;
                Frame::Headers { stream, fin, headers: self.headers.block(body)? }
            }
            RST_STREAM => {
                let stream = stream(&mut body, "RST_STREAM")?;
                Frame::RstStream { stream, status: ResetStatus::from_code(word(&mut body, "RST_STREAM")?) }
            }
            SETTINGS => {
                let count = word(&mut body, "SETTINGS")? as usize;
                if count > body.len() / 8 {
                    return Err(SpdyError::Malformed("SETTINGS"));
                }
                let pairs =
                    (0..count).map(|_| Ok((word(&mut body, "SETTINGS")?, word(&mut body, "SETTINGS")?)));
                Frame::Settings(pairs.collect::<Result<_, SpdyError>>()?)
            }
            PING => Frame::Ping(word(&mut body, "PING")?),
            GOAWAY => Frame::GoAway {
                last_stream: word(&mut body, "GOAWAY")? & 0x7fff_ffff,
                // Version 2 had no status; who still sends none means no harm.
                status: word(&mut body, "GOAWAY").unwrap_or(0),
            },
            WINDOW_UPDATE => Frame::WindowUpdate {
                stream: word(&mut body, "WINDOW_UPDATE")? & 0x7fff_ffff,
                delta: word(&mut body, "WINDOW_UPDATE")? & 0x7fff_ffff,
            },
            _ => return Ok(None),
        }))
    }
}

fn word(body: &mut &[u8], kind: &'static str) -> Result<u32, SpdyError> {
    let (head, rest) = body.split_first_chunk::<4>().ok_or(SpdyError::Malformed(kind))?;
    *body = rest;
    Ok(u32::from_be_bytes(*head))
}

/// A stream's number, which is never zero.
fn stream(body: &mut &[u8], kind: &'static str) -> Result<u32, SpdyError> {
    match word(body, kind)? & 0x7fff_ffff {
        0 => Err(SpdyError::Malformed(kind)),
        stream => Ok(stream),
    }
}
