//! `coracle run`: the agent. Puts the crates together, supervises, and leaves the pods running when it ends.
//!
//! Tasks, all owned by [`supervise`] and ended by its return: the source of manifests, the kubelet's own, the
//! server of the socket, the recorder of pods and events, what hears of changed addresses, and the loading of image
//! archives. One thread runs them; blocking calls go to a few others.

mod addresses;
mod airgap;
mod engine;
mod foreign_images;
mod images;
mod joined;
mod log_losses;
mod node_api;
mod recorder;
mod serve;
mod settings;
mod streams;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_kubelet_core::api::{Pod, PodStatus};
use coracle_kubelet_core::clock::Clock;
use coracle_kubelet_core::events::{EventRecorder, EventType};
use coracle_kubelet_core::kubelet::{Kubelet, KubeletConfig, PodView};
use coracle_kubelet_core::objects::ObjectSource;
use coracle_kubelet_core::sandbox_config::pod_log_dir;
use coracle_kubelet_core::source::{ManifestDir, ManifestDirConfig, ObjectSet, PodSet};
use rustix::fs::FlockOperation;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::args::RunArgs;
use crate::check::{self, Severity};
use crate::socket::{PodRecord, VERSION};
use crate::{descriptors, logging, notify, pod_files};

use self::engine::{Engine, EngineSettings};
use self::joined::Tie;
use self::log_losses::Losses;
use self::settings::Settings;

pub(crate) use self::addresses::node_name;

/// What ends with the agent gets so long to finish what it is at.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(20);
/// How long the lock of an agent that is gone may outlast it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How long the pods wait for the image archives.
const HEAD_START: Duration = Duration::from_secs(5);
/// A join that takes longer does not keep the pods of the folder waiting.
const JOIN_PATIENCE: Duration = Duration::from_secs(3);
/// Blocking calls side by side; their threads end after some idle seconds.
const BLOCKING_THREADS: usize = 8;

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: RunArgs) -> Result<()> {
    logging::start(&args.log_level)?;
    let settings = Settings::resolve(args)?;
    let _lock = lock(&settings.state_dir)?;
    tell_findings(&settings);
    in_event_loop(supervise(settings))
}

/// Runs the whole of a process that serves: one thread, and a few for blocking calls.
pub(crate) fn in_event_loop<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(5))
        .thread_stack_size(512 * 1024)
        .build()
        .context("cannot start the event loop")?;
    descriptors::raise();
    let result = runtime.block_on(work);
    // What still blocks, such as a stuck disk, must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// One agent per state folder: the lock ends with the process, however it ends.
fn lock(state_dir: &Path) -> Result<File> {
    std::fs::create_dir_all(state_dir).with_context(|| format!("cannot create {}", state_dir.display()))?;
    let path = state_dir.join("agent.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let start = std::time::Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            // A process that an agent was about to execute when it was killed has its lock for a moment longer.
            Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!(
                    "another agent runs with state folder {}; stop it, or choose another with --state-dir",
                    state_dir.display()
                )
            }
            Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// Logs what `coracle check` would find. What another runtime needs is for it to say.
fn tell_findings(settings: &Settings) {
    let EngineSettings::Embedded(runtime) = &settings.engine else { return };
    let plan = check::Plan {
        cni_bin_dirs: &runtime.cni.bin_dirs,
        data_dir: &runtime.root,
        oci_runtime: settings.oci_runtime.as_deref(),
    };
    for finding in check::findings(&plan) {
        match finding.severity {
            Severity::Error => tracing::error!(cure = %finding.cure, "{}", finding.what),
            Severity::Warning => tracing::warn!(cure = %finding.cure, "{}", finding.what),
        }
    }
}

/// What commands are answered from.
pub(crate) struct Node {
    kubelet: Kubelet,
    engine: Engine,
    events: EventRecorder,
    log_root: PathBuf,
}

impl Node {
    fn record(&self, view: &PodView) -> PodRecord {
        let pod = Pod { status: (*view.status).clone(), ..(*view.pod).clone() };
        PodRecord { version: VERSION, log_directory: pod_log_dir(&self.log_root, &pod), pod }
    }

    fn pod_records(&self) -> Vec<PodRecord> {
        let views = self.kubelet.statuses().borrow().clone();
        let mut records: Vec<PodRecord> = views.values().map(|view| self.record(view)).collect();
        records.sort_by_key(|record| record.pod.full_name());
        records
    }

    async fn stop_pods(&self, limit: Duration) -> Result<String> {
        let count = self.kubelet.statuses().borrow().len();
        self.kubelet.stop_pods(None, limit).await?;
        Ok(format!("stopped {count} pods; they start again with the agent"))
    }
}

/// What the agent before this one wrote down of the pods.
fn last_statuses(state_dir: &Path) -> BTreeMap<Arc<str>, Arc<PodStatus>> {
    let records = pod_files::read(state_dir).unwrap_or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), "probes begin without what they found before");
        Vec::new()
    });
    let by_uid = |record: PodRecord| (record.pod.metadata.uid, Arc::new(record.pod.status));
    records.into_iter().map(by_uid).collect()
}

