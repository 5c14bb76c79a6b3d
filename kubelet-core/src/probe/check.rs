//! One check of a container: the action of a probe run once, its result in the kubelet's words.
//!
//! Called by the tasks of [`super::prober`]. Every check ends within its timeout and leaves nothing behind but,
//! for exec, what the runtime does with a command past its time.

use std::collections::HashMap;
use std::time::Duration;

use coracle_cri::Code;
use coracle_cri::v1::ExecSyncRequest;
use tokio::net::TcpStream;

use super::grpc;
use super::http::{self, HttpError, HttpTarget};
use crate::api::{Container, ExecAction, GRPCAction, HTTPGetAction, IntOrString, Probe, TCPSocketAction};
use crate::env::expand;
use crate::pod::edges::Node;
use crate::pod::rpc::bounded;

/// What is kept of a command's output and of a response's body.
pub(super) const OUTPUT_LIMIT: usize = 10 * 1024;
/// Checks that could not be made are tried this often before they count as errors.
const TRIES: u32 = 3;
/// What the runtime may take beyond the command itself.
const EXEC_SLACK: Duration = Duration::from_secs(10);

/// How a check went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// The container is well.
    Success,
    /// It is well, in a way that someone should know of.
    Warning(String),
    /// It is not.
    Failure(String),
    /// The check could not be made; it says nothing of the container.
    Error(String),
}

/// What a check is made on.
pub(crate) struct Subject<'a> {
    pub(crate) node: &'a Node,
    pub(crate) container: &'a Container,
    pub(crate) id: &'a str,
    /// The pod's primary address; empty while it has none.
    pub(crate) pod_ip: &'a str,
}

/// Checks once, again if it could not be made.
pub(crate) async fn check(subject: &Subject<'_>, probe: &Probe) -> Checked {
    let mut checked = Checked::Error(String::new());
    for _ in 0..TRIES {
        checked = check_once(subject, probe).await;
        if !matches!(checked, Checked::Error(_)) {
            break;
        }
    }
    checked
}

async fn check_once(subject: &Subject<'_>, probe: &Probe) -> Checked {
    let timeout = Duration::from_secs(u64::try_from(probe.timeout_seconds.max(1)).unwrap_or(1));
    if let Some(action) = &probe.exec {
        check_exec(subject, action, timeout).await
    } else if let Some(action) = &probe.http_get {
        check_http(subject, action, timeout).await
    } else if let Some(action) = &probe.tcp_socket {
        check_tcp(subject, action, timeout).await
    } else if let Some(action) = &probe.grpc {
        check_grpc(subject, action, timeout).await
    } else {
        Checked::Error(format!("missing probe handler for {}", subject.container.name))
    }
}

async fn check_exec(subject: &Subject<'_>, action: &ExecAction, timeout: Duration) -> Checked {
    // Only plain values of the environment are known to a probe, as with the kubelet.
    let mut env = HashMap::new();
    for variable in &subject.container.env {
        if let Some(value) = &variable.value {
            env.insert(variable.name.as_str(), expand(value, |name| env.get(name).map(String::as_str)));
        }
    }
    let expanded = action.command.iter().map(|text| expand(text, |name| env.get(name).map(String::as_str)));
    let cmd: Vec<String> = expanded.collect();
    let request = ExecSyncRequest {
        container_id: subject.id.to_owned(),
        cmd: cmd.clone(),
        timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
    };
    let call = subject.node.runtime.exec_sync(request);
    match bounded("ExecSync", timeout + EXEC_SLACK, call).await {
        Ok(answer) if answer.exit_code == 0 => Checked::Success,
        Ok(answer) => {
            let mut output = answer.stdout;
            output.extend_from_slice(&answer.stderr);
            output.truncate(OUTPUT_LIMIT);
            Checked::Failure(String::from_utf8_lossy(&output).into_owned())
        }
        Err(status) if status.code() == Code::DeadlineExceeded => {
            let seconds = timeout.as_secs();
            Checked::Failure(format!("command timed out: {:?} timed out after {seconds}s", cmd.join(" ")))
        }
        Err(status) => Checked::Error(crate::pod::execute::go_error(&status)),
    }
}

async fn check_http(subject: &Subject<'_>, action: &HTTPGetAction, timeout: Duration) -> Checked {
    let host = if action.host.is_empty() { subject.pod_ip } else { &action.host };
    let target = match HttpTarget::of(action, subject.container, host, "probe") {
        Ok(target) => target,
        Err(message) => return Checked::Error(message),
    };
    match http::get(&target, timeout).await {
        Ok(answer) if (200..300).contains(&answer.status) => Checked::Success,
        Ok(answer) if (300..400).contains(&answer.status) => {
            Checked::Warning(format!("Probe terminated redirects, Response body: {}", answer.body))
        }
        Ok(answer) => Checked::Failure(format!("HTTP probe failed with statuscode: {}", answer.status)),
        Err(HttpError::PlainAnswer) => Checked::Failure(format!(
            "Get {:?}: http: server gave HTTP response to HTTPS client",
            target.url()
        )),
        Err(error) => Checked::Failure(format!("Get {:?}: {error}", target.url())),
    }
}

async fn check_tcp(subject: &Subject<'_>, action: &TCPSocketAction, timeout: Duration) -> Checked {
    let host = if action.host.is_empty() { subject.pod_ip } else { &action.host };
    let port = match resolve_port(&action.port, subject.container) {
        Ok(port) => port,
        Err(message) => return Checked::Error(message),
    };
    match connect(host, port, timeout).await {
        Ok(_) => Checked::Success,
        Err(message) => Checked::Failure(message),
    }
}

async fn check_grpc(subject: &Subject<'_>, action: &GRPCAction, timeout: Duration) -> Checked {
    let service = action.service.as_deref().unwrap_or("");
    let Ok(port) = u16::try_from(action.port) else {
        return Checked::Error(format!("invalid port number: {}", action.port));
    };
    match grpc::check(&join_host_port(subject.pod_ip, port), service, timeout).await {
        Ok(()) => Checked::Success,
        Err(message) => Checked::Failure(message),
    }
}

/// The number of a port that may be named.
pub(crate) fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match container.ports.iter().find(|p| p.name == *name) {
            Some(found) => found.container_port,
            None => name.parse().map_err(|_| format!("port {name} not found"))?,
        },
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// Opens a connection; errors read as Go's dialer words them.
pub(crate) async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let address = join_host_port(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {}", go_io_error(&error))),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// `10.0.0.1:80`, `[fd00::1]:80`.
pub(crate) fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// `connection refused` where Rust says `Connection refused (os error 111)`.
pub(super) fn go_io_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_lowercase().chain(characters).collect())
}
