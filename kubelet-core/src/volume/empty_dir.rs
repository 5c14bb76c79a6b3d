//! emptyDir volumes on disk, in memory and of huge pages; also the ground of the volumes made of files.
//!
//! A volume is ready when it is there, mounted if it is no plain folder, and its marker says that its owner is set:
//! that is done once, and not over what the pod made of it. After a reboot what was mounted is not, and is mounted
//! anew.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::VolumeError;
use super::ownership::{Access, give_to_group};
use crate::api::{EmptyDirVolumeSource, Pod, Quantity, Volume};
use crate::{qos, sys};

/// What holds the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// The disk of the pod's folder.
    Disk,
    /// Memory, at most so many bytes.
    Memory { limit: i64 },
    /// Huge pages of that size in bytes.
    HugePages { page_size: u64 },
}

impl Medium {
    /// The medium that an emptyDir asks for; `memory` is what all pods together may use.
    pub(super) fn of(
        pod: &Pod,
        source: Option<&EmptyDirVolumeSource>,
        memory: i64,
    ) -> Result<Self, VolumeError> {
        let Some(source) = source else {
            return Ok(Self::Disk);
        };
        match source.medium.as_str() {
            "" => Ok(Self::Disk),
            "Memory" => Ok(Self::memory(pod, source.size_limit.as_ref(), memory)),
            medium if medium == "HugePages" || medium.starts_with("HugePages-") => {
                huge_pages(pod, medium).map_err(VolumeError::Medium)
            }
            other => Err(VolumeError::Medium(format!("unknown storage medium {other:?}"))),
        }
    }

    /// Memory bounded by the smallest of the volume's limit, the pod's and the node's.
    pub(super) fn memory(pod: &Pod, size_limit: Option<&Quantity>, memory: i64) -> Self {
        let of_pod = qos::pod_cgroup_limits(pod, false, 100_000).memory;
        let asked = size_limit.map(Quantity::value);
        let limits = [of_pod, asked].into_iter().flatten().filter(|limit| *limit > 0);
        Self::Memory { limit: limits.fold(memory, i64::min) }
    }
}

fn huge_pages(pod: &Pod, medium: &str) -> Result<Medium, String> {
    let of_pod = pod.spec.resources.iter().flat_map(|resources| resources.requests.keys());
    let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    let of_containers = containers.flat_map(|container| container.resources.requests.keys());
    let mut sizes: Vec<u64> =
        of_pod.chain(of_containers).filter_map(|name| qos::hugepage_size(name)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    if let Some(size) = medium.strip_prefix("HugePages-") {
        let wanted = size.parse::<Quantity>().ok().and_then(|size| u64::try_from(size.value()).ok());
        sizes.retain(|size| Some(*size) == wanted);
    }
    match sizes[..] {
        [page_size] => Ok(Medium::HugePages { page_size }),
        [] => Err(format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        )),
        _ => Err(format!("medium: {medium} can't be used if container requests multiple huge page sizes")),
    }
}

/// Makes the folder, its mount if it has one, and its owner.
pub(super) fn set_up(
    dir: &Path,
    pod_dir: &Path,
    volume: &Volume,
    medium: &Medium,
    fs_group: Option<u32>,
) -> Result<(), VolumeError> {
    let ready = ready_marker(pod_dir, volume);
    let is_there = match medium {
        // Made before its permissions are set, so a folder without a marker is made again.
        Medium::Disk => dir.is_dir() && ready.is_dir(),
        Medium::Memory { .. } => is_mounted(dir, sys::is_tmpfs),
        Medium::HugePages { .. } => is_mounted(dir, sys::is_hugetlbfs),
    };
    if is_there && ready.is_dir() {
        return Ok(());
    }
    if !is_there {
        make(dir, &ready, medium)?;
    }
    if let Some(group) = fs_group {
        give_to_group(dir, group, Access::ReadWrite).map_err(VolumeError::io("set the group of", dir))?;
    }
    std::fs::create_dir_all(&ready).map_err(VolumeError::io("create folder", &ready))
}

fn make(dir: &Path, ready: &Path, medium: &Medium) -> Result<(), VolumeError> {
    // The marker of what was mounted before a reboot says nothing of what is mounted now.
    match std::fs::remove_dir(ready) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(VolumeError::io("remove", ready)(error));
        }
        _ => {}
    }
    std::fs::create_dir_all(dir).map_err(VolumeError::io("create folder", dir))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))
        .map_err(VolumeError::io("chmod", dir))?;
    match medium {
        Medium::Disk => Ok(()),
        Medium::Memory { limit } => mount_memory(dir, *limit),
        Medium::HugePages { page_size } => sys::mount_hugetlbfs(dir, &format!("pagesize={page_size}"))
            .map_err(VolumeError::io("mount hugetlbfs at", dir)),
    }
}

/// Where the kubelet keeps it too: `plugins/kubernetes.io~empty-dir/<volume>/ready`.
fn ready_marker(pod_dir: &Path, volume: &Volume) -> PathBuf {
    pod_dir.join("plugins/kubernetes.io~empty-dir").join(&volume.name).join("ready")
}

fn is_mounted(dir: &Path, is_of_kind: fn(&Path) -> std::io::Result<bool>) -> bool {
    sys::is_own_file_system(dir).unwrap_or(false) && is_of_kind(dir).unwrap_or(false)
}

fn mount_memory(dir: &Path, limit: i64) -> Result<(), VolumeError> {
    // Secrets must not reach a swap disk; kernels before 6.4 do not know the option.
    static KNOWS_NOSWAP: AtomicBool = AtomicBool::new(true);
    let size = format!("size={limit}");
    if KNOWS_NOSWAP.load(Ordering::Relaxed) {
        match sys::mount_tmpfs(dir, &format!("{size},noswap")) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                KNOWS_NOSWAP.store(false, Ordering::Relaxed);
            }
            mounted => return mounted.map_err(VolumeError::io("mount tmpfs at", dir)),
        }
    }
    sys::mount_tmpfs(dir, &size).map_err(VolumeError::io("mount tmpfs at", dir))
}