/// The folder of manifests, if there is one. In a cluster the objects are the API server's, and a static pod must not
/// depend on it: its manifest may not refer to any.
async fn folder(
    path: Option<PathBuf>,
    node_name: String,
    allow_object_references: bool,
) -> Result<Option<ManifestDir>> {
    let Some(path) = path else { return Ok(None) };
    let config = ManifestDirConfig { path, node_name, allow_object_references, clock: Clock::system() };
    Ok(Some(ManifestDir::start(config).await?))
}

async fn supervise(settings: Settings) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let listener = serve::bind(&settings.state_dir)?;
    let mut background = JoinSet::new();
    background.spawn(settings.node_ips.clone().keep());
    let engine = tokio::select! {
        // Cancel-safe: a runtime that was waited for knows nothing of it.
        engine = Engine::start(settings.engine) => engine?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let mut loading = JoinSet::new();
    let (came, archives) = watch::channel(0);
    if let Some(store) = engine.store() {
        loading.spawn(airgap::load(store.clone(), settings.images_dir, settings.data_dir, came));
    }
    tokio::select! {
        // Cancel-safe: a task that is not waited for goes on. Most archives are in before a pod could miss its image.
        _ = loading.join_next() => {}
        () = tokio::time::sleep(HEAD_START) => tracing::info!("the pods run while image archives are loaded"),
        _ = terminate.recv() => return leave(None, loading, engine).await,
        _ = interrupt.recv() => return leave(None, loading, engine).await,
    }
    let source =
        folder(settings.manifests.clone(), settings.node_name.clone(), settings.cluster.is_none()).await?;
    let folder_pods = source.as_ref().map_or_else(|| watch::channel(PodSet::default()).1, ManifestDir::pods);
    let mut config = settings.kubelet;
    config.last_statuses = last_statuses(&settings.state_dir);
    if let Some(driver) = engine.cgroup_driver().await {
        config.resources.cgroup_driver = driver;
    }
    let scene = Scene {
        listener: Arc::new(listener),
        state_dir: settings.state_dir.clone(),
        log_root: config.resources.log_root.clone(),
        engine: engine.clone(),
        archives,
        losses: engine.take_log_losses(),
    };
    let mut tie = match settings.cluster {
        None => None,
        Some(cluster) => {
            let begun = Tie::begin(cluster, &settings.node_ips, folder_pods.clone());
            tokio::pin!(begun);
            let mut alone: Option<Life> = None;
            let tie = loop {
                tokio::select! {
                    // Cancel-safe: a join that is cut off is begun anew by the next start.
                    tie = &mut begun => break tie?,
                    // Cancel-safe: a timer. Without a network the first join takes as long as it takes.
                    () = tokio::time::sleep(JOIN_PATIENCE), if alone.is_none() => {
                        let objects = objects_of(source.as_ref());
                        // Which pods the cluster wants here is not known: nothing is taken for unwanted.
                        let config = KubeletConfig { sources_seen: Some(watch::channel(false).1), ..config.clone() };
                        alone = Some(scene.begin(config, folder_pods.clone(), objects).await?);
                        tracing::warn!("the node has not joined yet; the pods of its folder run meanwhile");
                    }
                    _ = terminate.recv() => return leave(alone, loading, engine).await,
                    _ = interrupt.recv() => return leave(alone, loading, engine).await,
                }
            };
            if let Some(alone) = alone {
                alone.end().await;
                config.last_statuses = last_statuses(&settings.state_dir);
            }
            Some(tie)
        }
    };
    let (pods, objects): (_, Arc<dyn ObjectSource>) = match (&tie, &source) {
        (Some(tie), _) => {
            config.sources_seen = Some(tie.pods.sources_seen());
            (tie.pods.pods(), tie.pods.objects())
        }
        (None, Some(source)) => (folder_pods, source.objects()),
        (None, None) => bail!("nothing says what to run"),
    };
    let life = scene.begin(config, pods, objects).await?;
    if let Some(tie) = &mut tie {
        tie.follow(&life.node.kubelet, &engine).await?;
    }
    life.node.events.node(&settings.node_name, EventType::Normal, "Starting", "Starting coracle.".to_owned());
    tracing::info!(
        node = %settings.node_name,
        addresses = ?settings.node_ips.now(),
        manifests = settings.manifests.as_ref().map(|path| path.display().to_string()),
        "node runs"
    );

    let name = tokio::select! {
        // Cancel-safe: a signal that comes is seen by one of them, and both end the wait.
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "agent ends; the pods run on");
    notify::send("STOPPING=1");
    drop(source);
    drop(tie);
    leave(Some(life), loading, engine).await
}

