//! The codecs of streams. What comes out may not depend on how the bytes arrive, and little may wait to be whole.

use bytes::BytesMut;
use coracle_streaming::channel::{ExecOptions, Outcome, Version};
use coracle_streaming::spdy::{self, Frame, MAX_CONTROL_FRAME};
use coracle_streaming::websocket::{self, Event, Role};

/// The most that may wait for the rest of a WebSocket frame's head or of a control frame.
const WAITING: usize = 139;

/// SPDY frames: as they are, and as a header block that decompresses to the input.
pub(crate) fn spdy(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let bytes = if kind & 1 == 0 { rest.to_vec() } else { syn_stream(rest) };
    let whole = frames(&bytes, bytes.len().max(1));
    let parts = frames(&bytes, usize::from(kind >> 1) + 1);
    assert_eq!(joined(whole.clone()), joined(parts), "frames depend on how bytes arrive");
    // What was read is written so that it reads the same.
    let (mut encoder, mut out) = (spdy::Encoder::new(), BytesMut::new());
    for frame in &whole {
        encoder.encode(frame, &mut out);
    }
    assert_eq!(
        joined(frames(&out, out.len().max(1))),
        joined(whole),
        "a frame is not written as it was read"
    );
}

/// A SYN_STREAM whose header block is the input, put into the compression's plain blocks.
fn syn_stream(block: &[u8]) -> Vec<u8> {
    let block = &block[..block.len().min(8000)];
    let length = block.len() as u16;
    let mut body = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x78, 0x01, 0];
    body.extend(length.to_le_bytes());
    body.extend((!length).to_le_bytes());
    body.extend(block);
    let size = (body.len() as u32).to_be_bytes();
    let mut frame = vec![0x80, 3, 0, 1, 0];
    frame.extend(&size[1..]);
    frame.extend(body);
    frame
}

fn frames(bytes: &[u8], piece: usize) -> Vec<Frame> {
    let (mut decoder, mut waiting, mut frames) = (spdy::Decoder::new(), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        waiting.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut waiting) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
        assert!(waiting.len() <= MAX_CONTROL_FRAME + 8, "{} bytes wait", waiting.len());
    }
    frames
}

/// Parts of one DATA frame made one, since where they are cut says nothing.
fn joined(frames: Vec<Frame>) -> Vec<Frame> {
    let mut all: Vec<Frame> = Vec::new();
    for frame in frames {
        match (all.last_mut(), frame) {
            (
                Some(Frame::Data { stream, fin, data }),
                Frame::Data { stream: same, fin: ends, data: more },
            ) if *stream == same && !*fin => {
                *data = [&data[..], &more[..]].concat().into();
                *fin = ends;
            }
            (_, frame) => all.push(frame),
        }
    }
    all
}

/// WebSocket frames, from either side, and what goes over them.
pub(crate) fn websocket(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let role = if kind & 1 == 0 { Role::Server } else { Role::Client };
    let whole = messages(rest, rest.len().max(1), role);
    let parts = messages(rest, usize::from(kind >> 1) + 1, role);
    assert_eq!(whole, parts, "messages depend on how bytes arrive");
    for version in [Version::V1, Version::V4] {
        let outcome = Outcome::decode(version, rest);
        assert!(!outcome.encode(version).len() > 0 || outcome == Outcome::Exited(0));
    }
    if let Ok(text) = std::str::from_utf8(rest) {
        let _ = ExecOptions::from_query(text);
        assert_eq!(websocket::accept_key(text).len(), 28);
    }
}

/// Messages with their parts joined, and what control frames said.
fn messages(bytes: &[u8], piece: usize, role: Role) -> Vec<(bool, Vec<u8>)> {
    let (mut decoder, mut waiting) = (websocket::Decoder::new(role), BytesMut::new());
    let (mut said, mut message) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        waiting.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut waiting) {
                Ok(Some(Event::Part { first, last, data })) => {
                    assert!(!first || message.is_empty(), "a message begins within another");
                    message.extend_from_slice(&data);
                    if last {
                        said.push((false, std::mem::take(&mut message)));
                    }
                }
                Ok(Some(Event::Ping(data) | Event::Pong(data))) => said.push((true, data.to_vec())),
                Ok(Some(Event::Close(code))) => said.push((true, code.unwrap_or(0).to_be_bytes().to_vec())),
                Ok(None) => break,
                Err(_) => return said,
            }
        }
        assert!(waiting.len() <= WAITING, "{} bytes wait", waiting.len());
    }
    said
}
