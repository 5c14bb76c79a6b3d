//! Garbage collection: dead containers, empty sandboxes, folders and logs of pods that are gone, unused images.
//!
//! The agent starts one [`GarbageCollector`] and lets it run; the dispatcher kicks it by [`GcTrigger`] when a
//! container died or a pod went, the image puller when an image came. One task owns it. A kubelet looks
//! every minute; here nothing wakes an idle node but a look at how full the disk is, once an hour. Everything
//! goes through CRI; what goes is decided in `plan`.
//!
//! Invariant: the runtime and the disk are listed before the known pods are read. A pod becomes known before
//! anything of it is made, so what is listed and not known belongs to a pod that is gone.

mod folders;
mod images;
mod plan;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use coracle_cri::v1::*;
use coracle_cri::{Code, ImageService, RuntimeService, Status};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::events::EventRecorder;
use crate::image_pull::PullRecords;
use images::ImageRecords;
use plan::{Known, Life, SeenContainer, SeenSandbox};

pub use plan::{DiskUsage, GcPolicy};

/// How long to wait after a kick, so that what dies together is collected together.
const SETTLE: Duration = Duration::from_secs(1);
/// Shortest time between two collections.
const SPACING: Duration = Duration::from_secs(10);
/// When what could not be collected is tried again.
/// So long a collection of all is waited for.
const COLLECT_ALL: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_secs(60);
/// When images that could not be collected are: as often as a kubelet looks at all.
const IMAGE_RETRY: Duration = Duration::from_secs(300);

/// Folders, volumes and cgroup of pods, as far as they must be taken away.
#[async_trait]
pub trait PodFolders: Send + Sync {
    /// UIDs of pods that left something on the disk.
    fn uids(&self) -> std::io::Result<Vec<String>>;

    /// Unmounts and removes what a pod left. Idempotent.
    async fn remove(&self, uid: &str) -> Result<(), String>;
}

#[async_trait]
impl PodFolders for crate::resources::PodResources {
    fn uids(&self) -> std::io::Result<Vec<String>> {
        self.pods_on_disk()
    }

    async fn remove(&self, uid: &str) -> Result<(), String> {
        self.teardown(uid).await.map_err(|error| error.to_string())
    }
}

/// Where things lie and how much is kept.
#[derive(Clone, Debug)]
pub struct GcConfig {
    /// How much is kept.
    pub policy: GcPolicy,
    /// Folder of the pods' folders of logs, `/var/log/pods`.
    pub pod_logs: PathBuf,
    /// Folder of the links to logs, `/var/log/containers`.
    pub log_links: Option<PathBuf>,
    /// Name of this node, for its events.
    pub node_name: String,
    /// Deadline of a call.
    pub call_timeout: Duration,
    /// Grace of a container whose state nobody knows, in seconds.
    pub unknown_grace_seconds: i64,
    /// What is recorded of pulls, to go with the images.
    pub(crate) pull_records: Option<PullRecords>,
}

impl GcConfig {
    /// The kubelet's defaults.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            policy: GcPolicy::default(),
            pod_logs: "/var/log/pods".into(),
            log_links: Some("/var/log/containers".into()),
            node_name: node_name.into(),
            call_timeout: Duration::from_secs(120),
            unknown_grace_seconds: 2,
            pull_records: None,
        }
    }
}

/// One thing that could not be collected; the rest was.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The runtime refused a call.
    #[error("{call} {id}")]
    Runtime {
        /// Which call.
        call: &'static str,
        /// On what; empty for lists.
        id: String,
        /// What it said.
        #[source]
        source: Status,
    },
    /// A file or folder could not be read or removed.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What a pod left could not be taken away.
    #[error("cannot remove what pod {uid} left: {message}")]
    Pod {
        /// Whose.
        uid: String,
        /// Why not.
        message: String,
    },
    /// Too few images could be removed.
    #[error("{0}")]
    Space(String),
}

/// Reads the UIDs of the pods that are wanted or still being ended; `None` while not every source of pods has
/// told what it wants, so that nothing may be taken for unwanted.
pub type KnownPods = Box<dyn Fn() -> Option<Known> + Send + Sync>;

/// Asks the collector to look; clones ask the same one. Never waits.
#[derive(Clone, Debug, Default)]
pub struct GcTrigger(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    notify: Notify,
    /// Whether all that is not used is to go, however much room there is.
    all: AtomicBool,
    /// Rises with each collection of all.
    collected: watch::Sender<u64>,
}

impl GcTrigger {
    /// Something died, went or came.
    pub fn kick(&self) {
        self.0.notify.notify_one();
    }

