//! Header blocks: names and values with lengths, in one zlib stream per direction. Called by `decode` and `encode`.

use bytes::{BufMut, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::SpdyError;
use super::dictionary::dictionary;

/// The longest header block that is taken, decompressed, in bytes.
pub const MAX_HEADER_BLOCK: usize = 16 * 1024;

/// The most values that a header block may have. Each has a name of its own in memory, which on the wire is there once
/// for many.
const MAX_HEADERS: usize = 64;

/// Headers in the order in which they came. Names are lower case on the wire; looking up ignores case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// No headers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// The decompressing end of one direction. Made at the first block: its window is what a connection costs most.
#[derive(Default)]
pub(super) struct Inflater(Option<Decompress>);

impl Inflater {
    /// Takes the compressed bytes of one block and returns its headers.
    pub(super) fn block(&mut self, compressed: &[u8]) -> Result<Headers, SpdyError> {
        let inflate = self.0.get_or_insert_with(|| Decompress::new(true));
        let mut plain = vec![0; 2048.min(MAX_HEADER_BLOCK)];
        let (mut taken, mut made) = (0, 0);
        loop {
            let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
            let outcome = inflate.decompress(&compressed[taken..], &mut plain[made..], FlushDecompress::Sync);
            taken += (inflate.total_in() - before_in) as usize;
            made += (inflate.total_out() - before_out) as usize;
            match outcome {
                Err(error) if error.needs_dictionary().is_some() => {
                    inflate.set_dictionary(&dictionary()).map_err(|_| SpdyError::Compression)?;
                    continue;
                }
                Err(_) => return Err(SpdyError::Compression),
                // The peer's stream lasts as long as the connection: an end of it is no block of ours.
                Ok(Status::StreamEnd) => return Err(SpdyError::Compression),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if made == plain.len() {
                if made >= MAX_HEADER_BLOCK {
                    return Err(SpdyError::HeaderBlock("too long"));
                }
                plain.resize((made * 2).min(MAX_HEADER_BLOCK), 0);
            } else if taken == compressed.len() {
                return parse(&plain[..made]);
            } else if inflate.total_in() == before_in && inflate.total_out() == before_out {
                return Err(SpdyError::Compression);
            }
        }
    }
}

/// Takes a number of four bytes.
fn number(block: &mut &[u8]) -> Result<usize, SpdyError> {
    let (head, rest) =
        block.split_first_chunk::<4>().ok_or(SpdyError::HeaderBlock("ends within a length"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*head) as usize)
}

fn text(block: &mut &[u8]) -> Result<String, SpdyError> {
    let length = number(block)?;
    let (head, rest) = block.split_at_checked(length).ok_or(SpdyError::HeaderBlock("ends within a value"))?;
    *block = rest;
    String::from_utf8(head.to_vec()).map_err(|_| SpdyError::HeaderBlock("is not text"))
}

fn parse(mut block: &[u8]) -> Result<Headers, SpdyError> {
    let mut headers: Vec<(String, String)> = Vec::new();
    // The count is only believed as far as the block goes: each entry takes at least eight bytes.
    for _ in 0..number(&mut block)? {
        let name = text(&mut block)?.to_ascii_lowercase();
        if name.is_empty() || headers.iter().any(|(known, _)| *known == name) {
            return Err(SpdyError::HeaderBlock("has an empty name, or one twice"));
        }
        // More values of one name are separated by zero bytes.
        for value in text(&mut block)?.split('\0') {
            if headers.len() == MAX_HEADERS {
                return Err(SpdyError::HeaderBlock("has too many values"));
            }
            headers.push((name.clone(), value.to_owned()));
        }
    }
    Ok(Headers(headers))
}

/// The compressing end of one direction. It stores instead of compressing, which is zlib too: a compressor's
/// tables would cost a quarter of a megabyte per connection to save some forty bytes.
#[derive(Default)]
pub(super) struct Deflater {
    begun: bool,
}

impl Deflater {
    /// Appends the block. An empty stored block ends it, as a flush does, so that readers hand out what they have.
    pub(super) fn block(&mut self, headers: &Headers, out: &mut BytesMut) {
        if !self.begun {
            self.begun = true;
            // Deflate with a window of 32 KiB, no dictionary; the check digits make it a multiple of 31.
            out.put_slice(&[0x78, 0x01]);
        }
        for part in plain(headers).chunks(usize::from(u16::MAX)) {
            stored(part, out);
        }
        stored(&[], out);
    }
}

fn stored(part: &[u8], out: &mut BytesMut) {
    let length = part.len() as u16;
    out.put_u8(0);
    out.put_u16_le(length);
    out.put_u16_le(!length);
    out.put_slice(part);
}

fn plain(headers: &Headers) -> Vec<u8> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in headers.iter() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut block = Vec::new();
    block.put_u32(names.len() as u32);
    for name in names {
        let values: Vec<&str> =
            headers.iter().filter(|(other, _)| *other == name).map(|(_, value)| value).collect();
        for text in [name.to_owned(), values.join("\0")] {
            block.put_u32(text.len() as u32);
            block.put_slice(text.as_bytes());
        }
    }
    block
}
