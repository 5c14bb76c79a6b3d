//! The parsers of what registries and archives send, as fuzzers call them: each panics where something is wrong.
//! Behind the feature `testing`.

use std::io::{self, Read as _};

use super::manifest::{self, Config, Parsed};
use super::platform::Platform;
use super::tar::{Archive, BLOCK, Recorder};

/// An index, a manifest or a config.
pub fn image_documents(input: &[u8]) {
    match manifest::parse(input) {
        Ok(Parsed::Index(index)) => {
            if let Ok(chosen) = manifest::choose(&index, &Platform::host()) {
                assert!(index.iter().any(|descriptor| descriptor.digest == chosen.digest));
            }
        }
        Ok(Parsed::Manifest(_)) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    for layers in 0..3 {
        if let Ok(config) = Config::parse(input, layers) {
            assert_eq!(config.chain().len(), layers);
        }
    }
}

/// Counts what a record of the stream would hold.
struct Counter(u64);

impl Recorder for Counter {
    fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0 += bytes.len() as u64;
        Ok(())
    }
}

/// A tar, with the checksums of its headers put right, since no fuzzer guesses one.
pub fn tar(input: &[u8]) {
    let mut bytes = input.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let mut archive = Archive::recording(&bytes[..], Counter(0));
    let (mut stored, mut plain) = (0_u64, 0_u64);
    while let Ok(Some(entry)) = archive.next() {
        let extents = entry.sparse.iter().flatten();
        assert!(extents.into_iter().all(|(offset, length)| offset + length <= entry.size));
        let mut content = Vec::new();
        // A cut archive is told at the next entry.
        let _ = archive.content().read_to_end(&mut content);
        stored += content.len() as u64;
        if entry.sparse.is_none() {
            plain += content.len() as u64;
        }
    }
    assert!(stored <= bytes.len() as u64 && plain <= stored, "more comes out than went in");
    if let Ok((rest, Counter(recorded))) = archive.finish() {
        assert!(rest.is_empty());
        assert!(recorded + plain <= bytes.len() as u64, "bytes are recorded twice");
    }
}
