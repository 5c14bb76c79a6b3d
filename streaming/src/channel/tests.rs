//! The protocols' words, as tables; messages cut anywhere.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::spdy::Headers;
use crate::websocket::{Decoder, Event, Role};

#[test]
fn a_commands_end_is_a_status_with_its_exit_code() {
    let said = Outcome::Exited(3).encode(Version::V4);
    let expected = r#"{"status":"Failure","message":"command terminated with non-zero exit code: 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
    assert_eq!(String::from_utf8(said).unwrap(), expected);
    assert_eq!(Outcome::Success.encode(Version::V5), br#"{"status":"Success"}"#);
    for version in [Version::V4, Version::V5] {
        for outcome in [Outcome::Success, Outcome::Exited(137)] {
            assert_eq!(Outcome::decode(version, &outcome.encode(version)), outcome);
        }
    }
}

#[test]
fn before_v4_only_failure_speaks_and_it_is_text() {
    assert!(Outcome::Success.encode(Version::V2).is_empty());
    assert_eq!(Outcome::decode(Version::V2, b""), Outcome::Success);
    assert_eq!(Outcome::decode(Version::V3, b"no such file"), Outcome::Failed("no such file".into()));
    assert!(matches!(Outcome::decode(Version::V4, b"no such file"), Outcome::Failed(_)));
}

#[test]
fn queries_of_the_api_server_and_the_kubelet_say_the_same() {
    let expected = Some(ExecOptions { stdin: true, stdout: true, stderr: false, tty: true });
    assert_eq!(ExecOptions::from_query("command=sh&stdin=true&stdout=true&stderr=true&tty=true"), expected);
    assert_eq!(ExecOptions::from_query("command=sh&input=1&output=1&error=1&tty=1"), expected);
    assert_eq!(ExecOptions::from_query("command=stdin&stdin=false"), None);
}

#[test]
fn a_terminal_has_sizes_and_no_stderr() {
    let options = ExecOptions { stdin: true, stdout: true, stderr: true, tty: true };
    let v4: Vec<_> = options.streams(Version::V4).map(StreamKind::name).collect();
    assert_eq!(v4, ["error", "stdin", "stdout", "resize"]);
    let v2: Vec<_> = options.streams(Version::V2).map(StreamKind::name).collect();
    assert_eq!(v2, ["error", "stdin", "stdout"]);
}

#[test]
fn the_two_streams_of_a_connection_find_each_other() {
    let headers = |kind: &str, request: &str| {
        let headers = Headers::new().with(STREAM_TYPE, kind).with(PORT, "8080");
        if request.is_empty() { headers } else { headers.with(REQUEST_ID, request) }
    };
    let mut pairing = Pairing::<u32, u32>::default();
    let mut add = |stream: u32, kind: &str, request: &str| {
        pairing.add(ForwardRequest::from_headers(stream, &headers(kind, request)).unwrap(), stream, stream)
    };
    assert_eq!(add(1, "error", "0"), Ok(None));
    assert_eq!(add(3, "data", "1"), Ok(None));
    assert_eq!(add(5, "error", "0"), Err(PairingError::Twice("0".into())));
    assert_eq!(add(7, "error", "1"), Ok(Some((8080, 3, 7))));
    assert_eq!(add(9, "data", "0"), Ok(Some((8080, 9, 1))));
    // Without requests the numbers tell.
    assert_eq!(add(11, "error", ""), Ok(None));
    assert_eq!(add(13, "data", ""), Ok(Some((8080, 13, 11))));
    assert_eq!(add(15, "data", "lonely"), Ok(None));
    assert_eq!(pairing.oldest(), Some(15));
    assert_eq!(pairing.expire(15), Vec::<u32>::new());
    assert_eq!(pairing.expire(16), [15]);
}

#[test]
fn streams_without_a_port_or_a_type_are_refused() {
    let typed = |headers: Headers| ForwardRequest::from_headers(1, &headers).unwrap_err();
    for port in ["", "0", "65536", "http"] {
        assert_eq!(typed(Headers::new().with(STREAM_TYPE, "data").with(PORT, port)), PairingError::Port);
    }
    assert_eq!(typed(Headers::new().with(STREAM_TYPE, "stdin").with(PORT, "80")), PairingError::Type);
}

#[test]
fn only_the_newest_size_matters_and_rubbish_ends_them() {
    let mut decoder = ResizeDecoder::default();
    let sizes = br#"{"Width":80,"Height":24}{"Width":100,"Height":50}"#;
    assert_eq!(decoder.push(&sizes[..10]), None);
    assert_eq!(decoder.push(&sizes[10..]), Some(TerminalSize { width: 100, height: 50 }));
    assert_eq!(
        decoder.push(&TerminalSize { width: 1, height: 2 }.encode()),
        Some(TerminalSize { width: 1, height: 2 })
    );
    assert_eq!(decoder.push(&[b' '; 1000]), None);
    assert_eq!(decoder.push(&sizes[..]), None);
}

fn read(encoding: Encoding, close_signal: bool, bytes: &[u8], cut: usize) -> Option<Vec<MessageItem>> {
    let mut frames = Decoder::new(Role::Client);
    let mut messages = MessageDecoder::new(encoding, close_signal);
    let (mut input, mut items) = (BytesMut::new(), Vec::new());
    for part in bytes.chunks(cut.max(1)) {
        input.extend_from_slice(part);
        while let Some(event) = frames.decode(&mut input).ok()? {
            let Event::Part { last, data, .. } = event else { continue };
            match (items.last_mut(), messages.part(last, data).ok()?) {
                (Some(MessageItem::Data(channel, data)), Some(MessageItem::Data(same, more)))
                    if *channel == same =>
                {
                    *data = Bytes::from([&data[..], &more[..]].concat());
                }
                (_, item) => items.extend(item),
            }
        }
    }
    Some(items)
}

#[test]
fn a_close_signal_is_two_bytes_and_only_v5s() {
    let mut bytes = BytesMut::new();
    Encoding::encode_close(0, None, &mut bytes);
    assert_eq!(read(Encoding::Binary, true, &bytes, 1), Some(vec![MessageItem::Close(0)]));
    let data = MessageItem::Data(255, Bytes::from_static(&[0]));
    assert_eq!(read(Encoding::Binary, false, &bytes, 9), Some(vec![data]));
    for wrong in [&[0x82, 1, 255][..], &[0x82, 3, 255, 0, 1]] {
        assert_eq!(read(Encoding::Binary, true, wrong, 1), None);
    }
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_messages(
        data in proptest::collection::vec(any::<u8>(), 1..300), channel in 0u8..9, cut in 1usize..50, base64: bool,
    ) {
        let encoding = if base64 { Encoding::Base64 } else { Encoding::Binary };
        let mut bytes = BytesMut::new();
        encoding.encode(channel, &data, None, &mut bytes);
        let expected = MessageItem::Data(channel, data.into());
        prop_assert_eq!(read(encoding, true, &bytes, cut), Some(vec![expected]));
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 1usize..50) {
        let mut resize = ResizeDecoder::default();
        let _ = resize.push(&bytes);
        let _ = Outcome::decode(Version::V4, &bytes);
        let mut messages = MessageDecoder::new(Encoding::Base64, true);
        for part in bytes.chunks(cut) {
            let _ = messages.part(cut % 3 == 0, Bytes::copy_from_slice(part));
        }
    }
}
