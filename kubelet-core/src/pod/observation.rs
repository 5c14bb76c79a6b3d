//! What the runtime has of one pod, as planning and status read it.
//!
//! Filled by `observe.rs`; plain data. Times carry both clocks: durations are counted since boot, what
//! people read is the runtime's own wall time.

use std::sync::Arc;
use std::time::Duration;

/// Sandboxes and containers of one pod, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observation {
    pub(crate) sandboxes: Vec<Sandbox>,
    pub(crate) containers: Vec<Instance>,
}

/// One sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sandbox {
    pub(crate) id: Arc<str>,
    pub(crate) attempt: u32,
    pub(crate) ready: bool,
    pub(crate) host_network: bool,
    /// Whether the runtime says anything about its network.
    pub(crate) reports_network: bool,
    /// Primary address first.
    pub(crate) ips: Vec<String>,
    pub(crate) created_nanos: i64,
    /// Since boot, as far as known.
    pub(crate) created: Duration,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ContainerPhase {
    /// Made, not started; a start that failed may leave it so.
    Created,
    /// Its process runs.
    Running,
    /// Its process ended.
    Exited,
    /// The runtime does not know.
    #[default]
    Unknown,
}

impl std::fmt::Display for ContainerPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Unknown => "unknown",
        })
    }
}

/// One container of the runtime: one run of a container of the pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Instance {
    pub(crate) id: Arc<str>,
    pub(crate) name: String,
    pub(crate) sandbox_id: Arc<str>,
    pub(crate) phase: ContainerPhase,
    pub(crate) created_nanos: i64,
    pub(crate) started_nanos: i64,
    pub(crate) finished_nanos: i64,
    /// Start since boot.
    pub(crate) started: Duration,
    /// End since boot; zero while it has none.
    pub(crate) finished: Duration,
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    /// Of the specification it was made from; none when its maker recorded none.
    pub(crate) hash: Option<u64>,
    pub(crate) restart_count: u32,
    pub(crate) image: String,
    pub(crate) image_ref: String,
    pub(crate) log_path: String,
    pub(crate) user: Option<(i64, i64, Vec<i64>)>,
    pub(crate) limits: Limits,
}

/// What the runtime says that a container may have; CPU in thousandths of a core, memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) cpu_request: Option<i64>,
    pub(crate) cpu_limit: Option<i64>,
    pub(crate) memory_limit: Option<i64>,
}

impl Observation {
    /// The newest instance of a container.
    pub(crate) fn latest(&self, name: &str) -> Option<&Instance> {
        self.containers.iter().find(|instance| instance.name == name)
    }

    /// The sandbox that serves, if it is ready and the newest.
    pub(crate) fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// Addresses of the sandbox that serves.
    pub(crate) fn ips(&self) -> &[String] {
        self.ready_sandbox().map_or(&[], |sandbox| &sandbox.ips)
    }

    /// Instances whose process runs or may run.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &Instance> {
        self.containers
            .iter()
            .filter(|c| matches!(c.phase, ContainerPhase::Running | ContainerPhase::Unknown))
    }
}
