//! A container as the runtime is asked for it, as the kubelet's `generateContainerConfig` makes it.
//!
//! Pure: environment, mounts and devices are made by the caller ([`crate::resources`]) and handed in.

mod labels;
mod linux;
mod security;

use coracle_cri::v1::{
    ContainerConfig, ContainerMetadata, Device, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, Mount, Signal, UserNamespace,
};

use crate::api::{Container, Pod};
use crate::env::expand;
use crate::sandbox_config::SandboxConfigError;

pub use labels::{
    CONTAINER_NAME_LABEL, HASH_ANNOTATION, PORTS_ANNOTATION, PRE_STOP_ANNOTATION, RESTART_COUNT_ANNOTATION,
    TERMINATION_GRACE_ANNOTATION, TERMINATION_MESSAGE_PATH_ANNOTATION, TERMINATION_MESSAGE_POLICY_ANNOTATION,
    container_hash,
};
pub(crate) use linux::page_size_name;
pub use linux::{CpuPolicy, HostFacts, linux_resources};
pub use security::SecurityError;

/// An image as the image service knows it: what to run, and as whom it wants to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageRef {
    /// What the runtime is told to run: the image's id or digest.
    pub id: String,
    /// The numeric user of the image.
    pub uid: Option<i64>,
    /// The user of the image if it is a name.
    pub username: String,
}

impl ImageRef {
    /// The user, as the kubelet reads it: neither number nor name is root.
    fn user(&self) -> (Option<i64>, &str) {
        match self.uid {
            Some(uid) => (Some(uid), ""),
            None if !self.username.is_empty() => (None, &self.username),
            None => (Some(0), ""),
        }
    }
}

impl From<&coracle_cri::v1::Image> for ImageRef {
    fn from(image: &coracle_cri::v1::Image) -> Self {
        let uid = image.uid.as_ref().map(|uid| uid.value);
        Self { id: image.id.clone(), uid, username: image.username.clone() }
    }
}

/// Why a container cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum ContainerConfigError {
    /// Its security settings contradict one another or the image.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// Those of its pod do.
    #[error(transparent)]
    Sandbox(#[from] SandboxConfigError),
    /// A stop signal that there is not.
    #[error("unknown stop signal {0:?}")]
    StopSignal(String),
}

/// What the node decides about a container.
pub struct ContainerInputs<'a> {
    /// How often the container ran before.
    pub attempt: u32,
    /// Its image.
    pub image: &'a ImageRef,
    /// Its environment, in order.
    pub env: Vec<(String, String)>,
    /// Its mounts.
    pub mounts: Vec<Mount>,
    /// Its devices.
    pub devices: Vec<Device>,
    /// What the machine is like.
    pub facts: &'a HostFacts,
    /// How CPU limits become quotas.
    pub cpu: CpuPolicy,
    /// Whether a container without a profile gets the runtime's default one.
    pub seccomp_default: bool,
    /// Where profiles of type Localhost lie.
    pub seccomp_root: &'a str,
    /// The pod's users on the host; none for a pod that has the host's. What is mounted is theirs.
    pub user_namespace: Option<UserNamespace>,
}

/// The CRI configuration of a container.
pub fn container_config(
    pod: &Pod,
    container: &Container,
    inputs: ContainerInputs<'_>,
) -> Result<ContainerConfig, ContainerConfigError> {
    let (uid, username) = inputs.image.user();
    security::verify_non_root(pod, container, uid, username)?;
    let security = security::security_context(pod, container, (uid, username), &inputs)?;
    let linux = LinuxContainerConfig {
        resources: Some(linux::container_resources(pod, container, inputs.facts, inputs.cpu)),
        security_context: Some(security),
    };
    let lookup =
        |name: &str| inputs.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let command = container.command.iter().map(|text| expand(text, lookup)).collect();
    let args = container.args.iter().map(|text| expand(text, lookup)).collect();
    let mut mounts = inputs.mounts;
    if let Some(users) = &inputs.user_namespace {
        for mount in &mut mounts {
            mount.uid_mappings.clone_from(&users.uids);
            mount.gid_mappings.clone_from(&users.gids);
        }
    }
    let image = ImageSpec {
        image: inputs.image.id.clone(),
        user_specified_image: container.image.clone(),
        ..ImageSpec::default()
    };
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: inputs.attempt }),
        image: Some(image),
        command,
        args,
        working_dir: container.working_dir.clone(),
        labels: labels::labels(pod, container),
        annotations: labels::annotations(pod, container, inputs.attempt),
        log_path: log_path(&container.name, inputs.attempt),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        stop_signal: stop_signal(container)?,
        linux: Some(linux),
        envs: inputs
            .env
            .into_iter()
            .map(|(key, value)| KeyValue { key, value: value.into_bytes() })
            .collect(),
        mounts,
        devices: inputs.devices,
        ..ContainerConfig::default()
    })
}

/// CPU and memory of a container that goes on with others.
pub(crate) fn container_size(
    pod: &Pod,
    container: &Container,
    facts: &HostFacts,
    cpu: CpuPolicy,
) -> LinuxContainerResources {
    linux::container_resources(pod, container, facts, cpu)
}

/// `<container>/<attempt>.log`, relative to the pod's log folder.
pub fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

fn stop_signal(container: &Container) -> Result<i32, ContainerConfigError> {
    let Some(name) = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref()) else {
        return Ok(Signal::RuntimeDefault.into());
    };
    let cri_name = name.replace('+', "PLUS").replace('-', "MINUS");
    let signal = Signal::from_str_name(&cri_name);
    signal.map(Into::into).ok_or_else(|| ContainerConfigError::StopSignal(name.to_owned()))
}

#[cfg(test)]
mod tests;
