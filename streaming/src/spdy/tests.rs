//! The codec against itself, against bytes that a real compressor makes, cut anywhere, and against garbage.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::dictionary::dictionary;
use super::*;

fn all(decoder: &mut Decoder, bytes: &[u8], cut: usize) -> Result<Vec<Frame>, SpdyError> {
    let mut input = BytesMut::new();
    let mut frames: Vec<Frame> = Vec::new();
    for part in bytes.chunks(cut.max(1)) {
        input.extend_from_slice(part);
        while let Some(frame) = decoder.decode(&mut input)? {
            match (frames.last_mut(), frame) {
                // Parts of one frame and of neighbouring ones are the same stream of bytes.
                (
                    Some(Frame::Data { stream, fin: fin @ false, data }),
                    Frame::Data { stream: s, fin: f, data: more },
                ) if *stream == s => {
                    *data = Bytes::from([&data[..], &more[..]].concat());
                    *fin = f;
                }
                (_, frame) => frames.push(frame),
            }
        }
        assert!(input.len() <= MAX_CONTROL_FRAME + 8);
    }
    Ok(frames)
}

#[test]
fn the_dictionary_is_the_drafts() {
    // The checksum that every SPDY/3 peer's stream begins with.
    let mut adler = (1u32, 0u32);
    for byte in dictionary() {
        adler.0 = (adler.0 + u32::from(byte)) % 65521;
        adler.1 = (adler.1 + adler.0) % 65521;
    }
    assert_eq!(adler.1 << 16 | adler.0, 0xe3c6_a7c2);
}

#[test]
fn headers_that_a_compressor_made_are_read() {
    let mut compress = Compress::new(Compression::best(), true);
    compress.set_dictionary(&dictionary()).unwrap();
    let mut decoder = Decoder::new();
    for (number, kind) in [(1u32, "error"), (3, "stdin"), (5, "stdout")] {
        let mut plain = Vec::new();
        plain.put_u32(1);
        for text in ["streamtype", kind] {
            plain.put_u32(text.len() as u32);
            plain.put_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(256);
        compress.compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
        let mut bytes = BytesMut::new();
        bytes.put_slice(&[0x80, 3, 0, 1, 0, 0, 0, (10 + block.len()) as u8]);
        bytes.put_u32(number);
        bytes.put_slice(&[0; 6]);
        bytes.put_slice(&block);
        let Some(Frame::SynStream { stream, headers, .. }) = decoder.decode(&mut bytes).unwrap() else {
            panic!()
        };
        assert_eq!((stream, headers.get("streamType")), (number, Some(kind)));
    }
}

#[test]
fn a_block_that_unpacks_endlessly_is_refused() {
    let mut compress = Compress::new(Compression::best(), true);
    let mut block = Vec::with_capacity(8192);
    compress.compress_vec(&vec![0; 1 << 20], &mut block, FlushCompress::Sync).unwrap();
    let mut bytes = BytesMut::new();
    bytes.put_slice(&[0x80, 3, 0, 2, 0]);
    bytes.put_uint((block.len() + 4) as u64, 3);
    bytes.put_u32(1);
    bytes.put_slice(&block);
    assert_eq!(Decoder::new().decode(&mut bytes), Err(SpdyError::HeaderBlock("too long")));
}

/// A SYN_REPLY with these names and values, as they are.
fn reply(headers: &[(&str, &str)]) -> BytesMut {
    let mut plain = Vec::new();
    plain.put_u32(headers.len() as u32);
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        plain.put_u32(text.len() as u32);
        plain.put_slice(text.as_bytes());
    }
    let mut block = Vec::with_capacity(plain.len() + 256);
    Compress::new(Compression::best(), true).compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
    let mut bytes = BytesMut::new();
    bytes.put_slice(&[0x80, 3, 0, 2, 0]);
    bytes.put_uint((block.len() + 4) as u64, 3);
    bytes.put_u32(1);
    bytes.put_slice(&block);
    bytes
}

