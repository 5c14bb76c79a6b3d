//! A node that has joined a cluster: pods from its API server, statuses and events to it.
//!
//! A program starts [`Joined`] before its [`Kubelet`](crate::kubelet::Kubelet), which reads pods and objects from it, and lets it follow the
//! kubelet afterwards. It owns the tasks that speak with the API server about pods; dropping it ends them and leaves
//! the pods as they are. With no API server in reach the pods of the folder run, what runs goes on, nothing is
//! removed, and after a reboot what the API server wanted last starts again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use coracle_cluster::{Change, Cluster, Scope};
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::admission::HostRules;
use crate::api::Node;
use crate::clock::Clock;
use crate::kubelet::{Kubelet, PodView, PodViews};
use crate::objects::ApiObjects;
use crate::pod::status::is_terminal_phase;
use crate::source::{ApiPods, ApiPodsInputs, Ended, News, PodSet};
use crate::{event_writer, kept, preemption, status_writer};

/// What a joined node is made of.
#[derive(Clone)]
pub struct JoinedConfig {
    /// The API.
    pub cluster: Cluster,
    /// Name of this node's object.
    pub node_name: String,
    /// Pods of this node alone, mostly of a manifest folder.
    pub static_pods: watch::Receiver<PodSet>,
    /// The node as the API has it, which admission asks and mirrors belong to: a
    /// [`NodeAgent`](crate::node::NodeAgent)'s, or [`watch_node`].
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// What tells the time.
    pub clock: Clock,
    /// What the host lets pods ask of its kernel.
    pub host: HostRules,
    /// A file that keeps the pods and what they refer to, Secrets too, so that they start again after a reboot with no
    /// API server in reach; mode 0600. Without one they wait.
    pub kept: Option<PathBuf>,
}

/// The part of a node that speaks with the API server about pods.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use coracle_cri::{ImageService, RuntimeService};
/// # use coracle_kubelet_core::clock::Clock;
/// use coracle_kubelet_core::joined::{Joined, JoinedConfig, watch_node};
/// use coracle_kubelet_core::kubelet::{Kubelet, KubeletConfig};
/// use coracle_kubelet_core::resources::PodResourcesConfig;
///
/// # async fn example(cluster: coracle_cluster::Cluster, runtime: Arc<dyn RuntimeService>, images: Arc<dyn ImageService>) -> Result<(), Box<dyn std::error::Error>> {
/// let (node, watching) = watch_node(cluster.clone(), "gateway-7".into());
/// tokio::spawn(watching);
/// let no_folder = tokio::sync::watch::channel(Default::default()).1;
/// let clock = Clock::system();
/// let node_name = "gateway-7".to_owned();
/// let mut joined = Joined::start(JoinedConfig { cluster, node_name, static_pods: no_folder, node, clock, host: Default::default(), kept: None });
/// let mut config = KubeletConfig::new(PodResourcesConfig::new("/var/lib/kubelet"));
/// config.sources_seen = Some(joined.sources_seen());
/// let kubelet = Kubelet::start(config, runtime, images, joined.pods(), joined.objects()).await?;
/// joined.follow(&kubelet);
/// # Ok(())
/// # }
/// ```
pub struct Joined {
    config: JoinedConfig,
    pods: ApiPods,
    objects: Arc<ApiObjects>,
    /// Until somebody follows the kubelet.
    news: Option<mpsc::UnboundedReceiver<News>>,
    idle: watch::Sender<PodViews>,
    /// What the kubelet has told to have ended.
    ended: watch::Sender<Ended>,
    tasks: JoinSet<()>,
}

impl Joined {
    /// Begins to read pods. Call it within a tokio runtime.
    pub fn start(config: JoinedConfig) -> Self {
        let objects = Arc::new(ApiObjects::new(config.cluster.clone(), config.clock.clone()));
        let ended = watch::Sender::default();
        let (pods, news) = ApiPods::start(ApiPodsInputs {
            cluster: config.cluster.clone(),
            node_name: config.node_name.clone(),
            statics: config.static_pods.clone(),
            ended: ended.subscribe(),
            node: config.node.clone(),
            clock: config.clock.clone(),
            host: config.host.clone(),
            kept: config.kept.clone().map(|path| (path, objects.clone())),
        });
        Self {
            config,
            pods,
            objects,
            news: Some(news),
            idle: watch::Sender::default(),
            ended,
            tasks: JoinSet::new(),
        }
    }

