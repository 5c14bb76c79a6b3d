//! A session of port-forward: connections to ports on the loopback addresses of a pod's network namespace. Its task
//! and those of its connections end with the client.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1;
use coracle_streaming::server::{self, Forward, ForwardProtocol, Timeouts, ports_from_query};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::copy::{self, Gauge};
use super::serve::Io;
use crate::netns;
use crate::sandbox::{self, Sandbox};
use crate::service::Engine;
use crate::service_error::{ServiceError, chain};

/// How long a port of the pod may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// The ports of a session: what its client's query names, which only old WebSocket clients do, else its request.
pub(super) fn ports(query: &str, request: &v1::PortForwardRequest) -> Vec<u16> {
    let asked = || request.port.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
    ports_from_query(query).unwrap_or_else(asked)
}

/// Forwards connections until the client is gone.
pub(super) async fn run(
    engine: Arc<Engine>,
    io: Io,
    protocol: ForwardProtocol,
    ports: &[u16],
    request: v1::PortForwardRequest,
) {
    let Ok(mut session) = server::forward(io, protocol, ports, &Timeouts::default()).await else { return };
    let mut connections = JoinSet::new();
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            next = session.next() => match next {
                Some(forward) => {
                    let (engine, sandbox) = (engine.clone(), request.pod_sandbox_id.clone());
                    drop(connections.spawn(connection(engine, sandbox, forward)));
                }
                None => break,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

async fn connection(engine: Arc<Engine>, sandbox_id: String, forward: Forward) {
    let port = forward.port;
    // What the client does not take it does not want to know.
    let _ = match connect(&engine, &sandbox_id, port).await {
        Ok(stream) => carry(forward, stream).await,
        Err(error) => {
            let words = chain(&error);
            tracing::debug!(sandbox = %sandbox_id, port, error = words, "port not forwarded");
            forward.fail(&format!("error forwarding port {port} to pod {sandbox_id}: {words}")).await
        }
    };
}

/// Carries bytes both ways, until the pod's end or the client's reset. The client's end is told on and the pod's answer
/// waited for; where none comes any more the client is gone, which `kubectl` tells as an end too.
async fn carry(mut forward: Forward, mut stream: TcpStream) -> io::Result<()> {
    let broken = forward.data.broken();
    {
        let (mut from_client, mut to_client) = tokio::io::split(&mut forward.data);
        let (from_pod, mut to_pod) = stream.split();
        let gauge = Gauge::default();
        let up = async {
            let _ = tokio::io::copy(&mut from_client, &mut to_pod).await;
            let _ = to_pod.shutdown().await;
            gauge.silent().await;
        };
        tokio::select! {
            // A reset by the pod is an end too.
            _ = copy::until_end(&from_pod, &mut to_client, &gauge) => {}
            () = up => {}
            () = broken => {}
        }
    }
    forward.finish().await
}

async fn connect(engine: &Arc<Engine>, sandbox_id: &str, port: u16) -> Result<TcpStream, ServiceError> {
    let sandbox = engine.sandbox(sandbox_id)?;
    if !sandbox.is_ready() {
        return Err(ServiceError::SandboxNotReady { id: sandbox.id.clone() });
    }
    let mut problems = Vec::new();
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let connected = match socket_in(engine, &sandbox, address).await? {
            Ok(socket) => connect_within(socket, SocketAddr::new(address, port)).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => problems.push(format!("{}: {error}", SocketAddr::new(address, port))),
        }
    }
    Err(ServiceError::NoConnection { id: sandbox.id.clone(), problem: problems.join(", ") })
}

/// A socket of the pod's network namespace: it stays one wherever it is used.
async fn socket_in(
    engine: &Engine,
    sandbox: &Sandbox,
    address: IpAddr,
) -> Result<io::Result<TcpSocket>, ServiceError> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let open = move || -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(socket_with(family, SocketType::STREAM, flags, None)?)
    };
    let socket = match sandbox::pin(&engine.layout, sandbox, "net") {
        Some(pin) => netns::within_network(pin, open).await?,
        None => open(),
    };
    Ok(socket.map(|socket| TcpSocket::from_std_stream(socket.into())))
}

async fn connect_within(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT, socket.connect(address)).await??;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}
