//! How much disk a pod uses against its limits: sizeLimit of emptyDir volumes, ephemeral-storage of containers.
//!
//! Blocking and as slow as the volumes are deep. Volumes in memory are bounded by their mounts and not walked.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Source, host_dir, source};
use crate::api::{Pod, Quantity};
use crate::qos::{pod_limits, status_resources};

const STORAGE: &str = "ephemeral-storage";

/// One message for each volume that holds more than its limit, as the kubelet's eviction words it.
pub(crate) fn over_limit(pod: &Pod, pod_dir: &Path) -> Vec<String> {
    let mut messages = Vec::new();
    for volume in &pod.spec.volumes {
        let Source::EmptyDir(Some(empty_dir)) = source::of(volume) else {
            continue;
        };
        let limit = empty_dir.size_limit.as_ref().filter(|_| empty_dir.medium.is_empty());
        let (Some(limit), Some(dir)) = (limit, host_dir(pod_dir, volume)) else {
            continue;
        };
        // What goes away during the walk uses nothing; what cannot be read is root's affair and not the pod's.
        let used = usage(&dir).unwrap_or(0);
        if i64::try_from(used).unwrap_or(i64::MAX) > limit.value() {
            messages.push(format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                volume.name,
                limit.as_str()
            ));
        }
    }
    messages
}

/// Bytes of what a container wrote beside its volumes and its log, on the disk at that mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) container: String,
    pub(crate) bytes: u64,
    pub(crate) mountpoint: PathBuf,
}

/// Whether a container of the pod is limited in what it writes.
pub(crate) fn is_limited(pod: &Pod) -> bool {
    pod_limits(pod, true).contains_key(STORAGE)
}

/// One message if the pod as a whole, and for each container that, holds more than its limit, as the kubelet's
/// eviction words it. A layer counts where it is on the disk of the pod's own folder.
pub(crate) fn over_storage_limit(pod: &Pod, pod_dir: &Path, log_dir: &Path, layers: &[Layer]) -> Vec<String> {
    let Some(total) = status_resources(pod, false).1.limits.remove(STORAGE) else { return Vec::new() };
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let own = device(pod_dir);
    let layer = |name: &str| {
        let layers = layers.iter().filter(|layer| layer.container == name);
        let counted = layers.filter(|layer| device(&layer.mountpoint).is_none_or(|disk| Some(disk) == own));
        counted.map(|layer| layer.bytes).fold(0, u64::saturating_add)
    };
    let exceeds = |used: u64, limit: &Quantity| i64::try_from(used).unwrap_or(i64::MAX) > limit.value();
    let names = pod.spec.init_containers.iter().chain(&pod.spec.containers).map(|container| &container.name);
    let all = names.map(|name| layer(name)).fold(0, u64::saturating_add);
    let used = all.saturating_add(disk_usage(pod, pod_dir)).saturating_add(folder_usage(log_dir));
    let mut messages = Vec::new();
    if exceeds(used, &total) {
        messages.push(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            total.as_str()
        ));
    }
    for container in &pod.spec.containers {
        let limit = container.resources.limits.get(STORAGE).filter(|limit| !limit.is_zero());
        let Some(limit) = limit else { continue };
        let used = layer(&container.name).saturating_add(folder_usage(&log_dir.join(&container.name)));
        if exceeds(used, limit) {
            let (name, limit) = (&container.name, limit.as_str());
            messages.push(format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. "));
        }
    }
    messages
}

/// Bytes that the pod's own volumes use of the disk.
pub(crate) fn disk_usage(pod: &Pod, pod_dir: &Path) -> u64 {
    let of = |volume: &crate::api::Volume| match source::of(volume) {
        Source::EmptyDir(empty_dir) if empty_dir.is_none_or(|source| source.medium.is_empty()) => {
            host_dir(pod_dir, volume).map_or(0, |dir| folder_usage(&dir))
        }
        Source::ConfigMap(_) => host_dir(pod_dir, volume).map_or(0, |dir| folder_usage(&dir)),
        _ => 0,
    };
    pod.spec.volumes.iter().map(of).fold(0, u64::saturating_add)
}

/// Bytes of disk below a folder that may not be there.
pub(crate) fn folder_usage(dir: &Path) -> u64 {
    usage(dir).unwrap_or(0)
}

/// Bytes of disk below a folder, each file counted once however many names it has, within one file system.
fn usage(root: &Path) -> io::Result<u64> {
    let device = std::fs::symlink_metadata(root)?.dev();
    let mut seen = HashSet::new();
    let mut total: u64 = 0;
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.filter_map(Result::ok) {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.dev() != device
                || (metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert(metadata.ino()))
            {
                continue;
            }
            total = total.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(total)
}
