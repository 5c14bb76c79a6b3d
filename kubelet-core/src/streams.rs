//! Streams of containers: where the runtime serves them, and a connection to there.
//!
//! The kubelet API and `coracle exec` come here for `exec`, `attach` and `port-forward`. The runtime is asked over CRI
//! for a URL with a one-time token, and spoken to over HTTP, whichever runtime it is. No task of its own: everything
//! runs in its caller's and ends with it.

mod carry;
mod connect;

use std::time::Duration;

use coracle_cri::v1::{
    AttachRequest, ContainerFilter, ContainerState, ContainerStateValue, ExecRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, PodSandboxStateValue, PortForwardRequest,
};
use coracle_cri::{RuntimeService, Status};
use coracle_streaming::channel::ExecOptions;
use coracle_streaming::client::{Ask, Transport};
use coracle_streaming::server::{ExecProtocol, ForwardProtocol};
use hyper::{HeaderMap, Method};

use crate::container_config::CONTAINER_NAME_LABEL;
use crate::pod::labels::POD_UID;
use crate::pod::rpc::bounded;

pub use carry::carry;
pub use connect::{ConnectError, Reply, RuntimeStream, connect};

/// How long the runtime may take to say where it serves.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(30);

/// What is wanted of a container or a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A command in a container.
    Exec {
        /// The runtime's id of the container.
        container: String,
        /// The command and its arguments.
        command: Vec<String>,
        /// Its streams.
        options: ExecOptions,
    },
    /// The streams of a container's own first process.
    Attach {
        /// The runtime's id of the container.
        container: String,
        /// Which of them; with a terminal if the container has one.
        options: ExecOptions,
    },
    /// Connections into a pod's network.
    PortForward {
        /// The runtime's id of the sandbox.
        sandbox: String,
        /// The ports, where they are known before; only channels in WebSocket messages need them.
        ports: Vec<u16>,
    },
}

/// Asks the runtime where it serves what is wanted. The URL is good for one connection within a minute or so.
pub async fn url(runtime: &dyn RuntimeService, wanted: Wanted) -> Result<String, Status> {
    let limit = RUNTIME_DEADLINE;
    match wanted {
        Wanted::Exec { container: container_id, command: cmd, options } => {
            let ExecOptions { stdin, stdout, stderr, tty } = options;
            let request = ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
            Ok(bounded("Exec", limit, runtime.exec(request)).await?.url)
        }
        Wanted::Attach { container: container_id, options } => {
            let ExecOptions { stdin, stdout, stderr, tty } = options;
            let request = AttachRequest { container_id, stdin, tty, stdout, stderr };
            Ok(bounded("Attach", limit, runtime.attach(request)).await?.url)
        }
        Wanted::PortForward { sandbox: pod_sandbox_id, ports } => {
            let port = ports.into_iter().map(i32::from).collect();
            let request = PortForwardRequest { pod_sandbox_id, port };
            Ok(bounded("PortForward", limit, runtime.port_forward(request)).await?.url)
        }
    }
}

/// The runtime's id of a pod's container of that name, if it runs.
pub async fn running_container(
    runtime: &dyn RuntimeService,
    uid: &str,
    name: &str,
) -> Result<Option<String>, Status> {
    let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() });
    let labels = [(POD_UID, uid), (CONTAINER_NAME_LABEL, name)];
    let label_selector = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let filter = Some(ContainerFilter { state, label_selector, ..ContainerFilter::default() });
    let call = runtime.list_containers(ListContainersRequest { filter });
    let found = bounded("ListContainers", RUNTIME_DEADLINE, call).await?.containers;
    Ok(found.into_iter().max_by_key(|container| container.created_at).map(|container| container.id))
}

/// The runtime's id of a pod's sandbox, if it is ready.
pub async fn ready_sandbox(runtime: &dyn RuntimeService, uid: &str) -> Result<Option<String>, Status> {
    let state = Some(PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() });
    let label_selector = [(POD_UID.to_owned(), uid.to_owned())].into();
    let filter = Some(PodSandboxFilter { state, label_selector, ..PodSandboxFilter::default() });
    let call = runtime.list_pod_sandbox(ListPodSandboxRequest { filter });
    let found = bounded("ListPodSandbox", RUNTIME_DEADLINE, call).await?.items;
    Ok(found.into_iter().max_by_key(|sandbox| sandbox.created_at).map(|sandbox| sandbox.id))
}

/// Why no stream came of a request.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The runtime has no URL for it.
    #[error("the runtime refused: {}", .0.message())]
    Runtime(#[source] Status),
    /// Its streaming server cannot be spoken to.
    #[error("no stream from the runtime")]
    Connect(#[from] ConnectError),
    /// It answered otherwise than by switching protocols.
    #[error("the runtime's streaming server answered {0}: {1}")]
    Refused(u16, String),
    /// It switched to something else.
    #[error("the runtime's streaming server switched to another protocol")]
    Answer(#[source] coracle_streaming::client::AnswerError),
}

/// A command's or an attachment's streams as the runtime serves them: SPDY, which every runtime speaks.
pub async fn open_exec(
    runtime: &dyn RuntimeService,
    wanted: Wanted,
) -> Result<(ExecProtocol, RuntimeStream), OpenError> {
    let ask = Ask::exec(Transport::Spdy);
    let (headers, io) = open(runtime, wanted, &ask).await?;
    let protocol = ask.exec_answer(hyper::StatusCode::SWITCHING_PROTOCOLS, &headers);
    Ok((protocol.map_err(OpenError::Answer)?, io))
}

/// Connections into a pod as the runtime serves them, by SPDY as well.
pub async fn open_forward(
    runtime: &dyn RuntimeService,
    wanted: Wanted,
) -> Result<(ForwardProtocol, RuntimeStream), OpenError> {
    let ask = Ask::port_forward(Transport::Spdy);
    let (headers, io) = open(runtime, wanted, &ask).await?;
    let protocol = ask.port_forward_answer(hyper::StatusCode::SWITCHING_PROTOCOLS, &headers);
    Ok((protocol.map_err(OpenError::Answer)?, io))
}

async fn open(
    runtime: &dyn RuntimeService,
    wanted: Wanted,
    ask: &Ask,
) -> Result<(HeaderMap, RuntimeStream), OpenError> {
    let url = url(runtime, wanted).await.map_err(OpenError::Runtime)?;
    match connect(&url, Method::POST, ask.headers().clone()).await? {
        Reply::Switched { headers, io } => Ok((headers, io)),
        Reply::Refused { status, body, .. } => {
            Err(OpenError::Refused(status.as_u16(), String::from_utf8_lossy(&body).trim().to_owned()))
        }
    }
}
