//! Why resources of pods cannot be made, described or taken away.
//!
//! The texts are what people read in events and container statuses, so they hold their causes; none is also
//! offered as a `source`, or a log of the chain would say it twice.

use std::io;
use std::path::{Path, PathBuf};

use super::{MountError, UserNamespaceError};
use crate::api::Pod;
use crate::container_config::ContainerConfigError;
use crate::env::EnvError;
use crate::pod_cgroup::CgroupError;
use crate::sandbox_config::SandboxConfigError;
use crate::volume::{VolumeError, VolumeTeardownError};

/// Why a pod's resources cannot be made ready; the text is an event's message.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A name of the pod cannot name a file.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Its folders cannot be made.
    #[error("error making pod data directories: {}: {cause}", path.display())]
    Directories {
        /// Which.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// Its cgroup cannot be made.
    #[error("unable to ensure pod container exists: {}", Chain(.0))]
    Cgroup(CgroupError),
    /// A volume cannot be set up.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {}", Chain(cause))]
    Volume {
        /// The volume's name.
        volume: String,
        /// Why not.
        cause: VolumeError,
    },
    /// The work panicked or the runtime is shutting down.
    #[error("setting up the pod was interrupted")]
    Interrupted,
}

impl PrepareError {
    /// The kubelet's event reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Directories { .. } => "FailedMakePodDataDirectories",
            Self::Cgroup(_) => "FailedCreatePodContainer",
            Self::Volume { .. } => "FailedMount",
            Self::Name(_) | Self::Interrupted => "FailedSync",
        }
    }
}

/// Why a sandbox or container cannot be described; the text is a container's waiting message.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A name of the pod cannot name a file.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The pod has no container of that name.
    #[error("container {0:?} not found in pod")]
    NoContainer(String),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxConfigError),
    /// Users of its own.
    #[error(transparent)]
    UserNamespace(#[from] UserNamespaceError),
    /// The node's resolver settings.
    #[error("could not open resolv conf file {}: {cause}", path.display())]
    ResolvConf {
        /// Which file.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The environment.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The mounts.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Everything else of the container.
    #[error(transparent)]
    Container(#[from] ContainerConfigError),
    /// A file or folder of the pod.
    #[error("{operation} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The work panicked or the runtime is shutting down.
    #[error("describing the container was interrupted")]
    Interrupted,
}

impl ConfigError {
    /// The waiting reason of the container, or the event reason of the pod if it is about its sandbox.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Sandbox(_) | Self::UserNamespace(_) | Self::ResolvConf { .. } => "FailedCreatePodSandBox",
            _ => "CreateContainerConfigError",
        }
    }

    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::Io { operation, path, cause }
    }
}

/// A name that would lead out of the pod's folder. No API server lets one pass; a source of one's own may.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} cannot name a file: it must not be empty, \".\", \"..\" or hold a slash")]
pub struct NameError {
    /// What it is the name of.
    pub what: &'static str,
    /// The name.
    pub name: String,
}

impl NameError {
    /// Checks every name of a pod that becomes one of a file or folder.
    pub(super) fn check_pod(pod: &Pod) -> Result<(), Self> {
        Self::check("uid", &pod.metadata.uid)?;
        Self::check("namespace", &pod.metadata.namespace)?;
        Self::check("pod", &pod.metadata.name)?;
        for volume in &pod.spec.volumes {
            Self::check("volume", &volume.name)?;
        }
        pod.all_containers().try_for_each(|container| Self::check("container", &container.name))
    }

    pub(super) fn check(what: &'static str, name: &str) -> Result<(), Self> {
        if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
            return Err(Self { what, name: name.to_owned() });
        }
        Ok(())
    }
}

/// Everything that stayed behind when a pod was taken away.
#[derive(Debug, Default, thiserror::Error)]
#[error("{}", self.text())]
pub struct TeardownError {
    /// Of its folder.
    pub volumes: Vec<VolumeTeardownError>,
    /// Of its cgroup.
    pub cgroup: Vec<CgroupError>,
    /// The UID that cannot be one, if so: nothing was touched.
    pub name: Option<NameError>,
    /// Whether the work itself was interrupted.
    pub interrupted: bool,
}

impl TeardownError {
    fn text(&self) -> String {
        let volumes = self.volumes.iter().map(|error| Chain(error).to_string());
        let mut parts: Vec<String> =
            volumes.chain(self.cgroup.iter().map(|error| Chain(error).to_string())).collect();
        parts.extend(self.name.iter().map(NameError::to_string));
        if self.interrupted {
            parts.push("the work was interrupted".to_owned());
        }
        format!("pod is not taken away whole: {}", parts.join("; "))
    }
}

/// An error with its causes, for texts that people read without seeing the chain.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
