//! What is saved is what was pulled, to the last bit.
// Also outside of test functions, where clippy does not see that it is a test.
#![allow(clippy::unwrap_used)]

mod image_support;

use std::process::Command;

use coracle_runtime::image::{ArchiveCompression, ArchiveFormat, FailureKind};
use coracle_runtime::testing::{LayerCompression, Member, Tarball, TestImage};
use image_support::{base, open, upper};
use serde_json::json;

fn odd() -> Vec<u8> {
    let long = format!("{}/file", "d".repeat(150));
    Tarball::new()
        .pax(&[("path", long.as_bytes()), ("SCHILY.xattr.user.note", b"x"), ("mtime", b"1700000000.25")])
        .file("short", b"with a PAX path")
        .gnu_long(b'L', &format!("{}/gnu", "g".repeat(120)))
        .file("short", &vec![7; 100_000])
        .member(&Member { flag: b'3', name: "null", device: (1, 3), ..Member::default() })
        .file("empty", b"")
        .finish()
}

#[tokio::test]
async fn a_saved_image_keeps_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let image = TestImage::new()
        .layer(&base(), LayerCompression::Gzip)
        .layer(&upper(), LayerCompression::Zstd)
        .layer(&odd(), LayerCompression::Gzip)
        .config(json!({"Cmd": ["sh"]}));
    let source = dir.path().join("source.tar");
    std::fs::write(&source, image.docker_archive(&["app:1", "app:2"])).unwrap();
    let store = open(dir.path());
    store.load(&source, |_| {}).await.unwrap();
    let names = ["app:1".to_owned()];
    for (format, compression) in [
        (ArchiveFormat::DockerArchive, ArchiveCompression::Plain),
        (ArchiveFormat::DockerArchive, ArchiveCompression::Gzip),
        (ArchiveFormat::OciArchive, ArchiveCompression::Zstd),
        (ArchiveFormat::OciLayout, ArchiveCompression::Plain),
    ] {
        let saved = dir.path().join(format!("{format:?}-{compression:?}"));
        store.save(&names, &saved, format, compression, |_| {}).await.unwrap();
        let other = tempfile::tempdir().unwrap();
        let again = open(other.path()).load(&saved, |_| {}).await.unwrap();
        assert_eq!(again[0].id, image.id().to_string(), "{format:?}");
        assert_eq!(again[0].repo_tags, ["docker.io/library/app:1", "docker.io/library/app:2"], "{format:?}");
        if saved.is_file() {
            let listed = Command::new("tar").arg("-tf").arg(&saved).output().unwrap();
            assert!(listed.status.success(), "tar reads it: {listed:?}");
        }
    }
    let names = ["none".to_owned()];
    let saved =
        store.save(&names, &source, ArchiveFormat::OciArchive, ArchiveCompression::Plain, |_| {}).await;
    assert_eq!(saved.unwrap_err().kind(), Some(FailureKind::NotFound));
}
