//! ExecSync: a further process in a running container, its output by pipes, its exit code, its deadline.
//!
//! The shim opens the writing ends by their path below our own /proc, so nothing is left on disk whoever dies.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coracle_cri::v1;
use coracle_shim::protocol::{Any, method, task};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::{Container, phase_name};
use crate::record::ContainerPhase;
use crate::service::Engine;
use crate::service_error::ServiceError;
use crate::shim_client::ShimClient;

/// The most output kept of each stream, as containerd bounds it; the rest is read and dropped.
const MAX_OUTPUT: u64 = 16 << 20;

/// How long the maker may take to start the process.
const START_BOUND: Duration = Duration::from_secs(60);

/// How long output may follow the exit: a child of the command may hold the pipes for ever.
const DRAIN_BOUND: Duration = Duration::from_secs(5);

/// One execution of this process: names of execs must differ from those of the runtime before.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Engine {
    /// Runs a command and waits for its end, at most `timeout` seconds unless that is 0.
    pub(crate) async fn exec_sync(
        self: &Arc<Self>,
        container: &Arc<Container>,
        command: Vec<String>,
        timeout: i64,
    ) -> Result<v1::ExecSyncResponse, ServiceError> {
        let phase = container.record().phase.clone();
        if !matches!(phase, ContainerPhase::Running { .. }) {
            let state = phase_name(&phase);
            return Err(ServiceError::WrongState { id: container.id.clone(), state, wanted: "running" });
        }
        if command.is_empty() {
            return Err(ServiceError::Missing { field: "a command" });
        }
        let shim = self.sandbox(&container.sandbox_id)?.shim()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let exec = Exec {
            shim,
            container: container.id.clone(),
            id: format!("sync-{}-{number}", std::process::id()),
        };
        let process = self.exec_process(container, &command)?;
        let (stdout, stdout_writer) = new_pipe()?;
        let (stderr, stderr_writer) = new_pipe()?;
        let running = exec.start(process, [&stdout_writer, &stderr_writer]).await;
        // Only the process may hold the writing ends, or their end would never come.
        drop((stdout_writer, stderr_writer));
        if let Err(error) = running {
            exec.forget().await;
            return Err(error);
        }
        // Ends the process also when the caller goes away.
        let mut guard = KillOnDrop { engine: self.clone(), exec: Some(exec.clone()) };
        let bound = u64::try_from(timeout).ok().filter(|seconds| *seconds > 0);
        let outcome = match bound {
            Some(seconds) => {
                tokio::time::timeout(Duration::from_secs(seconds), exec.finish(stdout, stderr)).await
            }
            None => Ok(exec.finish(stdout, stderr).await),
        };
        match outcome {
            Ok(outcome) => {
                guard.exec = None;
                exec.forget().await;
                outcome
            }
            Err(_) => {
                Err(ServiceError::ExecTimeout { command: command.join(" "), seconds: bound.unwrap_or(0) })
            }
        }
    }

    /// The container's own process with another command line, as every CRI runtime makes it.
    fn exec_process(&self, container: &Container, command: &[String]) -> Result<Vec<u8>, ServiceError> {
        let process = crate::spec::exec_process(&self.read_spec(container)?, command, false);
        serde_json::to_vec(&process).map_err(|error| ServiceError::Spec(Box::new(error)))
    }
}

/// One process beside the first of a container.
#[derive(Clone)]
struct Exec {
    shim: ShimClient,
    container: String,
    id: String,
}

impl Exec {
    async fn start(&self, process: Vec<u8>, writers: [&OwnedFd; 2]) -> Result<(), ServiceError> {
        let path = |fd: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        let request = task::ExecProcessRequest {
            id: self.container.clone(),
            exec_id: self.id.clone(),
            stdout: path(writers[0]),
            stderr: path(writers[1]),
            spec: Some(Any::oci_process(process)),
            ..Default::default()
        };
        self.shim.call::<method::Exec>(&request, START_BOUND).await?;
        let request = task::StartRequest { id: self.container.clone(), exec_id: self.id.clone() };
        self.shim.call::<method::Start>(&request, START_BOUND).await?;
        Ok(())
    }

    async fn finish(
        &self,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
    ) -> Result<v1::ExecSyncResponse, ServiceError> {
        let request = task::WaitRequest { id: self.container.clone(), exec_id: self.id.clone() };
        let wait = self.shim.call_unbounded::<method::Wait>(&request);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut reading = Box::pin(async { tokio::join!(read(stdout, &mut out), read(stderr, &mut err)) });
        let mut wait = Box::pin(wait);
        // Both arms only wait: the reading keeps its place in `reading`, the answer its place in `wait`.
        let exit = tokio::select! {
            exit = &mut wait => {
                let _ = tokio::time::timeout(DRAIN_BOUND, &mut reading).await;
                exit
            }
            _ = &mut reading => wait.await,
        };
        drop(reading);
        Ok(v1::ExecSyncResponse { stdout: out, stderr: err, exit_code: exit?.exit_status as i32 })
    }

    async fn kill(&self) {
        let request =
            task::KillRequest { id: self.container.clone(), exec_id: self.id.clone(), signal: 9, all: false };
        // One that ended meanwhile is what we want.
        let _ = self.shim.call::<method::Kill>(&request, START_BOUND).await;
    }

    /// Makes the shim forget the process, killing it when it still runs.
    async fn forget(&self) {
        let request = task::DeleteRequest { id: self.container.clone(), exec_id: self.id.clone() };
        for _ in 0..50 {
            match self.shim.call::<method::Delete>(&request, START_BOUND).await {
                Ok(_) => return,
                Err(error) if error.is_not_found() => return,
                Err(_) => self.kill().await,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Kills a process whose caller stopped waiting.
struct KillOnDrop {
    engine: Arc<Engine>,
    exec: Option<Exec>,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(exec) = self.exec.take() {
            self.engine.tasks.spawn(async move {
                exec.kill().await;
                exec.forget().await;
            });
        }
    }
}

fn new_pipe() -> Result<(pipe::Receiver, OwnedFd), ServiceError> {
    let made = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(io::Error::from)
        .and_then(|(read, write)| Ok((pipe::Receiver::from_owned_fd(read)?, write)));
    made.map_err(ServiceError::file("open", "a pipe"))
}

async fn read(from: pipe::Receiver, into: &mut Vec<u8>) {
    let mut bounded = from.take(MAX_OUTPUT);
    // A broken pipe ends the output as its end does.
    let _ = bounded.read_to_end(into).await;
    let _ = tokio::io::copy(&mut bounded.into_inner(), &mut tokio::io::sink()).await;
}
