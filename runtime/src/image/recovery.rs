//! What opening a store does after whatever happened: sweep, read the journal, check layers after an unclean boot.
//!
//! Called once by `store`, on a blocking thread, while the store's lock is held.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::layer::{LayerRecord, Listing};
use super::layout::{Layout, remove_any, write_durably};
use super::record::Record;

/// `boot.json`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Boot {
    version: u32,
    boot_id: String,
    /// Whether the store was closed; what was written before is then known to be on the disk.
    closed: bool,
}

/// The running kernel's boot ID, empty where it tells none (every boot is an unclean one then).
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn write_boot(layout: &Layout, boot_id: String, closed: bool) -> io::Result<()> {
    let wanted = Boot { version: 1, boot_id, closed };
    let path = layout.boot();
    let same = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Boot>(&bytes).ok());
    if same.as_ref() == Some(&wanted) {
        return Ok(());
    }
    write_durably(&path, &serde_json::to_vec(&wanted).expect("a boot record is plain data"))
}

/// Notes that nothing is under way any more.
pub(crate) fn mark_closed(layout: &Layout) -> io::Result<()> {
    write_boot(layout, boot_id(), true)
}

/// Brings a store into order and returns the images that are whole.
pub(crate) fn recover(layout: &Layout) -> io::Result<Vec<Record>> {
    layout.sweep_tmp("")?;
    let boot_id = boot_id();
    let last: Option<Boot> =
        fs::read(layout.boot()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    // In the same boot the page cache has everything that any process wrote.
    let trusted = last.is_some_and(|last| last.closed || (last.boot_id == boot_id && !boot_id.is_empty()));
    let mut records = read_records(layout)?;
    let torn = if trusted { BTreeSet::new() } else { torn_layers(layout)? };
    for layer in &torn {
        tracing::warn!(layer, "layer is torn after an unclean boot; it will be fetched again");
        remove_any(&layout.layers().join(layer))?;
    }
    let mut whole = Vec::new();
    for record in records.drain(..) {
        let missing = record.layers.iter().find(|chain| !layout.has_layer(chain));
        if let Some(chain) = missing {
            tracing::warn!(image = %record.id, layer = %chain, "image has lost a layer and is forgotten");
        } else if !layout.config(&record.id).exists() {
            tracing::warn!(image = %record.id, "image has lost its config and is forgotten");
        } else {
            whole.push(record);
            continue;
        }
        remove_any(&layout.record(&record.id))?;
    }
    write_boot(layout, boot_id, false)?;
    Ok(whole)
}

/// The records of a store that another process may have open: reads and changes nothing else.
pub(crate) fn peek(layout: &Layout) -> io::Result<Vec<Record>> {
    let entries = match fs::read_dir(layout.records()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // What is being written or removed meanwhile is no image, or none any more.
        let record = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        records.extend(record.filter(|record| record.version == 1 && path == layout.record(&record.id)));
    }
    records.sort_by_key(|record| record.added_at);
    Ok(records)
}

fn read_records(layout: &Layout) -> io::Result<Vec<Record>> {
    let mut records: Vec<Record> = Vec::new();
    for entry in fs::read_dir(layout.records())? {
        let path = entry?.path();
        let record = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Record>(&bytes)?));
        match record {
            Ok(record) if record.version == 1 && path == layout.record(&record.id) => records.push(record),
            Ok(_) | Err(_) if path.extension().is_some_and(|extension| extension == "new") => {
                remove_any(&path)?
            }
            Ok(record) => {
                tracing::warn!(path = %path.display(), version = record.version, "image record is not ours; left alone");
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "image record is unreadable; the image is forgotten");
                remove_any(&path)?;
            }
        }
    }
    // A crash may have left a moved tag with both images; the later one has it.
    records.sort_by_key(|record| record.added_at);
    Ok(records)
}

/// Folder names of layers that are not as their lists say.
fn torn_layers(layout: &Layout) -> io::Result<BTreeSet<String>> {
    let mut torn = BTreeSet::new();
    for entry in fs::read_dir(layout.layers())? {
        let path = entry?.path();
        // An I/O error on a worn card is as good as a torn file: what cannot be read cannot be served.
        if !Listing::matches(&path).unwrap_or(false) {
            torn.insert(file_name(&path));
        }
    }
    Ok(torn)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Takes layers that no image needs out of sight, for [`remove_doomed`] to remove.
pub(crate) fn doom_layers(layout: &Layout, layers: &[Digest]) -> io::Result<()> {
    for chain in layers {
        let doomed = layout.tmp().join(format!("doomed-{}", chain.hex()));
        match fs::rename(layout.layer(chain), doomed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes what [`doom_layers`] took out of sight.
pub(crate) fn remove_doomed(layout: &Layout) -> io::Result<()> {
    layout.sweep_tmp("doomed-")
}

/// Removes broken downloads, and layers and configs that no image has. Returns about how many bytes that freed.
pub(crate) fn sweep_unnamed(
    layout: &Layout,
    layers: &BTreeSet<Digest>,
    ids: &BTreeSet<Digest>,
) -> io::Result<u64> {
    let mut freed = 0;
    for entry in fs::read_dir(layout.ingests())? {
        let entry = entry?;
        freed += entry.metadata()?.len();
        remove_any(&entry.path())?;
    }
    let named: BTreeSet<String> = layers.iter().map(|chain| file_name(&layout.layer(chain))).collect();
    for entry in fs::read_dir(layout.layers())? {
        let path = entry?.path();
        if !named.contains(&file_name(&path)) {
            freed += LayerRecord::read(&path).map_or(0, |layer| layer.bytes);
            fs::rename(&path, layout.tmp().join(format!("doomed-{}", file_name(&path))))?;
        }
    }
    for entry in fs::read_dir(layout.configs())? {
        let path = entry?.path();
        if !ids.iter().any(|id| layout.config(id) == path) {
            remove_any(&path)?;
        }
    }
    remove_doomed(layout)?;
    Ok(freed)
}
