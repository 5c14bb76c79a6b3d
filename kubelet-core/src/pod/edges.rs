//! What a pod's worker needs from the node besides the runtime, as traits in its own terms.
//!
//! Implemented by adapters over [`crate::resources`] and the image puller in `kubelet.rs`, and by small
//! stand-ins in this module's tests. Implementations are shared by all workers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};

use crate::api::{Container, Pod};
use crate::clock::Clock;
use crate::container_config::ImageRef;
use crate::events::EventRecorder;
use crate::image_pull::PullError;
use crate::node_ips::NodeIps;
use crate::pod::rpc::Deadlines;
use crate::pod::status::NodeFacts;
use crate::pod_cgroup::Extent;
use crate::probe::counts::ProbeCounts;
use crate::qos::PodCgroupLimits;
use crate::volume::Layer;

/// A step that failed: the kubelet's reason and what a person reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct StepError {
    /// An event reason, or the waiting reason of a container.
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// Folders, cgroup, volumes and configurations of pods.
#[async_trait]
pub(crate) trait Resources: Send + Sync {
    /// Makes what the containers of a pod need. Idempotent.
    async fn prepare(&self, pod: &Arc<Pod>) -> Result<(), StepError>;

    /// The runtime handler of the pod's RuntimeClass; the error is what a person reads.
    async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        Ok(pod.spec.runtime_class_name.clone().unwrap_or_default())
    }

    /// The sandbox as the runtime is asked for it.
    fn sandbox_config(&self, pod: &Pod, attempt: u32) -> Result<PodSandboxConfig, StepError>;

    /// A container as the runtime is asked for it; `attempt` is its restart count.
    async fn container_config(
        &self,
        pod: &Pod,
        name: &str,
        attempt: u32,
        image: &ImageRef,
        ips: &[IpAddr],
    ) -> Result<ContainerConfig, StepError>;

    /// Renders the volumes of a running pod anew whose sources changed.
    async fn refresh(&self, pod: &Pod) -> Result<(), StepError>;

    /// A number that changes when an object changed that the pod refers to.
    fn revision(&self, _pod: &Pod) -> u64 {
        0
    }

    /// When (since boot) to render the pod's volumes again, if ever.
    fn renewal(&self, _uid: &str) -> Option<Duration> {
        None
    }

    /// One message for each disk emptyDir that holds more than its sizeLimit, then for the pod and its containers if
    /// they hold more than their limits of storage. Walks volumes and logs: ask seldom.
    async fn over_limit(&self, pod: &Pod, layers: Vec<Layer>) -> Vec<String>;

    /// The limits that the pod's cgroup is to have.
    fn limits(&self, pod: &Pod) -> PodCgroupLimits;

    /// Changes the pod's cgroup, which has been set to `from`: what becomes more, or all.
    async fn resize(&self, pod: &Arc<Pod>, from: &PodCgroupLimits, extent: Extent) -> Result<(), StepError>;

    /// Bytes of memory that the pod uses, where they are counted.
    async fn memory_use(&self, pod: &Arc<Pod>) -> Option<u64>;

    /// What a running container is to have, as the runtime is told.
    fn container_size(&self, pod: &Pod, container: &Container) -> LinuxContainerResources;

    /// What a pod has beside its containers and what they have together, as the runtime is told.
    fn sandbox_size(&self, pod: &Pod) -> [LinuxContainerResources; 2];

    /// UIDs of pods that have something on this node's disk.
    async fn on_disk(&self) -> Result<Vec<String>, StepError>;

    /// Takes away what `prepare` made, and what it may have left half made. Idempotent.
    async fn teardown(&self, uid: &str) -> Result<(), StepError>;
}

/// Images of containers.
#[async_trait]
pub(crate) trait Images: Send + Sync {
    /// The image of a container, pulled if its policy says so. Records its own events. Cancel-safe.
    async fn ensure(
        &self,
        pod: &Arc<Pod>,
        container: &Container,
        sandbox: &PodSandboxConfig,
    ) -> Result<ImageRef, PullError>;
}

/// What all workers share.
pub(crate) struct Node {
    pub(crate) runtime: Arc<dyn coracle_cri::RuntimeService>,
    pub(crate) resources: Arc<dyn Resources>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) events: EventRecorder,
    pub(crate) probe_counts: ProbeCounts,
    pub(crate) clock: Clock,
    /// As its Version says.
    pub(crate) runtime_name: String,
    pub(crate) ips: NodeIps,
    pub(crate) deadlines: Deadlines,
    /// How many sandboxes and containers are made at once: more only makes each of them later.
    pub(crate) starts: tokio::sync::Semaphore,
    /// The same for sandboxes with a network of their own: a network plugin that hangs delays only those.
    pub(crate) networks: tokio::sync::Semaphore,
    /// Folder of the links to container logs, `/var/log/containers`.
    pub(crate) log_links: Option<std::path::PathBuf>,
    /// When this agent started, since boot: probes of pods that ran before are spread out.
    pub(crate) started: std::time::Duration,
}

impl Node {
    /// What statuses say of it now.
    pub(crate) fn facts(&self) -> NodeFacts {
        let host_ips = self.ips.for_pods().iter().map(IpAddr::to_string).collect();
        NodeFacts { runtime_name: self.runtime_name.clone(), host_ips }
    }
}
