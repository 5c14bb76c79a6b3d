//! A tar reader for hostile input: ustar, GNU long names and sparse files, PAX records and sparse files.
//!
//! Called by the unpacker and by archive loading, one reader per stream, single-threaded. It is our own because
//! layers come from anyone: every length that a header claims is bounded before memory is taken for it, and the
//! raw bytes between file contents can be recorded, so that a layer can be written back bit by bit.

use std::io::{self, BufRead, Read};
use std::rc::Rc;

mod number;
mod pax;

use number::{number, text};
use pax::Pax;

/// The size of a tar block.
pub(crate) const BLOCK: usize = 512;
/// The longest extension header taken; a path is at most 4096 bytes, xattrs of one file at most 64 KiB each.
const MAX_EXTENSION: u64 = 1 << 20;
/// The most extents of a sparse file taken.
const MAX_EXTENTS: usize = 1 << 16;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
}

/// Offsets and lengths of the data in a sparse file.
pub(crate) type Extents = Vec<(u64, u64)>;

/// One entry's metadata with all extensions applied.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    /// The file's size after sparse expansion.
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Extents `(offset, length)` of data when the file is sparse; the stored content is their concatenation.
    pub(crate) sparse: Option<Extents>,
}

/// Receives the bytes of the stream that are no plain file content, in order.
pub(crate) trait Recorder {
    /// Bytes to be repeated literally.
    fn literal(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl Recorder for () {
    fn literal(&mut self, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Reads entries one after another; the content of the current one is read through [`Archive::content`].
pub(crate) struct Archive<R, W = ()> {
    input: R,
    recorder: W,
    /// Content bytes of the current entry not read yet.
    content: u64,
    /// Zero bytes that fill the current entry's last block.
    padding: u64,
    /// Whether the current content is recorded literally because it cannot be made again from the file.
    record_content: bool,
    global: Rc<Pax>,
    ended: bool,
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

impl<R: BufRead> Archive<R> {
    /// A reader that records nothing.
    pub(crate) fn new(input: R) -> Self {
        Self::recording(input, ())
    }
}

impl<R: BufRead, W: Recorder> Archive<R, W> {
    /// A reader that hands everything but file contents to `recorder`.
    pub(crate) fn recording(input: R, recorder: W) -> Self {
        Self {
            input,
            recorder,
            content: 0,
            padding: 0,
            record_content: false,
            global: Rc::default(),
            ended: false,
        }
    }

    /// The recorder, for marks between literals.
    pub(crate) fn recorder(&mut self) -> &mut W {
        &mut self.recorder
    }

    /// Skips what is left of the current entry and reads the next one's metadata.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.ended {
            return Ok(None);
        }
        let mut local = Pax::default();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            self.skip_rest()?;
            let Some(block) = self.header_block()? else {
                self.ended = true;
                return Ok(None);
            };
            let size = number(&block[124..136])?;
            match block[156] {
                b'x' => local = Pax::parse(&self.extension(size)?)?,
                b'g' => self.global = Rc::new(Pax::parse(&self.extension(size)?)?),
                b'L' => long_path = Some(text(&self.extension(size)?).to_vec()),
                b'K' => long_link = Some(text(&self.extension(size)?).to_vec()),
                // A volume label or a part of a multi-volume archive names no file.
                b'V' | b'M' | b'N' => self.begin_content(size, true),
                _ => {
                    let mut entry = self.entry(&block, size, &local)?;
                    if let Some(path) = long_path.take().filter(|_| local.path.is_none()) {
                        entry.path = path;
                    }
                    if let Some(link) = long_link.take().filter(|_| local.link.is_none()) {
                        entry.link = link;
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The rest of the current entry's stored content.
    pub(crate) fn content(&mut self) -> Content<'_, R, W> {
        Content { archive: self }
    }

    /// Reads the stream to its end, past the end-of-archive mark.
    pub(crate) fn finish(mut self) -> io::Result<(R, W)> {
        self.skip_rest()?;
        loop {
            let bytes = self.input.fill_buf()?;
            if bytes.is_empty() {
                return Ok((self.input, self.recorder));
            }
            let length = bytes.len();
            self.recorder.literal(bytes)?;
            self.input.consume(length);
        }
    }

    fn begin_content(&mut self, size: u64, record: bool) {
        self.content = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.record_content = record;
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        // Unread content is not in any file, so a record of the stream must hold it.
        self.record_content = true;
        let mut sink = io::sink();
        io::copy(&mut self.content(), &mut sink)?;
        while self.padding > 0 {
            let bytes = self.input.fill_buf()?;
            if bytes.is_empty() {
                // Some writers leave out the last padding.
                self.padding = 0;
                break;
            }
            let length = bytes.len().min(usize::try_from(self.padding).expect("padding is below 512"));
            self.recorder.literal(&bytes[..length])?;
            self.input.consume(length);
            self.padding -= length as u64;
        }
        Ok(())
    }

    /// The next header, or `None` at the end mark or the end of the stream.
    fn header_block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "cut in a tar header")),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.recorder.literal(&block)?;
        if block.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        number::check_sum(&block)?;
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(invalid(format!(
                "a tar extension header of {size} bytes is past the limit of 1 MiB"
            )));
        }
        self.begin_content(size, true);
        let mut bytes = Vec::with_capacity(size as usize);
        self.content().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn entry(&mut self, block: &[u8; BLOCK], header_size: u64, local: &Pax) -> io::Result<Entry> {
        let global = self.global.clone();
        let pax = local.over(&global);
        let stored = pax.size.unwrap_or(header_size);
        let mut path = ustar_path(block);
        let kind = match block[156] {
            b'0' | 0 | b'7' | b'S' if block[156] != b'S' && path.ends_with(b"/") => Kind::Dir,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => return Err(invalid(format!("tar entry type {:?} is unknown", char::from(other)))),
        };
        // POSIX lets a hard link carry content, but every builder writes none and size 0 is what tools assume.
        let stored = if matches!(kind, Kind::File) { stored } else { 0 };
        self.begin_content(stored, false);
        let mut size = stored;
        let mut sparse = None;
        if block[156] == b'S' {
            (size, sparse) = self.gnu_sparse(block)?;
        } else if let Some(map) = pax.sparse_map() {
            size = pax.sparse_size.unwrap_or(stored);
            sparse = Some(map?);
        } else if pax.sparse_in_content {
            size = pax.sparse_size.ok_or_else(|| invalid("a PAX sparse file without its real size"))?;
            sparse = Some(self.pax_sparse_in_content()?);
        }
        if let Some(map) = &sparse {
            check_extents(map, size, self.content)?;
            // Padding of the last block was computed from the header; the map's bytes came out of it already.
            self.record_content = true;
        }
        if let Some(name) = pax.sparse_name.or(pax.path) {
            path = name.to_vec();
        }
        Ok(Entry {
            path,
            link: pax.link.map_or_else(|| text(&block[157..257]).to_vec(), <[u8]>::to_vec),
            kind,
            mode: (number(&block[100..108])? & 0o7777) as u32,
            uid: pax.uid.map_or_else(|| id(&block[108..116]), Ok)?,
            gid: pax.gid.map_or_else(|| id(&block[116..124]), Ok)?,
            mtime: pax.mtime.map_or_else(|| number::time(&block[136..148]).map(|t| (t, 0)), Ok)?,
            size,
            device: device(block, kind)?,
            xattrs: pax.xattrs,
            sparse,
        })
    }

    /// The old GNU form: four extents in the header, 21 in each block that follows.
    fn gnu_sparse(&mut self, block: &[u8; BLOCK]) -> io::Result<(u64, Option<Extents>)> {
        let mut map = Vec::new();
        read_extents(&block[386..482], &mut map)?;
        let mut extended = block[482] != 0;
        while extended {
            let next = {
                let mut bytes = [0; BLOCK];
                self.input.read_exact(&mut bytes)?;
                self.recorder.literal(&bytes)?;
                bytes
            };
            read_extents(&next[..504], &mut map)?;
            extended = next[504] != 0;
        }
        Ok((number(&block[483..495])?, Some(map)))
    }

    /// PAX form 1.0: decimal lines at the start of the content, filled up to a block.
    fn pax_sparse_in_content(&mut self) -> io::Result<Vec<(u64, u64)>> {
        self.record_content = true;
        let mut blocks = [0; BLOCK];
        let mut at = BLOCK;
        let mut line = |archive: &mut Self| -> io::Result<u64> {
            let mut value = 0_u64;
            loop {
                if at == BLOCK {
                    archive.content().read_exact(&mut blocks)?;
                    at = 0;
                }
                let byte = blocks[at];
                at += 1;
                match byte {
                    b'\n' => return Ok(value),
                    b'0'..=b'9' => {
                        value = value
                            .checked_mul(10)
                            .and_then(|v| v.checked_add(u64::from(byte - b'0')))
                            .ok_or_else(|| invalid("a number in a sparse map is too big"))?;
                    }
                    _ => return Err(invalid("a sparse map holds something other than decimal lines")),
                }
            }
        };
        let count = line(self)?;
        if count > MAX_EXTENTS as u64 {
            return Err(invalid(format!("a sparse map of {count} extents is past the limit")));
        }
        (0..count).map(|_| Ok((line(self)?, line(self)?))).collect()
    }
}

fn ustar_path(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(&block[..100]);
    // Only POSIX ustar has a prefix; GNU ("ustar  ") keeps times and sparse extents there.
    if &block[257..263] == b"ustar\0" && block[345] != 0 {
        return [text(&block[345..500]), b"/", name].concat();
    }
    name.to_vec()
}

fn id(field: &[u8]) -> io::Result<u32> {
    u32::try_from(number(field)?).map_err(|_| invalid("an owner in a tar header is past 32 bits"))
}

fn device(block: &[u8; BLOCK], kind: Kind) -> io::Result<(u32, u32)> {
    match kind {
        Kind::Char | Kind::Block => Ok((id(&block[329..337])?, id(&block[337..345])?)),
        _ => Ok((0, 0)),
    }
}

fn read_extents(bytes: &[u8], map: &mut Vec<(u64, u64)>) -> io::Result<()> {
    for extent in bytes.chunks_exact(24) {
        if extent[0] == 0 || extent[12] == 0 {
            break;
        }
        map.push((number(&extent[..12])?, number(&extent[12..])?));
    }
    if map.len() > MAX_EXTENTS { Err(invalid("a sparse map is past the limit of extents")) } else { Ok(()) }
}

/// Extents must ascend, stay inside the file and be as long together as the stored content.
fn check_extents(map: &[(u64, u64)], size: u64, stored: u64) -> io::Result<()> {
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for &(offset, length) in map {
        let next = offset.checked_add(length).filter(|&n| offset >= end && n <= size);
        end = next.ok_or_else(|| invalid("a sparse map does not ascend within its file"))?;
        sum += length;
    }
    if sum == stored { Ok(()) } else { Err(invalid("a sparse map is not as long as its content")) }
}

/// The content of the current entry.
pub(crate) struct Content<'a, R, W> {
    archive: &'a mut Archive<R, W>,
}

impl<R: BufRead, W: Recorder> Content<'_, R, W> {
    /// The next piece of content without copying it, empty at its end.
    pub(crate) fn piece(&mut self) -> io::Result<&[u8]> {
        let archive = &mut *self.archive;
        if archive.content == 0 {
            return Ok(&[]);
        }
        let bytes = archive.input.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "cut in the content of a tar entry"));
        }
        Ok(&bytes[..bytes.len().min(usize::try_from(archive.content).unwrap_or(usize::MAX))])
    }

    /// Takes `length` bytes of the last piece.
    pub(crate) fn consume(&mut self, length: usize) -> io::Result<()> {
        let archive = &mut *self.archive;
        if archive.record_content {
            archive.recorder.literal(&archive.input.fill_buf()?[..length])?;
        }
        archive.input.consume(length);
        archive.content -= length as u64;
        Ok(())
    }
}

impl<R: BufRead, W: Recorder> Read for Content<'_, R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.piece()?;
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        self.consume(length)?;
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
