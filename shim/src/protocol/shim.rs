//! The service `coracle.shim.v1.Shim`: what our runtime needs of a shim beyond containerd's Task API. Plain data.

/// Asks that a container's CRI log be opened anew, after its file was renamed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReopenLogRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Asks for a copy of a container's output from now on, beside its log.
///
/// An address is the pipe of a living process, `/proc/PID/fd/N`, or empty. Who takes nothing for half a minute while
/// there is something to take is let go, because it holds the container up.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttachRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Where to copy standard output, or a terminal's.
    #[prost(string, tag = "2")]
    pub stdout: String,
    /// Where to copy standard error.
    #[prost(string, tag = "3")]
    pub stderr: String,
}

/// Asks that the log of a container be kept that another shim runs.
///
/// The pipes are there already. The answer comes when they are open, so that the other shim finds a reader.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeepLogRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its bundle, where its exit is recorded.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// Named pipe of its standard output.
    #[prost(string, tag = "3")]
    pub stdout: String,
    /// Named pipe of its standard error, or empty.
    #[prost(string, tag = "4")]
    pub stderr: String,
    /// Named pipe of its standard input, which is held open; or empty.
    #[prost(string, tag = "5")]
    pub stdin: String,
    /// Path of its CRI log; empty for none.
    #[prost(string, tag = "6")]
    pub log: String,
    /// Whether it has a terminal.
    #[prost(bool, tag = "7")]
    pub terminal: bool,
}

/// Asks that the rest of such a log be written, and no more be kept.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForgetLogRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Asks to be told when a container's log begins to refuse output, or takes it again.
///
/// The answer comes as soon as the containers whose log refuses output are others than these.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchLogsRequest {
    /// The containers of which that is known.
    #[prost(string, repeated, tag = "1")]
    pub refusing: Vec<String>,
}

/// What has changed, and what has not.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchLogsResponse {
    /// Every container whose log refuses output now.
    #[prost(message, repeated, tag = "1")]
    pub refusing: Vec<LogState>,
    /// Those of the request whose log takes it again; one that was deleted is in neither list.
    #[prost(message, repeated, tag = "2")]
    pub resumed: Vec<LogState>,
}

/// How the log of a container fares.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LogState {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Bytes of output that it refused, since the container was created.
    #[prost(uint64, tag = "2")]
    pub bytes_dropped: u64,
    /// Why it refuses output now; empty while it takes it.
    #[prost(string, tag = "3")]
    pub error: String,
}

/// Asks what the shim is and what it holds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoRequest {}

/// What the shim is and what it holds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoResponse {
    /// [`PROTOCOL_VERSION`](super::PROTOCOL_VERSION) of the shim that answers.
    #[prost(uint32, tag = "1")]
    pub protocol_version: u32,
    /// The release it was built from.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Its process.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// The sandbox that it was started for.
    #[prost(string, tag = "4")]
    pub sandbox_id: String,
    /// All containers that are created and not deleted.
    #[prost(message, repeated, tag = "5")]
    pub containers: Vec<ContainerInfo>,
}

/// One container as the shim knows it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerInfo {
    /// Its name.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its first process, 0 while it is being created.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// A [`task::State`](super::task::State) as a number.
    #[prost(int32, tag = "3")]
    pub state: i32,
    /// Bytes of output that its log refused, since it was created.
    #[prost(uint64, tag = "4")]
    pub log_bytes_dropped: u64,
    /// Why the log refuses output now; empty while it takes it.
    #[prost(string, tag = "5")]
    pub log_error: String,
    /// The kernel killed a process of it for want of memory.
    #[prost(bool, tag = "6")]
    pub oom: bool,
}
