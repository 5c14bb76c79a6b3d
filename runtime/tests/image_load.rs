//! Images from archives and layouts, and what the store remembers of them.
// Also outside of test functions, where clippy does not see that it is a test.
#![allow(clippy::unwrap_used)]

mod image_support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use coracle_runtime::image::{FailureKind, ImageStore};
use coracle_runtime::testing::{LayerCompression, TestImage};
use image_support::{base, open, options, tree, upper};
use serde_json::json;

fn image() -> TestImage {
    TestImage::new()
        .layer(&base(), LayerCompression::Gzip)
        .layer(&upper(), LayerCompression::Zstd)
        .config(json!({"Env": ["A=b"], "Cmd": ["sh"], "User": "1000:1000", "Labels": null}))
}

fn check_layers(lower_dirs: &[std::path::PathBuf]) {
    let (top, bottom) = (&lower_dirs[0], &lower_dirs[1]);
    let busybox = fs::metadata(bottom.join("bin/busybox")).unwrap();
    assert_eq!(busybox.ino(), fs::metadata(bottom.join("bin/sh")).unwrap().ino(), "hard link");
    assert_eq!(busybox.mode() & 0o7777, 0o755);
    assert_eq!(busybox.mtime(), 1_700_000_000);
    assert_eq!(fs::metadata(bottom.join("bin/su")).unwrap().mode() & 0o7777, 0o4755);
    assert_eq!(
        tree(top),
        ["etc", "etc/removed", "opaque", "opaque/new", "opaque/old", "usr", "usr/lib", "usr/lib/added.so"]
    );
    for whiteout in ["etc/removed", "opaque/old"] {
        let metadata = fs::symlink_metadata(top.join(whiteout)).unwrap();
        assert!(metadata.file_type().is_char_device() && metadata.rdev() == 0, "{whiteout}");
    }
}

#[tokio::test]
async fn loads_a_layout_and_remembers_it() {
    let dir = tempfile::tempdir().unwrap();
    let image = image();
    image.write_layout(&dir.path().join("layout"), "example.com/app:v1").unwrap();
    let store = open(dir.path());
    let loaded = store.load(&dir.path().join("layout"), |_| {}).await.unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].id, image.id().to_string());
    assert_eq!(loaded[0].repo_tags, ["example.com/app:v1"]);
    assert_eq!(loaded[0].config.env, ["A=b"]);
    assert_eq!(loaded[0].config.user, "1000:1000");
    check_layers(&loaded[0].lower_dirs);
    assert_eq!(fs::read_dir(dir.path().join("images/ingest")).unwrap().count(), 0, "blobs are not kept");
    assert_eq!(fs::read_dir(dir.path().join("images/tmp")).unwrap().count(), 0);

    let again = ImageStore::open(options(dir.path()));
    assert!(again.is_err(), "one process writes a store");
    drop(store);
    let store = open(dir.path());
    let found = store.resolve("example.com/app:v1").unwrap();
    assert_eq!(found.id, image.id().to_string());
    assert_eq!(found.config.cmd, ["sh"]);
    check_layers(&found.lower_dirs);
    store.remove("example.com/app:v1").await.unwrap();
    assert!(store.list().is_empty());
    for folder in ["layers", "records", "configs", "tmp"] {
        assert_eq!(fs::read_dir(dir.path().join("images").join(folder)).unwrap().count(), 0, "{folder}");
    }
}

async fn load_file(dir: &Path, name: &str, bytes: &[u8]) -> Vec<String> {
    let store = open(dir);
    fs::write(dir.join(name), bytes).unwrap();
    let loaded = store.load(&dir.join(name), |_| {}).await.unwrap();
    check_layers(&loaded[0].lower_dirs);
    loaded.iter().flat_map(|image| image.repo_tags.clone()).collect()
}

#[tokio::test]
async fn loads_every_kind_of_archive() {
    let image = image();
    let docker = image.docker_archive(&["busybox:1", "busybox:2"]);
    let layout = image.layout_tar("busybox:3");
    for compression in [LayerCompression::Plain, LayerCompression::Gzip, LayerCompression::Zstd] {
        let dir = tempfile::tempdir().unwrap();
        let tags = load_file(dir.path(), "docker.tar", &compression.compress(&docker)).await;
        assert_eq!(tags, ["docker.io/library/busybox:1", "docker.io/library/busybox:2"]);
        let dir = tempfile::tempdir().unwrap();
        let tags = load_file(dir.path(), "layout.tar", &compression.compress(&layout)).await;
        assert_eq!(tags, ["docker.io/library/busybox:3"]);
    }
}

#[tokio::test]
async fn loads_a_folder_of_air_gap_images() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("airgap");
    fs::create_dir(&folder).unwrap();
    let other = TestImage::new().layer(&base(), LayerCompression::Gzip);
    fs::write(folder.join("a.tar"), image().docker_archive(&["a:1"])).unwrap();
    fs::write(folder.join("b.tar.gz"), LayerCompression::Gzip.compress(&other.layout_tar("b:1"))).unwrap();
    fs::write(folder.join("README.txt"), b"no image").unwrap();
    let store = open(dir.path());
    assert_eq!(store.load(&folder, |_| {}).await.unwrap().len(), 2);
    let (a, b) = (store.resolve("a:1").unwrap(), store.resolve("b:1").unwrap());
    assert_eq!(a.lower_dirs[1], b.lower_dirs[0], "one folder per chain ID");
    store.remove("a:1").await.unwrap();
    assert!(b.lower_dirs[0].join("bin/busybox").exists(), "a shared layer stays");
    assert!(!a.lower_dirs[0].exists());
}

#[tokio::test]
async fn a_damaged_archive_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let whole = image().docker_archive(&["a:1"]);
    let wrong = image().wrong_diff_id(1).docker_archive(&["a:1"]);
    for (bytes, kind, text) in [
        (&whole[..whole.len() / 2], FailureKind::Corrupt, "cut"),
        (b"not a tar at all".as_slice(), FailureKind::Corrupt, "cannot read the archive"),
        (&wrong, FailureKind::Digest, "config says"),
        (&TestImage::new().layout_tar("x")[..512], FailureKind::Corrupt, ""),
    ] {
        let path = dir.path().join("archive.tar");
        fs::write(&path, bytes).unwrap();
        let error = store.load(&path, |_| {}).await.unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(error.kind(), Some(kind), "{source}");
        assert!(source.contains(text), "{source}");
        assert!(store.list().is_empty());
        for folder in ["tmp", "ingest", "records"] {
            assert_eq!(fs::read_dir(dir.path().join("images").join(folder)).unwrap().count(), 0, "{folder}");
        }
    }
    let error = store.load(&dir.path().join("missing.tar"), |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Io));
}