#[test]
fn names_come_once_and_with_few_values() {
    let refused = |headers: &[(&str, &str)]| Decoder::new().decode(&mut reply(headers)).unwrap_err();
    assert_eq!(
        refused(&[("a", "1"), ("b", "2"), ("A", "3")]),
        SpdyError::HeaderBlock("has an empty name, or one twice")
    );
    assert_eq!(refused(&[("", "1")]), SpdyError::HeaderBlock("has an empty name, or one twice"));
    // Sixteen kilobytes that would be sixty megabytes of headers.
    let (name, values) = ("n".repeat(8000), "\0".repeat(8000));
    assert_eq!(refused(&[(&name, &values)]), SpdyError::HeaderBlock("has too many values"));
    let taken = Decoder::new().decode(&mut reply(&[("a", "1\x002"), ("b", "3")])).unwrap();
    let Some(Frame::SynReply { headers, .. }) = taken else { panic!("{taken:?}") };
    assert_eq!(headers.iter().collect::<Vec<_>>(), [("a", "1"), ("a", "2"), ("b", "3")]);
}

#[test]
fn what_is_too_long_or_another_version_is_refused_before_it_is_held() {
    let mut long = BytesMut::from(&[0x80, 3, 0, 4, 0, 0xff, 0xff, 0xff][..]);
    assert_eq!(Decoder::new().decode(&mut long), Err(SpdyError::TooLong(0xff_ffff)));
    let mut old = BytesMut::from(&[0x80, 2, 0, 4, 0, 0, 0, 0][..]);
    assert_eq!(Decoder::new().decode(&mut old), Err(SpdyError::Version(2)));
}

fn headers() -> impl Strategy<Value = Headers> {
    proptest::collection::btree_map("[a-z]{1,8}", "[ -~]{0,20}", 0..4).prop_map(|map| {
        map.into_iter().fold(Headers::new(), |headers, (name, value)| headers.with(&name, value))
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let stream = 1u32..0x7fff_ffff;
    prop_oneof![
        (stream.clone(), any::<bool>(), any::<bool>(), headers()).prop_map(
            |(stream, fin, unidirectional, headers)| {
                Frame::SynStream { stream, fin, unidirectional, headers }
            }
        ),
        (stream.clone(), any::<bool>(), headers()).prop_map(|(s, fin, headers)| Frame::SynReply {
            stream: s,
            fin,
            headers
        }),
        (stream.clone(), any::<bool>(), headers()).prop_map(|(s, fin, headers)| Frame::Headers {
            stream: s,
            fin,
            headers
        }),
        stream.clone().prop_map(|stream| Frame::RstStream { stream, status: ResetStatus::Cancel }),
        proptest::collection::vec((any::<u32>(), any::<u32>()), 0..4).prop_map(Frame::Settings),
        any::<u32>().prop_map(Frame::Ping),
        (stream.clone(), 0u32..3).prop_map(|(last_stream, status)| Frame::GoAway { last_stream, status }),
        (stream.clone(), 0u32..9).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
        (stream, proptest::collection::vec(any::<u8>(), 1..300)).prop_map(|(stream, data)| Frame::Data {
            stream,
            fin: true,
            data: data.into()
        }),
    ]
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_frames(frames in proptest::collection::vec(frame(), 1..12), cut in 1usize..40) {
        let mut encoder = Encoder::new();
        let mut bytes = BytesMut::new();
        for frame in &frames {
            encoder.encode(frame, &mut bytes);
        }
        prop_assert_eq!(all(&mut Decoder::new(), &bytes, cut).unwrap(), frames);
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 1usize..40) {
        let _ = all(&mut Decoder::new(), &bytes, cut);
        // The same behind a plausible head, to get past the first byte.
        for kind in 1..10u8 {
            let mut framed = vec![0x80, 3, 0, kind, 0, 0, (bytes.len() >> 8) as u8, bytes.len() as u8];
            framed.extend_from_slice(&bytes);
            let _ = all(&mut Decoder::new(), &framed, cut);
        }
    }
}
