//! Ends pods when the node runs short of memory, disk or process ids, one after the other until it does not any more.
//!
//! One task, which the agent starts beside the [`NodeAgent`](crate::node::NodeAgent) that measures: it sleeps until
//! that reports a signal below its limit, so a node without pressure pays nothing for it. Order, reasons and words are
//! the kubelet's: images and dead containers first where disk is short, then pods above their requests, by priority.

pub(crate) mod plan;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::RuntimeService;
use coracle_cri::v1::{
    ListContainerStatsRequest, ListContainersRequest, ListPodSandboxStatsRequest, PodSandboxStats,
};
use tokio::sync::watch;

use self::plan::Candidate;
use crate::api::Pod;
use crate::events::{EventRecorder, EventType};
use crate::kubelet::{Evictor, PodView};
use crate::node::pressure::{Pressing, Signal, Threshold};
use crate::pod::rpc::bounded;
use crate::pod::status::{Eviction, is_terminal_phase};
use crate::sandbox_config::pod_log_dir;
use crate::volume;

const RUNTIME_DEADLINE: Duration = Duration::from_secs(30);
/// So long after its grace period the end of an evicted pod is waited for before the next one.
const CLEANUP: Duration = Duration::from_secs(30);

/// What the task works with.
pub struct EvictionInputs {
    /// From [`NodeAgent::pressing`](crate::node::NodeAgent::pressing).
    pub pressing: watch::Receiver<Arc<Pressing>>,
    /// From [`Kubelet::evictor`](crate::kubelet::Kubelet::evictor).
    pub evictor: Evictor,
    /// What measures the pods.
    pub runtime: Arc<dyn RuntimeService>,
    /// Events of the node and its pods.
    pub events: EventRecorder,
    /// The Node's name.
    pub node_name: String,
    /// [`EvictionPolicy::max_pod_grace_seconds`](crate::node::pressure::EvictionPolicy::max_pod_grace_seconds).
    pub max_pod_grace_seconds: i64,
    /// The pods' folders (`--root-dir`).
    pub root_dir: PathBuf,
    /// The pods' logs (`--pod-logs-dir`).
    pub log_root: PathBuf,
}

/// Runs until the node's agent or the kubelet ends.
pub async fn run(mut inputs: EvictionInputs) {
    let mut collected = false;
    while inputs.pressing.changed().await.is_ok() {
        let pressing = inputs.pressing.borrow_and_update().clone();
        let Some(threshold) = plan::most_urgent(&pressing) else {
            collected = false;
            continue;
        };
        let signal = threshold.signal;
        let resource = plan::resource(signal);
        let text = format!("Attempting to reclaim {resource}");
        inputs.events.node(&inputs.node_name, EventType::Warning, "EvictionThresholdMet", text);
        let is_disk = !matches!(signal, Signal::MemoryAvailable | Signal::PidAvailable);
        if is_disk && !std::mem::replace(&mut collected, true) {
            // What nobody uses goes before what somebody runs; the next look tells whether that was enough.
            inputs.evictor.collect_all_garbage().await;
            continue;
        }
        if !evict_one(&mut inputs, threshold, &pressing).await {
            return;
        }
    }
}

/// Evicts the first that may be; false once the kubelet is gone.
async fn evict_one(inputs: &mut EvictionInputs, threshold: &Threshold, pressing: &Pressing) -> bool {
    let signal = threshold.signal;
    let mut candidates = candidates(inputs, signal).await;
    plan::rank(signal, &mut candidates);
    let Some(first) = candidates.iter().find(|candidate| !plan::is_critical(&candidate.pod)) else {
        tracing::warn!(
            resource = plan::resource(signal),
            "the node runs short, and no pod is left that may be evicted"
        );
        return true;
    };
    let message = plan::message(threshold, &pressing.observations, first);
    tracing::warn!(pod = first.pod.full_name(), message, "evicting a pod");
    inputs.events.pod(&first.pod, None, EventType::Warning, "Evicted", message.clone());
    let eviction = Eviction { reason: "Evicted".to_owned(), disruption: Some(message.clone()), message };
    let grace = plan::grace(threshold, &first.pod, inputs.max_pod_grace_seconds);
    let wait = CLEANUP + Duration::from_secs(grace.unsigned_abs());
    inputs.evictor.evict(&first.pod.metadata.uid, eviction, grace, wait).await
}

