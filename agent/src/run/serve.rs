//! The server half of the agent's socket: one short task per connection, at most [`CONNECTIONS`] at once.
//!
//! Only root, or the agent's own user, may ask. A client that stops reading stalls its own task alone. A connection that
//! becomes a container's streams leaves its place to the next command.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_kubelet_core::streams::{RuntimeStream, carry};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast};
use tokio::task::JoinSet;

use super::streams::{self, Opened};
use super::{Node, images};
use crate::socket::{self, Answer, Envelope, REQUEST_LIMIT, Request};

/// Commands served side by side; the rest wait.
const CONNECTIONS: usize = 16;
/// A client sends its one line at once.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// A terminal may stay open for as long as somebody likes.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Binds the socket. A socket that a killed agent left is replaced: the caller holds the state's lock.
pub(super) fn bind(state_dir: &Path) -> Result<UnixListener> {
    let path = socket::path(state_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot make {} root's alone", path.display()))?;
    Ok(listener)
}

/// Serves until the future is dropped; that ends every connection too.
pub(super) async fn serve(listener: Arc<UnixListener>, node: Arc<Node>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a command could not connect");
                // Out of file descriptors, most likely: accepting again at once would spin.
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let node = node.clone();
        connections.spawn(async move {
            let carried = match connection(stream, &node).await {
                Ok(None) => Ok(()),
                Ok(Some(streams)) => {
                    drop(place);
                    carry(streams.command, streams.runtime, NEVER).await.map_err(Into::into)
                }
                Err(error) => Err(error),
            };
            if let Err(error) = carried {
                tracing::debug!(error = format!("{error:#}"), "a command's connection broke");
            }
        });
    }
}

/// Both ends of a container's streams.
struct Streams {
    command: UnixStream,
    runtime: RuntimeStream,
}

async fn connection(stream: UnixStream, node: &Arc<Node>) -> Result<Option<Streams>> {
    let peer = stream.peer_cred().context("cannot tell who asks")?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        bail!("user {peer} may not ask");
    }
    let (reader, writer) = stream.into_split();
    let mut answers = Answers { writer, line: Vec::new() };
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(REQUEST_LIMIT as u64));
    tokio::time::timeout(REQUEST_DEADLINE, reader.read_until(b'\n', &mut line))
        .await
        .context("no request came")??;
    let result = match serde_json::from_slice::<Envelope>(&line) {
        Ok(Envelope { version: socket::VERSION, request }) => answer(request, node, &mut answers).await,
        Ok(Envelope { version, .. }) => Err(anyhow::anyhow!(
            "the agent speaks version {} of this protocol, not {version}",
            socket::VERSION
        )),
        Err(error) => Err(error).context("the request is not understood; is the command of another release?"),
    };
    let opened = match result {
        Ok(opened) => opened,
        Err(error) => return answers.send(&Answer::Failed(format!("{error:#}"))).await.map(|()| None),
    };
    let Some(Opened { protocol, runtime }) = opened else {
        return answers.send(&Answer::Done).await.map(|()| None);
    };
    answers.send(&Answer::Streams(protocol)).await?;
    let reader = reader.into_inner().into_inner();
    let command = reader.reunite(answers.writer).context("invariant: two halves of one connection")?;
    Ok(Some(Streams { command, runtime }))
}

/// The writing half of a connection.
pub(super) struct Answers {
    writer: OwnedWriteHalf,
    line: Vec<u8>,
}

impl Answers {
    pub(super) async fn send(&mut self, answer: &Answer) -> Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, answer)?;
        self.line.push(b'\n');
        self.writer.write_all(&self.line).await.context("the command went away")
    }
}

/// Answers what has an answer, or opens the streams that were asked for.
async fn answer(request: Request, node: &Arc<Node>, answers: &mut Answers) -> Result<Option<Opened>> {
    match request {
        Request::Exec { uid, container, command, streams } => {
            streams::exec(node, &uid, &container, command, streams).await.map(Some)
        }
        Request::Attach { uid, container, streams } => {
            streams::attach(node, &uid, &container, streams).await.map(Some)
        }
        Request::PortForward { uid } => streams::port_forward(node, &uid).await.map(Some),
        request => answer_lines(request, node, answers).await.map(|()| None),
    }
}

async fn answer_lines(request: Request, node: &Arc<Node>, answers: &mut Answers) -> Result<()> {
    match request {
        Request::Exec { .. } | Request::Attach { .. } | Request::PortForward { .. } => {
            unreachable!("invariant: `answer` opens streams")
        }
        Request::Pods => {
            for record in node.pod_records() {
                answers.send(&Answer::Pod(Box::new(record))).await?;
            }
            Ok(())
        }
        Request::Events { follow } => events(node, follow, answers).await,
        Request::StopPods { timeout_seconds } => {
            let limit = Duration::from_secs(timeout_seconds);
            let text = node.stop_pods(limit).await?;
            answers.send(&Answer::Message(text)).await
        }
        Request::Images => images::list(node, answers).await,
        Request::Pull { image, auth_file } => images::pull(node, &image, auth_file.as_deref(), answers).await,
        Request::Load { path } => images::load(node, &path, answers).await,
        Request::Save { path, images } => images::save(node, &path, &images, answers).await,
        Request::Remove { image } => images::remove(node, &image, answers).await,
        Request::Prune { all } => images::prune(node, all, answers).await,
    }
}

async fn events(node: &Node, follow: bool, answers: &mut Answers) -> Result<()> {
    let (past, mut live) = node.events.follow();
    for event in past {
        answers.send(&Answer::Event(Box::new((*event).clone()))).await?;
    }
    if !follow {
        return Ok(());
    }
    loop {
        match live.recv().await {
            Ok(event) => answers.send(&Answer::Event(Box::new((*event).clone()))).await?,
            // A slow reader has missed some; those that come are still worth reading.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
}
