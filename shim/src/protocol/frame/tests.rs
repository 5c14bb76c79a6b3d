//! The framing against bytes written by hand and against streams cut at random.

use proptest::prelude::*;

use super::*;
use crate::protocol::{Request, Response};

#[test]
fn header_is_big_endian_as_ttrpc_writes_it() {
    let header = Header { len: 0x0001_0203, stream_id: 7, kind: Kind::Request, flags: 1 };
    assert_eq!(header.encode(), [0, 1, 2, 3, 0, 0, 0, 7, 1, 1]);
    assert_eq!(Header::parse(&header.encode()), Ok(header));
}

#[test]
fn refuses_what_no_peer_sends() {
    let mut bytes = Header { len: 0, stream_id: 1, kind: Kind::Response, flags: 0 }.encode();
    bytes[8] = 9;
    assert_eq!(Header::parse(&bytes), Err(FrameError::UnknownKind(9)));
    let long = Header { len: (4 << 20) + 1, stream_id: 1, kind: Kind::Request, flags: 0 }.encode();
    assert_eq!(Header::parse(&long), Err(FrameError::TooLong((4 << 20) + 1)));
    let mut decoder = Decoder::new();
    decoder.push(b"GET / HTTP/1.1\r\n\r\n");
    assert!(decoder.next_frame().is_err());
}

#[test]
fn an_empty_message_is_a_header_alone() {
    let bytes = encode(Kind::Response, 3, &Response::default());
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 3, 2, 0]);
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    let frame = decoder.next_frame().unwrap().unwrap();
    assert!(frame.payload.is_empty());
    assert_eq!(decoder.next_frame(), Ok(None));
}

#[test]
fn a_promise_reserves_nothing() {
    let mut decoder = Decoder::new();
    decoder.push(&Header { len: 4 << 20, stream_id: 1, kind: Kind::Request, flags: 0 }.encode());
    assert_eq!(decoder.next_frame(), Ok(None));
    assert!(decoder.buffer.capacity() < 64);
}

proptest! {
    #[test]
    fn frames_survive_any_cut(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
        step in 1usize..40,
    ) {
        let requests: Vec<Request> = payloads
            .into_iter()
            .map(|payload| Request { service: "s".into(), method: "m".into(), payload, ..Request::default() })
            .collect();
        let bytes: Vec<u8> =
            requests.iter().zip(0u32..).flat_map(|(r, i)| encode(Kind::Request, 2 * i + 1, r)).collect();
        let mut decoder = Decoder::new();
        let mut seen = Vec::new();
        for chunk in bytes.chunks(step) {
            decoder.push(chunk);
            while let Some(frame) = decoder.next_frame().unwrap() {
                seen.push(<Request as prost::Message>::decode(frame.payload.as_slice()).unwrap());
            }
        }
        prop_assert_eq!(seen, requests);
        prop_assert_eq!(decoder.buffered(), 0);
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.next_frame() {}
    }
}
