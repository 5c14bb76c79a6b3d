//! The Node object of this machine: registered, kept right, its lease renewed.
//!
//! A program starts one [`NodeAgent`] on a cluster and a runtime; dropping it ends both of its tasks and leaves the
//! Node as it is. The tasks inside:
//!
//! | task | owns | hears by | tells by |
//! |---|---|---|---|
//! | reporter | the Node as the API has it | its watch of the own Node, a timer of ten seconds, nudges | `watch` of the Node |
//! | lease | the last version of the lease | a timer of ten seconds, `watch` of the Node | `watch` of twins |
//!
//! What should be, and the patch that makes it so, is planned in `desired`, `plan` and [`pressure`], which are
//! pure. Reading the machine is `machine`. An idle node sends one small request every ten seconds.

mod desired;
mod flags;
mod lease;
pub(crate) mod machine;
mod plan;
pub mod pressure;
mod reporter;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cluster::{Cluster, Object, Resource};
use coracle_cri::{ImageService, RuntimeService};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::api::{Node, ResourceList, Taint};
use crate::clock::Clock;
use crate::events::EventRecorder;
use crate::node_ips::NodeIps;
use machine::MachineFacts;
use pressure::{EvictionPolicy, Pressing};

pub use flags::{LabelError, ReservedError, TaintError, parse_labels, parse_reserved, parse_taints};

/// A machine that lives renews its lease within this time.
const TWIN_WATCH: Duration = Duration::from_secs(15);

/// The Kubernetes release whose node behaviour this is.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

/// What a node tells as its kubelet's version: a Kubernetes release, by which the control plane judges what the node
/// can do, and this program's own as build metadata, which by the rules of semantic versions changes nothing.
pub fn kubelet_version() -> String {
    format!("{KUBERNETES_VERSION}+coracle.{}", env!("CARGO_PKG_VERSION"))
}

impl Object for Node {
    const RESOURCE: Resource = Resource::cluster_wide("", "v1", "nodes", "Node");
}

/// What a node says of itself. Names follow the kubelet's flags.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The Node's name.
    pub name: String,
    /// The host's name, or what was given for it (`--hostname-override`).
    pub hostname: String,
    /// Addresses (`--node-ip`).
    pub node_ips: NodeIps,
    /// Labels of a new Node besides the usual ones (`--node-labels`).
    pub labels: BTreeMap<String, String>,
    /// Taints of a new Node (`--register-with-taints`).
    pub taints: Vec<Taint>,
    /// `--provider-id`.
    pub provider_id: String,
    /// Whether a missing Node is created (`--register-node`).
    pub register: bool,
    /// `--max-pods`.
    pub max_pods: u32,
    /// `--pods-per-core`, 0 for no such limit.
    pub pods_per_core: u32,
    /// `--kube-reserved`.
    pub kube_reserved: ResourceList,
    /// `--system-reserved`.
    pub system_reserved: ResourceList,
    /// When pods are ended for the node's sake.
    pub eviction: EvictionPolicy,
    /// Port of the kubelet API (`--port`).
    pub kubelet_port: u16,
    /// Where the pods' folders lie (`--root-dir`).
    pub root_dir: PathBuf,
    /// Features that the node has, by the names of KEP-5328.
    pub declared_features: Vec<String>,
    /// See [`kubelet_version`].
    pub kubelet_version: String,
    /// Images told at most (`nodeStatusMaxImages`).
    pub max_images: usize,
    /// What tells the time.
    pub clock: Clock,
}

impl NodeConfig {
    /// The kubelet's defaults.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            hostname: name.clone(),
            name,
            node_ips: NodeIps::of_flag(&[]),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            provider_id: String::new(),
            register: true,
            max_pods: 110,
            pods_per_core: 0,
            kube_reserved: ResourceList::new(),
            system_reserved: ResourceList::new(),
            eviction: EvictionPolicy::default(),
            kubelet_port: 10250,
            root_dir: PathBuf::from("/var/lib/kubelet"),
            declared_features: Vec::new(),
            kubelet_version: kubelet_version(),
            max_images: 50,
            clock: Clock::system(),
        }
    }
}

/// What all pods together may take of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodsShare {
    /// What a pod without limits sees as its own: what the Node tells as allocatable.
    pub allocatable: ResourceList,
    /// Bounds of the cgroup of all pods: what is not reserved, pressure or not.
    pub enforced: EnforcedShare,
}

