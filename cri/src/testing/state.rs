//! The state of the fake and its transitions, as containerd 2 makes them.
//!
//! Lives under the fake's one lock. Nothing here waits: time comes in through [`Clock`], and a container's
//! end is told through its watch channel.
//!
//! ```text
//! sandbox:    Ready ──stop, death──► NotReady ──remove──► gone
//! container:  Created ──start──► Running ──exit, stop──► Exited ──remove──► gone
//!                └──── start fails (128, StartError) ──────▲
//! ```

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

use super::calls::Call;
use super::fault::Fault;
use super::images::Images;
use super::script::{ExecScript, Exit, Queues, Script};
use crate::v1::*;

/// Wall time that advances with tokio's clock, so that a paused test decides both.
pub(super) struct Clock {
    epoch: SystemTime,
    origin: Instant,
}

impl Clock {
    pub(super) fn starting_at(epoch: SystemTime) -> Self {
        Clock { epoch, origin: Instant::now() }
    }

    pub(super) fn now(&self) -> SystemTime {
        self.epoch + self.origin.elapsed()
    }

    pub(super) fn unix_nanos(&self) -> i64 {
        let since = self.now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }
}

/// A task that ends with its owner.
pub(super) struct OwnedTask(tokio::task::JoinHandle<()>);

impl OwnedTask {
    pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        OwnedTask(tokio::spawn(task))
    }
}

impl Drop for OwnedTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) struct Sandbox {
    pub(super) id: String,
    pub(super) config: PodSandboxConfig,
    pub(super) runtime_handler: String,
    pub(super) state: PodSandboxState,
    pub(super) created_at: i64,
    /// Empty on the host's network, and after the network was given back.
    pub(super) ips: Vec<String>,
    pub(super) resources: Option<UpdatePodSandboxResourcesRequest>,
}

impl Sandbox {
    pub(super) fn pod(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| &metadata.name)
    }

    pub(super) fn host_network(&self) -> bool {
        let linux = self.config.linux.as_ref();
        let options =
            linux.and_then(|l| l.security_context.as_ref()).and_then(|c| c.namespace_options.as_ref());
        options.is_some_and(|options| options.network() == NamespaceMode::Node)
    }

    pub(super) fn item(&self) -> PodSandbox {
        PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state.into(),
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }

    pub(super) fn status(&self) -> PodSandboxStatus {
        let security = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = security.and_then(|context| context.namespace_options.clone());
        let mut ips = self.ips.iter().cloned();
        PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state.into(),
            created_at: self.created_at,
            network: Some(PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| PodIp { ip }).collect(),
            }),
            linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options }) }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }
}

pub(super) struct Container {
    pub(super) id: String,
    pub(super) sandbox_id: String,
    pub(super) pod: String,
    pub(super) reserved_name: String,
    pub(super) config: ContainerConfig,
    pub(super) image_id: String,
    pub(super) log_path: String,
    pub(super) state: ContainerState,
    pub(super) created_at: i64,
    pub(super) started_at: i64,
    pub(super) finished_at: i64,
    pub(super) exit: Exit,
    pub(super) resources: Option<LinuxContainerResources>,
    pub(super) log_reopened: u32,
    pub(super) script: Script,
    /// Turns true when the container ends; closed when it is removed.
    pub(super) ended: watch::Sender<bool>,
    /// The exit to come by itself, if there is one.
    pub(super) timer: Option<OwnedTask>,
}

