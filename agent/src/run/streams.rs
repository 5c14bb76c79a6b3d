//! `coracle exec`, `attach` and `port-forward` on the agent's side: the runtime's streams for a pod of this node.

use anyhow::{Context, Result};
use coracle_kubelet_core::streams::{self, RuntimeStream, Wanted};
use coracle_streaming::channel::{ExecOptions, PORT_FORWARD};
use coracle_streaming::server::ExecProtocol;

use super::Node;
use crate::socket::Streams;

/// Streams that the runtime serves.
pub(super) struct Opened {
    /// What they are spoken in, over SPDY.
    pub(super) protocol: String,
    pub(super) runtime: RuntimeStream,
}

pub(super) async fn exec(
    node: &Node,
    uid: &str,
    container: &str,
    command: Vec<String>,
    wanted: Streams,
) -> Result<Opened> {
    let container = running(node, uid, container).await?;
    open(node, Wanted::Exec { container, command, options: options(wanted) }).await
}

pub(super) async fn attach(node: &Node, uid: &str, container: &str, wanted: Streams) -> Result<Opened> {
    let container = running(node, uid, container).await?;
    open(node, Wanted::Attach { container, options: options(wanted) }).await
}

pub(super) async fn port_forward(node: &Node, uid: &str) -> Result<Opened> {
    let sandbox = streams::ready_sandbox(&*node.engine.runtime, uid).await?;
    let sandbox = sandbox.context("the pod does not run")?;
    let wanted = Wanted::PortForward { sandbox, ports: Vec::new() };
    let (_, runtime) = streams::open_forward(&*node.engine.runtime, wanted).await?;
    Ok(Opened { protocol: PORT_FORWARD.to_owned(), runtime })
}

fn options(wanted: Streams) -> ExecOptions {
    let Streams { stdin, stdout, stderr, tty } = wanted;
    ExecOptions { stdin, stdout, stderr, tty }
}

async fn running(node: &Node, uid: &str, container: &str) -> Result<String> {
    let found = streams::running_container(&*node.engine.runtime, uid, container).await?;
    found.with_context(|| format!("container {container:?} does not run"))
}

async fn open(node: &Node, wanted: Wanted) -> Result<Opened> {
    let (protocol, runtime) = streams::open_exec(&*node.engine.runtime, wanted).await?;
    let (ExecProtocol::Spdy(version) | ExecProtocol::WebSocket(version, _)) = protocol;
    Ok(Opened { protocol: version.name().to_owned(), runtime })
}
