//! Events that a shim publishes to containerd, by field number after `events/task.proto`. Plain data.
//!
//! Our own runtime needs none of them: it holds an outstanding Wait instead.

use super::Timestamp;
use super::task::Mount;

/// A container was made.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskCreate {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Its bundle.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// Its mounts.
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<Mount>,
    /// Its standard streams.
    #[prost(message, optional, tag = "4")]
    pub io: Option<TaskIO>,
    /// Empty.
    #[prost(string, tag = "5")]
    pub checkpoint: String,
    /// Its first process.
    #[prost(uint32, tag = "6")]
    pub pid: u32,
}

/// A container runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskStart {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Its first process.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
}

/// A container or exec was removed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskDelete {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The process.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// How it ended.
    #[prost(uint32, tag = "3")]
    pub exit_status: u32,
    /// When it ended.
    #[prost(message, optional, tag = "4")]
    pub exited_at: Option<Timestamp>,
    /// The exec, or empty.
    #[prost(string, tag = "5")]
    pub id: String,
}

/// Standard streams.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskIO {
    /// Address.
    #[prost(string, tag = "1")]
    pub stdin: String,
    /// Address.
    #[prost(string, tag = "2")]
    pub stdout: String,
    /// Address.
    #[prost(string, tag = "3")]
    pub stderr: String,
    /// Whether a terminal.
    #[prost(bool, tag = "4")]
    pub terminal: bool,
}

/// A process ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskExit {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The exec, or the container again for its first process.
    #[prost(string, tag = "2")]
    pub id: String,
    /// The process.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// How it ended.
    #[prost(uint32, tag = "4")]
    pub exit_status: u32,
    /// When it ended.
    #[prost(message, optional, tag = "5")]
    pub exited_at: Option<Timestamp>,
}

/// The kernel killed for want of memory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskOOM {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// An exec was announced.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskExecAdded {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The exec.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// An exec runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskExecStarted {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The exec.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Its process.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
}

/// A container was frozen.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskPaused {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// A container was thawed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskResumed {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}
