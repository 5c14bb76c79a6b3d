//! The entry of this crate: pods that should run in, their statuses and events out.
//!
//! A program starts one [`Kubelet`] on a runtime. It owns the dispatcher (which owns the workers) and the
//! publisher of statuses; dropping it stops both and leaves the pods as they are.

mod adapters;
mod housekeeping;
mod pids_watch;
mod publisher;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{StatusRequest, VersionRequest};
use coracle_cri::{ImageService, RuntimeService, Status};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::api::{Pod, PodStatus};
use crate::clock::Clock;
use crate::dispatcher::{self, Command, Dispatcher};
use crate::events::EventRecorder;
use crate::gc::GcTrigger;
use crate::image_pull::{ImagePullConfig, ImagePuller};
use crate::node_ips::NodeIps;
use crate::objects::ObjectSource;
use crate::pod::edges::{Images, Node, Resources};
use crate::pod::status::Eviction;
use crate::resources::{PodResources, PodResourcesConfig};
use crate::source::PodSet;

pub use crate::pod::rpc::Deadlines;
pub use crate::probe::counts::ProbeCounts;
pub use housekeeping::HousekeepingConfig;

/// What a kubelet is like.
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    /// The node's addresses; pods on its network have them.
    pub node_ips: NodeIps,
    /// Folders, cgroups, volumes and DNS of pods.
    pub resources: PodResourcesConfig,
    /// How images are pulled.
    pub image_pull: ImagePullConfig,
    /// What is kept of dead containers, unused images and logs.
    pub housekeeping: HousekeepingConfig,
    /// How many sandboxes and containers are made at once.
    pub max_parallel_starts: usize,
    /// Folder of the links to container logs (`/var/log/containers`), none for no links.
    pub log_links: Option<PathBuf>,
    /// How long the runtime may take.
    pub deadlines: Deadlines,
    /// How many distinct events are remembered.
    pub events: usize,
    /// What tells the time.
    pub clock: Clock,
    /// Statuses by pod UID as the run before this one left them: what a probe found holds until it is asked again.
    pub last_statuses: BTreeMap<Arc<str>, Arc<PodStatus>>,
    /// Whether every source of pods has told what it wants; until then nothing is taken for unwanted. `None` when
    /// the pods are complete from the start.
    pub sources_seen: Option<watch::Receiver<bool>>,
}

impl KubeletConfig {
    /// The kubelet's defaults, with the pods' folders as `resources` has them.
    pub fn new(resources: PodResourcesConfig) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let pull_records = Some(resources.root_dir.join("image_manager"));
        Self {
            node_ips: resources.node_ips.clone(),
            resources,
            image_pull: ImagePullConfig { records: pull_records, ..ImagePullConfig::default() },
            housekeeping: HousekeepingConfig::default(),
            max_parallel_starts: cores * 4,
            log_links: Some(PathBuf::from("/var/log/containers")),
            deadlines: Deadlines::default(),
            events: 1000,
            clock: Clock::system(),
            last_statuses: BTreeMap::new(),
            sources_seen: None,
        }
    }

    /// Whether all sources were seen, as a watch in any case.
    fn seen(&self) -> watch::Receiver<bool> {
        // A watch whose sender is gone keeps its value.
        self.sources_seen.clone().unwrap_or_else(|| watch::channel(true).1)
    }
}

/// Why a kubelet does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The runtime does not answer.
    #[error("the container runtime does not answer")]
    Runtime(#[source] Status),
    /// The machine cannot be read.
    #[error("cannot look at this machine's cgroups and mounts")]
    Machine(#[source] std::io::Error),
    /// A folder cannot be made.
    #[error("cannot make folder {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The pods did not end in the time given.
#[derive(Debug, thiserror::Error)]
#[error("{left} pods have not ended within {limit:?}")]
pub struct StopError {
    /// How many are left.
    pub left: usize,
    /// The time they had.
    pub limit: Duration,
}

/// A pod and what this node observed of it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodView {
    /// As it was desired last.
    pub pod: Arc<Pod>,
    /// As it is.
    pub status: Arc<PodStatus>,
    /// Nothing of it runs or is mounted, and nothing will be again.
    pub ended: bool,
}

/// Pods and their statuses, by UID.
pub type PodViews = Arc<BTreeMap<Arc<str>, PodView>>;

/// Runs the pods of a node.
///
/// ```no_run
/// use std::sync::Arc;
/// use coracle_cri::{ImageService, RuntimeService};
/// use coracle_kubelet_core::clock::Clock;
/// use coracle_kubelet_core::kubelet::{Kubelet, KubeletConfig};
/// use coracle_kubelet_core::resources::PodResourcesConfig;
/// use coracle_kubelet_core::source::{ManifestDir, ManifestDirConfig};
///
/// # async fn example(runtime: Arc<dyn RuntimeService>, images: Arc<dyn ImageService>) -> Result<(), Box<dyn std::error::Error>> {
/// let folder = ManifestDir::start(ManifestDirConfig {
///     path: "/etc/coracle/pods".into(),
///     node_name: "gateway-7".into(),
///     allow_object_references: true,
///     clock: Clock::system(),
/// })
/// .await?;
/// let config = KubeletConfig::new(PodResourcesConfig::new("/var/lib/kubelet"));
/// let kubelet = Kubelet::start(config, runtime, images, folder.pods(), folder.objects()).await?;
/// let mut statuses = kubelet.statuses();
/// while statuses.changed().await.is_ok() {
///     for view in statuses.borrow_and_update().values() {
///         println!("{} {}", view.pod.full_name(), view.status.phase);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Kubelet {
    statuses: watch::Receiver<PodViews>,
    events: EventRecorder,
    probe_counts: ProbeCounts,
    commands: mpsc::Sender<Command>,
    garbage: Option<GcTrigger>,
    /// Dispatcher, publisher and housekeeping end with the kubelet.
    tasks: JoinSet<()>,
}

