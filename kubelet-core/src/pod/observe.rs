//! Observation: asks the runtime for the sandboxes and containers of one pod.
//!
//! Owned by the pod's worker. It remembers what it made and what has ended, so that a look at a steady pod
//! costs one call per sandbox and per running container; it lists by label only when it may have missed
//! something (at start, after a failed call, when the dispatcher says so).

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{
    ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest, LinuxContainerResources,
    ListContainersRequest, ListPodSandboxRequest, NamespaceMode, PodSandboxFilter, PodSandboxState,
    PodSandboxStatus, PodSandboxStatusRequest,
};
use coracle_cri::{Code, Status};

use crate::clock::Now;
use crate::container_config::CONTAINER_NAME_LABEL;
use crate::pod::edges::Node;
use crate::pod::labels::{POD_UID, parse_hash, parse_restart_count};
use crate::pod::observation::{ContainerPhase, Instance, Limits, Observation, Sandbox};
use crate::pod::rpc::bounded;
use crate::pod::termination;
use crate::qos;

/// Looks at one pod.
pub(crate) struct Observer {
    uid: Arc<str>,
    /// Sandboxes and containers known to exist, newest first after the next look.
    sandboxes: Vec<Arc<str>>,
    containers: Vec<ContainerKey>,
    /// Ended containers do not change any more.
    ended: HashMap<Arc<str>, Instance>,
    /// When a running container was first seen so, since boot: its end is counted from what this node saw,
    /// not from the runtime's wall clock.
    running: HashMap<Arc<str>, Duration>,
    relist: bool,
}

#[derive(Clone)]
struct ContainerKey {
    id: Arc<str>,
    sandbox_id: Arc<str>,
}

impl Observer {
    /// `fresh` says that the runtime is known to have nothing of this pod.
    pub(crate) fn new(uid: Arc<str>, fresh: bool) -> Self {
        Self {
            uid,
            sandboxes: Vec::new(),
            containers: Vec::new(),
            ended: HashMap::new(),
            running: HashMap::new(),
            relist: !fresh,
        }
    }

    /// The next look lists, since something may have come or gone unseen.
    pub(crate) fn relist(&mut self) {
        self.relist = true;
    }

    /// A sandbox was made.
    pub(crate) fn add_sandbox(&mut self, id: Arc<str>) {
        if !self.sandboxes.contains(&id) {
            self.sandboxes.insert(0, id);
        }
    }

    /// A container was made.
    pub(crate) fn add_container(&mut self, id: Arc<str>, sandbox_id: Arc<str>) {
        if !self.containers.iter().any(|known| known.id == id) {
            self.containers.insert(0, ContainerKey { id, sandbox_id });
        }
    }

    /// A container was removed.
    pub(crate) fn forget_container(&mut self, id: &str) {
        self.containers.retain(|known| *known.id != *id);
        self.ended.remove(id);
    }

