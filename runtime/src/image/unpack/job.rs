//! One layer from its blob to its named folder: decode, apply, verify, list, sync, rename.
//!
//! Runs in the unpack process, one job at a time. Invariant: `layers/<chain>` appears by one rename of a folder
//! that is complete, verified and on stable storage; whatever else is there is swept as garbage.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::apply::{Applier, ContentMark};
use super::{LayerError, Limits};
use crate::image::decode;
use crate::image::digest::Digest;
use crate::image::layer::{LayerRecord, Listing};
use crate::image::layout::Layout;
use crate::image::recipe::RecipeWriter;
use crate::image::tar::{Archive, Recorder};

/// What to unpack.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Job {
    /// Number of the layer in its image, bottom first.
    pub(crate) layer: usize,
    /// The blob's file in `ingest`.
    pub(crate) blob: Digest,
    /// The worker's own link to it in `tmp`, which stays when another worker is done with the blob first.
    pub(crate) link: String,
    /// What the blob must unpack to.
    pub(crate) diff_id: Digest,
    /// The layer's name.
    pub(crate) chain: Digest,
    /// Names of the layers under it, bottom first.
    pub(crate) parents: Vec<Digest>,
    /// Name of a fresh folder in `tmp`.
    pub(crate) scratch: String,
    pub(crate) limits: Limits,
    /// Whether no later layer of the image needs the blob again.
    pub(crate) last_use: bool,
}

impl Recorder for RecipeWriter {
    fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        RecipeWriter::literal(self, bytes)
    }
}

impl ContentMark for RecipeWriter {
    fn content(&mut self, path: &[u8], size: u64) -> io::Result<()> {
        RecipeWriter::content(self, path, size)
    }
}

/// Unpacks a layer from `input`; leaves its folder in `tmp`, to be named by [`commit`].
pub(crate) fn unpack(
    layout: &Layout,
    job: &Job,
    input: impl io::Read + Send + 'static,
    progress: impl FnMut(u64),
) -> Result<(), LayerError> {
    let store = |error: io::Error| LayerError::Store(error);
    let scratch = layout.tmp().join(&job.scratch);
    fs::create_dir(&scratch).map_err(store)?;
    let upper_path = scratch.join("fs");
    fs::create_dir(&upper_path).map_err(store)?;
    let upper = open(&upper_path).map_err(store)?;
    rustix::fs::fchmod(&upper, rustix::fs::Mode::from_raw_mode(0o755)).map_err(|e| store(e.into()))?;
    let lowers = job.parents.iter().rev().map(|chain| open(&layout.layer(chain).join("fs")));
    let lowers: Vec<OwnedFd> = lowers.collect::<io::Result<_>>().map_err(store)?;

    // Headers come on top of file contents: at most a few blocks for each file.
    let limit = job.limits.bytes.saturating_add(job.limits.inodes.saturating_mul(2048));
    let (decoded, plain) = decode::start(input, limit).map_err(LayerError::Decode)?;
    let recipe = RecipeWriter::create(&scratch.join("recipe")).map_err(store)?;
    let applier = Applier::new(upper, lowers, job.limits);
    let (decoded, recipe) = applier.run(Archive::recording(decoded, recipe), progress)?;
    drop(decoded);
    recipe.finish().map_err(store)?;
    let found = plain.get();
    if found != job.diff_id {
        return Err(LayerError::DiffId { wanted: job.diff_id.clone(), found });
    }

    let listing = File::create(scratch.join("listing")).map_err(store)?;
    let mut listing = BufWriter::new(listing);
    let usage = Listing::write(&upper_path, &mut listing).map_err(store)?;
    listing.flush().map_err(store)?;
    let record = LayerRecord {
        version: 1,
        chain: job.chain.clone(),
        diff_id: job.diff_id.clone(),
        parent: job.parents.last().cloned(),
        bytes: usage.bytes,
        inodes: usage.inodes,
    };
    fs::write(scratch.join("layer.json"), serde_json::to_vec(&record).expect("a layer record is plain data"))
        .map_err(store)
}

/// Makes unpacked layers durable, then gives them their names.
pub(crate) fn commit(layout: &Layout, jobs: &[Job]) -> Result<(), LayerError> {
    let store = |error: io::Error| LayerError::Store(error);
    let root = open(layout.root()).map_err(store)?;
    sync_file_system(&root).map_err(store)?;
    for job in jobs {
        let scratch: PathBuf = layout.tmp().join(&job.scratch);
        let named = layout.layer(&job.chain);
        match fs::rename(&scratch, &named) {
            Ok(()) => {}
            // Another worker was faster with the same layer; both are complete, one is enough.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => {
                fs::remove_dir_all(&scratch).map_err(store)?;
            }
            Err(error) => return Err(store(error)),
        }
    }
    let layers = open(&layout.layers()).map_err(store)?;
    rustix::fs::fsync(&layers).map_err(|e| store(e.into()))?;
    for job in jobs.iter().filter(|job| job.last_use) {
        for path in [layout.ingest(&job.blob), layout.tmp().join(&job.link)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(store(error)),
                _ => {}
            }
        }
    }
    Ok(())
}

fn sync_file_system(root: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(root)?)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    super::tree::open_dir(rustix::fs::CWD, path)
}