impl Kubelet {
    /// Starts on a runtime. `pods` holds the pods that should run: what the runtime has and `pods` has not is
    /// removed, once [`KubeletConfig::sources_seen`] says that it is complete.
    pub async fn start(
        config: KubeletConfig,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
        pods: watch::Receiver<PodSet>,
        objects: Arc<dyn ObjectSource>,
    ) -> Result<Self, StartError> {
        let events = EventRecorder::new(config.clock.clone(), config.events);
        let (changes, sources_seen) = (objects.changes(), config.seen());
        let mut resources = config.resources.clone();
        add_features(&mut resources, &*runtime, &config).await?;
        let resources = PodResources::new(resources, objects.clone(), events.clone());
        let resources = resources.map_err(StartError::Machine)?;
        if let Some(path) = &config.log_links {
            let made = tokio::fs::create_dir_all(path).await;
            made.map_err(|source| StartError::Folder { path: path.clone(), source })?;
        }
        let (clock, pulls) = (config.clock.clone(), config.image_pull.clone());
        let puller = Arc::new(ImagePuller::new(images.clone(), objects, events.clone(), clock, pulls));
        let pull_records = puller.records();
        puller.settle().await;
        let resources = Arc::new(resources);
        let parts = Parts { events: events.clone(), resources: resources.clone(), images: puller, changes };
        let mut kubelet = Self::assemble(config.clone(), runtime.clone(), pods.clone(), parts).await?;
        let watch = pids_watch::run(resources.clone(), events.clone(), kubelet.statuses());
        kubelet.tasks.spawn(watch);
        let inputs = housekeeping::Inputs {
            runtime,
            images,
            resources,
            pods,
            statuses: kubelet.statuses(),
            events,
            clock: config.clock,
            call_timeout: config.deadlines.call,
            log_root: config.resources.log_root,
            log_links: config.log_links,
            sources_seen,
            pull_records,
        };
        kubelet.garbage = Some(housekeeping::spawn(&mut kubelet.tasks, config.housekeeping, inputs));
        Ok(kubelet)
    }

