//! Eviction for the disk use of emptyDir volumes: a pod whose volume outgrows its sizeLimit fails.
//!
//! Part of the worker. Only a pod that sets such a limit is ever looked at, with the period of the kubelet's
//! eviction manager, so that a node without such pods has no timer for it.

use std::time::Duration;

use super::Worker;
use crate::events::EventType;
use crate::pod::status::Eviction;

/// The kubelet's `monitoringInterval` of evictions.
const PERIOD: Duration = Duration::from_secs(10);

impl Worker {
    /// Evicts the pod if it is time to look and a volume holds too much.
    pub(super) async fn check_usage(&mut self) {
        let now = self.node.clock.now().boot;
        if self.eviction.is_some() || now < self.usage_at || !self.has_bounded_volumes() {
            return;
        }
        self.usage_at = now + PERIOD;
        let over = Box::pin(self.node.resources.over_limit(&self.pod)).await;
        let Some(message) = over.into_iter().next() else { return };
        self.node.events.pod(&self.pod, None, EventType::Warning, "Evicted", message.clone());
        self.eviction = Some(Eviction { reason: "Evicted".to_owned(), message, disruption: None });
    }

    /// Whether a volume on disk has a limit; one in memory is held by its file system.
    pub(super) fn has_bounded_volumes(&self) -> bool {
        let is_bounded = |source: &crate::api::EmptyDirVolumeSource| {
            source.medium.is_empty() && source.size_limit.as_ref().is_some_and(|limit| !limit.is_zero())
        };
        self.pod.spec.volumes.iter().filter_map(|volume| volume.empty_dir.as_deref()).any(is_bounded)
    }
}
