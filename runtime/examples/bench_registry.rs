//! The registry that `cargo xtask bench pull` pulls from: `bench_registry MIB CUTS`.
//!
//! Serves `bench:1`, of eight gzip layers with MIB of files in all, and breaks the connection of CUTS blob
//! requests at places of its choice. Prints its host and the image's ID, and ends when its input does.
#![allow(clippy::print_stdout, reason = "it is a command")]
#![allow(clippy::unwrap_used, reason = "a bench ends at the first thing that is wrong")]

use coracle_runtime::testing::{Fault, LayerCompression, Registry, RegistryOptions, Tarball, TestImage};

const LAYERS: usize = 8;
/// A tree of files as images have them: many small, some large.
const SIZES: [usize; 6] = [400, 3_000, 12_000, 60_000, 300_000, 2_000_000];

fn main() {
    let mut words = std::env::args().skip(1).map(|word| word.parse::<usize>().unwrap());
    let (mebibytes, cuts) = (words.next().unwrap(), words.next().unwrap());
    let mut random = 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(std::process::id());
    let mut image = TestImage::new();
    for number in 0..LAYERS {
        image = image.layer(&layer(number, (mebibytes << 20) / LAYERS), LayerCompression::Gzip);
    }
    let registry = Registry::start(RegistryOptions::default()).unwrap();
    registry.push("bench", "1", &image);
    for cut in 0..cuts {
        let digest = image.layer_digests()[cut % LAYERS].to_string();
        let size = image.blobs[&image.layer_digests()[cut % LAYERS]].len();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Each place is counted from where the download stood, so that several cuts of one layer fit in.
        let place = (random >> 33) as usize % (size / (cuts / LAYERS + 2));
        registry.fault(&digest, Fault::Cut(place));
    }
    println!("{} {}", registry.host(), image.id());
    let _ = std::io::read_to_string(std::io::stdin());
}

/// Files of text-like bytes, which compress as programs and libraries do: about to a half.
fn layer(number: usize, bytes: usize) -> Vec<u8> {
    let mut tar = Tarball::new();
    let mut random = number as u64 + 1;
    let (mut made, mut file) = (0, 0);
    while made < bytes {
        let size = SIZES[file % SIZES.len()].min(bytes - made);
        let mut content = Vec::with_capacity(size + 8);
        while content.len() < size {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            content.extend_from_slice(&(random >> 32).to_le_bytes()[..4]);
            content.extend_from_slice(b"\0lib");
        }
        content.truncate(size);
        tar = tar.file(&format!("layer{number}/file{file}"), &content);
        made += size;
        file += 1;
    }
    tar.finish()
}
