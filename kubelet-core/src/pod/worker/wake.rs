//! What wakes a worker: its bell, its channels, its one timer.
//!
//! The bell is rung by the dispatcher for every runtime event of the pod; several rings before a look are one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::Worker;
use crate::probe::prober::ProbeReport;

/// Tells a worker to look at the runtime.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    notify: Notify,
    relist: AtomicBool,
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

    /// Returns at the next ring, or at once after one that nobody waited for. Cancel-safe.
    pub(super) async fn rung(&self) {
        self.notify.notified().await;
    }

    pub(super) fn take_relist(&self) -> bool {
        self.relist.swap(false, Ordering::AcqRel)
    }
}

impl Worker {
    /// Waits for a reason to look again, at most until `until` (since boot). Without one the pod costs nothing.
    pub(super) async fn wait(&mut self, until: Option<Duration>) {
        let now = self.node.clock.now().boot;
        let bell = self.bell.clone();
        let pause = async {
            match until {
                Some(until) => tokio::time::sleep(until.saturating_sub(now)).await,
                None => std::future::pending().await,
            }
        };
        let mut report: Option<ProbeReport> = None;
        let mut refresh = false;
        tokio::select! {
            // Channels and the notify keep what comes while another arm wins; the timer is computed anew.
            changed = self.desired.changed() => if changed.is_err() {
                // The dispatcher is gone, and with it whoever could ask for anything.
                std::future::pending::<()>().await;
            },
            () = bell.rung() => {}
            received = self.probe_reports.recv() => report = received,
            changed = self.objects.changed(), if self.reads_objects() => refresh = changed.is_ok(),
            () = pause => {}
        }
        if let Some(report) = report {
            self.apply_probe(&report);
        }
        if refresh {
            Box::pin(self.refresh()).await;
        }
    }

    /// Whether the pod mounts what may change under it.
    fn reads_objects(&self) -> bool {
        self.pod
            .spec
            .volumes
            .iter()
            .any(|v| v.config_map.is_some() || v.secret.is_some() || v.projected.is_some())
    }

    async fn refresh(&mut self) {
        if let Err(error) = self.node.resources.refresh(&self.pod).await {
            let warning = crate::events::EventType::Warning;
            self.node.events.pod(&self.pod, None, warning, &error.reason, error.message);
        }
    }
}
