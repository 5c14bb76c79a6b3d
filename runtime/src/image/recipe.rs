//! How to write a layer back as the very tar that it came from: every byte between file contents, and where the
//! contents are. A few per mille of the layer's size, zstd-compressed; it lets `save` keep image IDs without
//! keeping blobs. Written by the unpack process, read by `save`.
//!
//! Format: `L` length(u32 LE) bytes | `F` size(u64 LE) length(u32 LE) path, repeated.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const PENDING: usize = 32 << 10;
const WINDOW_LOG: u32 = 15;

/// Writes a recipe while its layer is unpacked.
pub(crate) struct RecipeWriter {
    out: zstd::stream::write::Encoder<'static, BufWriter<File>>,
    pending: Vec<u8>,
}

impl RecipeWriter {
    /// Starts a recipe in a new file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut out = zstd::stream::write::Encoder::new(BufWriter::new(File::create_new(path)?), 1)?;
        // Headers repeat their neighbours; the level's own window of 512 KiB finds little more and is held in memory.
        out.window_log(WINDOW_LOG)?;
        Ok(Self { out, pending: Vec::with_capacity(PENDING) })
    }

    /// Bytes that are repeated as they are.
    pub(crate) fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PENDING) {
            if self.pending.len() + piece.len() > PENDING {
                self.flush()?;
            }
            self.pending.extend_from_slice(piece);
        }
        Ok(())
    }

    /// Bytes that a file of the layer holds.
    pub(crate) fn content(&mut self, path: &[u8], size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        self.flush()?;
        self.out.write_all(b"F")?;
        self.out.write_all(&size.to_le_bytes())?;
        self.write_block(path)
    }

    /// Writes the rest.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.out.finish()?.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.out.write_all(b"L")?;
        let pending = std::mem::take(&mut self.pending);
        self.write_block(&pending)?;
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }

    fn write_block(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(bytes)
    }
}

/// Writes the tar of a layer folder to `out`. The caller compares the digest of what came out.
pub(crate) fn replay(layer: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut recipe = zstd::stream::read::Decoder::new(File::open(layer.join("recipe"))?)?;
    let root = layer.join("fs");
    let mut block = Vec::new();
    loop {
        let mut tag = [0];
        if recipe.read(&mut tag)? == 0 {
            return Ok(());
        }
        match tag[0] {
            b'L' => {
                read_block(&mut recipe, &mut block)?;
                out.write_all(&block)?;
            }
            b'F' => {
                let mut size = [0; 8];
                recipe.read_exact(&mut size)?;
                read_block(&mut recipe, &mut block)?;
                let size = u64::from_le_bytes(size);
                let file = File::open(root.join(OsStr::from_bytes(&block)))?;
                if io::copy(&mut file.take(size), out)? != size {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a layer's recipe is damaged")),
        }
    }
}

fn read_block(recipe: &mut impl Read, block: &mut Vec<u8>) -> io::Result<()> {
    let mut length = [0; 4];
    recipe.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > PENDING {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a layer's recipe is damaged"));
    }
    block.resize(length, 0);
    recipe.read_exact(block)
}
