//! The air-gap folder: image archives that are loaded when the agent starts, each once, beside the node's run.
//!
//! What was loaded is remembered by the archive's size and time, archive by archive, so that a restart neither
//! reads gigabytes nor writes to flash; an archive is loaded again when it has changed or its images are gone.
//! Its images are pinned, since without a network they cannot be fetched again: garbage collection leaves them
//! alone until the archive is taken out of the folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use coracle_runtime::image::ImageStore;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

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

/// Loads every archive of `folder`; what cannot be loaded is told and passed over. Counts up `came` for each that is
/// in. Cancel-safe: an archive that is cut off is loaded by the next start.
pub(super) async fn load(
    store: Arc<ImageStore>,
    folder: PathBuf,
    data_dir: PathBuf,
    came: watch::Sender<u64>,
) {
    // A folder that cannot be read, such as one that is not mounted, says nothing of what was loaded from it.
    let Some(paths) = archives(&folder) else { return };
    let record = data_dir.join("images-loaded.json");
    let mut loaded: Loaded =
        std::fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    loaded.version = 1;
    for (name, path) in &paths {
        match load_one(&store, path, loaded.archives.get(name)).await {
            Ok(None) => {}
            Ok(Some(archive)) => {
                tracing::info!(archive = %path.display(), images = archive.images.len(), "image archive loaded");
                loaded.archives.insert(name.clone(), archive);
                remember(&record, &loaded);
                came.send_modify(|count| *count += 1);
            }
            Err(error) => {
                tracing::error!(archive = %path.display(), error = format!("{error:#}"), "image archive cannot be loaded");
            }
        }
    }
    let count = loaded.archives.len();
    loaded.archives.retain(|name, _| paths.contains_key(name));
    unpin_others(&store, &loaded).await;
    if loaded.archives.len() < count {
        remember(&record, &loaded);
    }
}

/// The archives by file name, in the order in which they are loaded.
fn archives(folder: &Path) -> Option<BTreeMap<String, PathBuf>> {
    let named = |path: PathBuf| Some((path.file_name()?.to_str()?.to_owned(), path));
    Some(std::fs::read_dir(folder).ok()?.filter_map(|entry| named(entry.ok()?.path())).collect())
}

/// Loads one archive unless that was done before.
async fn load_one(store: &Arc<ImageStore>, path: &Path, before: Option<&Archive>) -> Result<Option<Archive>> {
    let metadata = std::fs::metadata(path).context("cannot be read")?;
    let since = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let size = metadata.len();
    let modified_unix_ns = since.map_or(0, |since| since.as_nanos().cast_signed());
    let known = before.filter(|before| {
        before.size == size
            && before.modified_unix_ns == modified_unix_ns
            && before.images.iter().all(|id| store.resolve(id).is_some())
    });
    let fresh: Vec<String> = match known {
        Some(_) => Vec::new(),
        None => store.load(path, |_| {}).await?.iter().map(|image| image.id.clone()).collect(),
    };
    for id in known.map_or(&fresh, |known| &known.images) {
        store.pin(id, true).await?;
    }
    Ok(known.is_none().then_some(Archive { size, modified_unix_ns, images: fresh }))
}

/// Lets go of the images whose archive is not in the folder any more.
async fn unpin_others(store: &ImageStore, loaded: &Loaded) {
    let kept: BTreeSet<&String> = loaded.archives.values().flat_map(|archive| &archive.images).collect();
    for image in store.list().iter().filter(|image| image.pinned && !kept.contains(&image.id)) {
        if let Err(error) = store.pin(&image.id, false).await {
            tracing::warn!(image = image.id, error = %error, "an image that no archive holds stays pinned");
        }
    }
}

fn remember(record: &Path, loaded: &Loaded) {
    let text = serde_json::to_vec(loaded).expect("invariant: names and numbers are JSON");
    if let Err(error) = replace_durably(record, &text, 0o644) {
        tracing::warn!(error = format!("{error:#}"), "the next start will load the image archives again");
    }
}
