//! `/exec`, `/attach`, `/portForward` and `/run`: led on to where the runtime serves its streams.
//!
//! Answers as the kubelet's handlers of these names do (1.36). A request is answered in the task of its connection,
//! which then becomes the session's; at most [`super::SESSIONS`] of them, beside the connections. A client speaks to the
//! runtime itself, and only bytes are copied; where its protocol is one that the runtime has refused (WebSocket with
//! half-closes, SPDY within WebSocket), it is relayed by SPDY, which every runtime speaks.

mod refusal;

use std::pin::Pin;
use std::sync::Arc;

use coracle_cri::v1::ExecSyncRequest;
use coracle_cri::{Code, Status};
use coracle_streaming::channel::{ExecOptions, Version};
use coracle_streaming::client::{self, Ask, Forwarder, Transport};
use coracle_streaming::relay;
use coracle_streaming::server::{
    self, ExecProtocol, ForwardProtocol, Timeouts, Upgrade, exec_upgrade, forward_upgrade, ports_from_query,
};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, SEC_WEBSOCKET_PROTOCOL,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;

use self::refusal::Refusal;
use super::answer::{self, Answer, JSON, TEXT};
use super::route::{Place, parameters};
use super::{Shared, pods};
use crate::kubelet::PodView;
use crate::streams::{self, Reply, RuntimeStream, Wanted, carry};

/// How a streaming server answers who speaks a protocol that it does not know.
const NOT_SPOKEN: [StatusCode; 4] = [
    StatusCode::BAD_REQUEST,
    StatusCode::FORBIDDEN,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::UPGRADE_REQUIRED,
];

/// What the runtime has shown not to speak, a while ago at most.
#[derive(Debug, Default)]
pub(super) struct RefusedProtocols {
    /// WebSocket with half-closes.
    exec: Refusal,
    /// SPDY within WebSocket.
    port_forward: Refusal,
}

/// What a connection goes on with after its answer.
pub(super) type Session = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An answer, and what follows if it is 101.
pub(super) struct Granted {
    pub(super) answer: Answer,
    pub(super) session: Option<Session>,
}

impl From<Answer> for Granted {
    fn from(answer: Answer) -> Self {
        Self { answer, session: None }
    }
}

/// What is asked of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Exec,
    Attach,
}

/// A request for the streams of a container.
pub(super) async fn container(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    place: &Place,
    what: What,
) -> Granted {
    match container_streams(shared, request, place, what).await {
        Ok(granted) => granted,
        Err(answer) => answer.into(),
    }
}

async fn container_streams(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    place: &Place,
    what: What,
) -> Result<Granted, Answer> {
    let query = request.uri().query().unwrap_or_default();
    let options = ExecOptions::from_query(query)
        .ok_or_else(|| answer::error(400, "you must specify at least 1 of stdin, stdout, stderr"))?;
    let view = pod_of(shared, place).ok_or_else(no_pod)?;
    let name = &place.container;
    let full_name = || format!("{}_{}", view.pod.metadata.name, view.pod.metadata.namespace);
    let absent = || match what {
        What::Exec => answer::error(500, format!("container not found ({name:?})")),
        What::Attach => answer::error(500, format!("container {name} not found in pod {}", full_name())),
    };
    let id = container_id(shared, &view, place).await?.ok_or_else(absent)?;
    let wanted = match what {
        What::Exec => Wanted::Exec { container: id, command: commands(query), options },
        What::Attach => {
            // Whether it has a terminal was decided when it was made.
            let tty = view.pod.container(name).is_some_and(|container| container.tty);
            Wanted::Attach { container: id, options: ExecOptions { tty, ..options } }
        }
    };
    if !asks_for_upgrade(request.headers()) {
        return Err(no_upgrade());
    }
    let begun = begin(shared).ok_or_else(too_many)?;
    match exec_upgrade(request.method(), request.headers()) {
        Ok(upgrade @ Upgrade { protocol: ExecProtocol::WebSocket(Version::V5, _), .. }) => {
            match ask_as_client(shared, wanted.clone(), &request, &shared.refused.exec).await? {
                Some(there) => Ok(pass_on(shared, begun, there, request)),
                None => relay_exec(shared, begun, wanted, options, upgrade, request).await,
            }
        }
        _ => {
            let there = ask_runtime(shared, wanted, request.method(), as_client(&request)).await?;
            Ok(pass_on(shared, begun, there, request))
        }
    }
}

