//! Events that a shim publishes to containerd, by field number after `events/task.proto`, and how they are sent
//! (`services/ttrpc/events/v1/events.proto`, `types/event.proto`). Plain data.
//!
//! Our own runtime needs none of them: it holds an outstanding Wait instead.

use super::task::Mount;
use super::{Any, Timestamp};

/// An event: its name for subscribers, and its type's.
pub trait Event: prost::Message + Default {
    /// What subscribers filter by.
    const TOPIC: &'static str;
    /// The type's full name.
    const TYPE: &'static str;
}

macro_rules! events {
    ($($name:ident: $topic:literal;)*) => {$(
        impl Event for $name {
            const TOPIC: &'static str = $topic;
            const TYPE: &'static str = concat!("containerd.events.", stringify!($name));
        }
    )*};
}

events! {
    TaskCreate: "/tasks/create";
    TaskStart: "/tasks/start";
    TaskOOM: "/tasks/oom";
    TaskExit: "/tasks/exit";
    TaskDelete: "/tasks/delete";
    TaskExecAdded: "/tasks/exec-added";
    TaskExecStarted: "/tasks/exec-started";
    TaskPaused: "/tasks/paused";
    TaskResumed: "/tasks/resumed";
}

/// An event as it is sent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    /// When it happened.
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<Timestamp>,
    /// containerd's namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// [`Event::TOPIC`].
    #[prost(string, tag = "3")]
    pub topic: String,
    /// The event.
    #[prost(message, optional, tag = "4")]
    pub event: Option<Any>,
}

/// Asks containerd to tell its subscribers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForwardRequest {
    /// The event.
    #[prost(message, optional, tag = "1")]
    pub envelope: Option<Envelope>,
}

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
