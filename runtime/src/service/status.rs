//! What CRI tells of sandboxes and containers: records turned into messages. Reads memory only.

use std::collections::HashMap;
use std::sync::Arc;

use coracle_cri::v1;
use serde_json::json;

use crate::config::{CgroupDriver, Config, Layout};
use crate::container::{self, Container};
use crate::record::{self, ContainerPhase, ContainerRecord, RecordError, SandboxPhase, SandboxRecord};
use crate::sandbox::{Sandbox, namespaces};
use crate::service::{Engine, HANDLER, wall_ns};

/// What the records of a state folder tell while no runtime has it.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Every sandbox that is made.
    pub sandboxes: Vec<v1::PodSandboxStatus>,
    /// Every container that is made, with the id of its sandbox.
    pub containers: Vec<(String, v1::ContainerStatus)>,
}

/// Reads the records of a state folder without changing anything, for commands while no agent runs.
///
/// # Errors
/// When the folder is there and cannot be read. A torn record is left out.
pub fn read_records(config: &Config) -> Result<Recorded, RecordError> {
    let layout: Layout = config.layout();
    let sandboxes = record::sandboxes(&layout)?.records;
    let containers = record::containers(&layout)?.records;
    Ok(Recorded {
        sandboxes: sandboxes
            .iter()
            .filter(|record| record.phase != SandboxPhase::Creating)
            .map(sandbox_status)
            .collect(),
        containers: containers
            .iter()
            .filter(|record| record.phase != ContainerPhase::Creating)
            .map(|record| (record.sandbox_id.clone(), container_status(record)))
            .collect(),
    })
}

pub(crate) fn sandbox_state(phase: &SandboxPhase) -> v1::PodSandboxState {
    match phase {
        SandboxPhase::Ready { .. } => v1::PodSandboxState::SandboxReady,
        SandboxPhase::Creating | SandboxPhase::NotReady => v1::PodSandboxState::SandboxNotready,
    }
}

pub(crate) fn sandbox_status(record: &SandboxRecord) -> v1::PodSandboxStatus {
    let config = &record.config;
    let mut ips = match &record.phase {
        SandboxPhase::Ready { ips } => ips.clone().into_iter(),
        _ => Vec::new().into_iter(),
    };
    v1::PodSandboxStatus {
        id: record.id.clone(),
        metadata: config.metadata.clone(),
        state: sandbox_state(&record.phase).into(),
        created_at: record.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: Some(namespaces(config)) }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub(crate) fn container_status(record: &ContainerRecord) -> v1::ContainerStatus {
    let config = &record.config;
    let mut status = v1::ContainerStatus {
        id: record.id.clone(),
        metadata: config.metadata.clone(),
        state: container::state(&record.phase).into(),
        created_at: record.created_at,
        image: config.image.clone(),
        image_ref: record.image_ref.clone(),
        image_id: record.image_id.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.clone(),
        log_path: record.log_path.clone(),
        resources: Some(v1::ContainerResources {
            linux: config.linux.as_ref().and_then(|linux| linux.resources.clone()),
            windows: None,
        }),
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: record.uid.into(),
                gid: record.gid.into(),
                supplemental_groups: record.groups.iter().map(|gid| i64::from(*gid)).collect(),
            }),
        }),
        stop_signal: cri_signal(record.stop_signal).into(),
        ..Default::default()
    };
    match &record.phase {
        ContainerPhase::Running { started_at, .. } => status.started_at = *started_at,
        ContainerPhase::Exited(exit) => {
            status.started_at = exit.started_at;
            status.finished_at = exit.finished_at;
            status.exit_code = exit.code;
            status.reason = exit.reason.clone();
            status.message = exit.message.clone();
        }
        _ => {}
    }
    status
}

/// CRI's own numbering of signals: its names in the order of Linux's numbers.
fn cri_signal(number: i32) -> v1::Signal {
    const STANDARD: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = match number {
        1..=31 => format!("SIG{}", STANDARD[number as usize - 1]),
        34 => "SIGRTMIN".to_owned(),
        35..=49 => format!("SIGRTMINPLUS{}", number - 34),
        50..=63 => format!("SIGRTMAXMINUS{}", 64 - number),
        64 => "SIGRTMAX".to_owned(),
        _ => return v1::Signal::RuntimeDefault,
    };
    v1::Signal::from_str_name(&name).unwrap_or(v1::Signal::RuntimeDefault)
}

