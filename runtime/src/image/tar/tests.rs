//! The reader against hostile and odd headers.

use std::io::{Cursor, Read};

use super::*;
use crate::testing::{Member, Tarball};

fn read(bytes: Vec<u8>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut archive = Archive::new(Cursor::new(bytes));
    let mut found = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut content = Vec::new();
        archive.content().read_to_end(&mut content)?;
        found.push((String::from_utf8_lossy(&entry.path).into_owned(), content));
    }
    Ok(found)
}

#[test]
fn long_names_in_both_forms() {
    let long = "n".repeat(180);
    let tar = Tarball::new()
        .gnu_long(b'L', &long)
        .file("n", b"gnu")
        .pax(&[("path", long.as_bytes())])
        .file("n", b"pax")
        .member(&Member { flag: b'g', name: "g", content: b"16 comment=hello", ..Member::default() });
    // A global header must end in a newline to be well-formed; this one does not.
    assert!(read(tar.clone().finish()).is_err());
    let tar = Tarball::new()
        .gnu_long(b'L', &long)
        .file("n", b"gnu")
        .pax(&[("path", long.as_bytes())])
        .file("n", b"pax");
    let found = read(tar.finish()).unwrap();
    assert_eq!(found, [(long.clone(), b"gnu".to_vec()), (long, b"pax".to_vec())]);
}

#[test]
fn a_claimed_length_takes_no_memory() {
    let huge = Member { flag: b'x', name: "x", content: b"", ..Member::default() };
    let mut bytes = Tarball::new().member(&huge).finish();
    bytes[124..136].copy_from_slice(b"77777777777\0");
    let sum: u32 = bytes[..512]
        .iter()
        .enumerate()
        .map(|(i, &b)| if (148..156).contains(&i) { 32 } else { b.into() })
        .sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let error = read(bytes).unwrap_err();
    assert!(error.to_string().contains("1 MiB"), "{error}");
}

#[test]
fn what_is_no_tar_is_said_to_be_none() {
    let error = read(vec![b'x'; 2048]).unwrap_err();
    assert!(error.to_string().contains("check sum"), "{error}");
    assert_eq!(read(vec![b'x'; 100]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let whole = Tarball::new().file("a", &[1; 2000]).finish();
    assert_eq!(read(whole[..1500].to_vec()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(read(Vec::new()).unwrap(), []);
    // Some writers leave out the end mark, some the last padding.
    assert_eq!(read(whole[..512 + 2000].to_vec()).unwrap().len(), 1);
}

#[test]
fn numbers_past_octal() {
    assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]).unwrap(), 256);
    assert_eq!(
        number::time(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]).unwrap(),
        -2
    );
    assert!(number(&[0xff; 12]).is_err());
    assert_eq!(number(b"  755 \0 ").unwrap(), 0o755);
    assert!(number(b"9\0").is_err());
    assert_eq!(number(b"\0\0\0\0").unwrap(), 0);
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    for map in [&b"100,10"[..], b"0,5,0,5", b"0,99999", b"0", b"18446744073709551615,1"] {
        let tar =
            Tarball::new().pax(&[("GNU.sparse.size", b"50"), ("GNU.sparse.map", map)]).file("x", &[0; 10]);
        assert!(read(tar.finish()).is_err(), "{}", String::from_utf8_lossy(map));
    }
}

#[test]
fn every_byte_is_either_recorded_or_content() {
    #[derive(Default)]
    struct Everything(Vec<u8>);
    impl Recorder for Everything {
        fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }
    let tar = Tarball::new()
        .file("skipped", &[1; 700])
        .gnu_long(b'L', "long")
        .file("read", &[2; 900])
        .raw(b"")
        .finish();
    let mut archive = Archive::recording(Cursor::new(tar.clone()), Everything::default());
    while let Some(entry) = archive.next().unwrap() {
        if entry.path == b"long" {
            let mut content = Vec::new();
            archive.content().read_to_end(&mut content).unwrap();
            archive.recorder().literal(&content).unwrap();
        }
    }
    let (_, recorded) = archive.finish().unwrap();
    assert!(recorded.0 == tar);
}
