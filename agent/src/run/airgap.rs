//! The air-gap folder: image archives that are loaded when the agent starts, each once.
//!
//! What was loaded is remembered by the archive's size and time, so that a restart neither reads gigabytes
//! nor writes to flash; an archive is loaded again when it has changed or its images are gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use coracle_runtime::image::ImageStore;
use serde::{Deserialize, Serialize};

use crate::replace::replace_durably;

/// What is remembered, by file name.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Loaded {
    version: u32,
    archives: BTreeMap<String, Archive>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Archive {
    size: u64,
    modified_unix_ns: i128,
    /// IDs of the images that it held.
    images: Vec<String>,
}

/// Loads every archive of `folder`; what cannot be loaded is told and passed over.
pub(super) async fn load(store: &Arc<ImageStore>, folder: &Path, data_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    let record = data_dir.join("images-loaded.json");
    let mut loaded: Loaded =
        std::fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    loaded.version = 1;
    let mut changed = false;
    for path in paths {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        match load_one(store, &path, loaded.archives.get(name)).await {
            Ok(None) => {}
            Ok(Some(archive)) => {
                tracing::info!(archive = %path.display(), images = archive.images.len(), "image archive loaded");
                loaded.archives.insert(name.to_owned(), archive);
                changed = true;
            }
            Err(error) => {
                tracing::error!(archive = %path.display(), error = format!("{error:#}"), "image archive cannot be loaded");
            }
        }
    }
    if changed && let Err(error) = remember(&record, &loaded) {
        tracing::warn!(error = format!("{error:#}"), "the next start will load the image archives again");
    }
}

/// Loads one archive unless that was done before.
async fn load_one(store: &Arc<ImageStore>, path: &Path, before: Option<&Archive>) -> Result<Option<Archive>> {
    let metadata = std::fs::metadata(path).context("cannot be read")?;
    let since = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let size = metadata.len();
    let modified_unix_ns = since.map_or(0, |since| since.as_nanos().cast_signed());
    let is_known = before.is_some_and(|before| {
        before.size == size
            && before.modified_unix_ns == modified_unix_ns
            && before.images.iter().all(|id| store.resolve(id).is_some())
    });
    if is_known {
        return Ok(None);
    }
    let images = store.load(path, |_| {}).await?.iter().map(|image| image.id.clone()).collect();
    Ok(Some(Archive { size, modified_unix_ns, images }))
}

fn remember(record: &Path, loaded: &Loaded) -> Result<()> {
    replace_durably(record, &serde_json::to_vec(loaded)?, 0o644)
}
