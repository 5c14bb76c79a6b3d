//! How much disk the emptyDir volumes of a pod use against their sizeLimit.
//!
//! Blocking and as slow as the volumes are deep. Volumes in memory are bounded by their mounts and not walked.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Source, host_dir, source};
use crate::api::Pod;

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