impl Container {
    pub(super) fn name(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| &metadata.name)
    }

    pub(super) fn qualified_name(&self) -> String {
        format!("{}/{}", self.pod, self.name())
    }

    pub(super) fn goes_by(&self, key: &str) -> bool {
        self.id == key || self.name() == key || self.qualified_name() == key
    }

    pub(super) fn item(&self) -> crate::v1::Container {
        crate::v1::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.sandbox_id.clone(),
            metadata: self.config.metadata.clone(),
            image: self.config.image.clone(),
            image_ref: self.image_id.clone(),
            state: self.state.into(),
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            image_id: self.image_id.clone(),
        }
    }

    fn reason(&self) -> String {
        match self.state {
            ContainerState::ContainerExited if !self.exit.reason.is_empty() => self.exit.reason.clone(),
            ContainerState::ContainerExited if self.exit.code == 0 => "Completed".to_owned(),
            ContainerState::ContainerExited => "Error".to_owned(),
            _ => String::new(),
        }
    }

    fn status(&self, image: Option<&Image>) -> ContainerStatus {
        let tag = image.and_then(|image| image.repo_tags.first());
        let digest = image.and_then(|image| image.repo_digests.first());
        let stop_signal = match self.config.stop_signal() {
            Signal::RuntimeDefault => Signal::Sigterm,
            signal => signal,
        };
        ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state.into(),
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            exit_code: self.exit.code,
            image: tag
                .map(|tag| ImageSpec { image: tag.clone(), ..ImageSpec::default() })
                .or_else(|| self.config.image.clone()),
            image_ref: digest.unwrap_or(&self.image_id).clone(),
            reason: self.reason(),
            message: self.exit.message.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path: self.log_path.clone(),
            resources: self
                .resources
                .clone()
                .map(|linux| ContainerResources { linux: Some(linux), windows: None }),
            image_id: self.image_id.clone(),
            user: Some(ContainerUser::default()),
            stop_signal: stop_signal.into(),
        }
    }
}

/// One command that `ExecSync` ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The container's name.
    pub container: String,
    /// ID of the container.
    pub container_id: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// The request's timeout in seconds; 0 for none.
    pub timeout: i64,
}

/// Everything the fake knows.
pub(super) struct State {
    pub(super) clock: Clock,
    pub(super) serial: u32,
    pub(super) last_created: i64,
    /// In order of creation, because IDs count up.
    pub(super) sandboxes: BTreeMap<String, Sandbox>,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) images: Images,
    pub(super) calls: Vec<Call>,
    pub(super) execs: Vec<Exec>,
    pub(super) faults: Vec<Fault>,
    pub(super) available: bool,
    pub(super) subscribers: Vec<mpsc::UnboundedSender<Result<ContainerEventResponse, Status>>>,
    pub(super) scripts: Queues<Script>,
    pub(super) exec_scripts: Queues<ExecScript>,
    pub(super) pod_ips: HashMap<String, Vec<String>>,
    pub(super) stats: HashMap<String, ContainerStats>,
    pub(super) fs_info: ImageFsInfoResponse,
    pub(super) conditions: Vec<RuntimeCondition>,
    pub(super) cgroup_driver: CgroupDriver,
    pub(super) pod_cidr: String,
    pub(super) creates_log_files: bool,
    pub(super) metric_descriptors: Vec<MetricDescriptor>,
    pub(super) metrics: Vec<PodSandboxMetrics>,
    /// What URLs of streams begin with.
    pub(super) streaming_server: String,
}

impl State {
    /// A fresh ID of containerd's form that sorts by age.
    pub(super) fn next_id(&mut self) -> String {
        self.serial += 1;
        format!("{:08x}{}", self.serial, "0".repeat(56))
    }

    /// Wall time in nanoseconds, one more than the last where a paused clock would repeat it.
    pub(super) fn creation_time(&mut self) -> i64 {
        self.last_created = self.clock.unix_nanos().max(self.last_created + 1);
        self.last_created
    }

    pub(super) fn sandbox(&self, id: &str) -> Result<&Sandbox, Status> {
        self.sandboxes
            .get(id)
            .ok_or_else(|| Status::not_found("an error occurred when try to find sandbox: not found"))
    }

    pub(super) fn container(&self, id: &str) -> Result<&Container, Status> {
        self.containers.get(id).ok_or_else(|| container_not_found(id))
    }

