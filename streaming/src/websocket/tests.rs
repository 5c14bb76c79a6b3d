//! The codec against itself from both ends, cut anywhere, and against garbage and each rule that a peer may break.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use proptest::prelude::*;

use super::*;

const MASK: Option<[u8; 4]> = Some([1, 2, 3, 250]);

/// Messages whole, control frames as they come.
fn all(role: Role, bytes: &[u8], cut: usize) -> Result<Vec<Event>, WebSocketError> {
    let mut decoder = Decoder::new(role);
    let (mut input, mut events, mut open) = (BytesMut::new(), Vec::new(), None::<Vec<u8>>);
    for part in bytes.chunks(cut.max(1)) {
        input.extend_from_slice(part);
        while let Some(event) = decoder.decode(&mut input)? {
            let Event::Part { first, last, data } = event else {
                events.push(event);
                continue;
            };
            assert_eq!(first, open.is_none());
            open.get_or_insert_default().extend_from_slice(&data);
            if last {
                events.push(Event::Part { first: true, last: true, data: open.take().unwrap().into() });
            }
        }
        assert!(input.len() < 140);
    }
    Ok(events)
}

fn broken(role: Role, bytes: &[u8]) -> WebSocketError {
    all(role, bytes, 3).unwrap_err()
}

#[test]
fn a_message_may_come_in_fragments_with_a_ping_between() {
    let mut bytes = vec![0x01, 3, b'o', b'n', b'e', 0x89, 1, b'?', 0x00, 0];
    bytes.extend_from_slice(&[0x80, 4, b' ', b't', b'w', b'o']);
    let expected = [
        Event::Ping(Bytes::from_static(b"?")),
        Event::Part { first: true, last: true, data: Bytes::from_static(b"one two") },
    ];
    for cut in 1..bytes.len() {
        assert_eq!(all(Role::Client, &bytes, cut).unwrap(), expected, "cut every {cut}");
    }
}

#[test]
fn each_broken_rule_has_its_error() {
    assert_eq!(broken(Role::Client, &[0xc2, 0]), WebSocketError::Reserved);
    assert_eq!(broken(Role::Client, &[0x83, 0]), WebSocketError::Opcode(3));
    assert_eq!(broken(Role::Client, &[0x82, 0x80, 0, 0, 0, 0]), WebSocketError::Mask);
    assert_eq!(broken(Role::Server, &[0x82, 0]), WebSocketError::Mask);
    assert_eq!(broken(Role::Client, &[0x09, 0]), WebSocketError::Control);
    assert_eq!(broken(Role::Client, &[0x89, 126, 0, 126]), WebSocketError::Control);
    assert_eq!(broken(Role::Client, &[0x88, 1, 3]), WebSocketError::Control);
    assert_eq!(broken(Role::Client, &[0x80, 0]), WebSocketError::Fragments);
    assert_eq!(broken(Role::Client, &[0x02, 0, 0x82, 0]), WebSocketError::Fragments);
    assert_eq!(broken(Role::Client, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]), WebSocketError::Length);
}

#[test]
fn an_endless_message_is_handed_out_piece_by_piece() {
    let mut decoder = Decoder::new(Role::Client);
    let mut input = BytesMut::from(&[0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 7][..]);
    let first = decoder.decode(&mut input).unwrap().unwrap();
    assert_eq!(first, Event::Part { first: true, last: false, data: Bytes::from_static(&[7]) });
    assert_eq!(decoder.decode(&mut input).unwrap(), None);
    input.extend_from_slice(&[8, 9]);
    let next = decoder.decode(&mut input).unwrap().unwrap();
    assert_eq!(next, Event::Part { first: false, last: false, data: Bytes::from_static(&[8, 9]) });
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_messages(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..6),
        cut in 1usize..50, server: bool, code: u16,
    ) {
        let (role, mask) = if server { (Role::Server, MASK) } else { (Role::Client, None) };
        let mut bytes = BytesMut::new();
        let mut expected = Vec::new();
        for message in messages {
            let (front, back) = message.split_at(message.len() / 2);
            encode(Opcode::Binary, &[front, back], mask, &mut bytes);
            expected.push(Event::Part { first: true, last: true, data: message.into() });
        }
        encode_close(code, mask, &mut bytes);
        expected.push(Event::Close(Some(code)));
        prop_assert_eq!(all(role, &bytes, cut).unwrap(), expected);
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 1usize..50) {
        let _ = all(Role::Server, &bytes, cut);
        let _ = all(Role::Client, &bytes, cut);
    }
}
