//! Collects the files of an image into one layer. In memory; an image of the tests is at most some 100 MB.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

/// A layer in the making. A later file of the same name replaces an earlier one.
pub(super) struct Rootfs {
    archive: Builder<Vec<u8>>,
}

impl Rootfs {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { archive: Builder::new(Vec::new()) }
    }

    /// Adds an executable of this machine.
    pub(super) fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.file(name, &bytes, 0o755)
    }

    /// Adds a dynamically linked executable of this machine under a name, with the libraries it loads.
    pub(super) fn linked_program(&mut self, name: &str, path: &Path) -> Result<()> {
        self.program(name, path)?;
        let output = Command::new("ldd").arg(path).output().context("cannot start ldd")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // `NAME => PATH (ADDRESS)`, and the loader as `PATH (ADDRESS)`; what the kernel gives has no path.
        for library in
            text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        {
            self.program(library.trim_start_matches('/'), Path::new(library))?;
        }
        Ok(())
    }

    /// Adds a file.
    pub(super) fn file(&mut self, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        self.archive.append_data(&mut header, name, bytes).with_context(|| format!("cannot add {name}"))
    }

    /// Adds a folder.
    pub(super) fn folder(&mut self, name: &str, mode: u32) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_size(0);
        header.set_mode(mode);
        self.archive
            .append_data(&mut header, format!("{name}/"), std::io::empty())
            .with_context(|| format!("cannot add {name}"))
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, name: &str, target: &str) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        self.archive.append_link(&mut header, name, target).with_context(|| format!("cannot add {name}"))
    }

    /// Adds another name of a file that was added.
    pub(super) fn hard_link(&mut self, name: &str, target: &str) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Link);
        header.set_size(0);
        header.set_mode(0o755);
        self.archive.append_link(&mut header, name, target).with_context(|| format!("cannot add {name}"))
    }

    /// Adds /etc/passwd and /etc/group with root and these users, each with a group of its own.
    pub(super) fn users(&mut self, users: &[(&str, u32)]) -> Result<()> {
        let (mut passwd, mut group) =
            ("root:x:0:0:root:/root:/bin/sh\n".to_owned(), "root:x:0:\n".to_owned());
        for (name, id) in users {
            passwd.push_str(&format!("{name}:x:{id}:{id}::/home/{name}:/bin/sh\n"));
            group.push_str(&format!("{name}:x:{id}:\n"));
        }
        self.file("etc/passwd", passwd.as_bytes(), 0o644)?;
        self.file("etc/group", group.as_bytes(), 0o644)
    }

    /// The layer as a tar.
    pub(super) fn finish(self) -> Result<Vec<u8>> {
        self.archive.into_inner().context("cannot finish the layer")
    }
}
