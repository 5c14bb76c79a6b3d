//! What was called: one variant per CRI call, and the log that tests assert on.
//!
//! Owned by the fake, which appends under its lock; plain data, no I/O.

use std::fmt;
use std::time::SystemTime;

macro_rules! methods {
    ($($name:ident),* $(,)?) => {
        /// A call of CRI, by its name on the wire.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Method {
            $(#[doc = concat!("`", stringify!($name), "`.")] $name,)*
        }

        impl Method {
            /// Every call, in the order of the definition.
            pub const ALL: &'static [Method] = &[$(Method::$name),*];

            /// Its name on the wire, such as `RunPodSandbox`.
            pub fn name(self) -> &'static str {
                match self { $(Method::$name => stringify!($name),)* }
            }
        }
    };
}

methods!(
    Version,
    RunPodSandbox,
    StopPodSandbox,
    RemovePodSandbox,
    PodSandboxStatus,
    ListPodSandbox,
    StreamPodSandboxes,
    CreateContainer,
    StartContainer,
    StopContainer,
    RemoveContainer,
    ListContainers,
    StreamContainers,
    ContainerStatus,
    UpdateContainerResources,
    ReopenContainerLog,
    ExecSync,
    Exec,
    Attach,
    PortForward,
    ContainerStats,
    ListContainerStats,
    StreamContainerStats,
    PodSandboxStats,
    ListPodSandboxStats,
    StreamPodSandboxStats,
    UpdateRuntimeConfig,
    Status,
    CheckpointContainer,
    GetContainerEvents,
    ListMetricDescriptors,
    ListPodSandboxMetrics,
    StreamPodSandboxMetrics,
    RuntimeConfig,
    UpdatePodSandboxResources,
    ListImages,
    StreamImages,
    ImageStatus,
    PullImage,
    RemoveImage,
    ImageFsInfo,
);

impl Method {
    /// Whether the call acts on a sandbox, a container or an image rather than only looks.
    pub fn is_change(self) -> bool {
        matches!(
            self,
            Method::RunPodSandbox
                | Method::StopPodSandbox
                | Method::RemovePodSandbox
                | Method::CreateContainer
                | Method::StartContainer
                | Method::StopContainer
                | Method::RemoveContainer
                | Method::UpdateContainerResources
                | Method::ReopenContainerLog
                | Method::ExecSync
                | Method::CheckpointContainer
                | Method::UpdateRuntimeConfig
                | Method::UpdatePodSandboxResources
                | Method::PullImage
                | Method::RemoveImage
        )
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One call that reached the fake, also when a fault made it fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which call.
    pub method: Method,
    /// ID of the sandbox, container or image that the request names (`CreateContainer`: the sandbox); empty
    /// where it has none.
    pub id: String,
    /// What a reader calls it: the pod's name, the container's name or the image reference. Falls back to
    /// the ID for what the fake does not know.
    pub name: String,
    /// When it arrived, on the fake's clock.
    pub at: SystemTime,
}

/// `RunPodSandbox web-0`, for comparing a whole sequence with a list of strings.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            return write!(f, "{}", self.method);
        }
        write!(f, "{} {}", self.method, self.name)
    }
}
