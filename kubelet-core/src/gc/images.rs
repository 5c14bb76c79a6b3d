//! Images by disk threshold: what is remembered of them, and the removal of those that nobody uses.
//!
//! Called by the collector's task, which owns the records. They are kept in memory alone: after a restart
//! every image counts as seen just now, as for a kubelet.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use coracle_cri::v1::{ContainerStatusRequest, Image, ImageSpec, RemoveImageRequest};
use coracle_cri::{Code, ImageService, RuntimeService};

use super::plan::{self, DiskUsage, SeenImage};
use super::{GcConfig, GcError, within};
use crate::events::{EventRecorder, EventType};

/// When each image was first seen and last used, since boot.
#[derive(Debug, Default)]
pub(super) struct ImageRecords(BTreeMap<String, Record>);

#[derive(Clone, Copy, Debug)]
struct Record {
    first_detected: Duration,
    last_used: Option<Duration>,
}

/// One collection.
pub(super) struct Collection<'a> {
    pub(super) runtime: &'a dyn RuntimeService,
    pub(super) images: &'a dyn ImageService,
    pub(super) events: &'a EventRecorder,
    pub(super) config: &'a GcConfig,
}

impl Collection<'_> {
    /// Removes what must go; says when to look again.
    pub(super) async fn run(&self, records: &mut ImageRecords, now: Duration) -> Result<Duration, GcError> {
        let seen = self.look(records, now).await?;
        let Some(disk) = self.disk().await? else { return Ok(Duration::from_secs(3600)) };
        let plan = plan::images(&seen, disk, &self.config.policy, now);
        let mut errors = Vec::new();
        for id in &plan.aged {
            errors.extend(self.remove(records, id).await.err());
        }
        let freed = self.free(records, &plan, &mut errors).await;
        if let Some(error) = errors.into_iter().next() {
            return Err(error);
        }
        if freed < plan.bytes_to_free {
            let message = format!(
                "Insufficient free disk space on the node's image filesystem ({}% of {} used). Failed to free sufficient \
                 space by deleting unused images (freed {freed} bytes). Investigate disk usage, as it could be used by \
                 active images, logs, volumes, or other data.",
                disk.percent(),
                size_text(disk.capacity)
            );
            self.events.node(
                &self.config.node_name,
                EventType::Warning,
                "FreeDiskSpaceFailed",
                message.clone(),
            );
            return Err(GcError::Space(message));
        }
        Ok(plan::next_disk_check(disk, &self.config.policy))
    }

    /// Removes all that nothing uses, but for what was seen a moment ago and may be about to be used.
    pub(super) async fn remove_unused(&self, records: &mut ImageRecords, now: Duration) -> Vec<GcError> {
        let seen = match self.look(records, now).await {
            Ok(seen) => seen,
            Err(error) => return vec![error],
        };
        let youngest = self.config.policy.min_image_age;
        let mut errors = Vec::new();
        for image in seen {
            if !image.in_use && !image.pinned && now.saturating_sub(image.first_detected) >= youngest {
                errors.extend(self.remove(records, &image.id).await.err());
            }
        }
        errors
    }

    /// Brings the records up to date.
    async fn look(&self, records: &mut ImageRecords, now: Duration) -> Result<Vec<SeenImage>, GcError> {
        let limit = self.config.call_timeout;
        // Before the images: a pull is recorded once its image is there.
        let recorded = self.config.pull_records.as_ref().map(|records| (records, records.recorded()));
        let images =
            within(limit, "ListImages", "", self.images.list_images(Default::default())).await?.images;
        if let Some((records, recorded)) = recorded {
            records.prune(&recorded, images.iter().map(|image| image.id.as_str()));
        }
        let containers = self.runtime.list_containers(Default::default());
        let containers = within(limit, "ListContainers", "", containers).await?.containers;
        let mut used = BTreeSet::new();
        let mut ids = Vec::new();
        for container in containers {
            // Which of them is the image's ID differs between runtimes.
            used.extend([container.image_id, container.image_ref]);
            used.extend(container.image.map(|image| image.image));
            ids.push(container.id);
        }
        if images.iter().any(|image| !is_used(image, &used)) {
            self.add_volumes(&mut used, ids).await?;
        }
        records.0.retain(|id, _| images.iter().any(|image| image.id == *id));
        let seen = images.into_iter().map(|image| {
            let in_use = is_used(&image, &used);
            let record =
                records.0.entry(image.id.clone()).or_insert(Record { first_detected: now, last_used: None });
            if in_use {
                record.last_used = Some(now);
            }
            SeenImage {
                in_use,
                pinned: image.pinned,
                size: image.size,
                first_detected: record.first_detected,
                last_used: record.last_used,
                id: image.id,
            }
        });
        Ok(seen.collect())
    }

    /// Adds the images that containers have as volumes, which only their statuses tell.
    async fn add_volumes(&self, used: &mut BTreeSet<String>, containers: Vec<String>) -> Result<(), GcError> {
        let limit = self.config.call_timeout;
        for container_id in containers {
            let request = ContainerStatusRequest { container_id: container_id.clone(), verbose: false };
            let call = self.runtime.container_status(request);
            match within(limit, "ContainerStatus", &container_id, call).await {
                Ok(answer) => {
                    let mounts = answer.status.map(|status| status.mounts).unwrap_or_default();
                    used.extend(mounts.into_iter().filter_map(|mount| Some(mount.image?.image)));
                }
                // It was removed meanwhile.
                Err(GcError::Runtime { source, .. }) if source.code() == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How full the images' file system is; `None` if the runtime does not say where it is.
    async fn disk(&self) -> Result<Option<DiskUsage>, GcError> {
        let limit = self.config.call_timeout;
        let info = within(limit, "ImageFsInfo", "", self.images.image_fs_info(Default::default())).await?;
        let id = info.image_filesystems.first().and_then(|usage| usage.fs_id.as_ref());
        let Some(mountpoint) = id.map(|id| id.mountpoint.as_str()).filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let failed = |source: rustix::io::Errno| GcError::File {
            operation: "read the usage of",
            path: mountpoint.into(),
            source: source.into(),
        };
        let usage = rustix::fs::statvfs(Path::new(mountpoint)).map_err(failed)?;
        let disk = DiskUsage {
            capacity: usage.f_blocks.saturating_mul(usage.f_frsize),
            available: usage.f_bavail.saturating_mul(usage.f_frsize),
        };
        if disk.capacity == 0 {
            let message = "invalid capacity 0 on image filesystem".to_owned();
            self.events.node(
                &self.config.node_name,
                EventType::Warning,
                "InvalidDiskCapacity",
                message.clone(),
            );
            return Err(GcError::Space(message));
        }
        Ok(Some(disk))
    }

    /// Removes candidates until enough is free; one that cannot be removed does not stop the others.
    async fn free(
        &self,
        records: &mut ImageRecords,
        plan: &plan::ImagePlan,
        errors: &mut Vec<GcError>,
    ) -> u64 {
        let mut freed = 0;
        for (id, size) in &plan.candidates {
            if freed >= plan.bytes_to_free {
                break;
            }
            match self.remove(records, id).await {
                Ok(()) => freed += size,
                Err(error) => errors.push(error),
            }
        }
        freed
    }

    async fn remove(&self, records: &mut ImageRecords, id: &str) -> Result<(), GcError> {
        tracing::info!(image = id, "removing unused image to free space");
        let image = Some(ImageSpec { image: id.to_owned(), ..ImageSpec::default() });
        let call = self.images.remove_image(RemoveImageRequest { image });
        within(self.config.call_timeout, "RemoveImage", id, call).await?;
        records.0.remove(id);
        Ok(())
    }
}

/// `7.3 GiB`, as the kubelet prints sizes.
fn size_text(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

fn is_used(image: &Image, used: &BTreeSet<String>) -> bool {
    let names = image.repo_tags.iter().chain(&image.repo_digests);
    used.contains(&image.id) || names.into_iter().any(|name| used.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_printed_as_the_kubelet_prints_them() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")]
        {
            assert_eq!(size_text(bytes), text);
        }
    }
}