    /// Has all go that is not used, and returns when that was tried.
    pub async fn collect_all(&self) {
        let mut collected = self.0.collected.subscribe();
        self.0.all.store(true, Ordering::Release);
        self.kick();
        // A collector that is gone collects nothing.
        let _ = tokio::time::timeout(COLLECT_ALL, collected.changed()).await;
    }
}

/// Collects garbage.
pub struct GarbageCollector {
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    folders: Arc<dyn PodFolders>,
    known: KnownPods,
    events: EventRecorder,
    clock: Clock,
    config: GcConfig,
    records: ImageRecords,
    trigger: GcTrigger,
}

impl GarbageCollector {
    /// A collector that has not looked yet.
    pub fn new(
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
        folders: Arc<dyn PodFolders>,
        known: KnownPods,
        events: EventRecorder,
        clock: Clock,
        config: GcConfig,
    ) -> Self {
        let records = ImageRecords::default();
        let trigger = GcTrigger::default();
        Self { runtime, images, folders, known, events, clock, config, records, trigger }
    }

    /// What asks it to look.
    pub fn trigger(&self) -> GcTrigger {
        self.trigger.clone()
    }

    /// Collects at once, then whenever it is kicked. Ends when dropped: cancelled between two removals, what is
    /// left is found again.
    pub async fn run(mut self) {
        loop {
            let started = Instant::now();
            let mut errors = self.collect_pods().await;
            if self.trigger.0.all.swap(false, Ordering::AcqRel) {
                errors.extend(self.collect_unused_images().await);
                self.trigger.0.collected.send_modify(|count| *count += 1);
            }
            let mut next = if errors.is_empty() { IMAGE_RETRY } else { RETRY };
            match self.collect_images().await {
                Ok(after) if errors.is_empty() => next = after,
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
            for error in &errors {
                tracing::warn!(error = error as &dyn std::error::Error, "garbage not collected");
            }
            let trigger = self.trigger.clone();
            tokio::select! {
                // Cancel-safe: a kick that came meanwhile is stored.
                () = trigger.0.notify.notified() => {
                    tokio::time::sleep_until((Instant::now() + SETTLE).max(started + SPACING)).await;
                }
                // Cancel-safe: a timer.
                () = tokio::time::sleep_until(started + next) => {}
            }
        }
    }

    /// Removes dead containers, empty sandboxes and what gone pods left on the disk. Goes on after errors and
    /// returns them all.
    pub async fn collect_pods(&self) -> Vec<GcError> {
        let mut errors = Vec::new();
        let (uids_on_disk, log_folders) = (self.uids_on_disk(&mut errors), self.log_folders(&mut errors));
        let Some((containers, sandboxes)) = self.list(&mut errors).await else { return errors };
        let known = (self.known)();
        let log_folders = if known.is_some() { log_folders } else { Vec::new() };
        let known = known.unwrap_or_else(|| {
            let of_runtime =
                containers.iter().map(|c| &c.pod_uid).chain(sandboxes.iter().map(|s| &s.pod_uid));
            of_runtime.chain(&uids_on_disk).map(|uid| Arc::from(uid.as_str())).collect()
        });
        let now = self.clock.now().wall_nanos;
        let removals = plan::containers(&containers, &known, &self.config.policy, now);
        let mut left = containers;
        for removal in removals {
            match self.remove_container(&removal).await {
                Ok(()) => left.retain(|container| container.id != removal.id),
                Err(error) => errors.push(error),
            }
        }
        let mut gone = plan::sandboxes(&sandboxes, &left, &known);
        for id in &gone {
            if let Err(error) = self.remove_sandbox(id).await {
                errors.push(error);
            }
        }
        gone.sort_unstable();
        let has_sandbox = |uid: &str| {
            sandboxes.iter().any(|sandbox| sandbox.pod_uid == uid && gone.binary_search(&sandbox.id).is_err())
        };
        // While anything of a pod may run, its volumes are in use.
        for uid in uids_on_disk.iter().filter(|uid| !known.contains(uid.as_str()) && !has_sandbox(uid)) {
            if let Err(message) = self.folders.remove(uid).await {
                errors.push(GcError::Pod { uid: uid.clone(), message });
            }
        }
        folders::remove_logs(&log_folders, &known, &mut errors);
        self.remove_links(&left, &mut errors);
        errors
    }

    /// Removes every image that nothing uses.
    async fn collect_unused_images(&mut self) -> Vec<GcError> {
        let now = self.clock.now().boot;
        let collection = images::Collection {
            runtime: &*self.runtime,
            images: &*self.images,
            events: &self.events,
            config: &self.config,
        };
        collection.remove_unused(&mut self.records, now).await
    }

    /// Removes unused images if the disk is full; says when to look again.
    async fn collect_images(&mut self) -> Result<Duration, GcError> {
        let now = self.clock.now().boot;
        let collection = images::Collection {
            runtime: &*self.runtime,
            images: &*self.images,
            events: &self.events,
            config: &self.config,
        };
        collection.run(&mut self.records, now).await
    }

    async fn list(&self, errors: &mut Vec<GcError>) -> Option<(Vec<SeenContainer>, Vec<SeenSandbox>)> {
        let sandboxes =
            self.call("ListPodSandbox", "", self.runtime.list_pod_sandbox(Default::default())).await;
        let containers =
            self.call("ListContainers", "", self.runtime.list_containers(Default::default())).await;
        match (containers, sandboxes) {
            (Ok(containers), Ok(sandboxes)) => Some((
                containers.containers.into_iter().map(seen_container).collect(),
                sandboxes.items.into_iter().map(seen_sandbox).collect(),
            )),
            (containers, sandboxes) => {
                errors.extend(containers.err().into_iter().chain(sandboxes.err()));
                None
            }
        }
    }

    async fn remove_container(&self, removal: &plan::ContainerRemoval) -> Result<(), GcError> {
        if removal.stop_first {
            let request = StopContainerRequest {
                container_id: removal.id.clone(),
                timeout: self.config.unknown_grace_seconds,
            };
            self.call("StopContainer", &removal.id, self.runtime.stop_container(request)).await?;
        }
        let request = RemoveContainerRequest { container_id: removal.id.clone() };
        self.call("RemoveContainer", &removal.id, self.runtime.remove_container(request)).await?;
        Ok(())
    }

    /// Stopped first, for its network may still be there when the agent died in the middle.
    async fn remove_sandbox(&self, id: &str) -> Result<(), GcError> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("StopPodSandbox", id, self.runtime.stop_pod_sandbox(request)).await?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("RemovePodSandbox", id, self.runtime.remove_pod_sandbox(request)).await?;
        Ok(())
    }