/// A request for a pod's ports.
pub(super) async fn port_forward(shared: &Arc<Shared>, request: Request<Incoming>, place: &Place) -> Granted {
    match forwarded_ports(shared, request, place).await {
        Ok(granted) => granted,
        Err(answer) => answer.into(),
    }
}

async fn forwarded_ports(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    place: &Place,
) -> Result<Granted, Answer> {
    let upgrade = forward_upgrade(request.method(), request.headers());
    let ports = match &upgrade {
        // Clients of channels in WebSocket messages say in the query which ports; the others later.
        Ok(Upgrade { protocol: ForwardProtocol::WebSocket(_), .. }) => {
            let ports = ports_from_query(request.uri().query().unwrap_or_default());
            ports.ok_or_else(|| answer::error(400, "query parameter \"port\" is required"))?
        }
        _ => Vec::new(),
    };
    let view = pod_of(shared, place).ok_or_else(no_pod)?;
    let meta = &view.pod.metadata;
    if !place.uid.is_empty() && *place.uid != *meta.uid {
        return Err(answer::error(404, "pod not found"));
    }
    let sandbox = streams::ready_sandbox(&*shared.parts.runtime, &meta.uid).await;
    let sandbox = sandbox.map_err(|status| of_runtime(&status))?;
    let absent = || answer::error(500, format!("pod not found (\"{}_{}\")", meta.name, meta.namespace));
    let wanted = Wanted::PortForward { sandbox: sandbox.ok_or_else(absent)?, ports };
    if !asks_for_upgrade(request.headers()) {
        return Err(no_upgrade());
    }
    let begun = begin(shared).ok_or_else(too_many)?;
    match upgrade {
        Ok(upgrade @ Upgrade { protocol: ForwardProtocol::Tunnel, .. }) => {
            match ask_as_client(shared, wanted.clone(), &request, &shared.refused.port_forward).await? {
                Some(there) => Ok(pass_on(shared, begun, there, request)),
                None => relay_forward(shared, begun, wanted, upgrade, request).await,
            }
        }
        _ => {
            let there = ask_runtime(shared, wanted, request.method(), as_client(&request)).await?;
            Ok(pass_on(shared, begun, there, request))
        }
    }
}

/// Runs a command to its end and answers with what it printed.
pub(super) async fn run(shared: &Arc<Shared>, place: &Place, query: &str) -> Answer {
    let Some(view) = pod_of(shared, place) else { return no_pod() };
    let id = match container_id(shared, &view, place).await {
        Ok(Some(id)) => id,
        Ok(None) => return answer::error(500, format!("container not found ({:?})", place.container)),
        Err(answer) => return answer,
    };
    let command = parameters(query).into_iter().find(|(name, _)| name == "cmd");
    let command = command.map(|(_, command)| command).unwrap_or_default();
    let cmd: Vec<String> = command.split(' ').map(str::to_owned).collect();
    let request = ExecSyncRequest { container_id: id, cmd, timeout: 0 };
    match shared.parts.runtime.exec_sync(request).await {
        Ok(ran) if ran.exit_code == 0 => answer::whole(200, JSON, [ran.stdout, ran.stderr].concat()),
        Ok(ran) => {
            let stderr = String::from_utf8_lossy(&ran.stderr);
            answer::error(500, format!("command '{command}' exited with {}: {stderr}", ran.exit_code))
        }
        Err(status) => answer::error(500, words(&status)),
    }
}

fn pod_of(shared: &Shared, place: &Place) -> Option<PodView> {
    pods::find(shared, &place.namespace, &place.pod)
}

