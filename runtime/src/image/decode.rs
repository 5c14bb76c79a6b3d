//! Compressed layers into verified plain bytes: one thread decodes, one hashes, the caller reads.
//!
//! Called by the unpack job and by archive loading. Memory is bounded: chunks of fixed size travel in bounded
//! channels and are used again. Both threads end when the reader is dropped or the input ends.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use super::digest::Digest;

/// Large enough that a channel hop costs nothing beside decoding it; a dozen of them are in use.
const CHUNK: usize = 32 << 10;
/// Chunks in flight between two threads.
const DEPTH: usize = 4;
/// Frames with a larger window are refused; zstd itself recommends 8 MiB, its command's `--ultra` takes 128.
const ZSTD_WINDOW_LOG: u32 = 27;
/// The threads call nothing deep; the default of 2 MiB would count in address space only, but why ask.
const STACK: usize = 512 << 10;

type Chunk = Arc<Vec<u8>>;

/// How a stream is compressed, by its first bytes (media types lie often enough).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// Finds the compression of a stream's first bytes.
pub(crate) fn sniff(head: &[u8]) -> io::Result<Compression> {
    match head {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
        [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "compressed with bzip2 or xz, which images do not use; gzip, zstd and plain tar are taken",
        )),
        _ => Ok(Compression::Plain),
    }
}

/// A reader of the plain bytes of a stream of any supported compression.
pub(crate) fn decoder<'a>(mut input: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut head = Vec::with_capacity(6);
    (&mut input).take(6).read_to_end(&mut head)?;
    let compression = sniff(&head)?;
    let input = BufReader::with_capacity(CHUNK, Cursor::new(head).chain(input));
    Ok(match compression {
        Compression::Plain => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

/// The decoded stream, read by one consumer.
pub(crate) struct Decoded {
    chunks: Receiver<io::Result<Chunk>>,
    pool: SyncSender<Vec<u8>>,
    current: Chunk,
    at: usize,
    /// Bytes that may still come before the stream counts as one without end.
    left: u64,
}

/// The digest of the whole decoded stream, known once it has been read to its end.
pub(crate) struct PlainDigest(JoinHandle<Digest>);

impl PlainDigest {
    /// Waits for the hashing of what was read.
    pub(crate) fn get(self) -> Digest {
        self.0.join().expect("hashing does not panic")
    }
}

/// Starts decoding `input`; at most `limit` plain bytes are taken.
pub(crate) fn start(input: impl Read + Send + 'static, limit: u64) -> io::Result<(Decoded, PlainDigest)> {
    let (to_reader, chunks) = sync_channel(DEPTH);
    let (to_hasher, hashed) = sync_channel::<Chunk>(DEPTH);
    let (pool, spare) = sync_channel(2 * DEPTH + 2);
    let hasher_pool = pool.clone();
    let hasher = thread("image-hash", move || {
        let mut hasher = Sha256::new();
        for chunk in hashed {
            hasher.update(&chunk[..]);
            recycle(chunk, &hasher_pool);
        }
        Digest::from_hasher(hasher)
    })?;
    thread("image-decode", move || decode(input, &to_reader, &to_hasher, &spare))?;
    let decoded = Decoded { chunks, pool, current: Arc::default(), at: 0, left: limit };
    Ok((decoded, PlainDigest(hasher)))
}

fn thread<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body)
}

/// The last holder of a chunk gives its memory back to the decoder.
fn recycle(chunk: Chunk, pool: &SyncSender<Vec<u8>>) {
    if let Some(buffer) = Arc::into_inner(chunk).filter(|buffer| buffer.capacity() >= CHUNK) {
        // A full or closed pool only means that the buffer is freed.
        let _ = pool.try_send(buffer);
    }
}

fn decode(
    input: impl Read + Send,
    to_reader: &SyncSender<io::Result<Chunk>>,
    to_hasher: &SyncSender<Chunk>,
    spare: &Receiver<Vec<u8>>,
) {
    let mut decoder = match decoder(input) {
        Ok(decoder) => decoder,
        Err(error) => {
            let _ = to_reader.send(Err(error));
            return;
        }
    };
    loop {
        let mut buffer = spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(CHUNK));
        buffer.clear();
        let read = (&mut decoder).take(CHUNK as u64).read_to_end(&mut buffer);
        let failed = read.err();
        let ended = buffer.is_empty();
        if !ended {
            let chunk = Arc::new(buffer);
            // A reader that is gone wants no more; it has said why itself.
            if to_hasher.send(chunk.clone()).is_err() || to_reader.send(Ok(chunk)).is_err() {
                return;
            }
        }
        if let Some(error) = failed {
            let _ = to_reader.send(Err(error));
            return;
        }
        if ended {
            return;
        }
    }
}

impl BufRead for Decoded {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len()
            && let Ok(next) = self.chunks.recv()
        {
            let next = next?;
            let length = next.len() as u64;
            self.left = self.left.checked_sub(length).ok_or_else(|| {
                io::Error::new(io::ErrorKind::FileTooLarge, "it decompresses past the limit; it is refused")
            })?;
            recycle(std::mem::replace(&mut self.current, next), &self.pool);
            self.at = 0;
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, length: usize) {
        self.at += length;
    }
}

impl Read for Decoded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(input: Vec<u8>) -> io::Result<(Vec<u8>, Digest)> {
        let (mut decoded, digest) = start(Cursor::new(input), 64 << 20)?;
        let mut out = Vec::new();
        decoded.read_to_end(&mut out)?;
        Ok((out, digest.get()))
    }

    #[test]
    fn decodes_every_form_and_hashes_what_is_plain() {
        let plain: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7 % 251) as u8).collect();
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        let members = [gzip(&plain[..1000]), gzip(&plain[1000..])].concat();
        for input in [plain.clone(), gzip(&plain), zstd, members] {
            let (out, digest) = read(input).unwrap();
            assert!(out == plain);
            assert_eq!(digest, Digest::of(&plain));
        }
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let plain = vec![7; 1 << 20];
        for whole in [gzip(&plain), zstd::encode_all(&plain[..], 1).unwrap()] {
            assert!(read(whole[..whole.len() - 3].to_vec()).is_err());
        }
    }

    #[test]
    fn a_stream_without_end_is_cut_off() {
        let (mut decoded, _digest) = start(io::repeat(0), 1 << 20).unwrap();
        let error = io::copy(&mut decoded, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn old_compressions_are_named() {
        assert!(read(b"BZh91AY".to_vec()).unwrap_err().to_string().contains("bzip2"));
    }
}
