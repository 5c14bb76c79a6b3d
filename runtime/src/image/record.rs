//! An image as the agent knows it, and its record on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// A stored image.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:` digest of its config.
    pub id: String,
    /// Names with tags, as `docker.io/library/busybox:latest`.
    pub repo_tags: Vec<String>,
    /// Names with manifest digests.
    pub repo_digests: Vec<String>,
    /// What its layers take on disk; layers shared with other images count in full.
    pub size_bytes: u64,
    /// What a container needs of its config.
    pub config: ImageConfig,
    /// Its layers' folders, topmost first, ready for overlay's `lowerdir=`.
    pub lower_dirs: Vec<PathBuf>,
    /// Chain IDs of its layers, bottom first.
    pub layers: Vec<Digest>,
    /// When it was pulled or loaded, in seconds since 1970 by the wall clock of then.
    pub added_at: u64,
    /// Whether garbage collection leaves it alone.
    pub pinned: bool,
}

/// The part of an image config that containers use, with the names of the OCI image specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `NAME=value` each.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// First part of the command line.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Rest of the command line, or all of it.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Working directory; empty for `/`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Paths that the image declares as volumes.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Empty>,
    /// Signal that stops it, by name or number; empty for SIGTERM.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Labels.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `port/protocol` each.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
}

/// The empty object that the specification uses as a set's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Go writes empty lists and maps as null.
pub(crate) fn nullable<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// An image on disk, and what a worker tells of one that it has fetched.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) id: Digest,
    pub(crate) repo_tags: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
    pub(crate) size_bytes: u64,
    /// Chain IDs, bottom first.
    pub(crate) layers: Vec<Digest>,
    pub(crate) config: ImageConfig,
    pub(crate) added_at: u64,
    #[serde(default)]
    pub(crate) pinned: bool,
    /// Removed while containers held it: invisible, but its layers stay until they are gone.
    #[serde(default)]
    pub(crate) removed: bool,
}
