//! What a stored layer says of itself: its record, and the listing of its files against which it is checked after
//! an unclean boot. Written by the unpack process, read by the agent.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// `layer.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) version: u32,
    pub(crate) chain: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) parent: Option<Digest>,
    /// What it takes on disk.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl LayerRecord {
    /// Reads the record of a layer folder.
    pub(crate) fn read(layer: &Path) -> io::Result<Self> {
        let record: Self = serde_json::from_slice(&fs::read(layer.join("layer.json"))?)?;
        match record.version {
            1 => Ok(record),
            other => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("layer record of version {other}")))
            }
        }
    }
}

/// What a layer's files take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// The list of a layer's files: `type size path\0` each, parents first.
pub(crate) struct Listing;

fn letter(metadata: &Metadata) -> u8 {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => b'd',
        () if kind.is_symlink() => b'l',
        () if kind.is_char_device() => b'c',
        () if kind.is_block_device() => b'b',
        () if kind.is_fifo() => b'p',
        () => b'f',
    }
}

/// The size that a list holds against a file; a folder's depends on the file system's mood.
fn size(metadata: &Metadata) -> u64 {
    if metadata.is_dir() { 0 } else { metadata.len() }
}

impl Listing {
    /// Writes the list of everything below `root`.
    pub(crate) fn write(root: &Path, out: &mut impl Write) -> io::Result<Usage> {
        let mut usage = Usage { bytes: 0, inodes: 1 };
        Self::write_dir(root, &mut Vec::new(), out, &mut usage)?;
        Ok(usage)
    }

    fn write_dir(dir: &Path, path: &mut Vec<u8>, out: &mut impl Write, usage: &mut Usage) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let length = path.len();
            path.extend_from_slice(entry.file_name().as_bytes());
            write!(out, "{} {} ", char::from(letter(&metadata)), size(&metadata))?;
            out.write_all(path)?;
            out.write_all(&[0])?;
            usage.inodes += 1;
            // A file with several names is counted once per name; close enough for deciding what to remove.
            usage.bytes += metadata.blocks() * 512
                / metadata.nlink().max(1).min(if metadata.is_dir() { 1 } else { u64::MAX });
            if metadata.is_dir() {
                path.push(b'/');
                Self::write_dir(&entry.path(), path, out, usage)?;
            }
            path.truncate(length);
        }
        Ok(())
    }

    /// Holds a layer folder against its list: `Ok(false)` when a file is missing, of another type or size.
    pub(crate) fn matches(layer: &Path) -> io::Result<bool> {
        let root = layer.join("fs");
        let mut list = BufReader::new(match File::open(layer.join("listing")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        });
        if LayerRecord::read(layer).is_err() || !root.is_dir() {
            return Ok(false);
        }
        let mut line = Vec::new();
        loop {
            line.clear();
            if list.read_until(0, &mut line)? == 0 {
                return Ok(true);
            }
            let Some((kind, wanted, path)) = parse(&line) else { return Ok(false) };
            let metadata = match fs::symlink_metadata(root.join(OsStr::from_bytes(path))) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            };
            if letter(&metadata) != kind || size(&metadata) != wanted {
                return Ok(false);
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<(u8, u64, &[u8])> {
    let line = line.strip_suffix(&[0])?;
    let (kind, rest) = (*line.first()?, line.get(2..)?);
    let space = rest.iter().position(|&b| b == b' ')?;
    let size = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
    Some((kind, size, &rest[space + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("fs");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file name"), b"hello").unwrap();
        std::os::unix::fs::symlink("b", root.join("a/link")).unwrap();
        let mut list = Vec::new();
        let usage = Listing::write(&root, &mut list).unwrap();
        assert_eq!(usage.inodes, 5);
        fs::write(dir.path().join("listing"), list).unwrap();
        assert!(!Listing::matches(dir.path()).unwrap(), "without a record");
        let chain = Digest::of(b"x");
        let record = LayerRecord {
            version: 1,
            chain: chain.clone(),
            diff_id: chain,
            parent: None,
            bytes: 0,
            inodes: 0,
        };
        fs::write(dir.path().join("layer.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(Listing::matches(dir.path()).unwrap());
        fs::write(root.join("a/b/file name"), b"").unwrap();
        assert!(!Listing::matches(dir.path()).unwrap(), "cut");
        fs::remove_file(root.join("a/b/file name")).unwrap();
        assert!(!Listing::matches(dir.path()).unwrap(), "missing");
    }
}
