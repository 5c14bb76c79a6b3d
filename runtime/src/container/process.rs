//! A process beside the first of a container, as the shim runs it. Held by ExecSync and by sessions of exec.
//!
//! The shim opens its streams by their path below our own /proc, so nothing is left on disk whoever dies, and kills the
//! process when our connection ends. Whoever lets go of a [`RunningExec`] has the process killed and forgotten, also
//! while it is being made.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coracle_shim::protocol::{Any, method, task};
use tokio::net::unix::pipe;

use super::{Container, phase_name};
use crate::record::ContainerPhase;
use crate::service::Engine;
use crate::service_error::ServiceError;
use crate::shim_client::{ShimClient, ShimError};

/// How long the maker may take to start the process, and the process to end.
const BOUND: Duration = Duration::from_secs(60);

/// A running process is asked for once, killed, and asked for again. What is more is for one that was about to run.
const END_ROUNDS: usize = 3;

/// One execution of this process: names of execs must differ from those of the runtime before.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The ends of pipes that the process gets; what is absent is /dev/null.
#[derive(Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// It gets a terminal, whose other side is `stdin` and `stdout`.
    pub(crate) terminal: bool,
}

impl Engine {
    /// An error unless the container runs.
    pub(crate) fn expect_running(&self, container: &Container) -> Result<(), ServiceError> {
        let phase = container.record().phase.clone();
        if matches!(phase, ContainerPhase::Running { .. }) {
            return Ok(());
        }
        let state = phase_name(&phase);
        Err(ServiceError::WrongState { id: container.id.clone(), state, wanted: "running" })
    }

    /// Starts a command in a running container. Its ends of the pipes are its own from then on.
    pub(crate) async fn start_exec(
        self: &Arc<Self>,
        container: &Container,
        command: &[String],
        stdio: Stdio,
    ) -> Result<RunningExec, ServiceError> {
        self.expect_running(container)?;
        if command.is_empty() {
            return Err(ServiceError::Missing { field: "a command" });
        }
        let shim = self.sandbox(&container.sandbox_id)?.tasks()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("exec-{}-{number}", std::process::id());
        let exec = Exec { shim, container: container.id.clone(), id };
        let process = self.exec_process(container, command, stdio.terminal)?;
        // Takes the process back also when the caller goes away while it is being started.
        let mut running = RunningExec { engine: self.clone(), exec: Some(exec.clone()), stdio };
        if let Err(error) = exec.start(process, &running.stdio).await {
            running.forget().await;
            return Err(error);
        }
        running.stdio = Stdio::default();
        Ok(running)
    }

    /// The container's own process with another command line, as every CRI runtime makes it.
    fn exec_process(
        &self,
        container: &Container,
        command: &[String],
        terminal: bool,
    ) -> Result<Vec<u8>, ServiceError> {
        let process = crate::spec::exec_process(&self.read_spec(container)?, command, terminal);
        serde_json::to_vec(&process).map_err(|error| ServiceError::Spec(Box::new(error)))
    }
}

/// A process that was started. Dropping it kills the process.
pub(crate) struct RunningExec {
    engine: Arc<Engine>,
    exec: Option<Exec>,
    /// Held until it is started: the shim opens them by their numbers, which must not be another file's by then.
    stdio: Stdio,
}

impl RunningExec {
    /// Waits for its end; its exit code.
    pub(crate) async fn wait(&self) -> Result<i32, ServiceError> {
        let exec = self.exec();
        let request = task::WaitRequest { id: exec.container.clone(), exec_id: exec.id.clone() };
        Ok(exec.shim.call_unbounded::<method::Wait>(&request).await?.exit_status as i32)
    }

    /// Sets the size of its terminal. One that ended meanwhile has none.
    pub(crate) async fn resize(&self, width: u16, height: u16) {
        let exec = self.exec();
        exec.shim.resize(&exec.container, &exec.id, width, height).await;
    }

    /// Makes the shim forget the process, killing it when it still runs.
    pub(crate) async fn forget(mut self) {
        if let Some(exec) = self.exec.take() {
            exec.forget().await;
        }
    }

    fn exec(&self) -> &Exec {
        self.exec.as_ref().expect("taken only by what consumes self")
    }
}

impl Drop for RunningExec {
    fn drop(&mut self) {
        if let Some(exec) = self.exec.take() {
            let stdio = std::mem::take(&mut self.stdio);
            self.engine.tasks.spawn(async move {
                exec.forget().await;
                drop(stdio);
            });
        }
    }
}

#[derive(Clone)]
struct Exec {
    shim: ShimClient,
    container: String,
    id: String,
}

impl Exec {
    async fn start(&self, process: Vec<u8>, stdio: &Stdio) -> Result<(), ServiceError> {
        let address = |end: &Option<OwnedFd>| end.as_ref().map(pipe_address).unwrap_or_default();
        let request = task::ExecProcessRequest {
            id: self.container.clone(),
            exec_id: self.id.clone(),
            terminal: stdio.terminal,
            stdin: address(&stdio.stdin),
            stdout: address(&stdio.stdout),
            stderr: address(&stdio.stderr),
            spec: Some(Any::oci_process(process)),
        };
        self.shim.call::<method::Exec>(&request, BOUND).await?;
        let request = task::StartRequest { id: self.container.clone(), exec_id: self.id.clone() };
        self.shim.call::<method::Start>(&request, BOUND).await?;
        Ok(())
    }

    /// Makes the shim forget the process, killing it when it still runs. While the process is being made the shim
    /// answers neither: it does when the maker has ended.
    async fn forget(&self) {
        let request = task::DeleteRequest { id: self.container.clone(), exec_id: self.id.clone() };
        let mut left = None;
        for _ in 0..END_ROUNDS {
            match self.shim.call::<method::Delete>(&request, BOUND).await {
                Ok(_) | Err(ShimError::Gone { .. }) => return,
                Err(error) if error.is_not_found() => return,
                Err(error) => left = Some(error),
            }
            self.kill().await;
        }
        tracing::warn!(container = %self.container, exec = %self.id, ?left, "a command that nobody waits for was not ended");
    }

    /// Kills the process and waits for its end. One that ended meanwhile, or never ran, is what we want.
    async fn kill(&self) {
        let (id, exec_id) = (self.container.clone(), self.id.clone());
        let request = task::KillRequest { id: id.clone(), exec_id: exec_id.clone(), signal: 9, all: false };
        if self.shim.call::<method::Kill>(&request, BOUND).await.is_ok() {
            let _ = self.shim.call::<method::Wait>(&task::WaitRequest { id, exec_id }, BOUND).await;
        }
    }
}

/// Where the shim finds an end of a pipe of ours, as long as we hold it.
pub(crate) fn pipe_address(end: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), end.as_raw_fd())
}

/// A pipe to read a process's output from, and the end for the process.
pub(crate) fn output_pipe() -> Result<(pipe::Receiver, OwnedFd), ServiceError> {
    let made = new_pipe().and_then(|(read, write)| Ok((pipe::Receiver::from_owned_fd(read)?, write)));
    made.map_err(ServiceError::file("open", "a pipe"))
}

/// A pipe to write a process's input to, and the end for the process.
pub(crate) fn input_pipe() -> Result<(pipe::Sender, OwnedFd), ServiceError> {
    let made = new_pipe().and_then(|(read, write)| Ok((pipe::Sender::from_owned_fd(write)?, read)));
    made.map_err(ServiceError::file("open", "a pipe"))
}

fn new_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}
