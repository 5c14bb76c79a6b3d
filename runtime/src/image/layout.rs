//! Where the store keeps what, and the sweeping of leftovers. Paths only; called by agent and worker.
//!
//! ```text
//! images/lock             held by the one process that writes the store
//! images/boot.json        boot ID of the last opening, and whether it was closed well
//! images/records/ID.json  one image: names, config, layers
//! images/configs/ID       the image config, byte by byte as its digest says
//! images/layers/CHAIN/    fs (the overlay folder), listing, recipe, layer.json; CHAIN cut to 26 digits, so that the
//!                         lower layers of a large image fit into one page of mount options
//! images/ingest/DIGEST    blobs on their way, kept so that a broken download goes on
//! images/tmp/             layers being unpacked
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::layer::LayerRecord;

/// The paths of one store.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The store in a folder.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes the folders that are missing, for the owner only: layers hold setuid files.
    pub(crate) fn create(&self) -> Result<(), (PathBuf, io::Error)> {
        for dir in
            [self.root.clone(), self.records(), self.configs(), self.layers(), self.ingests(), self.tmp()]
        {
            let made = fs::create_dir_all(&dir).and_then(|()| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
            });
            made.map_err(|error| (dir, error))?;
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn boot(&self) -> PathBuf {
        self.root.join("boot.json")
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.root.join("records")
    }

    pub(crate) fn record(&self, id: &Digest) -> PathBuf {
        self.records().join(format!("{}.json", id.hex()))
    }

    pub(crate) fn configs(&self) -> PathBuf {
        self.root.join("configs")
    }

    pub(crate) fn config(&self, id: &Digest) -> PathBuf {
        self.configs().join(id.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, chain: &Digest) -> PathBuf {
        self.layers().join(&chain.hex()[..26])
    }

    pub(crate) fn ingests(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(crate) fn ingest(&self, blob: &Digest) -> PathBuf {
        self.ingests().join(blob.hex())
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Whether a layer is here, complete.
    pub(crate) fn has_layer(&self, chain: &Digest) -> bool {
        LayerRecord::read(&self.layer(chain)).is_ok_and(|record| record.chain == *chain)
    }

    /// Removes what workers whose scratch names start with `prefix` left behind.
    pub(crate) fn sweep_tmp(&self, prefix: &str) -> io::Result<()> {
        for entry in fs::read_dir(self.tmp())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                remove_any(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes a file or a folder; what is gone already is no error.
pub(crate) fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Replaces a small file so that after any crash it is the old or the new one, and durable once this returns.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().expect("a store file lies in a folder");
    let fresh = path.with_extension("new");
    let mut file = fs::File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&fresh, path)?;
    fs::File::open(dir)?.sync_all()
}
