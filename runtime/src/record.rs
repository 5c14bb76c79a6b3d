//! The records from which a restarted runtime knows every sandbox and container again, one JSON file each in
//! its own directory of the state folder.
//!
//! A record is written before the act it announces, so that whatever a `kill -9` leaves behind has a record
//! that names it. Files appear by rename and are never synced: they live on a tmpfs and end with the boot.
//! Written by the task that owns the sandbox or container; read at start and by commands without an agent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coracle_cri::v1;
use serde::{Deserialize, Serialize};

use crate::config::Layout;

/// The version that this release writes and the highest that it reads.
const VERSION: u32 = 1;

const RECORD: &str = "record.json";
const RECORD_NEW: &str = ".record.json.new";

/// A record could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file could not be written.
    #[error("write record {path}")]
    Write {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file could not be read.
    #[error("read record {path}")]
    Read {
        /// The record or the directory of records.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a record.
    #[error("parse record {path}")]
    Parse {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The record was written by a newer release.
    #[error("record {path} has version {version}, this release reads up to {VERSION}")]
    Version {
        /// The record.
        path: PathBuf,
        /// The version in it.
        version: u32,
    },
}

/// A sandbox as remembered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    version: u32,
    pub(crate) id: String,
    /// What the caller asked for.
    #[serde(with = "message")]
    pub(crate) config: v1::PodSandboxConfig,
    pub(crate) runtime_handler: String,
    /// Wall time, nanoseconds since 1970.
    pub(crate) created_at: i64,
    /// Whether the pod's cgroup was missing before, so that it is ours to take away.
    #[serde(default)]
    pub(crate) owns_cgroup: bool,
    pub(crate) phase: SandboxPhase,
}

/// Where a sandbox stands in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub(crate) enum SandboxPhase {
    /// Being made; torn down when found at start.
    Creating,
    /// Containers may be created in it.
    Ready {
        /// Addresses of the pod, the primary first; empty on the host's network.
        ips: Vec<String>,
    },
    /// Stopped, or its shim died. What it held is given back or about to be.
    NotReady,
}

/// A container as remembered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    version: u32,
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    /// What the caller asked for.
    #[serde(with = "message")]
    pub(crate) config: v1::ContainerConfig,
    pub(crate) image_id: String,
    /// The digest reference, or the id of an image without one.
    pub(crate) image_ref: String,
    pub(crate) log_path: String,
    /// Number of the stop signal, of the pod or of the image.
    pub(crate) stop_signal: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Wall time, nanoseconds since 1970.
    pub(crate) created_at: i64,
    pub(crate) phase: ContainerPhase,
}

/// Where a container stands in its life.
///
/// ```text
/// Creating → Created → Starting → Running → Exited
///                │         └──────────────────▲
///                └ (shim died) ───────────────┘
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub(crate) enum ContainerPhase {
    /// Its layer, mounts and bundle are being made; torn down when found at start.
    Creating,
    /// Ready to start.
    Created,
    /// The maker runs; killed and told as such when found at start without a process.
    Starting {
        /// Wall time when the shim was asked, nanoseconds since 1970: no container ends before it began.
        started_at: i64,
    },
    /// Its process runs.
    Running {
        pid: u32,
        /// Wall time, nanoseconds since 1970.
        started_at: i64,
    },
    /// Its process ended, or never was.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// 0 when it never ran.
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
    pub(crate) code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl SandboxRecord {
    pub(crate) fn new(
        id: String,
        config: v1::PodSandboxConfig,
        runtime_handler: String,
        created_at: i64,
    ) -> Self {
        SandboxRecord {
            version: VERSION,
            id,
            config,
            runtime_handler,
            created_at,
            owns_cgroup: false,
            phase: SandboxPhase::Creating,
        }
    }

    /// Writes the record to its place, which exists already.
    pub(crate) fn store(&self, layout: &Layout) -> Result<(), RecordError> {
        store(&layout.sandbox(&self.id), self)
    }
}

impl ContainerRecord {
    pub(crate) fn new(id: String, sandbox_id: String, config: v1::ContainerConfig, created_at: i64) -> Self {
        ContainerRecord {
            version: VERSION,
            id,
            sandbox_id,
            config,
            image_id: String::new(),
            image_ref: String::new(),
            log_path: String::new(),
            stop_signal: 15,
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            created_at,
            phase: ContainerPhase::Creating,
        }
    }

    /// Writes the record to its place, which exists already.
    pub(crate) fn store(&self, layout: &Layout) -> Result<(), RecordError> {
        store(&layout.bundle(&self.id), self)
    }
}

/// Every record of one kind below `dir`, and the names of directories whose record is missing or unreadable.
pub(crate) struct Found<T> {
    pub(crate) records: Vec<T>,
    /// Directory names without a usable record, and why. A missing file is no error.
    pub(crate) torn: Vec<(String, Option<RecordError>)>,
}

/// Reads the sandbox records of a state folder.
pub(crate) fn sandboxes(layout: &Layout) -> Result<Found<SandboxRecord>, RecordError> {
    scan(&layout.sandboxes(), |record: &SandboxRecord| record.version)
}

/// Reads the container records of a state folder.
pub(crate) fn containers(layout: &Layout) -> Result<Found<ContainerRecord>, RecordError> {
    scan(&layout.containers(), |record: &ContainerRecord| record.version)
}

fn scan<T: for<'de> Deserialize<'de>>(dir: &Path, version: fn(&T) -> u32) -> Result<Found<T>, RecordError> {
    let read = |source| RecordError::Read { path: dir.to_path_buf(), source };
    let mut found = Found { records: Vec::new(), torn: Vec::new() };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(read(error)),
    };
    for entry in entries {
        let entry = entry.map_err(read)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match load(&entry.path().join(RECORD), version) {
            Ok(Some(record)) => found.records.push(record),
            Ok(None) => found.torn.push((name, None)),
            Err(error) => found.torn.push((name, Some(error))),
        }
    }
    Ok(found)
}

