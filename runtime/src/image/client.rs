//! The agent's side of a worker process: spawn, hand over the request, relay progress, reap.
//!
//! One call per request. The worker ends when its input is closed, so an agent that dies takes it along; a caller
//! that stops waiting has it killed.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdout, Command};
use tokio::sync::oneshot;

use super::error::{Failure, FailureKind};
use super::protocol::{Event, Progress, Request};
use super::record::Record;
use super::store::Options;
use crate::memory;

/// How long a killed worker may take to be gone.
const REAP: Duration = Duration::from_secs(10);

/// Runs one request in a fresh worker, or until `abandoned` is closed. When this returns, no process of the worker
/// writes any more.
pub(crate) async fn run(
    options: &Options,
    request: &Request,
    mut progress: impl FnMut(Progress),
    abandoned: &mut oneshot::Receiver<()>,
) -> Result<Vec<Record>, Failure> {
    let starting = |error: std::io::Error| {
        Failure::io(&format!("cannot start the image worker {}", options.helper.display()), &error)
    };
    let mut child = Command::new(&options.helper)
        .arg("image-worker")
        .envs(options.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(starting)?;
    // From here on this process only waits, and the worker's memory comes on top of its own.
    memory::give_back();
    let mut input = child.stdin.take().expect("stdin is piped");
    let output = BufReader::with_capacity(4 << 10, child.stdout.take().expect("stdout is piped"));
    let mut line = serde_json::to_vec(request).expect("a request is plain data");
    line.push(b'\n');
    let mut listener = Listener { output, line: Vec::new(), outcome: None, noise: String::new() };
    let talk = async {
        // A worker that died already is told by the end of its output.
        let _ = input.write_all(&line).await;
        listener.listen(&mut progress).await;
    };
    let cancelled = tokio::select! {
        // Dropping it half way loses at most a line of progress.
        () = talk => false,
        _ = abandoned => true,
    };
    drop(input);
    if cancelled {
        // Its end may come between; then there is nothing to kill.
        let _ = child.start_kill();
        // The unpacker holds the pipe too and ends with its worker: the end of output is the end of both.
        let _ = tokio::time::timeout(REAP, listener.listen(&mut |_| {})).await;
        let _ = child.wait().await;
        return Err(Failure::new(FailureKind::Cancelled, "nobody waits for it any more"));
    }
    let status = child.wait().await;
    listener.outcome.unwrap_or_else(|| {
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let message = format!("the image worker ended early ({status}) {}", listener.noise);
        Err(Failure::new(FailureKind::Died, message.trim_end()))
    })
}

struct Listener {
    output: BufReader<ChildStdout>,
    line: Vec<u8>,
    outcome: Option<Result<Vec<Record>, Failure>>,
    /// The last line that was no message, such as a panic's.
    noise: String,
}

impl Listener {
    /// Reads messages to the end of output.
    async fn listen(&mut self, progress: &mut impl FnMut(Progress)) {
        loop {
            match self.output.read_until(b'\n', &mut self.line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            match serde_json::from_slice(&self.line) {
                Ok(Event::Progress(event)) => progress(event),
                Ok(Event::Done(records)) => self.outcome = Some(Ok(records)),
                Ok(Event::Failed(failure)) => self.outcome = Some(Err(failure)),
                Err(_) => self.noise = String::from_utf8_lossy(&self.line).trim().chars().take(400).collect(),
            }
            self.line.clear();
        }
    }
}