/// Bounds of the cgroup of all pods (`--enforce-node-allocatable=pods` of a kubelet).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EnforcedShare {
    /// Thousandths of a core, which are its weight against the rest of the machine.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory: i64,
    /// Process ids that are kept from them.
    pub pids_reserved: i64,
}

impl NodeConfig {
    /// What its flags leave to pods on this machine. Reads `/proc` and `/sys`.
    pub fn share_of_pods(&self) -> PodsShare {
        let (facts, storage) = (MachineFacts::read(), machine::storage(&self.root_dir));
        desired::share_of_pods(self, &facts, storage)
    }
}

/// What runs the node's pods.
#[derive(Clone)]
pub struct NodeRuntime {
    /// Its state decides whether the node is ready.
    pub runtime: Arc<dyn RuntimeService>,
    /// Its images are told.
    pub images: Arc<dyn ImageService>,
}

/// Keeps the Node of this machine.
///
/// ```no_run
/// use std::sync::Arc;
/// use coracle_cluster::Cluster;
/// use coracle_cri::{ImageService, RuntimeService};
/// use coracle_kubelet_core::{clock::Clock, events::EventRecorder, node::{NodeAgent, NodeConfig, NodeRuntime}};
///
/// # async fn example(cluster: Cluster, runtime: Arc<dyn RuntimeService>, images: Arc<dyn ImageService>) {
/// let events = EventRecorder::new(Clock::system(), 100);
/// let runtime = Some(NodeRuntime { runtime, images });
/// let agent = NodeAgent::start(NodeConfig::new("gateway-7"), cluster, runtime, events);
/// let mut node = agent.node();
/// while node.changed().await.is_ok() {
///     let ready = node.borrow_and_update().as_ref().is_some_and(|node| node.status.is_ready());
///     println!("ready: {ready}");
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct NodeAgent {
    node: watch::Receiver<Option<Arc<Node>>>,
    pressing: watch::Receiver<Arc<Pressing>>,
    nudge: Nudge,
    /// Both tasks end with the agent.
    _tasks: JoinSet<()>,
}

/// Asks the node to look at itself now instead of within ten seconds. Clones ask the same node.
#[derive(Clone, Debug, Default)]
pub struct Nudge(Arc<Notify>);

impl Nudge {
    /// Something that the Node tells has changed: the network came up, an image was pulled.
    pub fn look(&self) {
        self.0.notify_one();
    }
}

impl NodeAgent {
    /// Registers the node and keeps it; returns at once and works in the background. A node without a runtime runs no
    /// pods and is ready all the same: taint it.
    pub fn start(
        config: NodeConfig,
        cluster: Cluster,
        runtime: Option<NodeRuntime>,
        events: EventRecorder,
    ) -> Self {
        Self::start_on(MachineFacts::read(), TWIN_WATCH, config, cluster, runtime, events)
    }

    fn start_on(
        machine: MachineFacts,
        twin_watch: Duration,
        config: NodeConfig,
        cluster: Cluster,
        runtime: Option<NodeRuntime>,
        events: EventRecorder,
    ) -> Self {
        let (publish, node) = watch::channel(None);
        let (press, pressing) = watch::channel(Arc::default());
        let nudge = Nudge::default();
        let config = Arc::new(config);
        let mut tasks = JoinSet::new();
        let lease = lease::LeaseKeeper::new(config.clone(), cluster.clone(), node.clone());
        tasks.spawn(lease.run());
        let reporter = reporter::Reporter::new(reporter::Parts {
            config,
            cluster,
            runtime,
            events,
            nudge: nudge.clone(),
            publish,
            pressing: press,
            machine,
            twin_watch,
        });
        tasks.spawn(reporter.run());
        Self { node, pressing, nudge, _tasks: tasks }
    }

    /// The own Node as the API has it; none before it is registered and after it was deleted. Labels, taints,
    /// allocatable and the pod CIDRs that the cluster gave (`spec.pod_cidrs`) are read here.
    pub fn node(&self) -> watch::Receiver<Option<Arc<Node>>> {
        self.node.clone()
    }

    /// What runs short, told with each look while anything does.
    pub fn pressing(&self) -> watch::Receiver<Arc<Pressing>> {
        self.pressing.clone()
    }

    /// What makes the node look at itself at once.
    pub fn nudge(&self) -> Nudge {
        self.nudge.clone()
    }
}
