//! `coracle port-forward`: connections to this machine go on in a pod's network, by way of the agent.
//!
//! One connection to the agent carries them all. It ends with the pod, and the command with it.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use coracle_streaming::channel::PORT_FORWARD;
use coracle_streaming::client::Forwarder;
use coracle_streaming::server::ForwardProtocol;
use tokio::io::{AsyncWriteExt as _, copy, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::args::PortForwardArgs;
use crate::socket::{Agent, Request};

/// Forwards until it is interrupted or the pod ends.
pub(crate) fn run(args: &PortForwardArgs) -> Result<ExitCode> {
    let ports = args.ports.iter().map(|text| ports(text)).collect::<Result<Vec<_>>>()?;
    let state_dir = &args.state.state_dir;
    Agent::require(state_dir)?;
    let records = super::pod_records(state_dir)?;
    let uid = super::find_pod(&records, &args.pod)?.pod.metadata.uid.to_string();
    let (stream, protocol) = Agent::require(state_dir)?.open(Request::PortForward { uid })?;
    ensure!(protocol == PORT_FORWARD, "the runtime speaks {protocol:?}, which is not known");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        let forwarder = Forwarder::new(stream, ForwardProtocol::Spdy)?;
        forward(Arc::new(forwarder), &args.address, &ports).await
    })
}

/// The local port and the pod's.
fn ports(text: &str) -> Result<(u16, u16)> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let wrong = || format!("{text:?} is not LOCAL:REMOTE, PORT or :REMOTE");
    let remote = remote.parse::<u16>().ok().filter(|port| *port != 0).with_context(wrong)?;
    let local = if local.is_empty() { 0 } else { local.parse().ok().with_context(wrong)? };
    Ok((local, remote))
}

async fn forward(forwarder: Arc<Forwarder>, addresses: &[IpAddr], ports: &[(u16, u16)]) -> Result<ExitCode> {
    let mut tasks = JoinSet::new();
    for address in addresses {
        for (local, remote) in ports {
            let at = SocketAddr::new(*address, *local);
            let listener = TcpListener::bind(at).await.with_context(|| format!("cannot listen on {at}"))?;
            println!("Forwarding from {} -> {remote}", listener.local_addr()?);
            tasks.spawn(serve(listener, *remote, forwarder.clone()));
        }
    }
    match tasks.join_next().await {
        Some(Ok(Err(error))) => Err(error),
        _ => bail!("the connection to the pod is lost"),
    }
}

async fn serve(listener: TcpListener, port: u16, forwarder: Arc<Forwarder>) -> Result<()> {
    let mut connections = JoinSet::new();
    let (lost, mut is_lost) = tokio::sync::mpsc::channel(1);
    loop {
        tokio::select! {
            // All arms are cancel-safe: accepting, joining and receiving lose nothing.
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("cannot take a connection")?;
                let (forwarder, lost) = (forwarder.clone(), lost.clone());
                connections.spawn(async move {
                    match carry(stream, port, &forwarder).await {
                        Ok(None) => {}
                        Ok(Some(message)) => eprintln!("coracle: {message}"),
                        Err(error) => {
                            let _ = lost.try_send(error);
                        }
                    }
                });
            }
            Some(error) = is_lost.recv() => return Err(error),
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection to its end. What went wrong in the pod is a message, what went wrong on the way to it an error.
async fn carry(mut stream: TcpStream, port: u16, forwarder: &Forwarder) -> Result<Option<String>> {
    let lost = "the connection to the pod is lost";
    let (mut data, error) = forwarder.connect(port).await.context(lost)?.into_parts();
    {
        let ((mut here_read, mut here_write), (mut there_read, mut there_write)) =
            (stream.split(), split(&mut data));
        let up = async {
            // An end is told on, and the answer waited for. Whoever broke off waits for none.
            if copy(&mut here_read, &mut there_write).await.is_ok() {
                let _ = there_write.shutdown().await;
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = copy(&mut there_read, &mut here_write) => {}
            () = up => {}
        }
    }
    // The pod is told that nothing more is taken, and then its last word is.
    data.reset();
    drop(data);
    let said = error.await.context(lost);
    let _ = stream.shutdown().await;
    said
}

#[cfg(test)]
mod tests {
    use super::ports;

    #[test]
    fn ports_are_as_kubectl_writes_them() {
        assert_eq!(ports("8080:80").ok(), Some((8080, 80)));
        assert_eq!(ports("80").ok(), Some((80, 80)));
        assert_eq!(ports(":80").ok(), Some((0, 80)));
        for wrong in ["", "a", "80:", "80:0", "1:2:3", "70000"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