    async fn assemble(
        config: KubeletConfig,
        runtime: Arc<dyn RuntimeService>,
        pods: watch::Receiver<PodSet>,
        parts: Parts,
    ) -> Result<Self, StartError> {
        let sources_seen = config.seen();
        let call = runtime.version(VersionRequest { version: "0.1.0".to_owned() });
        let version = crate::pod::rpc::bounded("Version", config.deadlines.query, call).await;
        let runtime_name = version.map_err(StartError::Runtime)?.runtime_name;
        let probe_counts = ProbeCounts::default();
        let node = Arc::new(Node {
            runtime,
            resources: parts.resources,
            images: parts.images,
            events: parts.events.clone(),
            probe_counts: probe_counts.clone(),
            started: config.clock.now().boot,
            clock: config.clock,
            runtime_name,
            ips: config.node_ips,
            deadlines: config.deadlines,
            starts: Semaphore::new(config.max_parallel_starts.max(1)),
            networks: Semaphore::new(config.max_parallel_starts.max(1)),
            log_links: config.log_links,
        });
        let (commands, receiver) = mpsc::channel(8);
        let (reports, incoming) = mpsc::unbounded_channel();
        let (publish, statuses) = watch::channel(PodViews::default());
        let dispatcher = Dispatcher::new(dispatcher::Inputs {
            node,
            pods,
            sources_seen,
            objects: parts.changes,
            reports,
            commands: receiver,
            last_statuses: config.last_statuses,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(dispatcher.run());
        tasks.spawn(publisher::run(incoming, publish));
        Ok(Self { statuses, events: parts.events, probe_counts, commands, garbage: None, tasks })
    }

    /// The statuses of all pods that this node has, as they change.
    ///
    /// A snapshot that is held makes the next change copy the map (of pointers), so let go of it.
    pub fn statuses(&self) -> watch::Receiver<PodViews> {
        self.statuses.clone()
    }

    /// The node's and the pods' events.
    pub fn events(&self) -> &EventRecorder {
        &self.events
    }

    /// How often probes succeeded and failed, for the kubelet API.
    pub fn probe_counts(&self) -> ProbeCounts {
        self.probe_counts.clone()
    }

    /// What ends pods for the node's sake: for [`crate::eviction`], and for critical pods.
    pub fn evictor(&self) -> Evictor {
        let (commands, statuses) = (self.commands.clone(), self.statuses.clone());
        Evictor { commands, statuses, garbage: self.garbage.clone() }
    }

    /// Has every pod try at once what failed and waits for its back-off: something came that it may have lacked, such
    /// as an image.
    pub async fn retry(&self) {
        // A dispatcher that is gone has no pods.
        let _ = self.commands.send(Command::Retry).await;
    }

    /// Stops working and leaves the pods as they are; bounded by some seconds.
    pub async fn drain(self) {
        let (done, drained) = oneshot::channel();
        if self.commands.send(Command::Drain { done }).await.is_ok() {
            // A dispatcher that is gone has drained.
            let _ = drained.await;
        }
    }

    /// Ends all pods, each within its grace period or `grace` seconds if that is less, and removes them. No pod
    /// is started any more.
    pub async fn stop_pods(&self, grace: Option<i64>, limit: Duration) -> Result<(), StopError> {
        let (done, stopped) = oneshot::channel();
        if self.commands.send(Command::StopPods { grace, done }).await.is_err() {
            return Ok(());
        }
        match tokio::time::timeout(limit, stopped).await {
            Ok(_) => Ok(()),
            Err(_) => Err(StopError { left: self.statuses.borrow().len(), limit }),
        }
    }
}

/// Ends pods of a kubelet for the node's sake. Clones are of the same kubelet.
#[derive(Clone, Debug)]
pub struct Evictor {
    commands: mpsc::Sender<Command>,
    statuses: watch::Receiver<PodViews>,
    garbage: Option<GcTrigger>,
}

impl Evictor {
    /// The pods that this node has.
    pub(crate) fn pods(&self) -> PodViews {
        self.statuses.borrow().clone()
    }

    /// The same, as they change.
    pub(crate) fn statuses(&self) -> watch::Receiver<PodViews> {
        self.statuses.clone()
    }

    /// Removes every dead container and unused image, and returns when that was tried.
    pub(crate) async fn collect_all_garbage(&self) {
        if let Some(garbage) = &self.garbage {
            garbage.collect_all().await;
        }
    }

    /// Ends a pod within `grace` seconds and waits a while for it; false once the kubelet is gone.
    pub(crate) async fn evict(&self, uid: &Arc<str>, eviction: Eviction, grace: i64, wait: Duration) -> bool {
        if !self.begin(uid, eviction, Some(grace)).await {
            return false;
        }
        let mut statuses = self.statuses.clone();
        let has_ended = |views: &PodViews| views.get(uid).is_none_or(|view| view.ended);
        !matches!(tokio::time::timeout(wait, statuses.wait_for(has_ended)).await, Ok(Err(_)))
    }

    /// Has a pod end within `grace` seconds or its own grace period; false once the kubelet is gone. A pod that it does
    /// not have yet is none of its business, and one that ends already goes on ending.
    pub(crate) async fn begin(&self, uid: &Arc<str>, eviction: Eviction, grace: Option<i64>) -> bool {
        self.commands.send(Command::Evict { uid: uid.clone(), eviction, grace }).await.is_ok()
    }
}

/// Adds what the runtime's handlers can do: the default one, make mounts below a mount read-only too; each, give a pod
/// users of its own.
async fn add_features(
    resources: &mut PodResourcesConfig,
    runtime: &dyn RuntimeService,
    config: &KubeletConfig,
) -> Result<(), StartError> {
    let call = runtime.status(StatusRequest { verbose: false });
    let status = crate::pod::rpc::bounded("Status", config.deadlines.query, call).await;
    let handlers = status.map_err(StartError::Runtime)?.runtime_handlers;
    for handler in handlers {
        let Some(features) = handler.features else { continue };
        resources.recursive_read_only |= handler.name.is_empty() && features.recursive_read_only_mounts;
        if features.user_namespaces {
            resources.user_namespace_handlers.insert(handler.name);
        }
    }
    Ok(())
}

/// The parts that tests replace.
struct Parts {
    events: EventRecorder,
    resources: Arc<dyn Resources>,
    images: Arc<dyn Images>,
    changes: watch::Receiver<u64>,
}
