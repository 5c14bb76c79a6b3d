//! Frames to bytes. One encoder per direction of a connection: it holds the state of the header compression.

use bytes::{BufMut, BytesMut};

use super::headers::{Deflater, Headers};
use super::{Frame, ResetStatus};

pub(super) const SYN_STREAM: u16 = 1;
pub(super) const SYN_REPLY: u16 = 2;
pub(super) const RST_STREAM: u16 = 3;
pub(super) const SETTINGS: u16 = 4;
pub(super) const PING: u16 = 6;
pub(super) const GOAWAY: u16 = 7;
pub(super) const HEADERS: u16 = 8;
pub(super) const WINDOW_UPDATE: u16 = 9;

pub(super) const FLAG_FIN: u8 = 1;
pub(super) const FLAG_UNIDIRECTIONAL: u8 = 2;

/// What one DATA frame can carry.
const MAX_DATA: usize = (1 << 24) - 1;

/// Writes frames.
#[derive(Default)]
pub struct Encoder {
    headers: Deflater,
}

impl Encoder {
    /// An encoder at the beginning of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a frame.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream { stream, fin, unidirectional, headers } => {
                let flags = u8::from(*fin) * FLAG_FIN + u8::from(*unidirectional) * FLAG_UNIDIRECTIONAL;
                // No stream it is associated with, lowest priority number, no credential slot.
                let mut body = BytesMut::new();
                body.put_u32(*stream);
                body.put_slice(&[0; 6]);
                self.with_headers(SYN_STREAM, flags, body, headers, out);
            }
            Frame::SynReply { stream, fin, headers } => self.reply(SYN_REPLY, *stream, *fin, headers, out),
            Frame::Headers { stream, fin, headers } => self.reply(HEADERS, *stream, *fin, headers, out),
            Frame::RstStream { stream, status } => self.reset(*stream, *status, out),
            Frame::Settings(pairs) => {
                control(SETTINGS, 0, 4 + pairs.len() * 8, out);
                out.put_u32(pairs.len() as u32);
                for (id, value) in pairs {
                    out.put_u32(*id);
                    out.put_u32(*value);
                }
            }
            Frame::Ping(id) => {
                control(PING, 0, 4, out);
                out.put_u32(*id);
            }
            Frame::GoAway { last_stream, status } => pair(GOAWAY, *last_stream, *status, out),
            Frame::WindowUpdate { stream, delta } => pair(WINDOW_UPDATE, *stream, *delta, out),
            Frame::Data { stream, fin, data } => self.data(*stream, *fin, data, out),
        }
    }

    /// Appends data of a stream, without a copy on the way as [`Frame::Data`] would need one.
    pub fn data(&mut self, stream: u32, fin: bool, data: &[u8], out: &mut BytesMut) {
        let mut rest = data;
        loop {
            let (part, after) = rest.split_at(rest.len().min(MAX_DATA));
            let last = after.is_empty();
            out.reserve(8 + part.len());
            out.put_u32(stream & 0x7fff_ffff);
            out.put_u8(u8::from(fin && last) * FLAG_FIN);
            out.put_uint(part.len() as u64, 3);
            out.put_slice(part);
            if last {
                return;
            }
            rest = after;
        }
    }

    fn reset(&mut self, stream: u32, status: ResetStatus, out: &mut BytesMut) {
        pair(RST_STREAM, stream, status.code(), out);
    }

    fn reply(&mut self, kind: u16, stream: u32, fin: bool, headers: &Headers, out: &mut BytesMut) {
        let mut body = BytesMut::new();
        body.put_u32(stream);
        self.with_headers(kind, u8::from(fin) * FLAG_FIN, body, headers, out);
    }

    fn with_headers(
        &mut self,
        kind: u16,
        flags: u8,
        mut body: BytesMut,
        headers: &Headers,
        out: &mut BytesMut,
    ) {
        self.headers.block(headers, &mut body);
        control(kind, flags, body.len(), out);
        out.put_slice(&body);
    }
}

fn control(kind: u16, flags: u8, length: usize, out: &mut BytesMut) {
    out.reserve(8 + length);
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u8(flags);
    out.put_uint(length as u64, 3);
}

fn pair(kind: u16, first: u32, second: u32, out: &mut BytesMut) {
    control(kind, 0, 8, out);
    out.put_u32(first);
    out.put_u32(second);
}