    fn uids_on_disk(&self, errors: &mut Vec<GcError>) -> Vec<String> {
        self.folders.uids().unwrap_or_else(|source| {
            errors.push(GcError::File { operation: "list", path: "the pods' folders".into(), source });
            Vec::new()
        })
    }

    fn log_folders(&self, errors: &mut Vec<GcError>) -> Vec<PathBuf> {
        folders::list(&self.config.pod_logs).unwrap_or_else(|error| {
            errors.push(error);
            Vec::new()
        })
    }

    fn remove_links(&self, containers: &[SeenContainer], errors: &mut Vec<GcError>) {
        let Some(folder) = &self.config.log_links else { return };
        let running = |id: &str| containers.iter().any(|c| c.id == id && c.life != Life::Dead);
        folders::remove_dangling_links(folder, running, errors);
    }

    async fn call<T>(
        &self,
        call: &'static str,
        id: &str,
        future: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, GcError> {
        within(self.config.call_timeout, call, id, future).await
    }
}

impl std::fmt::Debug for GarbageCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GarbageCollector").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A call that ends in time.
async fn within<T>(
    limit: Duration,
    call: &'static str,
    id: &str,
    future: impl Future<Output = Result<T, Status>>,
) -> Result<T, GcError> {
    let late = || Err(Status::new(Code::DeadlineExceeded, format!("no answer within {limit:?}")));
    let result = tokio::time::timeout(limit, future).await.unwrap_or_else(|_| late());
    result.map_err(|source| GcError::Runtime { call, id: id.to_owned(), source })
}

fn seen_container(container: Container) -> SeenContainer {
    let life = match container.state() {
        ContainerState::ContainerRunning => Life::Running,
        ContainerState::ContainerUnknown => Life::Unknown,
        ContainerState::ContainerCreated | ContainerState::ContainerExited => Life::Dead,
    };
    SeenContainer {
        name: container.metadata.map(|metadata| metadata.name).unwrap_or_default(),
        pod_uid: container.labels.get("io.kubernetes.pod.uid").cloned().unwrap_or_default(),
        id: container.id,
        sandbox_id: container.pod_sandbox_id,
        created_at: container.created_at,
        life,
    }
}

fn seen_sandbox(sandbox: PodSandbox) -> SeenSandbox {
    SeenSandbox {
        is_ready: sandbox.state() == PodSandboxState::SandboxReady,
        pod_uid: sandbox.metadata.map(|metadata| metadata.uid).unwrap_or_default(),
        id: sandbox.id,
        created_at: sandbox.created_at,
    }
}

#[cfg(test)]
mod tests;
