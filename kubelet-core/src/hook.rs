//! Lifecycle hooks: what a container wants done after its start and before its stop.
//!
//! Called by the pod's worker, which decides how long a hook may take and what its failure means. Follows the
//! kubelet's `lifecycle/handlers.go` (1.36).

use std::time::Duration;

use coracle_cri::v1::ExecSyncRequest;

use crate::api::{Container, LifecycleHandler, Pod};
use crate::pod::edges::Node;
use crate::pod::rpc::bounded;
use crate::pod::start::describe;
use crate::probe::check;
use crate::probe::http::{self, HttpTarget};

/// A hook without an end of its own is given up after this; its caller mostly gives up sooner.
const HOOK_LIMIT: Duration = Duration::from_secs(3600);
/// The kubelet's client for HTTP hooks has no limit but the grace period; a postStart hook has none, so that
/// a server that never answers would hold the container for ever.
const HTTP_LIMIT: Duration = Duration::from_secs(300);

/// Why a hook failed. The text goes to the log only: it may hold what the container said.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    /// Its command ended with a code that is not zero.
    #[error("command {command:?} exited with {code}: {output}")]
    Exit { command: Vec<String>, code: i32, output: String },
    /// Its command could not be run.
    #[error("could not run command {command:?}")]
    Exec {
        command: Vec<String>,
        #[source]
        source: coracle_cri::Status,
    },
    /// Its request failed.
    #[error("request to {target} failed: {message}")]
    Http { target: String, message: String },
    /// Its connection failed.
    #[error("connection to {target} failed: {message}")]
    Tcp { target: String, message: String },
    /// Its port has no number.
    #[error("{0}")]
    Port(String),
    /// The pod has no address yet.
    #[error("the pod has no address to send the hook to")]
    NoAddress,
    /// It asks for nothing.
    #[error("the hook names no action")]
    Empty,
}

/// Runs a hook of a running container to its end.
pub(crate) async fn run(
    node: &Node,
    pod: &Pod,
    container: &Container,
    id: &str,
    hook: &LifecycleHandler,
    pod_ip: Option<&str>,
) -> Result<(), HookError> {
    if let Some(exec) = &hook.exec {
        return run_exec(node, id, &exec.command).await;
    }
    if let Some(action) = &hook.http_get {
        let host = if action.host.is_empty() { pod_ip.ok_or(HookError::NoAddress)? } else { &action.host };
        let target = HttpTarget::of(action, container, host, "lifecycle").map_err(HookError::Port)?;
        return run_http(node, pod, &target).await;
    }
    if let Some(action) = &hook.tcp_socket {
        let host = if action.host.is_empty() { pod_ip.ok_or(HookError::NoAddress)? } else { &action.host };
        let port = check::resolve_port(&action.port, container).map_err(HookError::Port)?;
        let failed = |message| HookError::Tcp { target: check::join_host_port(host, port), message };
        return check::connect(host, port, HTTP_LIMIT).await.map(drop).map_err(failed);
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err(HookError::Empty)
}

/// What the status of a container says whose postStart hook failed.
pub(crate) fn failure_text(
    pod: &Pod,
    container: &Container,
    hook: &LifecycleHandler,
    error: &HookError,
) -> String {
    let (what, detail) = match hook {
        LifecycleHandler { exec: Some(exec), .. } => ("Exec", format!("[{}]", exec.command.join(" "))),
        LifecycleHandler { http_get: Some(action), .. } => ("HTTP", action.path.clone()),
        LifecycleHandler { tcp_socket: Some(action), .. } => ("TCP", action.port.to_string()),
        LifecycleHandler { sleep: Some(sleep), .. } => ("Sleep", sleep.seconds.to_string()),
        _ => ("Empty", String::new()),
    };
    let pod = describe(pod);
    format!(
        "{what} lifecycle hook ({detail}) for Container {:?} in Pod {pod:?} failed - error: {error}",
        container.name
    )
}

async fn run_exec(node: &Node, id: &str, command: &[String]) -> Result<(), HookError> {
    let request = ExecSyncRequest { container_id: id.to_owned(), cmd: command.to_vec(), timeout: 0 };
    let answer = bounded("ExecSync", HOOK_LIMIT, node.runtime.exec_sync(request))
        .await
        .map_err(|source| HookError::Exec { command: command.to_vec(), source })?;
    if answer.exit_code == 0 {
        return Ok(());
    }
    let mut output = String::from_utf8_lossy(&answer.stdout).into_owned();
    output.push_str(&String::from_utf8_lossy(&answer.stderr));
    Err(HookError::Exit { command: command.to_vec(), code: answer.exit_code, output })
}

/// Any answer is a success, as for the kubelet; an HTTPS hook that meets plain HTTP is sent again in clear.
async fn run_http(node: &Node, pod: &Pod, target: &HttpTarget) -> Result<(), HookError> {
    let failed =
        |error: http::HttpError| HookError::Http { target: target.address(), message: error.to_string() };
    match http::get(target, HTTP_LIMIT).await {
        Ok(_) => Ok(()),
        Err(http::HttpError::PlainAnswer) => {
            http::get(&target.in_clear(), HTTP_LIMIT).await.map_err(failed)?;
            let text = format!(
                "request to HTTPS lifecycle hook {} got HTTP response, retry with HTTP succeeded",
                target.address()
            );
            node.events.pod(pod, None, crate::events::EventType::Warning, "LifecycleHTTPFallback", text);
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}
