//! The pods' records in the state folder: what commands read when no agent runs.
//!
//! The agent writes one small file per pod on each change of its status, by rename, on the memory file
//! system that holds the state folder; commands only read. They are told that what they see is a record.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::replace::replace;
use crate::socket::PodRecord;

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("pods")
}

/// Writes one pod's record.
pub(crate) fn write(state_dir: &Path, record: &PodRecord) -> Result<()> {
    let folder = folder(state_dir);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join(format!("{}.json", record.pod.metadata.uid));
    replace(&path, &serde_json::to_vec(record)?)
}

/// Removes the records of pods that are not among `uids`.
pub(crate) fn retain(state_dir: &Path, uids: &BTreeSet<&str>) -> Result<()> {
    for path in files(state_dir)? {
        if !path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| uids.contains(stem)) {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Reads all records.
pub(crate) fn read(state_dir: &Path) -> Result<Vec<PodRecord>> {
    let mut records: Vec<PodRecord> = Vec::new();
    for path in files(state_dir)? {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let record = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a pod's record of this release", path.display()))?;
        records.push(record);
    }
    records.sort_by_key(|record| record.pod.full_name());
    Ok(records)
}

fn files(state_dir: &Path) -> Result<Vec<PathBuf>> {
    let folder = folder(state_dir);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::VERSION;
    use coracle_kubelet_core::api::Pod;

    #[test]
    fn what_is_written_is_read_and_what_is_gone_is_removed() {
        let state = tempfile::tempdir().unwrap();
        assert!(read(state.path()).unwrap().is_empty());
        for name in ["b", "a"] {
            let mut pod = Pod::default();
            pod.metadata.name = name.into();
            pod.metadata.uid = name.into();
            write(state.path(), &PodRecord { version: VERSION, pod, log_directory: "/logs".into() }).unwrap();
        }
        let names: Vec<String> =
            read(state.path()).unwrap().into_iter().map(|record| record.pod.metadata.name).collect();
        assert_eq!(names, ["a", "b"]);
        retain(state.path(), &BTreeSet::from(["b"])).unwrap();
        assert_eq!(read(state.path()).unwrap().len(), 1);
    }
}