fn no_pod() -> Answer {
    answer::error(404, "pod does not exist")
}

/// Only a container that runs has an id here.
async fn container_id(shared: &Shared, view: &PodView, place: &Place) -> Result<Option<String>, Answer> {
    let uid = &view.pod.metadata.uid;
    if !place.uid.is_empty() && *place.uid != **uid {
        return Ok(None);
    }
    let found = streams::running_container(&*shared.parts.runtime, uid, &place.container).await;
    found.map_err(|status| of_runtime(&status))
}

/// The words of a command, each a parameter of its own.
fn commands(query: &str) -> Vec<String> {
    parameters(query).into_iter().filter(|(name, _)| name == "command").map(|(_, word)| word).collect()
}

/// Whether a request can become a stream.
fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
}

/// A place among the sessions.
fn begin(shared: &Shared) -> Option<OwnedSemaphorePermit> {
    shared.sessions.clone().try_acquire_owned().ok()
}

fn too_many() -> Answer {
    answer::error(429, "too many streams are open on this node\n")
}

fn no_upgrade() -> Answer {
    answer::error(500, "Upgrade request required\n")
}

/// A client's headers as they go to the runtime: who it is concerns this node alone.
fn as_client(request: &Request<Incoming>) -> HeaderMap {
    let mut headers = request.headers().clone();
    for name in [AUTHORIZATION, COOKIE, HOST, CONTENT_LENGTH, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers
}

/// Asks the runtime in the client's own protocol, which it may not know: None, and not asked again for a while, if so.
async fn ask_as_client(
    shared: &Shared,
    wanted: Wanted,
    request: &Request<Incoming>,
    refused: &Refusal,
) -> Result<Option<(HeaderMap, RuntimeStream)>, Answer> {
    let now = shared.config.clock.now().boot;
    if refused.counts(now) {
        return Ok(None);
    }
    match ask_runtime(shared, wanted, request.method(), as_client(request)).await {
        Ok(there) => Ok(Some(there)),
        Err(answer) if NOT_SPOKEN.contains(&answer.status()) => {
            refused.note(now);
            Ok(None)
        }
        Err(answer) => Err(answer),
    }
}

/// Copies bytes between a client and a runtime that have agreed with each other.
fn pass_on(
    shared: &Arc<Shared>,
    begun: OwnedSemaphorePermit,
    (headers, runtime): (HeaderMap, RuntimeStream),
    request: Request<Incoming>,
) -> Granted {
    let (client, idle) = (hyper::upgrade::on(request), shared.config.streaming_idle_timeout);
    let session = async move {
        let _begun = begun;
        let Ok(client) = client.await else { return };
        if let Err(error) = carry(TokioIo::new(client), runtime, idle).await {
            tracing::debug!(%error, "a stream broke");
        }
    };
    switched(headers, Box::pin(session))
}

/// Speaks to the client itself, and to the runtime by SPDY.
async fn relay_exec(
    shared: &Arc<Shared>,
    begun: OwnedSemaphorePermit,
    wanted: Wanted,
    options: ExecOptions,
    upgrade: Upgrade<ExecProtocol>,
    request: Request<Incoming>,
) -> Result<Granted, Answer> {
    // An attachment has the streams of its container's terminal, whatever was asked for.
    let there = match &wanted {
        Wanted::Attach { options, .. } => *options,
        _ => options,
    };
    let ask = Ask::exec(Transport::Spdy);
    let (headers, runtime) = ask_runtime(shared, wanted, &Method::POST, ask.headers().clone()).await?;
    let spoken = ask.exec_answer(StatusCode::SWITCHING_PROTOCOLS, &headers);
    let spoken = spoken.map_err(|error| answer::error(500, error.to_string()))?;
    let (protocol, timeouts, client) = (upgrade.protocol, timeouts(shared), hyper::upgrade::on(request));
    let session = async move {
        let _begun = begun;
        let Ok(client) = client.await else { return };
        let relayed = async {
            let session = server::exec(TokioIo::new(client), protocol, options, &timeouts).await;
            let session = session.map_err(std::io::Error::other)?;
            relay::exec(session, client::exec(runtime, spoken, there).await?).await
        };
        if let Err(error) = relayed.await {
            tracing::debug!(%error, "a stream broke");
        }
    };
    Ok(switched(upgrade.headers, Box::pin(session)))
}

async fn relay_forward(
    shared: &Arc<Shared>,
    begun: OwnedSemaphorePermit,
    wanted: Wanted,
    upgrade: Upgrade<ForwardProtocol>,
    request: Request<Incoming>,
) -> Result<Granted, Answer> {
    let ask = Ask::port_forward(Transport::Spdy);
    let (headers, runtime) = ask_runtime(shared, wanted, &Method::POST, ask.headers().clone()).await?;
    let spoken = ask.port_forward_answer(StatusCode::SWITCHING_PROTOCOLS, &headers);
    let spoken = spoken.map_err(|error| answer::error(500, error.to_string()))?;
    let (protocol, timeouts, client) = (upgrade.protocol, timeouts(shared), hyper::upgrade::on(request));
    let session = async move {
        let _begun = begun;
        let Ok(client) = client.await else { return };
        let relayed = async {
            let there = Forwarder::new(runtime, spoken)?;
            let session = server::forward(TokioIo::new(client), protocol, &[], &timeouts).await?;
            relay::forward(session, there).await;
            Ok::<_, std::io::Error>(())
        };
        if let Err(error) = relayed.await {
            tracing::debug!(%error, "a stream broke");
        }
    };
    Ok(switched(upgrade.headers, Box::pin(session)))
}

fn timeouts(shared: &Shared) -> Timeouts {
    Timeouts { idle: shared.config.streaming_idle_timeout, ..Timeouts::default() }
}

/// A stream from the runtime; what it refuses, the client hears in its words.
async fn ask_runtime(
    shared: &Shared,
    wanted: Wanted,
    method: &Method,
    headers: HeaderMap,
) -> Result<(HeaderMap, RuntimeStream), Answer> {
    let url = streams::url(&*shared.parts.runtime, wanted).await.map_err(|status| of_runtime(&status))?;
    match streams::connect(&url, method.clone(), headers).await {
        Ok(Reply::Switched { headers, io }) => Ok((headers, io)),
        Ok(Reply::Refused { status, .. }) if status.as_u16() < 400 => {
            Err(answer::error(500, format!("invalid upgrade response: status code {}", status.as_u16())))
        }
        Ok(Reply::Refused { status, headers, body }) => {
            let mut answer = answer::whole(status.as_u16(), TEXT, body);
            // What a client may ask for instead.
            let told =
                [HeaderName::from_static("x-accepted-stream-protocol-versions"), SEC_WEBSOCKET_PROTOCOL];
            for name in told {
                for value in headers.get_all(&name) {
                    answer.headers_mut().append(&name, value.clone());
                }
            }
            Err(answer)
        }
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "no stream from the runtime");
            Err(answer::error(500, format!("{error}\n")))
        }
    }
}

/// The answer that ends HTTP on this connection.
fn switched(headers: HeaderMap, session: Session) -> Granted {
    let mut answer = answer::empty(StatusCode::SWITCHING_PROTOCOLS);
    *answer.headers_mut() = headers;
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING] {
        answer.headers_mut().remove(name);
    }
    debug_assert!(answer.headers().contains_key(UPGRADE), "invariant: 101 names what it switches to");
    Granted { answer, session: Some(session) }
}

/// An error of the runtime as the kubelet tells it.
fn of_runtime(status: &Status) -> Answer {
    let code = match status.code() {
        Code::NotFound => 404,
        Code::ResourceExhausted => 429,
        _ => 500,
    };
    answer::error(code, words(status))
}

/// As Go writes an error of gRPC.
fn words(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}
