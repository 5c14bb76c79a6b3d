//! The volumes of a pod: what kind each is, where it lies, and setting it up.
//!
//! [`crate::resources`] calls this from a blocking thread, for one pod at a time. Everything is idempotent and
//! can be cut off at any instruction: a second call finishes what the first began.

mod atomic;
mod empty_dir;
mod env_file;
mod host_path;
mod immutable;
mod ownership;
mod payload;
mod source;
mod subpath;
mod teardown;
mod usage;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::api::{Pod, Quantity, Volume};
use crate::env::{FieldError, ResourceFieldError};
use crate::objects::ObjectSource;

pub use atomic::AtomicWriteError;
pub use host_path::HostPathError;
pub use subpath::SubPathError;
pub use teardown::VolumeTeardownError;

pub(crate) use env_file::read_file_key;
pub(crate) use immutable::{Immutables, PodObjects};
pub(crate) use source::Source;
pub(crate) use subpath::{Bind, bind_sub_path, check_sub_path};
pub(crate) use teardown::tear_down;
pub(crate) use usage::{Layer, disk_usage, folder_usage, is_limited, over_limit, over_storage_limit};

/// Why a volume cannot be set up; the text is what the kubelet's `FailedMount` event carries.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A configMap that is not optional is not there.
    #[error("configmap {0:?} not found")]
    ConfigMapNotFound(String),
    /// A secret that is not optional is not there.
    #[error("secret {0:?} not found")]
    SecretNotFound(String),
    /// A configMap or secret that could not be looked up, or a token that could not be had.
    #[error("{0}")]
    Unknown(String),
    /// The configMap lacks a key that is asked for.
    #[error("configmap references non-existent config key: {0}")]
    NoConfigKey(String),
    /// The secret lacks a key that is asked for.
    #[error("references non-existent secret key: {0}")]
    NoSecretKey(String),
    /// A field of the pod that there is not.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A resource that there is not.
    #[error(transparent)]
    ResourceField(#[from] ResourceFieldError),
    /// The volume needs something that this node lacks.
    #[error("{what} is not supported on this node: {cure}")]
    Unsupported {
        /// The type of the volume or of a projected source.
        what: &'static str,
        /// What to do about it.
        cure: &'static str,
    },
    /// The path of a hostPath volume is not what its type says.
    #[error(transparent)]
    HostPath(#[from] HostPathError),
    /// The files cannot be written.
    #[error(transparent)]
    Write(#[from] AtomicWriteError),
    /// An emptyDir with a medium that there is not, or huge pages that no container asks for.
    #[error("{0}")]
    Medium(String),
    /// The file system refused.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl VolumeError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// What setting up a volume needs to know besides the pod.
pub(crate) struct VolumeInputs<'a> {
    /// The pod's folder.
    pub pod_dir: &'a Path,
    /// ConfigMaps and secrets.
    pub objects: &'a dyn ObjectSource,
    /// What the node can give to pods.
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// Bytes that all pods together may use: the bound of a tmpfs without any other.
    pub memory: i64,
}

/// The host's path of a volume, whether it is set up or not; `None` for a kind without one.
pub(crate) fn host_dir(pod_dir: &Path, volume: &Volume) -> Option<PathBuf> {
    let plugin = match source::of(volume) {
        Source::HostPath(host_path) => return Some(PathBuf::from(&host_path.path)),
        Source::EmptyDir(_) => "kubernetes.io~empty-dir",
        Source::ConfigMap(_) => "kubernetes.io~configmap",
        Source::Secret(_) => "kubernetes.io~secret",
        Source::DownwardApi(_) => "kubernetes.io~downward-api",
        Source::Projected(_) => "kubernetes.io~projected",
        Source::Image | Source::Unsupported { .. } => return None,
    };
    Some(pod_dir.join("volumes").join(plugin).join(&volume.name))
}

/// Whether containers may only read it.
pub(crate) fn is_read_only(volume: &Volume) -> bool {
    !matches!(source::of(volume), Source::HostPath(_) | Source::EmptyDir(_))
}

/// Makes one volume ready for containers; cheap if it is already.
pub(crate) fn set_up(pod: &Pod, volume: &Volume, inputs: &VolumeInputs<'_>) -> Result<(), VolumeError> {
    let source = source::of(volume);
    if let Source::Unsupported { what, cure } = source {
        return Err(VolumeError::Unsupported { what, cure });
    }
    if let Source::HostPath(host_path) = source {
        return Ok(host_path::check(host_path)?);
    }
    if let Source::Image = source {
        // It is pulled when a container that mounts it is made.
        return Ok(());
    }
    let dir = host_dir(inputs.pod_dir, volume).expect("all other kinds have a folder");
    if let Source::EmptyDir(empty_dir) = source {
        let medium = empty_dir::Medium::of(pod, empty_dir, inputs.memory)?;
        return empty_dir::set_up(&dir, inputs.pod_dir, volume, &medium, fs_group(pod));
    }
    write_files(pod, volume, &source, &dir, inputs)
}

/// Writes the files of a configMap, secret, downwardAPI or projected volume if they changed.
fn write_files(
    pod: &Pod,
    volume: &Volume,
    source: &Source<'_>,
    dir: &Path,
    inputs: &VolumeInputs<'_>,
) -> Result<(), VolumeError> {
    // Before anything is touched: a source that fails leaves the present files as they are.
    let payload = payload::plan(pod, source, inputs.objects, inputs.allocatable)?;
    let medium = match source {
        Source::ConfigMap(_) => empty_dir::Medium::Disk,
        _ => empty_dir::Medium::memory(pod, None, inputs.memory),
    };
    empty_dir::set_up(dir, inputs.pod_dir, volume, &medium, fs_group(pod))?;
    for nested in payload::nested_mount_points(pod, &volume.name) {
        let nested = dir.join(nested);
        std::fs::create_dir_all(&nested).map_err(VolumeError::io("create folder", &nested))?;
    }
    let own = |written: &Path| match fs_group(pod) {
        Some(group) => ownership::give_to_group(written, group, ownership::Access::ReadOnly),
        None => Ok(()),
    };
    Ok(atomic::write(dir, &payload, own)?)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

#[cfg(test)]
mod tests;
