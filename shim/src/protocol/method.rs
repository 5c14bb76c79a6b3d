//! The methods of both services as types, so that a call's messages cannot be mixed up. Used by both sides.

use super::{Empty, events, shim, task};

/// Name of containerd's service.
pub const TASK_SERVICE: &str = "containerd.task.v2.Task";

/// The same service, of shims that say they speak version 3; its messages are the same.
pub const TASK_SERVICE_V3: &str = "containerd.task.v3.Task";

/// Name of containerd's service that takes events.
pub const EVENTS_SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// Name of our own service.
pub const SHIM_SERVICE: &str = "coracle.shim.v1.Shim";

/// A method: its name on the wire and its two messages.
pub trait Method {
    /// Full name of the service.
    const SERVICE: &'static str;
    /// Name of the method.
    const NAME: &'static str;
    /// What the caller sends.
    type Request: prost::Message + Default;
    /// What it gets.
    type Response: prost::Message + Default;
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident in $service:ident: $request:ty => $response:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub enum $name {}

        impl Method for $name {
            const SERVICE: &'static str = $service;
            const NAME: &'static str = stringify!($name);
            type Request = $request;
            type Response = $response;
        }
    )*};
}

methods! {
    /// Phase, pid and exit status of a container or exec.
    State in TASK_SERVICE: task::StateRequest => task::StateResponse;
    /// Makes a container; its first process waits for [`Start`].
    Create in TASK_SERVICE: task::CreateTaskRequest => task::CreateTaskResponse;
    /// Starts a created container, or an exec that [`Exec`] announced.
    Start in TASK_SERVICE: task::StartRequest => task::StartResponse;
    /// Removes a container that is not running, or an exec that is not.
    Delete in TASK_SERVICE: task::DeleteRequest => task::DeleteResponse;
    /// All processes of a container.
    Pids in TASK_SERVICE: task::PidsRequest => task::PidsResponse;
    /// Freezes a container.
    Pause in TASK_SERVICE: task::PauseRequest => Empty;
    /// Thaws a container.
    Resume in TASK_SERVICE: task::ResumeRequest => Empty;
    /// Not served: answers [`Code::Unimplemented`](super::Code::Unimplemented).
    Checkpoint in TASK_SERVICE: task::CheckpointTaskRequest => Empty;
    /// Sends a signal.
    Kill in TASK_SERVICE: task::KillRequest => Empty;
    /// Announces a further process of a container; [`Start`] runs it.
    Exec in TASK_SERVICE: task::ExecProcessRequest => Empty;
    /// Sets the size of a terminal.
    ResizePty in TASK_SERVICE: task::ResizePtyRequest => Empty;
    /// Says that nobody will write to the standard input any more.
    CloseIO in TASK_SERVICE: task::CloseIORequest => Empty;
    /// Changes a container's resource limits.
    Update in TASK_SERVICE: task::UpdateTaskRequest => Empty;
    /// Answers when the process has ended.
    Wait in TASK_SERVICE: task::WaitRequest => task::WaitResponse;
    /// What a container uses, as [`metrics`](super::metrics).
    Stats in TASK_SERVICE: task::StatsRequest => task::StatsResponse;
    /// The shim's own pid and that of a container.
    Connect in TASK_SERVICE: task::ConnectRequest => task::ConnectResponse;
    /// Ends the shim when it holds no container, or at once with `now`.
    Shutdown in TASK_SERVICE: task::ShutdownRequest => Empty;
    /// Tells containerd of an event.
    Forward in EVENTS_SERVICE: events::ForwardRequest => Empty;
    /// Opens a container's CRI log anew.
    ReopenLog in SHIM_SERVICE: shim::ReopenLogRequest => Empty;
    /// Copies a container's output to somebody.
    Attach in SHIM_SERVICE: shim::AttachRequest => Empty;
    /// Keeps the log of a container that another shim runs.
    KeepLog in SHIM_SERVICE: shim::KeepLogRequest => Empty;
    /// Ends that.
    ForgetLog in SHIM_SERVICE: shim::ForgetLogRequest => Empty;
    /// Answers when a log begins to refuse output, or takes it again.
    WatchLogs in SHIM_SERVICE: shim::WatchLogsRequest => shim::WatchLogsResponse;
    /// What the shim is and what it holds.
    Info in SHIM_SERVICE: shim::InfoRequest => shim::InfoResponse;
}
