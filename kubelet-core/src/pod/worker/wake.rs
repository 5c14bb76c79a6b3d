//! What wakes a worker: its bell, its channels, its one timer.
//!
//! The bell is rung by the dispatcher for every runtime event of the pod; several rings before a look are one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Worker;
use crate::probe::prober::ProbeReport;

/// Tells a worker to look at the runtime.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    notify: Notify,
    relist: AtomicBool,
    retry: AtomicBool,
}

impl Bell {
    /// Something happened to the pod's known sandboxes or containers.
    pub(crate) fn ring(&self) {
        self.notify.notify_one();
    }

    /// Something may have come or gone that the worker does not know of.
    pub(crate) fn ring_for_relist(&self) {
        self.relist.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    /// What failed before may succeed now.
    pub(crate) fn ring_for_retry(&self) {
        self.retry.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    /// Returns at the next ring, or at once after one that nobody waited for. Cancel-safe.
    pub(super) async fn rung(&self) {
        self.notify.notified().await;
    }

    pub(super) fn take_relist(&self) -> bool {
        self.relist.swap(false, Ordering::AcqRel)
    }

    pub(super) fn take_retry(&self) -> bool {
        self.retry.swap(false, Ordering::AcqRel)
    }
}

impl Worker {
    /// Waits for a reason to look again, at most until `until` (since boot). Without one the pod costs nothing.
    pub(super) async fn wait(&mut self, until: Option<Duration>) {
        let now = self.node.clock.now().boot;
        let renewal = self.renewal();
        if self.refresh_at.into_iter().chain(renewal).any(|at| at <= now) {
            return Box::pin(self.refresh()).await;
        }
        let until = until.into_iter().chain(self.refresh_at).chain(renewal).min();
        let bell = self.bell.clone();
        let pause = async {
            match until {
                Some(until) => tokio::time::sleep(until.saturating_sub(now)).await,
                None => std::future::pending().await,
            }
        };
        let mut report: Option<ProbeReport> = None;
        tokio::select! {
            // Channels and the notify keep what comes while another arm wins; the timer is computed anew.
            changed = self.desired.changed() => if changed.is_err() {
                // The dispatcher is gone, and with it whoever could ask for anything.
                std::future::pending::<()>().await;
            },
            () = bell.rung() => {}
            received = self.probe_reports.recv() => report = received,
            () = changed(&mut self.objects), if self.waits_for_objects() => self.objects_changed(now),
            () = pause => {}
        }
        if let Some(report) = report {
            self.apply_probe(&report);
        }
    }

    /// When a token that the pod mounts is to be renewed (since boot); after each rendering it lies ahead.
    fn renewal(&self) -> Option<Duration> {
        let is_read = self.has_rendered_volumes() && self.observed.ready_sandbox().is_some();
        is_read.then(|| self.node.resources.renewal(&self.pod.metadata.uid)).flatten()
    }

    /// Whether a changed object may matter: to a volume, or to a step that failed.
    fn waits_for_objects(&self) -> bool {
        self.has_rendered_volumes() || !self.held.is_empty()
    }

    /// Renders volumes anew and tries again what failed, if it was an object that this pod refers to.
    fn objects_changed(&mut self, now: Duration) {
        let revision = self.node.resources.revision(&self.pod);
        if self.revision == Some(revision) {
            return;
        }
        self.revision = Some(revision);
        self.refresh_at = Some(now);
        self.held.clear();
    }

    /// Whether the pod mounts what may change under it.
    fn has_rendered_volumes(&self) -> bool {
        self.pod.spec.volumes.iter().any(|volume| {
            volume.config_map.is_some()
                || volume.secret.is_some()
                || volume.projected.is_some()
                || volume.downward_api.is_some()
        })
    }

    /// Renders the pod's volumes anew; what fails is told and tried again.
    async fn refresh(&mut self) {
        let key = String::from("volumes of");
        self.refresh_at = None;
        if self.observed.ready_sandbox().is_none() || !self.has_rendered_volumes() {
            // Nobody reads them; what starts next prepares them first.
            return;
        }
        // Read before: what changes meanwhile is rendered by the next turn.
        self.revision = Some(self.node.resources.revision(&self.pod));
        let refreshed = self.node.resources.refresh(&self.pod).await;
        if refreshed.is_ok() {
            self.retries.reset(&key);
        }
        if let Err(error) = refreshed {
            self.refresh_at = Some(self.retries.fail(key, self.node.clock.now().boot, 0));
            let warning = crate::events::EventType::Warning;
            self.node.events.pod(&self.pod, None, warning, &error.reason, error.message);
        }
    }
}

/// Returns when the objects changed; never once their source is gone.
async fn changed(objects: &mut watch::Receiver<u64>) {
    if objects.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