/// The pods that run, measured.
async fn candidates(inputs: &EvictionInputs, signal: Signal) -> Vec<Candidate> {
    let views = inputs.evictor.pods();
    let active = |view: &&PodView| !view.ended && !is_terminal_phase(&view.status.phase);
    let pods: Vec<Arc<Pod>> = views.values().filter(active).map(|view| view.pod.clone()).collect();
    drop(views);
    let mut measured = measure(&*inputs.runtime).await;
    let is_disk = !matches!(signal, Signal::MemoryAvailable | Signal::PidAvailable);
    let mut found = Vec::new();
    for pod in pods {
        let mut candidate = measured.remove(&*pod.metadata.uid).unwrap_or_default().of(pod);
        if is_disk {
            let (pod, pod_dir) =
                (candidate.pod.clone(), inputs.root_dir.join("pods").join(&*candidate.pod.metadata.uid));
            let logs = pod_log_dir(&inputs.log_root, &candidate.pod);
            let walked = tokio::task::spawn_blocking(move || on_disk(&pod, &pod_dir, &logs)).await.ok();
            candidate.disk = candidate.disk.zip(walked).map(|(layers, walked)| layers.saturating_add(walked));
        }
        found.push(candidate);
    }
    found
}

/// Bytes of logs and of volumes on disk. Blocking.
fn on_disk(pod: &Pod, pod_dir: &Path, logs: &Path) -> i64 {
    let volumes = volume::disk_usage(pod, pod_dir);
    let bytes = volumes.saturating_add(volume::folder_usage(logs));
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What a runtime says of a pod.
#[derive(Default)]
struct Measured {
    memory: Option<i64>,
    layers: Option<i64>,
    processes: Option<i64>,
    containers: Vec<(String, i64, i64)>,
}

impl Measured {
    fn of(self, pod: Arc<Pod>) -> Candidate {
        let Self { memory, layers, processes, containers } = self;
        Candidate { pod, memory, disk: layers, processes, containers }
    }

    fn add(&mut self, stats: &coracle_cri::v1::ContainerStats) {
        let bytes = |value: Option<u64>| i64::try_from(value.unwrap_or(0)).unwrap_or(i64::MAX);
        let name = stats.attributes.as_ref().and_then(|a| a.metadata.as_ref()).map(|m| m.name.clone());
        let memory = bytes(stats.memory.as_ref().and_then(|m| m.working_set_bytes.as_ref()).map(|v| v.value));
        let layer = bytes(stats.writable_layer.as_ref().and_then(|l| l.used_bytes.as_ref()).map(|v| v.value));
        self.layers = Some(self.layers.unwrap_or(0).saturating_add(layer));
        self.containers.push((name.unwrap_or_default(), memory, layer));
    }
}

/// By UID; what cannot be asked for is absent.
async fn measure(runtime: &dyn RuntimeService) -> HashMap<String, Measured> {
    let call = runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default());
    match bounded("ListPodSandboxStats", RUNTIME_DEADLINE, call).await {
        Ok(response) => response.stats.into_iter().filter_map(of_sandbox).collect(),
        // A runtime that measures containers alone.
        Err(_) => of_containers(runtime).await,
    }
}

fn of_sandbox(stats: PodSandboxStats) -> Option<(String, Measured)> {
    let uid = stats.attributes?.metadata?.uid;
    let linux = stats.linux?;
    let value = |value: Option<&coracle_cri::v1::UInt64Value>| {
        value.map(|value| i64::try_from(value.value).unwrap_or(i64::MAX))
    };
    let mut measured = Measured {
        memory: value(linux.memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref())),
        processes: value(linux.process.as_ref().and_then(|process| process.process_count.as_ref())),
        ..Measured::default()
    };
    linux.containers.iter().for_each(|container| measured.add(container));
    Some((uid, measured))
}

async fn of_containers(runtime: &dyn RuntimeService) -> HashMap<String, Measured> {
    let listed = runtime.list_containers(ListContainersRequest::default());
    let stats = runtime.list_container_stats(ListContainerStatsRequest::default());
    let (Ok(listed), Ok(stats)) = (
        bounded("ListContainers", RUNTIME_DEADLINE, listed).await,
        bounded("ListContainerStats", RUNTIME_DEADLINE, stats).await,
    ) else {
        return HashMap::new();
    };
    let uid = |id: &str| {
        let container = listed.containers.iter().find(|container| container.id == id)?;
        container.labels.get(crate::sandbox_config::POD_UID_LABEL).cloned()
    };
    let mut all: HashMap<String, Measured> = HashMap::new();
    for container in stats.stats {
        let Some(uid) = container.attributes.as_ref().and_then(|a| uid(&a.id)) else { continue };
        let measured = all.entry(uid).or_default();
        measured.add(&container);
        measured.memory =
            Some(measured.containers.iter().map(|(_, memory, _)| *memory).fold(0, i64::saturating_add));
    }
    all
}
