//! Eviction for the disk use of a pod: one whose emptyDir volume outgrows its sizeLimit fails, and one that, or a
//! container of which, writes more than its limit of ephemeral-storage.
//!
//! Part of the worker. Only a pod that sets such a limit is ever looked at, with the period of the kubelet's
//! eviction manager, so that a node without such pods has no timer for it.

use std::time::Duration;

use coracle_cri::v1::ContainerStatsRequest;

use super::Worker;
use crate::events::EventType;
use crate::eviction::plan::CRITICAL;
use crate::pod::observation::ContainerPhase;
use crate::pod::rpc::bounded;
use crate::pod::status::Eviction;
use crate::volume::{self, Layer};

/// The kubelet's `monitoringInterval` of evictions.
const PERIOD: Duration = Duration::from_secs(10);

impl Worker {
    /// Evicts the pod if it is time to look and it holds too much.
    pub(super) async fn check_usage(&mut self) {
        let now = self.node.clock.now().boot;
        if self.eviction.is_some() || now < self.usage_at || !self.has_bounded_storage() {
            return;
        }
        self.usage_at = now + PERIOD;
        let over = Box::pin(self.over_limit()).await;
        let Some(message) = over.into_iter().next() else { return };
        self.node.events.pod(&self.pod, None, EventType::Warning, "Evicted", message.clone());
        self.eviction = Some(Eviction { reason: "Evicted".to_owned(), message, disruption: None });
    }

    async fn over_limit(&self) -> Vec<String> {
        let mut layers = Vec::new();
        let alive = self.observed.containers.iter().filter(|c| c.phase == ContainerPhase::Running);
        for instance in alive.filter(|_| volume::is_limited(&self.pod)) {
            let request = ContainerStatsRequest { container_id: instance.id.to_string() };
            let call = self.node.runtime.container_stats(request);
            let stats = bounded("ContainerStats", self.node.deadlines.query, call).await;
            // What ended meanwhile is measured no more.
            let layer = stats.ok().and_then(|answer| answer.stats?.writable_layer);
            layers.extend(layer.map(|layer| Layer {
                container: instance.name.clone(),
                bytes: layer.used_bytes.map_or(0, |bytes| bytes.value),
                mountpoint: layer.fs_id.map(|disk| disk.mountpoint).unwrap_or_default().into(),
            }));
        }
        self.node.resources.over_limit(&self.pod, layers).await
    }

    /// Whether the pod may hold only so much. A volume in memory is held by its file system. No pod that the cluster
    /// needs is evicted; one of the folder is, unlike with a kubelet, since on a node alone nobody else would end it.
    pub(super) fn has_bounded_storage(&self) -> bool {
        let is_bounded = |source: &crate::api::EmptyDirVolumeSource| {
            source.medium.is_empty() && source.size_limit.as_ref().is_some_and(|limit| !limit.is_zero())
        };
        let mut volumes = self.pod.spec.volumes.iter().filter_map(|volume| volume.empty_dir.as_deref());
        (volumes.any(is_bounded) || volume::is_limited(&self.pod))
            && self.pod.spec.priority.is_none_or(|priority| priority < CRITICAL)
    }
}
