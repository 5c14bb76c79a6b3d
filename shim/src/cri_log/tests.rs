//! Lines, parts, time stamps, and a disk that refuses.

use std::fs;

use proptest::prelude::*;

use super::*;

fn lines(chunks: &[&[u8]]) -> Vec<(Tag, Vec<u8>)> {
    let mut framer = Framer::default();
    let mut out = Vec::new();
    for chunk in chunks {
        framer.push(chunk, |tag, a, b| out.push((tag, [a, b].concat())));
    }
    framer.finish(|tag, a, b| out.push((tag, [a, b].concat())));
    out
}

#[test]
fn whole_lines_empty_lines_and_a_part_at_the_end() {
    let full = |s: &str| (Tag::Full, s.as_bytes().to_vec());
    let part = |s: &str| (Tag::Partial, s.as_bytes().to_vec());
    for (chunks, expected) in [
        (vec!["one\ntwo\n"], vec![full("one"), full("two")]),
        (vec!["\n\n"], vec![full(""), full("")]),
        (vec!["on", "e", "\nt", "wo"], vec![full("one"), part("two")]),
        (
            vec!["dos\r\n", "x\r", "\n", "\r\n", "a\rb\n"],
            vec![full("dos"), full("x"), full(""), full("a\rb")],
        ),
        (vec![""], vec![]),
    ] {
        let chunks: Vec<&[u8]> = chunks.into_iter().map(str::as_bytes).collect();
        assert_eq!(lines(&chunks), expected);
    }
}

#[test]
fn a_long_line_is_cut_where_containerd_cuts_it() {
    let exact = vec![b'x'; MAX_LINE];
    assert_eq!(lines(&[&exact, b"\n"]), [(Tag::Full, exact.clone())]);
    let longer = [exact.as_slice(), b"yz\n"].concat();
    assert_eq!(lines(&[&longer]), [(Tag::Partial, exact.clone()), (Tag::Full, b"yz".to_vec())]);
    let three = vec![b'x'; 2 * MAX_LINE + 1];
    let seen: Vec<usize> = lines(&[&three]).iter().map(|(_, l)| l.len()).collect();
    assert_eq!(seen, [MAX_LINE, MAX_LINE, 1]);
}

#[test]
fn stamps_are_rfc3339_in_utc() {
    let mut stamp = Stamp::default();
    for (ns, text) in [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
        (1_709_251_199_123_456_789, "2024-02-29T23:59:59.123456789Z"),
        (1_735_689_599_999_999_999, "2024-12-31T23:59:59.999999999Z"),
        (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
        (-5, "1970-01-01T00:00:00.000000000Z"),
    ] {
        stamp.set(ns);
        assert_eq!(std::str::from_utf8(&stamp.text).unwrap(), text);
    }
}

#[test]
fn writes_and_reopens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut log = LogFile::open(&path).unwrap();
    log.set_time(1_000_000_001);
    log.line(StreamName::Stdout, Tag::Full, b"he", b"llo");
    log.line(StreamName::Stderr, Tag::Partial, b"", b"oops");
    log.flush();
    let expected =
        "1970-01-01T00:00:01.000000001Z stdout F hello\n1970-01-01T00:00:01.000000001Z stderr P oops\n";
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    fs::rename(&path, dir.path().join("old")).unwrap();
    log.reopen().unwrap();
    log.line(StreamName::Stdout, Tag::Full, b"new", b"");
    log.flush();
    assert_eq!(fs::read_to_string(&path).unwrap(), "1970-01-01T00:00:01.000000001Z stdout F new\n");
}

#[test]
fn a_full_device_drops_counts_and_tells() {
    let mut log = LogFile::open(Path::new("/dev/full")).unwrap();
    log.line(StreamName::Stdout, Tag::Full, b"12345", b"");
    log.flush();
    log.line(StreamName::Stdout, Tag::Full, b"678", b"");
    log.flush();
    assert_eq!(log.dropped(), 8);
    assert_eq!(log.refusal().unwrap().raw_os_error(), Some(libc::ENOSPC));
    let dir = tempfile::tempdir().unwrap();
    log.path = dir.path().join("log");
    log.reopen().unwrap();
    log.line(StreamName::Stdout, Tag::Full, b"again", b"");
    log.flush();
    let text = fs::read_to_string(&log.path).unwrap();
    assert!(text.contains(" stderr F [coracle-shim: 8 bytes of output dropped: No space left"), "{text}");
    assert!(text.ends_with(" stdout F again\n"), "{text}");
    assert!(log.refusal().is_none());
    assert_eq!(log.dropped(), 8);
}

proptest! {
    #[test]
    fn nothing_is_lost_however_reads_are_cut(
        text in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), Just(b'b')], 0..400),
        step in 1usize..50,
    ) {
        let whole = lines(&[&text]);
        let chunks: Vec<&[u8]> = text.chunks(step).collect();
        prop_assert_eq!(&lines(&chunks), &whole);
        let mut again = Vec::new();
        for (tag, line) in whole {
            again.extend_from_slice(&line);
            if tag == Tag::Full {
                again.push(b'\n');
            }
        }
        prop_assert_eq!(again, text);
    }
}
