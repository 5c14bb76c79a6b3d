//! Where the pods come from that this node should run: a folder of manifests, and the API server once joined.
//!
//! The agent starts a [`ManifestDir`] and hands its [`PodSet`] to the dispatcher and its [`ObjectSet`] to
//! volumes and environment. Text becomes objects in `decode`, objects become pods as an API server and a
//! kubelet would make them in `defaults`, `static_pod` and `validate`; `catalog` decides, without I/O, which
//! of all files' objects count; `manifest_dir` is a task, and the only place that touches files. `api_pods` is the
//! task that reads the API server's pods, `api_table` decides what this node makes of them.

mod api_pod;
mod api_pods;
mod api_table;
mod catalog;
mod decode;
mod defaults;
mod folder_watch;
mod image_name;
mod manifest_dir;
mod object_set;
mod static_pod;
pub mod validate;
mod yaml;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::Pod;

#[cfg(test)]
pub(crate) use api_pod::ApiPod as ApiPodForTests;
pub(crate) use api_pod::{HASH_ANNOTATION, MIRROR_ANNOTATION};
pub use api_pod::{is_mirror, is_static};
pub(crate) use api_pods::{ApiPods, Ended, Inputs as ApiPodsInputs};
pub(crate) use api_table::{News, Part};
pub use catalog::FileError;
pub use decode::{DecodeError, Decoded, MAX_BYTES, Object, decode};
pub use defaults::{default_pod, default_secret};
pub(crate) use image_name::parse_image_name;
pub use manifest_dir::{ManifestDir, ManifestDirConfig, SourceError};
pub use object_set::{ObjectSet, Objects};
pub use static_pod::{ContentHash, StaticPodContext, make_static};

/// The pods that should run, by UID. Latest wins: whoever reads it acts on the whole set.
pub type PodSet = Arc<BTreeMap<Arc<str>, Arc<Pod>>>;
