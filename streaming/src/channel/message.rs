//! Channels in WebSocket messages: a message's first byte is the channel, the rest is for it. Called by `mux`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};

use crate::websocket::{Opcode, encode};

/// The channel that says in v5 that the sender is done with another one.
const CLOSE: u8 = 255;

/// How a message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// A binary message: the channel's number, then the bytes.
    Binary,
    /// A text message: the channel's digit, then the bytes in base64.
    Base64,
}

impl Encoding {
    /// Appends one message. `mask` as for [`encode`].
    pub fn encode(self, channel: u8, data: &[u8], mask: Option<[u8; 4]>, out: &mut BytesMut) {
        match self {
            Self::Binary => encode(Opcode::Binary, &[&[channel], data], mask, out),
            Self::Base64 => {
                let text = STANDARD.encode(data);
                encode(Opcode::Text, &[&[b'0' + channel], text.as_bytes()], mask, out);
            }
        }
    }

    /// Appends v5's word that this side is done with a channel.
    pub fn encode_close(channel: u8, mask: Option<[u8; 4]>, out: &mut BytesMut) {
        encode(Opcode::Binary, &[&[CLOSE, channel]], mask, out);
    }
}

/// What a part of a message brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageItem {
    /// Bytes for a channel.
    Data(u8, Bytes),
    /// The peer is done with a channel.
    Close(u8),
}

/// Why a message is none of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not two bytes.
    #[error("close signal is not followed by one channel")]
    Close,
    /// Not base64.
    #[error("message is not base64")]
    Base64,
}

enum Message {
    None,
    For(u8),
    Close(Option<u8>),
}

/// Reads messages that come in parts.
pub struct MessageDecoder {
    encoding: Encoding,
    close_signal: bool,
    message: Message,
    /// Characters of base64 that are no whole group yet.
    group: BytesMut,
}

impl MessageDecoder {
    /// `close_signal` is v5's.
    pub fn new(encoding: Encoding, close_signal: bool) -> Self {
        Self { encoding, close_signal, message: Message::None, group: BytesMut::new() }
    }

    /// Takes a part; `last` ends the message. An empty message means nothing, as with the kubelet.
    pub fn part(&mut self, last: bool, mut data: Bytes) -> Result<Option<MessageItem>, MessageError> {
        if matches!(self.message, Message::None) && !data.is_empty() {
            let channel = data.split_to(1)[0];
            self.message = match (self.encoding, channel) {
                (Encoding::Binary, CLOSE) if self.close_signal => Message::Close(None),
                (Encoding::Binary, channel) => Message::For(channel),
                (Encoding::Base64, digit) => Message::For(digit.wrapping_sub(b'0')),
            };
        }
        let item = match &mut self.message {
            Message::None => None,
            Message::For(channel) => {
                let channel = *channel;
                let data = self.decoded(last, data)?;
                (!data.is_empty()).then_some(MessageItem::Data(channel, data))
            }
            Message::Close(target) => {
                for byte in data {
                    if target.replace(byte).is_some() {
                        return Err(MessageError::Close);
                    }
                }
                match target {
                    Some(channel) if last => Some(MessageItem::Close(*channel)),
                    None if last => return Err(MessageError::Close),
                    _ => None,
                }
            }
        };
        if last {
            self.message = Message::None;
        }
        Ok(item)
    }

    fn decoded(&mut self, last: bool, data: Bytes) -> Result<Bytes, MessageError> {
        if self.encoding == Encoding::Binary {
            return Ok(data);
        }
        self.group.put_slice(&data);
        let whole = if last { self.group.len() } else { self.group.len() / 4 * 4 };
        let text = self.group.split_to(whole);
        STANDARD.decode(&text).map(Bytes::from).map_err(|_| MessageError::Base64)
    }
}