fn load<T: for<'de> Deserialize<'de>>(path: &Path, version: fn(&T) -> u32) -> Result<Option<T>, RecordError> {
    let path = path.to_path_buf();
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Read { path, source }),
    };
    let record: T = match serde_json::from_slice(&text) {
        Ok(record) => record,
        Err(source) => return Err(RecordError::Parse { path, source }),
    };
    match version(&record) {
        found if found > VERSION => Err(RecordError::Version { path, version: found }),
        _ => Ok(Some(record)),
    }
}

fn store<T: Serialize>(dir: &Path, record: &T) -> Result<(), RecordError> {
    let text = serde_json::to_vec(record).expect("records have string keys and no failing serializers");
    write_by_rename(dir, RECORD_NEW, RECORD, &text)
        .map_err(|source| RecordError::Write { path: dir.join(RECORD), source })
}

/// Writes a file so that readers see either none, the old or the whole new one.
pub(crate) fn write_by_rename(dir: &Path, temporary: &str, name: &str, content: &[u8]) -> io::Result<()> {
    let new = dir.join(temporary);
    fs::write(&new, content)?;
    fs::rename(&new, dir.join(name))
}

/// CRI messages in records are their protobuf encoding in hex: the encoding has rules for old readers of
/// new fields, which a JSON form of ours would have to invent.
mod message {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<M: prost::Message, S: Serializer>(message: &M, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(message.encode_to_vec()))
    }

    pub(super) fn deserialize<'de, M, D>(from: D) -> Result<M, D::Error>
    where
        M: prost::Message + Default,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(from)?;
        let bytes = hex::decode(text).map_err(D::Error::custom)?;
        M::decode(bytes.as_slice()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_a_round_trip_and_torn_directories_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { root: dir.path().join("root"), state: dir.path().join("state") };
        fs::create_dir_all(layout.sandbox("a")).unwrap();
        fs::create_dir_all(layout.sandbox("b")).unwrap();
        fs::create_dir_all(layout.sandbox("c")).unwrap();
        let config = v1::PodSandboxConfig { hostname: "web".into(), ..Default::default() };
        let mut record = SandboxRecord::new("a".into(), config, String::new(), 7);
        record.phase = SandboxPhase::Ready { ips: vec!["10.0.0.2".into()] };
        record.store(&layout).unwrap();
        fs::write(layout.sandbox("c").join(RECORD), "{\"version\":").unwrap();

        let found = sandboxes(&layout).unwrap();
        assert_eq!(found.records.len(), 1);
        assert_eq!(found.records[0].config.hostname, "web");
        assert_eq!(found.records[0].phase, record.phase);
        let mut torn: Vec<_> =
            found.torn.iter().map(|(name, error)| (name.as_str(), error.is_some())).collect();
        torn.sort();
        assert_eq!(torn, [("b", false), ("c", true)]);
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { root: dir.path().join("root"), state: dir.path().into() };
        fs::create_dir_all(layout.bundle("x")).unwrap();
        let mut record = ContainerRecord::new("x".into(), "s".into(), Default::default(), 1);
        record.version = 2;
        record.store(&layout).unwrap();
        let found = containers(&layout).unwrap();
        assert!(matches!(found.torn[0].1, Some(RecordError::Version { version: 2, .. })));
    }
}
