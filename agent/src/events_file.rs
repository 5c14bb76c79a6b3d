//! The events' record in the state folder: what `coracle events` reads when no agent runs.
//!
//! The agent appends each recording as a JSON line on the memory file system; past a bound the file is
//! made anew from what the agent remembers, so it never grows without end.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coracle_kubelet_core::events::Event;

use crate::replace::replace;

/// The file is made anew past this size.
const LIMIT: u64 = 256 * 1024;

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("events.jsonl")
}

/// Appends one recording. `remembered` yields what a file that has grown too long is made anew from.
pub(crate) fn append<E: AsRef<Event>>(
    state_dir: &Path,
    event: &Event,
    remembered: impl FnOnce() -> Vec<E>,
) -> Result<()> {
    let path = path(state_dir);
    let describe = || format!("cannot write {}", path.display());
    let mut file = std::fs::File::options().create(true).append(true).open(&path).with_context(describe)?;
    if file.metadata().with_context(describe)?.len() > LIMIT {
        let mut lines = Vec::new();
        for event in remembered() {
            serde_json::to_writer(&mut lines, event.as_ref())?;
            lines.push(b'\n');
        }
        return replace(&path, &lines);
    }
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    file.write_all(&line).with_context(describe)
}

/// Reads the record, each event once with its last count; a torn last line is passed over.
pub(crate) fn read(state_dir: &Path) -> Result<Vec<Event>> {
    let path = path(state_dir);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut events: Vec<Event> = Vec::new();
    for event in text.lines().filter_map(|line| serde_json::from_str::<Event>(line).ok()) {
        let same = |other: &Event| {
            other.uid == event.uid
                && other.reason == event.reason
                && other.message == event.message
                && other.field_path == event.field_path
        };
        events.retain(|other| !same(other));
        events.push(event);
    }
    Ok(events)
}
