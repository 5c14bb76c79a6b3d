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
