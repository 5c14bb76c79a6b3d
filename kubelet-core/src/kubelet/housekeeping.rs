//! Garbage collection and log rotation beside the pods' workers.
//!
//! Started and owned by [`Kubelet`](super::Kubelet), which aborts the three tasks when it is dropped: the
//! collector, the rotation, and one that reads the published statuses and wakes the other two when a container
//! started or ended or a pod went.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::{ImageService, RuntimeService};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::PodViews;
use crate::clock::Clock;
use crate::events::EventRecorder;
use crate::gc::{GarbageCollector, GcConfig, GcPolicy, GcTrigger};
use crate::image_pull::PullRecords;
use crate::log_rotation::{LogPolicy, LogRotation, LogTrigger};
use crate::resources::PodResources;
use crate::source::PodSet;

/// The first collection waits until what should run is started; the rest of the node's work goes first.
const FIRST_COLLECTION: Duration = Duration::from_secs(10);

/// What is kept of what is not needed any more.
#[derive(Clone, Debug)]
pub struct HousekeepingConfig {
    /// Name of the node, for events about its disk.
    pub node_name: String,
    /// Dead containers and unused images.
    pub gc: GcPolicy,
    /// Sizes and number of a container's logs.
    pub logs: LogPolicy,
}

impl Default for HousekeepingConfig {
    /// The kubelet's defaults, for a node that is named as its host.
    fn default() -> Self {
        let host = rustix::system::uname();
        let node_name = host.nodename().to_string_lossy().to_lowercase();
        Self { node_name, gc: GcPolicy::default(), logs: LogPolicy::default() }
    }
}

/// What the tasks work on.
pub(super) struct Inputs {
    pub(super) runtime: Arc<dyn RuntimeService>,
    pub(super) images: Arc<dyn ImageService>,
    pub(super) resources: Arc<PodResources>,
    pub(super) pods: watch::Receiver<PodSet>,
    pub(super) statuses: watch::Receiver<PodViews>,
    pub(super) events: EventRecorder,
    pub(super) clock: Clock,
    pub(super) call_timeout: Duration,
    pub(super) log_root: PathBuf,
    pub(super) log_links: Option<PathBuf>,
    pub(super) sources_seen: watch::Receiver<bool>,
    pub(super) pull_records: Option<PullRecords>,
}

/// Starts the tasks; returns what makes the collector look.
pub(super) fn spawn(tasks: &mut JoinSet<()>, config: HousekeepingConfig, inputs: Inputs) -> GcTrigger {
    let (pods, statuses) = (inputs.pods, inputs.statuses.clone());
    // Wanted, or of a worker that has not ended yet.
    let sources_seen = inputs.sources_seen;
    let known = move || -> Option<BTreeSet<Arc<str>>> {
        if !*sources_seen.borrow() {
            return None;
        }
        let mut known: BTreeSet<Arc<str>> = pods.borrow().keys().cloned().collect();
        known.extend(statuses.borrow().keys().cloned());
        Some(known)
    };
    let gc = GcConfig {
        policy: config.gc,
        pod_logs: inputs.log_root,
        log_links: inputs.log_links,
        pull_records: inputs.pull_records,
        ..GcConfig::new(config.node_name)
    };
    let collector = GarbageCollector::new(
        inputs.runtime.clone(),
        inputs.images,
        inputs.resources,
        Box::new(known),
        inputs.events,
        inputs.clock.clone(),
        gc,
    );
    let garbage = collector.trigger();
    tasks.spawn(async move {
        tokio::time::sleep(FIRST_COLLECTION).await;
        collector.run().await;
    });
    let logs = match LogRotation::new(inputs.runtime, config.logs, inputs.clock, inputs.call_timeout) {
        Ok(rotation) => {
            let trigger = rotation.trigger();
            tasks.spawn(rotation.run());
            Some(trigger)
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "container logs are not rotated");
            None
        }
    };
    tasks.spawn(wake(inputs.statuses, garbage.clone(), logs));
    garbage
}

/// What of all statuses matters here, in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Digest {
    pods: u64,
    containers: u64,
}

fn digest(views: &PodViews) -> Digest {
    let (mut pods, mut containers) = (DefaultHasher::new(), DefaultHasher::new());
    for (uid, view) in views.iter() {
        uid.hash(&mut pods);
        let status = &view.status;
        let all = status.init_container_statuses.iter().chain(&status.container_statuses);
        for container in all.chain(&status.ephemeral_container_statuses) {
            container.container_id.hash(&mut containers);
            container.state.running.is_some().hash(&mut containers);
        }
    }
    Digest { pods: pods.finish(), containers: containers.finish() }
}

/// Ends with the publisher of the statuses.
async fn wake(mut statuses: watch::Receiver<PodViews>, garbage: GcTrigger, logs: Option<LogTrigger>) {
    let mut last = Digest::default();
    while statuses.changed().await.is_ok() {
        let now = digest(&statuses.borrow_and_update());
        if now == last {
            continue;
        }
        garbage.kick();
        if let Some(logs) = logs.as_ref().filter(|_| now.containers != last.containers) {
            logs.kick();
        }
        last = now;
    }
}
