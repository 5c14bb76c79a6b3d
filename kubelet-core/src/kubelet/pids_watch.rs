//! Tells by event when a pod was refused a process for having as many as it may.
//!
//! One task of [`Kubelet`](super::Kubelet). It reads the kernel's counts of refusals (`pids.events`) once a minute
//! while there are pods: on cgroup v1 newer kernels notify nobody, and a fork bomb would notify without end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::PodViews;
use crate::api::Pod;
use crate::events::{EventRecorder, EventType};
use crate::resources::PodResources;

const PERIOD: Duration = Duration::from_secs(60);

/// Runs until the statuses' publisher ends.
pub(super) async fn run(
    resources: Arc<PodResources>,
    recorder: EventRecorder,
    mut statuses: watch::Receiver<PodViews>,
) {
    let mut known = BTreeMap::new();
    loop {
        // Without pods there is nothing to wake for.
        if statuses.wait_for(|views| !views.is_empty()).await.is_err() {
            return;
        }
        tokio::time::sleep(PERIOD).await;
        let views = statuses.borrow().clone();
        known = look(&resources, &recorder, &views, &known);
    }
}

/// Refusals by cgroup. A process that was refused counts in its own group, a container's, or (v2, since Linux 6.11)
/// in those above it too.
fn look(
    resources: &PodResources,
    recorder: &EventRecorder,
    views: &PodViews,
    known: &BTreeMap<PathBuf, u64>,
) -> BTreeMap<PathBuf, u64> {
    let mut counts = BTreeMap::new();
    for view in views.values() {
        let mut refused_in = None;
        for group in resources.pids_groups(&view.pod) {
            let Some(count) = refusals(&group).filter(|count| *count > 0) else { continue };
            if count > known.get(&group).copied().unwrap_or(0) {
                refused_in = Some(group.clone());
            }
            counts.insert(group, count);
        }
        if let Some(group) = refused_in {
            tell(recorder, &view.pod, &group);
        }
    }
    counts
}

fn refusals(group: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(group.join("pids.events")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse().ok())
}

fn tell(recorder: &EventRecorder, pod: &Pod, group: &Path) {
    let limit = limit_of(group).map(|limit| format!(" of {limit}")).unwrap_or_default();
    let text = format!(
        "The pod has reached its limit{limit} processes and may start no more: look for a program that does not \
         end its children, or raise --pod-max-pids"
    );
    recorder.pod(pod, None, EventType::Warning, "PidsLimitReached", text);
}

/// The limit that holds for a group: its own, or the nearest one above it.
fn limit_of(group: &Path) -> Option<u64> {
    group.ancestors().find_map(|dir| std::fs::read_to_string(dir.join("pids.max")).ok()?.trim().parse().ok())
}
