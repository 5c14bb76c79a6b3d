//! The protocols as the driver sees them: streams, data, goodbye. One wire per connection; no I/O.

use std::hash::{BuildHasher, Hasher, RandomState};

use bytes::{Bytes, BytesMut};

use crate::channel::{Encoding, MessageDecoder, MessageError, MessageItem};
use crate::spdy::{self, Frame, Headers, ResetStatus, SpdyError};
use crate::websocket::{self, Opcode, Role, WebSocketError};

/// What came.
#[derive(Debug)]
pub(crate) enum Event {
    /// The peer opens a stream.
    Open { stream: u32, headers: Headers, fin: bool },
    /// The peer took a stream.
    Opened { stream: u32, fin: bool },
    /// Bytes of a stream; with `fin` the last.
    Data { stream: u32, fin: bool, data: Bytes },
    /// The peer ended a stream in both directions.
    Reset(u32),
    /// Nothing for a stream, but answers filled `out`: time to look at the limits.
    Nothing,
    /// The peer opens no more streams; if `last`, nothing comes any more.
    Goodbye { last: bool },
}

/// What a peer did wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("SPDY")]
    Spdy(#[from] SpdyError),
    #[error("WebSocket")]
    WebSocket(#[from] WebSocketError),
    #[error("WebSocket channels")]
    Message(#[from] MessageError),
}

/// One protocol on one connection. What it writes goes to the end of `out`.
pub(crate) trait Wire: Send {
    /// Takes one event from the front of `input`, or asks for more by `None`. Answers what the protocol alone answers.
    fn receive(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<Option<Event>, WireError>;
    fn open(&mut self, stream: u32, headers: &Headers, out: &mut BytesMut);
    fn accept(&mut self, stream: u32, out: &mut BytesMut);
    fn data(&mut self, stream: u32, data: &[u8], out: &mut BytesMut);
    /// This side is done with the stream.
    fn finish(&mut self, stream: u32, out: &mut BytesMut);
    /// Both sides are.
    fn reset(&mut self, stream: u32, out: &mut BytesMut);
    /// No more will be said.
    fn goodbye(&mut self, out: &mut BytesMut);
}

/// Sixteen bytes that no peer can guess: the standard library keys its hashers from the system's randomness.
pub(crate) fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    for half in bytes.chunks_mut(8) {
        half.copy_from_slice(&RandomState::new().build_hasher().finish().to_ne_bytes());
    }
    bytes
}

/// Masks of the frames that a client sends.
struct Masks {
    role: Role,
    keys: RandomState,
    count: u64,
}

impl Masks {
    fn new(role: Role) -> Self {
        Self { role, keys: RandomState::new(), count: 0 }
    }

    fn next(&mut self) -> Option<[u8; 4]> {
        if self.role == Role::Server {
            return None;
        }
        self.count += 1;
        self.keys.hash_one(self.count).to_ne_bytes().first_chunk::<4>().copied()
    }
}

/// SPDY/3.1.
pub(crate) struct SpdyWire {
    role: Role,
    decoder: spdy::Decoder,
    encoder: spdy::Encoder,
    /// The last stream that the peer opened.
    last: u32,
}

impl SpdyWire {
    pub(crate) fn new(role: Role) -> Self {
        Self { role, decoder: spdy::Decoder::new(), encoder: spdy::Encoder::new(), last: 0 }
    }

    /// Whether a number is the peer's to give: clients have the odd ones.
    fn is_peers(&self, number: u32) -> bool {
        (number % 2 == 1) == (self.role == Role::Server)
    }
}

impl Wire for SpdyWire {
    fn receive(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<Option<Event>, WireError> {
        while let Some(frame) = self.decoder.decode(input)? {
            match frame {
                Frame::SynStream { stream, .. } if !self.is_peers(stream) || stream <= self.last => {
                    let status = ResetStatus::ProtocolError;
                    self.encoder.encode(&Frame::RstStream { stream, status }, out);
                    if out.len() >= super::OUT_LIMIT {
                        return Ok(Some(Event::Nothing));
                    }
                }
                Frame::SynStream { stream, fin, headers, .. } => {
                    self.last = stream;
                    return Ok(Some(Event::Open { stream, headers, fin }));
                }
                Frame::SynReply { stream, fin, .. } => return Ok(Some(Event::Opened { stream, fin })),
                Frame::RstStream { stream, .. } => return Ok(Some(Event::Reset(stream))),
                Frame::Data { stream, fin, data } => return Ok(Some(Event::Data { stream, fin, data })),
                Frame::Headers { stream, fin: true, .. } => {
                    return Ok(Some(Event::Data { stream, fin: true, data: Bytes::new() }));
                }
                Frame::Ping(number) if self.is_peers(number) => {
                    self.encoder.encode(&Frame::Ping(number), out);
                    if out.len() >= super::OUT_LIMIT {
                        return Ok(Some(Event::Nothing));
                    }
                }
                Frame::GoAway { .. } => return Ok(Some(Event::Goodbye { last: false })),
                Frame::Headers { .. } | Frame::Ping(_) | Frame::Settings(_) | Frame::WindowUpdate { .. } => {}
            }
        }
        Ok(None)
    }

    fn open(&mut self, stream: u32, headers: &Headers, out: &mut BytesMut) {
        let headers = headers.clone();
        self.encoder.encode(&Frame::SynStream { stream, fin: false, unidirectional: false, headers }, out);
    }

    fn accept(&mut self, stream: u32, out: &mut BytesMut) {
        self.encoder.encode(&Frame::SynReply { stream, fin: false, headers: Headers::new() }, out);
    }

    fn data(&mut self, stream: u32, data: &[u8], out: &mut BytesMut) {
        self.encoder.data(stream, false, data, out);
    }

    fn finish(&mut self, stream: u32, out: &mut BytesMut) {
        self.encoder.data(stream, true, &[], out);
    }

    fn reset(&mut self, stream: u32, out: &mut BytesMut) {
        self.encoder.encode(&Frame::RstStream { stream, status: ResetStatus::Cancel }, out);
    }

    fn goodbye(&mut self, out: &mut BytesMut) {
        self.encoder.encode(&Frame::GoAway { last_stream: self.last, status: 0 }, out);
    }
}

/// The WebSocket frames around channels or a tunnel.
struct Frames {
    decoder: websocket::Decoder,
    masks: Masks,
    closed: bool,
}

impl Frames {
    fn new(role: Role) -> Self {
        Self { decoder: websocket::Decoder::new(role), masks: Masks::new(role), closed: false }
    }

    /// The next part of a message as (last, data), or goodbye.
    fn receive(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<Option<Part>, WebSocketError> {
        while let Some(event) = self.decoder.decode(input)? {
            match event {
                websocket::Event::Part { last, data, .. } => return Ok(Some(Part::Data { last, data })),
                websocket::Event::Ping(data) => {
                    websocket::encode(Opcode::Pong, &[&data], self.masks.next(), out);
                    if out.len() >= super::OUT_LIMIT {
                        return Ok(Some(Part::Data { last: false, data: Bytes::new() }));
                    }
                }
                websocket::Event::Pong(_) => {}
                websocket::Event::Close(_) => return Ok(Some(Part::Goodbye)),
            }
        }
        Ok(None)
    }

    fn goodbye(&mut self, out: &mut BytesMut) {
        if !std::mem::replace(&mut self.closed, true) {
            websocket::encode_close(1000, self.masks.next(), out);
        }
    }
}

enum Part {
    Data { last: bool, data: Bytes },
    Goodbye,
}

/// Channels in WebSocket messages. Streams are known beforehand; their numbers are the channels.
pub(crate) struct ChannelWire {
    frames: Frames,
    messages: MessageDecoder,
    encoding: Encoding,
    /// Only v5's clients half-close: its servers' signal would be an unknown channel to `kubectl`.
    close_signal: bool,
}

impl ChannelWire {
    pub(crate) fn new(role: Role, encoding: Encoding, v5: bool) -> Self {
        Self {
            frames: Frames::new(role),
            messages: MessageDecoder::new(encoding, v5 && role == Role::Server),
            encoding,
            close_signal: v5 && role == Role::Client,
        }
    }
}

impl Wire for ChannelWire {
    fn receive(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<Option<Event>, WireError> {
        while let Some(part) = self.frames.receive(input, out)? {
            let Part::Data { last, data } = part else { return Ok(Some(Event::Goodbye { last: true })) };
            let item = self.messages.part(last, data)?.map(|item| match item {
                MessageItem::Data(channel, data) => Event::Data { stream: channel.into(), fin: false, data },
                MessageItem::Close(channel) => {
                    Event::Data { stream: channel.into(), fin: true, data: Bytes::new() }
                }
            });
            if item.is_some() {
                return Ok(item);
            }
            if out.len() >= super::OUT_LIMIT {
                return Ok(Some(Event::Nothing));
            }
        }
        Ok(None)
    }

    fn open(&mut self, _stream: u32, _headers: &Headers, _out: &mut BytesMut) {}

    fn accept(&mut self, _stream: u32, _out: &mut BytesMut) {}

    fn data(&mut self, stream: u32, data: &[u8], out: &mut BytesMut) {
        self.encoding.encode(stream as u8, data, self.frames.masks.next(), out);
    }

    fn finish(&mut self, stream: u32, out: &mut BytesMut) {
        if self.close_signal {
            Encoding::encode_close(stream as u8, self.frames.masks.next(), out);
        }
    }

    fn reset(&mut self, stream: u32, out: &mut BytesMut) {
        self.finish(stream, out);
    }

    fn goodbye(&mut self, out: &mut BytesMut) {
        self.frames.goodbye(out);
    }
}

/// SPDY whose bytes travel in binary WebSocket messages.
pub(crate) struct TunnelWire {
    frames: Frames,
    spdy: SpdyWire,
    /// SPDY bytes out of messages.
    inner: BytesMut,
}

impl TunnelWire {
    pub(crate) fn new(role: Role) -> Self {
        Self { frames: Frames::new(role), spdy: SpdyWire::new(role), inner: BytesMut::new() }
    }

    /// Puts what SPDY says into one message.
    fn wrap<T>(&mut self, out: &mut BytesMut, say: impl FnOnce(&mut SpdyWire, &mut BytesMut) -> T) -> T {
        let mut said = BytesMut::new();
        let result = say(&mut self.spdy, &mut said);
        if !said.is_empty() {
            websocket::encode(Opcode::Binary, &[&said], self.frames.masks.next(), out);
        }
        result
    }
}

impl Wire for TunnelWire {
    fn receive(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<Option<Event>, WireError> {
        loop {
            let mut inner = std::mem::take(&mut self.inner);
            let event = self.wrap(out, |spdy, said| spdy.receive(&mut inner, said));
            // An empty buffer is given back, so that an idle tunnel holds none.
            self.inner = if inner.is_empty() { BytesMut::new() } else { inner };
            if let Some(event) = event? {
                return Ok(Some(event));
            }
            match self.frames.receive(input, out)? {
                Some(Part::Data { data, .. }) => self.inner.extend_from_slice(&data),
                Some(Part::Goodbye) => return Ok(Some(Event::Goodbye { last: true })),
                None => return Ok(None),
            }
            if out.len() >= super::OUT_LIMIT {
                return Ok(Some(Event::Nothing));
            }
        }
    }

    fn open(&mut self, stream: u32, headers: &Headers, out: &mut BytesMut) {
        self.wrap(out, |spdy, said| spdy.open(stream, headers, said));
    }

    fn accept(&mut self, stream: u32, out: &mut BytesMut) {
        self.wrap(out, |spdy, said| spdy.accept(stream, said));
    }

    fn data(&mut self, stream: u32, data: &[u8], out: &mut BytesMut) {
        self.wrap(out, |spdy, said| spdy.data(stream, data, said));
    }

    fn finish(&mut self, stream: u32, out: &mut BytesMut) {
        self.wrap(out, |spdy, said| spdy.finish(stream, said));
    }

    fn reset(&mut self, stream: u32, out: &mut BytesMut) {
        self.wrap(out, |spdy, said| spdy.reset(stream, said));
    }

    fn goodbye(&mut self, out: &mut BytesMut) {
        self.wrap(out, SpdyWire::goodbye);
        self.frames.goodbye(out);
    }
}
