//! The mounts of a container from its volumeMounts, and its devices.
//!
//! Blocking where a subPath is bound; called under the pod's gate. Error texts are the kubelet's, and say nothing
//! of the host's files to someone who tries links.

use std::path::Path;

use coracle_cri::v1::{Device, ImageSpec, Mount, MountPropagation};

use crate::api::{Container, ImageVolumeSource, Pod, VolumeMount};
use crate::env::expand_sub_path;
use crate::volume::{self, Bind, SubPathError};

/// Why a container cannot have a mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The pod has no such volume.
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    NoVolume {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
    },
    /// No volume of this node is a block device.
    #[error("cannot find volume {volume:?} to pass into container {container:?}")]
    NoDevice {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
    },
    /// A device must have an absolute path.
    #[error("error DevicePath `{0}` must be an absolute path")]
    RelativeDevice(String),
    /// Variables of a subPathExpr that are not set.
    #[error("missing value for {}", .0.join(", "))]
    MissingVariables(Vec<String>),
    /// A subPath that is no relative path below its volume.
    #[error(transparent)]
    SubPath(SubPathError),
    /// A subPath that cannot be bound; why is logged, and not told to the pod's owner.
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}")]
    PrepareSubPath {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
    },
    /// A propagation that there is not.
    #[error("invalid MountPropagation mode: {0:?}")]
    Propagation(String),
    /// Mounts made by a container reach the host only from a privileged one.
    #[error("Bidirectional mount propagation of volume {0:?} is available only to privileged containers")]
    NotPrivileged(String),
    /// recursiveReadOnly that cannot be met.
    #[error("failed to resolve recursive read-only mode: {0}")]
    RecursiveReadOnly(String),
}

/// The mounts of a container's volumes, in its order.
pub(super) fn volume_mounts(
    pod: &Pod,
    container: &Container,
    pod_dir: &Path,
    env: &[(String, String)],
    supports_rro: bool,
) -> Result<Vec<Mount>, MountError> {
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let no_volume =
            || MountError::NoVolume { volume: mount.name.clone(), container: container.name.clone() };
        let volume = pod.spec.volumes.iter().find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(no_volume)?;
        let sub_path = sub_path(mount, env)?;
        if let Some(source) = &volume.image {
            mounts.push(image_mount(mount, container, source, sub_path, supports_rro)?);
            continue;
        }
        let mut host_path = volume::host_dir(pod_dir, volume).ok_or_else(no_volume)?;
        if !sub_path.is_empty() {
            let bind = Bind { pod_dir, volume_name: &mount.name, container: &container.name, index };
            host_path = volume::bind_sub_path(&host_path, &sub_path, &bind)
                .map_err(|error| sub_path_error(error, mount, container))?;
        }
        mounts.push(Mount {
            container_path: Path::new("/").join(&mount.mount_path).to_string_lossy().into_owned(),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: mount.read_only || volume::is_read_only(volume),
            propagation: propagation(mount, container)?.into(),
            recursive_read_only: recursive_read_only(mount, supports_rro)
                .map_err(MountError::RecursiveReadOnly)?,
            // What the pod brought with it is its own; what the host has keeps its label.
            selinux_relabel: volume.host_path.is_none(),
            ..Mount::default()
        });
    }
    Ok(mounts)
}

/// The mount of an image, which the runtime makes; whoever starts the container says which image it has become.
fn image_mount(
    mount: &VolumeMount,
    container: &Container,
    source: &ImageVolumeSource,
    sub_path: String,
    supports_rro: bool,
) -> Result<Mount, MountError> {
    volume::check_sub_path(&sub_path).map_err(MountError::SubPath)?;
    let image = ImageSpec { user_specified_image: source.reference.clone(), ..ImageSpec::default() };
    Ok(Mount {
        container_path: Path::new("/").join(&mount.mount_path).to_string_lossy().into_owned(),
        image: Some(image),
        image_sub_path: sub_path,
        readonly: true,
        propagation: propagation(mount, container)?.into(),
        recursive_read_only: recursive_read_only(mount, supports_rro)
            .map_err(MountError::RecursiveReadOnly)?,
        ..Mount::default()
    })
}

fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<String, MountError> {
    if mount.sub_path_expr.is_empty() {
        return Ok(mount.sub_path.clone());
    }
    let lookup = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    expand_sub_path(&mount.sub_path_expr, lookup).map_err(MountError::MissingVariables)
}

fn sub_path_error(error: SubPathError, mount: &VolumeMount, container: &Container) -> MountError {
    if matches!(error, SubPathError::Absolute(_) | SubPathError::Climbs(_)) {
        return MountError::SubPath(error);
    }
    tracing::warn!(
        container = container.name,
        volume = mount.name,
        error = &error as &dyn std::error::Error,
        "subPath cannot be bound"
    );
    MountError::PrepareSubPath { volume: mount.name.clone(), container: container.name.clone() }
}

fn propagation(mount: &VolumeMount, container: &Container) -> Result<MountPropagation, MountError> {
    match mount.mount_propagation.as_deref() {
        None | Some("None") => Ok(MountPropagation::PropagationPrivate),
        Some("HostToContainer") => Ok(MountPropagation::PropagationHostToContainer),
        Some("Bidirectional") => {
            let context = container.security_context.as_ref();
            if context.is_some_and(|context| context.privileged == Some(true)) {
                return Ok(MountPropagation::PropagationBidirectional);
            }
            Err(MountError::NotPrivileged(mount.name.clone()))
        }
        Some(other) => Err(MountError::Propagation(other.to_owned())),
    }
}

fn recursive_read_only(mount: &VolumeMount, supported: bool) -> Result<bool, String> {
    let name = &mount.name;
    let Some(mode) = mount.recursive_read_only.as_deref().filter(|mode| *mode != "Disabled") else {
        return Ok(false);
    };
    if !mount.read_only {
        return Err(format!("volume {name:?} requested recursive read-only mode, but it is not read-only"));
    }
    if let Some(propagation) = mount.mount_propagation.as_deref().filter(|mode| *mode != "None") {
        return Err(format!(
            "volume {name:?} requested recursive read-only mode, but it is not compatible with propagation \
             {propagation:?}"
        ));
    }
    match mode {
        "IfPossible" => Ok(supported),
        "Enabled" if supported => Ok(true),
        "Enabled" => Err(format!(
            "volume {name:?} requested recursive read-only mode, but it is not supported by the runtime"
        )),
        other => Err(format!("unknown recursive read-only mode {other:?}")),
    }
}

/// Block devices come from claims alone, which need a cluster.
pub(super) fn devices(container: &Container) -> Result<Vec<Device>, MountError> {
    match container.volume_devices.first() {
        None => Ok(Vec::new()),
        Some(device) if !device.device_path.starts_with('/') => {
            Err(MountError::RelativeDevice(device.device_path.clone()))
        }
        Some(device) => {
            Err(MountError::NoDevice { volume: device.name.clone(), container: container.name.clone() })
        }
    }
}
