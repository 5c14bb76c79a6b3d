//! Messages of `containerd.task.v2.Task`, by field number after `runtime/task/v2/shim.proto`. Plain data.

use std::collections::BTreeMap;

use super::{Any, Timestamp};

/// `containerd.v1.types.Status`: the phase of a container or exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum State {
    /// Not told.
    Unknown = 0,
    /// Made, not started.
    Created = 1,
    /// Started, not ended.
    Running = 2,
    /// Ended, not deleted.
    Stopped = 3,
    /// Frozen.
    Paused = 4,
    /// Being frozen.
    Pausing = 5,
}

/// What to make.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateTaskRequest {
    /// The container's name, unique in the shim.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Absolute path of its OCI bundle.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// Mounts that make the root, at `rootfs` in the bundle; our runtime mounts it itself and leaves this empty.
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<Mount>,
    /// Whether the first process gets a terminal.
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    /// Path of a named pipe, or empty.
    #[prost(string, tag = "5")]
    pub stdin: String,
    /// Path of a named pipe, `cri://` and the path of a CRI log, or empty.
    #[prost(string, tag = "6")]
    pub stdout: String,
    /// The same for standard error; unused with a terminal.
    #[prost(string, tag = "7")]
    pub stderr: String,
    /// Not served.
    #[prost(string, tag = "8")]
    pub checkpoint: String,
    /// Not served.
    #[prost(string, tag = "9")]
    pub parent_checkpoint: String,
    /// Options of containerd's configuration; a shim has read them when it was started.
    #[prost(message, optional, tag = "10")]
    pub options: Option<Any>,
}

/// What was made.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateTaskResponse {
    /// The first process, which waits for the start.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// What to remove.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// An exec of it, or empty for the container.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// How the removed process ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteResponse {
    /// The process.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Exit code, or 128 and the signal.
    #[prost(uint32, tag = "2")]
    pub exit_status: u32,
    /// When it ended.
    #[prost(message, optional, tag = "3")]
    pub exited_at: Option<Timestamp>,
}

/// A further process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecProcessRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The exec's name, unique in the container.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Whether it gets a terminal.
    #[prost(bool, tag = "3")]
    pub terminal: bool,
    /// Path of a named pipe, or empty. That of a living process' pipe, `/proc/PID/fd/N`, ends with that process; an
    /// exec with such a stream is killed when the connection that asked for it ends.
    #[prost(string, tag = "4")]
    pub stdin: String,
    /// The same for standard output.
    #[prost(string, tag = "5")]
    pub stdout: String,
    /// The same for standard error.
    #[prost(string, tag = "6")]
    pub stderr: String,
    /// The OCI process as JSON.
    #[prost(message, optional, tag = "7")]
    pub spec: Option<Any>,
}

/// Empty.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecProcessResponse {}

/// A terminal's size.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResizePtyRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// An exec of it, or empty.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Columns.
    #[prost(uint32, tag = "3")]
    pub width: u32,
    /// Rows.
    #[prost(uint32, tag = "4")]
    pub height: u32,
}

/// Which process to describe.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// An exec of it, or empty.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// A process and its phase.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateResponse {
    /// The container, or the exec when one was asked for.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its bundle.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// Its process, 0 when there is none yet.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// A [`State`] as a number.
    #[prost(enumeration = "State", tag = "4")]
    pub status: i32,
    /// As it was created.
    #[prost(string, tag = "5")]
    pub stdin: String,
    /// As it was created.
    #[prost(string, tag = "6")]
    pub stdout: String,
    /// As it was created.
    #[prost(string, tag = "7")]
    pub stderr: String,
    /// As it was created.
    #[prost(bool, tag = "8")]
    pub terminal: bool,
    /// Exit code, or 128 and the signal, once stopped.
    #[prost(uint32, tag = "9")]
    pub exit_status: u32,
    /// When it ended, once stopped.
    #[prost(message, optional, tag = "10")]
    pub exited_at: Option<Timestamp>,
    /// The exec that was asked for.
    #[prost(string, tag = "11")]
    pub exec_id: String,
}

/// Which signal to whom.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KillRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// An exec of it, or empty.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// The number.
    #[prost(uint32, tag = "3")]
    pub signal: u32,
    /// Every process of the container.
    #[prost(bool, tag = "4")]
    pub all: bool,
}

/// Whose input ends.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloseIORequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// An exec of it, or empty.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// True, or nothing happens.
    #[prost(bool, tag = "3")]
    pub stdin: bool,
}

/// Whose processes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PidsRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// All processes of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PidsResponse {
    /// In no order.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<ProcessInfo>,
}

/// Not served.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckpointTaskRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Where to.
    #[prost(string, tag = "2")]
    pub path: String,
    /// The runtime's options.
    #[prost(message, optional, tag = "3")]
    pub options: Option<Any>,
}

/// New limits.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateTaskRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// OCI Linux resources as JSON.
    #[prost(message, optional, tag = "2")]
    pub resources: Option<Any>,
    /// Not read.
    #[prost(btree_map = "string, string", tag = "3")]
    pub annotations: BTreeMap<String, String>,
}

/// What to start.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// An exec of it, or empty.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// What runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartResponse {
    /// The process.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// Whose end to wait for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// An exec of it, or empty.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// How it ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitResponse {
    /// Exit code, or 128 and the signal.
    #[prost(uint32, tag = "1")]
    pub exit_status: u32,
    /// When.
    #[prost(message, optional, tag = "2")]
    pub exited_at: Option<Timestamp>,
}

/// Whose use.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// A container's use.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsResponse {
    /// containerd's cgroup metrics.
    #[prost(message, optional, tag = "1")]
    pub stats: Option<Any>,
}

/// Whose pid.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Who answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectResponse {
    /// The shim.
    #[prost(uint32, tag = "1")]
    pub shim_pid: u32,
    /// The container's first process, or 0.
    #[prost(uint32, tag = "2")]
    pub task_pid: u32,
    /// Release of the shim.
    #[prost(string, tag = "3")]
    pub version: String,
}

/// Whether to end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShutdownRequest {
    /// The sandbox.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Even with containers left.
    #[prost(bool, tag = "2")]
    pub now: bool,
}

/// What to freeze.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PauseRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// What to thaw.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResumeRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `containerd.types.Mount`: one mount of a container's root.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// File system.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// Device or folder.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Path in the container's root.
    #[prost(string, tag = "3")]
    pub target: String,
    /// As in fstab.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// `containerd.v1.types.ProcessInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessInfo {
    /// The process, as the host numbers it.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Further details; not sent.
    #[prost(message, optional, tag = "2")]
    pub info: Option<Any>,
}
