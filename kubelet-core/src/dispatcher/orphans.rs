//! Pods of the runtime that nobody wants: left by an agent that died, or by a manifest removed meanwhile.
//!
//! Part of the dispatcher's task. Their labels and annotations tell enough to end them as they asked for.

use std::sync::Arc;

use super::Dispatcher;
use crate::api::Pod;
use crate::pod::labels::{add_container_of_labels, pod_of_labels};
use crate::pod::worker::Goal;
use crate::runtime_watch::Listed;

impl Dispatcher {
    /// Looks for what nobody wants in the runtime and on disk, once it is known what everybody wants.
    pub(super) async fn adopt_and_sweep(&mut self) -> bool {
        if !*self.sources_seen.borrow() {
            return false;
        }
        self.adopt();
        self.sweep_disk().await;
        true
    }

    /// Begins to remove the pods that were found and are not desired; those that are get their worker with the
    /// next reconciliation. While a source has not told what it wants, nothing is removed.
    pub(super) fn adopt(&mut self) {
        if !*self.sources_seen.borrow() && self.stopping.is_none() {
            return;
        }
        let desired = self.pods.borrow().clone();
        let unwanted = self.found.pods.iter().filter(|(uid, _)| {
            !self.entries.contains_key(*uid) && (self.stopping.is_some() || !desired.contains_key(*uid))
        });
        let orphans: Vec<Pod> = unwanted.filter_map(|(_, listed)| restore(listed)).collect();
        for pod in orphans {
            tracing::info!(pod = %pod.full_name(), uid = %pod.metadata.uid, "removing a pod that nobody wants");
            self.spawn(Arc::new(pod), Goal::Remove);
        }
    }

    /// Begins to remove what pods left on disk of which the runtime knows nothing, as after a reboot.
    pub(super) async fn sweep_disk(&mut self) {
        let uids = match self.node.resources.on_disk().await {
            Ok(uids) => uids,
            Err(error) => {
                tracing::warn!(%error, "could not list the pods' folders");
                return;
            }
        };
        let desired = self.pods.borrow().clone();
        for uid in uids {
            if self.entries.contains_key(uid.as_str()) || desired.contains_key(uid.as_str()) {
                continue;
            }
            tracing::info!(uid, "removing what is left of a pod");
            // All that is known of it is its UID; without a name its worker reports nothing.
            let mut pod = Pod::default();
            pod.metadata.uid = Arc::from(uid);
            self.spawn(Arc::new(pod), Goal::Remove);
        }
    }
}

/// The pod as far as the runtime's records tell.
fn restore(listed: &Listed) -> Option<Pod> {
    let sandboxes = listed.sandboxes.iter().map(|s| &s.labels);
    let mut labels = sandboxes.chain(listed.containers.iter().map(|c| &c.labels));
    let mut pod = labels.find_map(pod_of_labels)?;
    for container in &listed.containers {
        add_container_of_labels(&mut pod, &container.labels, &container.annotations);
    }
    Some(pod)
}