    pub(super) fn container_mut(&mut self, id: &str) -> Result<&mut Container, Status> {
        self.containers.get_mut(id).ok_or_else(|| container_not_found(id))
    }

    /// The newest container that a test means by an ID, a name or `pod/name`.
    pub(super) fn find_container(&self, key: &str) -> Option<&Container> {
        self.containers.values().rev().find(|container| container.goes_by(key))
    }

    /// The newest sandbox that a test means by an ID or a pod's name.
    pub(super) fn find_sandbox(&self, key: &str) -> Option<&Sandbox> {
        self.sandboxes.values().rev().find(|sandbox| sandbox.id == key || sandbox.pod() == key)
    }

    pub(super) fn container_status(&self, container: &Container) -> ContainerStatus {
        container.status(self.images.resolve(&container.image_id))
    }

    pub(super) fn containers_of<'a>(&'a self, sandbox: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.values().filter(move |container| container.sandbox_id == sandbox)
    }

    /// Ends a running container; whether it was running.
    pub(super) fn finish(&mut self, id: &str, exit: Exit) -> bool {
        let now = self.clock.unix_nanos();
        let Some(container) = self.containers.get_mut(id) else { return false };
        if container.state != ContainerState::ContainerRunning {
            return false;
        }
        container.state = ContainerState::ContainerExited;
        container.finished_at = now;
        container.exit = exit;
        container.ended.send_replace(true);
        // The timer may be the task that is calling; aborting it only takes effect where it next waits.
        container.timer = None;
        let sandbox = container.sandbox_id.clone();
        self.emit(id, &sandbox, ContainerEventType::ContainerStoppedEvent);
        true
    }

    /// Kills a sandbox's containers.
    pub(super) fn kill_containers(&mut self, sandbox: &str) {
        let ids: Vec<String> = self.containers_of(sandbox).map(|container| container.id.clone()).collect();
        for id in ids {
            self.finish(&id, Exit::from(137));
        }
    }

    /// Ends a sandbox with its containers. Its network stays until it is stopped.
    pub(super) fn end_sandbox(&mut self, id: &str) {
        self.kill_containers(id);
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return };
        if sandbox.state == PodSandboxState::SandboxReady {
            sandbox.state = PodSandboxState::SandboxNotready;
            self.emit(id, id, ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// `StopPodSandbox`, which also gives back the network.
    pub(super) fn stop_sandbox(&mut self, id: &str) {
        self.end_sandbox(id);
        if let Some(sandbox) = self.sandboxes.get_mut(id) {
            sandbox.ips.clear();
        }
    }

    /// Removes a container, killing it first.
    pub(super) fn remove_container(&mut self, id: &str) {
        self.finish(id, Exit::from(137));
        if let Some(container) = self.containers.remove(id) {
            self.stats.remove(id);
            self.emit(id, &container.sandbox_id, ContainerEventType::ContainerDeletedEvent);
        }
    }

    /// Removes a sandbox and what is in it.
    pub(super) fn remove_sandbox(&mut self, id: &str) {
        self.stop_sandbox(id);
        let ids: Vec<String> = self.containers_of(id).map(|container| container.id.clone()).collect();
        for container in ids {
            self.remove_container(&container);
        }
        if self.sandboxes.contains_key(id) {
            self.emit(id, id, ContainerEventType::ContainerDeletedEvent);
            self.sandboxes.remove(id);
        }
    }

    /// Tells every open event stream; drops those whose reader is gone.
    pub(super) fn emit(&mut self, id: &str, sandbox: &str, kind: ContainerEventType) {
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: self.clock.unix_nanos(),
            pod_sandbox_status: self.sandboxes.get(sandbox).map(Sandbox::status),
            containers_statuses: self.containers_of(sandbox).map(|c| self.container_status(c)).collect(),
        };
        self.subscribers.retain(|subscriber| subscriber.send(Ok(event.clone())).is_ok());
    }
}

fn container_not_found(id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find container \"{id}\": not found"))
}
