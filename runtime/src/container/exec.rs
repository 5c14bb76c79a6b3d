//! ExecSync: a further process in a running container, its output by pipes, its exit code, its deadline.

use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::Container;
use super::process::{RunningExec, Stdio, output_pipe};
use crate::service::Engine;
use crate::service_error::ServiceError;

/// The most output kept of each stream, as containerd bounds it; the rest is read and dropped.
const MAX_OUTPUT: u64 = 16 << 20;

/// How long output may follow the exit: a child of the command may hold the pipes for ever.
const DRAIN_BOUND: Duration = Duration::from_secs(5);

impl Engine {
    /// Runs a command and waits for its end, at most `timeout` seconds unless that is 0.
    pub(crate) async fn exec_sync(
        self: &Arc<Self>,
        container: &Arc<Container>,
        command: Vec<String>,
        timeout: i64,
    ) -> Result<v1::ExecSyncResponse, ServiceError> {
        let (stdout, stdout_end) = output_pipe()?;
        let (stderr, stderr_end) = output_pipe()?;
        let stdio = Stdio { stdout: Some(stdout_end), stderr: Some(stderr_end), ..Stdio::default() };
        // Ends the process also when the caller goes away.
        let running = self.start_exec(container, &command, stdio).await?;
        let bound = u64::try_from(timeout).ok().filter(|seconds| *seconds > 0);
        let outcome = match bound {
            Some(seconds) => {
                tokio::time::timeout(Duration::from_secs(seconds), finish(&running, stdout, stderr)).await
            }
            None => Ok(finish(&running, stdout, stderr).await),
        };
        match outcome {
            Ok(outcome) => {
                running.forget().await;
                outcome
            }
            Err(_) => {
                Err(ServiceError::ExecTimeout { command: command.join(" "), seconds: bound.unwrap_or(0) })
            }
        }
    }
}

async fn finish(
    running: &RunningExec,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
) -> Result<v1::ExecSyncResponse, ServiceError> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut reading = Box::pin(async { tokio::join!(read(stdout, &mut out), read(stderr, &mut err)) });
    let mut wait = Box::pin(running.wait());
    // Both arms only wait: the reading keeps its place in `reading`, the answer its place in `wait`.
    let exit = tokio::select! {
        exit = &mut wait => {
            let _ = tokio::time::timeout(DRAIN_BOUND, &mut reading).await;
            exit
        }
        _ = &mut reading => wait.await,
    };
    drop(reading);
    Ok(v1::ExecSyncResponse { stdout: out, stderr: err, exit_code: exit? })
}

async fn read(from: pipe::Receiver, into: &mut Vec<u8>) {
    let mut bounded = from.take(MAX_OUTPUT);
    // A broken pipe ends the output as its end does.
    let _ = bounded.read_to_end(into).await;
    let _ = tokio::io::copy(&mut bounded.into_inner(), &mut tokio::io::sink()).await;
}
