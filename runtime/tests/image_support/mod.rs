//! What the image tests share: opening a store with the test helper as worker, and a base layer.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_runtime::image::{ImageError, ImageStore, Options};
use coracle_runtime::testing::{Member, Tarball};

/// Options of a store below `dir` whose workers are the crate's helper executable.
pub(crate) fn options(dir: &Path) -> Options {
    let mut options = Options::new(dir.join("images"));
    options.helper = PathBuf::from(env!("CARGO_BIN_EXE_coracle-runtime-helper"));
    options
}

/// A store below `dir`. One that was just closed is held a little longer where another test is starting a process at
/// that moment, which has a copy of all that is open until it runs its program.
pub(crate) fn open(dir: &Path) -> Arc<ImageStore> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match ImageStore::open(options(dir)) {
            Err(ImageError::InUse { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// A layer with a bit of everything.
pub(crate) fn base() -> Vec<u8> {
    Tarball::new()
        .dir("bin/")
        .executable("bin/busybox", b"not really")
        .hard_link("bin/sh", "bin/busybox")
        .dir("etc/")
        .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")
        .file("etc/removed", b"gone in the next layer")
        .dir("opaque/")
        .file("opaque/old", b"hidden by the next layer")
        .symlink("lib", "usr/lib")
        .dir("usr/lib/")
        .file("usr/lib/libc.so", b"elf")
        .member(&Member { name: "bin/su", mode: 0o4755, content: b"setuid", ..Member::default() })
        .finish()
}

/// A layer over [`base`] that removes, hides and adds.
pub(crate) fn upper() -> Vec<u8> {
    Tarball::new()
        .file("etc/.wh.removed", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"shown")
        .file("lib/added.so", b"through a symlink of the lower layer")
        .finish()
}

/// Names of everything below a folder, sorted.
pub(crate) fn tree(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            names.push(path.strip_prefix(root).unwrap().display().to_string());
            if path.symlink_metadata().unwrap().is_dir() {
                left.push(path);
            }
        }
    }
    names.sort();
    names
}