/// What every life of the kubelet in this process has in common.
struct Scene {
    listener: Arc<UnixListener>,
    state_dir: PathBuf,
    log_root: PathBuf,
    engine: Engine,
    /// How many image archives have come in.
    archives: watch::Receiver<u64>,
    /// Of our own runtime.
    losses: Option<Losses>,
}

impl Scene {
    /// Starts a kubelet, and what answers commands and writes records from it.
    async fn begin(
        &self,
        config: KubeletConfig,
        pods: watch::Receiver<PodSet>,
        objects: Arc<dyn ObjectSource>,
    ) -> Result<Life> {
        let (runtime, images) = (self.engine.runtime.clone(), self.engine.images.clone());
        let kubelet = Kubelet::start(config, runtime, images, pods, objects).await?;
        let events = kubelet.events().clone();
        let log_root = self.log_root.clone();
        let node = Arc::new(Node { kubelet, engine: self.engine.clone(), events, log_root });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve::serve(self.listener.clone(), node.clone()));
        tasks.spawn(recorder::record(self.state_dir.clone(), node.clone()));
        tasks.spawn(retry_with(self.archives.clone(), node.clone()));
        if let Some(losses) = &self.losses {
            tasks.spawn(log_losses::tell(losses.clone(), node.clone()));
        }
        notify::send("READY=1");
        Ok(Life { node, tasks })
    }
}

/// Has pods that wait for an image look again when an archive has come in.
async fn retry_with(mut archives: watch::Receiver<u64>, node: Arc<Node>) {
    while archives.changed().await.is_ok() {
        node.kubelet.retry().await;
    }
}

/// A kubelet that runs. There are two after one another when the node joins later than it starts.
struct Life {
    node: Arc<Node>,
    tasks: JoinSet<()>,
}

impl Life {
    /// Finishes what is under way; the pods run on.
    async fn end(mut self) {
        self.tasks.shutdown().await;
        if let Some(node) = Arc::into_inner(self.node)
            && tokio::time::timeout(DRAIN_LIMIT, node.kubelet.drain()).await.is_err()
        {
            tracing::warn!("work on some pods was under way; the next start goes on with it");
        }
    }
}

async fn leave(life: Option<Life>, mut loading: JoinSet<()>, engine: Engine) -> Result<()> {
    // First, since the store is closed when nothing is brought into it.
    loading.shutdown().await;
    if let Some(life) = life {
        life.end().await;
    }
    engine.close(DRAIN_LIMIT).await;
    Ok(())
}

/// The objects of the folder; none without one.
fn objects_of(folder: Option<&ManifestDir>) -> Arc<dyn ObjectSource> {
    match folder {
        Some(folder) => folder.objects(),
        None => Arc::new(ObjectSet::default()),
    }
}
