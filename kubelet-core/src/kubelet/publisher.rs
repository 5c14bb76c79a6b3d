//! Merges what the workers report into one map for readers.
//!
//! One task of the kubelet. Reports that come together are merged together, and the map is copied only while
//! a reader holds it: a hundred pods that change at once cost a few copies of a hundred pointers.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::{PodView, PodViews};
use crate::pod::worker::Report;

const AT_ONCE: usize = 256;

/// Runs until the last worker and the dispatcher are gone.
pub(super) async fn run(mut reports: mpsc::UnboundedReceiver<Report>, views: watch::Sender<PodViews>) {
    let mut batch = Vec::with_capacity(16);
    while reports.recv_many(&mut batch, AT_ONCE).await > 0 {
        views.send_modify(|views| {
            let views = Arc::make_mut(views);
            for report in batch.drain(..) {
                match report {
                    Report::Status { pod, status, ended } => {
                        views.insert(pod.metadata.uid.clone(), PodView { pod, status, ended });
                    }
                    Report::Gone { uid } => {
                        views.remove(&uid);
                    }
                }
            }
        });
    }
}