/// One line of a sandbox list.
pub(crate) fn sandbox_item(record: &SandboxRecord) -> v1::PodSandbox {
    v1::PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(&record.phase).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// One line of a container list.
pub(crate) fn container_item(record: &ContainerRecord) -> v1::Container {
    v1::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        image_id: record.image_id.clone(),
        state: container::state(&record.phase).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    }
}

/// Whether every wanted label is there with its value.
pub(crate) fn labels_match(wanted: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl Engine {
    /// Tells listeners that a container changed, with the state of its whole pod as containerd does.
    pub(crate) fn tell(&self, kind: v1::ContainerEventType, container: &Container) {
        self.tell_of(kind, &container.id, &container.sandbox_id);
    }

    /// Tells listeners that a sandbox changed, as if it were a container of its own name.
    pub(crate) fn tell_sandbox(&self, kind: v1::ContainerEventType, sandbox: &Sandbox) {
        self.tell_of(kind, &sandbox.id, &sandbox.id);
    }

    fn tell_of(&self, kind: v1::ContainerEventType, id: &str, sandbox_id: &str) {
        self.events.send(|| {
            let sandbox = self.sandbox(sandbox_id).ok();
            v1::ContainerEventResponse {
                container_id: id.to_owned(),
                container_event_type: kind.into(),
                created_at: wall_ns(),
                pod_sandbox_status: sandbox.map(|sandbox| sandbox_status(&sandbox.record())),
                containers_statuses: self.statuses_of(sandbox_id),
            }
        });
    }

    /// States of every container of a sandbox.
    pub(crate) fn statuses_of(&self, sandbox_id: &str) -> Vec<v1::ContainerStatus> {
        let mut containers = self.containers_of(sandbox_id);
        containers.retain(|container| container.is_visible());
        containers.sort_by_key(|container| container.record().created_at);
        containers.iter().map(|container| container_status(&container.record())).collect()
    }

    /// The runtime's own conditions, handlers and features.
    pub(crate) fn runtime_status(&self, verbose: bool) -> v1::StatusResponse {
        let network = self.cni.network();
        let condition = |kind: &str, problem: Option<(String, String)>| {
            let status = problem.is_none();
            let (reason, message) = problem.unwrap_or_default();
            v1::RuntimeCondition { r#type: kind.into(), status, reason, message }
        };
        let network_problem = network
            .as_ref()
            .err()
            .map(|error| ("NetworkPluginNotReady".to_owned(), crate::service_error::chain(error)));
        let handler =
            |name: &str| v1::RuntimeHandler { name: name.into(), features: Some(self.features_of(name)) };
        let mut info = HashMap::new();
        if verbose {
            let driver = match self.config.cgroup_driver {
                CgroupDriver::Cgroupfs => "cgroupfs",
                CgroupDriver::Systemd => "systemd",
            };
            let text = json!({
                "root": self.layout.root, "state": self.layout.state, "maker": self.maker, "shim": self.config.shim,
                "cgroupDriver": driver, "network": network.as_ref().map(|network| network.name()).ok(),
            });
            info.insert("config".to_owned(), text.to_string());
        }
        v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![condition("RuntimeReady", None), condition("NetworkReady", network_problem)],
            }),
            info,
            runtime_handlers: [handler(""), handler(HANDLER)]
                .into_iter()
                .chain(self.config.handlers.iter().map(|other| handler(&other.name)))
                .collect(),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
        }
    }

    /// Details of a sandbox for people and for critest.
    pub(crate) fn sandbox_info(&self, sandbox: &Sandbox) -> HashMap<String, String> {
        let record = sandbox.record();
        let pins = self.layout.pins(&sandbox.id);
        let text = json!({
            "cgroupParent": crate::sandbox::cgroup_parent(&record.config),
            "namespaces": pins,
            "shimSocket": self.layout.shim_socket(&sandbox.id),
            "phase": record.phase,
        });
        HashMap::from([("info".to_owned(), text.to_string())])
    }

    /// Details of a container: its process and its OCI specification.
    pub(crate) fn container_info(&self, container: &Arc<Container>) -> HashMap<String, String> {
        let record = container.record().clone();
        let pid = match record.phase {
            ContainerPhase::Running { pid, .. } => pid,
            _ => 0,
        };
        let bundle = self.layout.bundle(&container.id);
        let spec: serde_json::Value = std::fs::read(bundle.join("config.json"))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let text = json!({
            "sandboxID": record.sandbox_id, "pid": pid, "bundle": bundle, "snapshotter": "overlay",
            "snapshotKey": container.id, "runtimeSpec": spec,
        });
        HashMap::from([("info".to_owned(), text.to_string())])
    }
}
