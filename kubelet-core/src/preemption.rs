//! Ends the pods that make room for a critical one, and says so in the kubelet's words.
//!
//! One task, started by [`crate::joined`] once there is a kubelet. Admission chooses the pods and tells them by a watch
//! until they have ended; without any the task rests.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use crate::api::Pod;
use crate::events::{EventRecorder, EventType};
use crate::kubelet::Evictor;
use crate::pod::status::Eviction;

const REASON: &str = "Preempting";
const MESSAGE: &str = "Preempted in order to admit critical pod";
const CONDITION: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";

/// Runs until the kubelet or the source of pods ends.
pub(crate) async fn run(
    mut preempted: watch::Receiver<Vec<Arc<Pod>>>,
    evictor: Evictor,
    events: EventRecorder,
) {
    let mut told: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut views = evictor.statuses();
    loop {
        let victims = preempted.borrow_and_update().clone();
        views.mark_unchanged();
        told.retain(|uid| victims.iter().any(|pod| pod.metadata.uid == *uid));
        for pod in &victims {
            if told.insert(pod.metadata.uid.clone()) {
                tracing::warn!(pod = pod.full_name(), "ending a pod to make room for a critical one");
                events.pod(pod, None, EventType::Warning, REASON, MESSAGE.to_owned());
            }
            let eviction = Eviction {
                reason: REASON.to_owned(),
                message: MESSAGE.to_owned(),
                disruption: Some(CONDITION.to_owned()),
            };
            // Each takes its own time to end.
            if !evictor.begin(&pod.metadata.uid, eviction, None).await {
                return;
            }
        }
        let lives = tokio::select! {
            // Watches keep that they changed while another arm wins.
            changed = preempted.changed() => changed.is_ok(),
            // A pod that the kubelet did not have yet is asked to end again.
            changed = views.changed(), if !victims.is_empty() => changed.is_ok(),
        };
        if !lives {
            return;
        }
    }
}