    /// The pods that should run.
    pub fn pods(&self) -> watch::Receiver<PodSet> {
        self.pods.pods.clone()
    }

    /// Whether those are all: for [`KubeletConfig::sources_seen`](crate::kubelet::KubeletConfig::sources_seen).
    pub fn sources_seen(&self) -> watch::Receiver<bool> {
        self.pods.seen.clone()
    }

    /// Pods of the API of which nothing runs here: those that were not admitted, with why.
    pub fn idle(&self) -> watch::Receiver<PodViews> {
        self.idle.subscribe()
    }

    /// What pods refer to.
    pub fn objects(&self) -> Arc<ApiObjects> {
        self.objects.clone()
    }

    /// Tells the API server what the kubelet observes from now on. Further calls do nothing.
    pub fn follow(&mut self, kubelet: &Kubelet) {
        let Some(news) = self.news.take() else { return };
        let config = &self.config;
        self.tasks.spawn(status_writer::run(status_writer::Inputs {
            cluster: config.cluster.clone(),
            clock: config.clock.clone(),
            events: kubelet.events().clone(),
            news,
            statuses: kubelet.statuses(),
            statics: config.static_pods.clone(),
            node: config.node.clone(),
            idle: self.idle.clone(),
        }));
        self.tasks.spawn(tell_ended(kubelet.statuses(), self.ended.clone()));
        let preempted = self.pods.preempted.clone();
        self.tasks.spawn(preemption::run(preempted, kubelet.evictor(), kubelet.events().clone()));
        if let Some(path) = config.kept.clone() {
            self.tasks.spawn(kept::keep(kept::Inputs {
                path,
                node_name: config.node_name.clone(),
                pods: self.pods(),
                seen: self.sources_seen(),
                statuses: kubelet.statuses(),
                objects: self.objects(),
            }));
        }
        let (cluster, events) = (config.cluster.clone(), kubelet.events().clone());
        self.tasks.spawn(event_writer::run(cluster, events, config.node_name.clone(), config.clock.clone()));
    }
}

/// Hands on which pods take no room any more. Runs until the kubelet ends.
async fn tell_ended(mut statuses: watch::Receiver<PodViews>, told: watch::Sender<Ended>) {
    loop {
        let has_ended = |view: &PodView| view.ended || is_terminal_phase(&view.status.phase);
        let views = statuses.borrow_and_update().clone();
        let now = views.iter().filter(|(_, view)| has_ended(view)).map(|(uid, _)| uid.clone());
        let now: BTreeSet<Arc<str>> = now.collect();
        told.send_if_modified(|ended| {
            let is_news = **ended != now;
            if is_news {
                *ended = Arc::new(now);
            }
            is_news
        });
        if statuses.changed().await.is_err() {
            return;
        }
    }
}

impl std::fmt::Debug for Joined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined").field("node", &self.config.node_name).finish_non_exhaustive()
    }
}

/// Follows the node's object, for programs that do not keep it by a [`NodeAgent`](crate::node::NodeAgent): the
/// object, and the task that follows it.
pub fn watch_node(
    cluster: Cluster,
    node_name: String,
) -> (watch::Receiver<Option<Arc<Node>>>, impl Future<Output = ()> + Send + 'static) {
    let (sender, receiver) = watch::channel(None);
    let task = async move {
        let mut changes = pin!(cluster.watch::<Node>(Scope::all().named(&node_name)));
        while let Some(change) = changes.next().await {
            match change {
                Change::Listed(node) | Change::Applied(node) => sender.send_replace(Some(Arc::new(node))),
                Change::Deleted(_) => sender.send_replace(None),
                Change::Restart | Change::Ready => continue,
            };
        }
    };
    (receiver, task)
}