    /// What the runtime has of the pod now.
    pub(crate) async fn look(&mut self, node: &Node) -> Result<Observation, Status> {
        if self.relist {
            self.list(node).await?;
        }
        let mut observation = Observation::default();
        for id in self.sandboxes.clone() {
            let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_string(), verbose: false };
            let call = node.runtime.pod_sandbox_status(request);
            match bounded("PodSandboxStatus", node.deadlines.query, call).await {
                Ok(answer) => match answer.status {
                    Some(status) => observation.sandboxes.push(sandbox(status, node.clock.now())),
                    None => return Err(Status::internal("the runtime gave no status of a sandbox")),
                },
                Err(status) if status.code() == Code::NotFound => self.sandboxes.retain(|known| *known != id),
                Err(status) => return Err(status),
            }
        }
        for key in self.containers.clone() {
            if let Some(instance) = self.look_at(node, &key).await? {
                observation.containers.push(instance);
            }
        }
        // Wall time may have jumped between two runs; attempts and restart counts have not.
        observation.sandboxes.sort_by_key(|s| Reverse((s.attempt, s.created_nanos, s.id.clone())));
        observation.containers.sort_by_key(|c| Reverse((c.restart_count, c.created_nanos)));
        Ok(observation)
    }

    async fn list(&mut self, node: &Node) -> Result<(), Status> {
        let label_selector = HashMap::from([(POD_UID.to_owned(), self.uid.to_string())]);
        let filter =
            PodSandboxFilter { label_selector: label_selector.clone(), ..PodSandboxFilter::default() };
        let call = node.runtime.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) });
        let sandboxes = bounded("ListPodSandbox", node.deadlines.query, call).await?.items;
        let filter = ContainerFilter { label_selector, ..ContainerFilter::default() };
        let call = node.runtime.list_containers(ListContainersRequest { filter: Some(filter) });
        let containers = bounded("ListContainers", node.deadlines.query, call).await?.containers;
        self.sandboxes = sandboxes.into_iter().map(|s| Arc::from(s.id)).collect();
        self.containers = containers
            .into_iter()
            .map(|c| ContainerKey { id: Arc::from(c.id), sandbox_id: Arc::from(c.pod_sandbox_id) })
            .collect();
        let known: std::collections::HashSet<&str> = self.containers.iter().map(|c| &*c.id).collect();
        self.ended.retain(|id, _| known.contains(&**id));
        self.running.retain(|id, _| known.contains(&**id));
        self.relist = false;
        Ok(())
    }

    async fn look_at(&mut self, node: &Node, key: &ContainerKey) -> Result<Option<Instance>, Status> {
        if let Some(instance) = self.ended.get(&key.id) {
            return Ok(Some(instance.clone()));
        }
        let request = ContainerStatusRequest { container_id: key.id.to_string(), verbose: false };
        let call = node.runtime.container_status(request);
        let status = match bounded("ContainerStatus", node.deadlines.query, call).await {
            Ok(answer) => {
                answer.status.ok_or_else(|| Status::internal("the runtime gave no status of a container"))?
            }
            Err(status) if status.code() == Code::NotFound => {
                self.forget_container(&key.id);
                return Ok(None);
            }
            Err(status) => return Err(status),
        };
        Ok(Some(self.instance(status, key, node.clock.now()).await))
    }

    async fn instance(&mut self, status: ContainerStatus, key: &ContainerKey, now: Now) -> Instance {
        let phase = match status.state() {
            ContainerState::ContainerCreated => ContainerPhase::Created,
            ContainerState::ContainerRunning => ContainerPhase::Running,
            ContainerState::ContainerExited => ContainerPhase::Exited,
            ContainerState::ContainerUnknown => ContainerPhase::Unknown,
        };
        let seen_running = self.running.get(&key.id).copied();
        let started = seen_running.unwrap_or_else(|| now.boot_at(status.started_at));
        if phase == ContainerPhase::Running {
            self.running.entry(key.id.clone()).or_insert(started);
        }
        let mut message = String::new();
        let mut finished = Duration::ZERO;
        if phase == ContainerPhase::Exited {
            message = termination::message(&status).await;
            // Seen running and now ended: it ended just now. Else the record's own time has to do.
            finished = if seen_running.is_some() { now.boot } else { now.boot_at(status.finished_at) };
            self.running.remove(&key.id);
        }
        let metadata = status.metadata.unwrap_or_default();
        let user = status.user.and_then(|user| user.linux);
        let linux = status.resources.and_then(|resources| resources.linux);
        let instance = Instance {
            id: key.id.clone(),
            name: status.labels.get(CONTAINER_NAME_LABEL).cloned().unwrap_or(metadata.name),
            sandbox_id: key.sandbox_id.clone(),
            phase,
            created_nanos: status.created_at,
            started_nanos: status.started_at,
            finished_nanos: status.finished_at,
            started,
            finished,
            exit_code: status.exit_code,
            reason: status.reason,
            message,
            hash: parse_hash(&status.annotations),
            restart_count: parse_restart_count(&status.annotations).unwrap_or(metadata.attempt),
            image: status
                .image
                .map(|i| if i.user_specified_image.is_empty() { i.image } else { i.user_specified_image })
                .unwrap_or_default(),
            image_ref: status.image_ref,
            log_path: status.log_path,
            user: user.map(|u| (u.uid, u.gid, u.supplemental_groups)),
            limits: linux.as_ref().map(limits).unwrap_or_default(),
        };
        if phase == ContainerPhase::Exited {
            self.ended.insert(key.id.clone(), instance.clone());
        }
        instance
    }
}

/// The kubelet's `toKubeContainerResources`.
fn limits(linux: &LinuxContainerResources) -> Limits {
    let positive = |value: i64| Some(value).filter(|value| *value > 0);
    let cpu_limit = positive(linux.cpu_period).map(|period| linux.cpu_quota.saturating_mul(1000) / period);
    Limits {
        cpu_request: positive(linux.cpu_shares).map(qos::shares_to_milli_cpu),
        cpu_limit: cpu_limit.and_then(positive),
        memory_limit: positive(linux.memory_limit_in_bytes),
    }
}

fn sandbox(status: PodSandboxStatus, now: Now) -> Sandbox {
    let options = status.linux.as_ref().and_then(|l| l.namespaces.as_ref()).and_then(|n| n.options.as_ref());
    let host_network = options.is_some_and(|o| o.network() == NamespaceMode::Node);
    let mut ips = Vec::new();
    if let Some(network) = &status.network {
        let additional = network.additional_ips.iter().map(|ip| &ip.ip);
        let parsed = std::iter::once(&network.ip).chain(additional).filter(|ip| !ip.is_empty());
        ips.extend(parsed.filter_map(|ip| ip.parse::<std::net::IpAddr>().ok()).map(|ip| ip.to_string()));
    }
    Sandbox {
        attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
        ready: status.state() == PodSandboxState::SandboxReady,
        host_network,
        reports_network: status.network.is_some(),
        ips,
        created_nanos: status.created_at,
        created: now.boot_at(status.created_at),
        id: Arc::from(status.id),
    }
}
