//! Starting a created container, and seeing its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::ContainerEventType;
use coracle_shim::protocol::{CRI_LOG_SCHEME, method, shim, task};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{Container, phase_name};
use crate::record::{ContainerPhase, Exit};
use crate::sandbox::{Sandbox, Shims};
use crate::service::{Engine, wall_ns};
use crate::service_error::{ServiceError, chain};
use crate::shim_client::{ShimClient, ShimError};

/// How long the maker may take for one step. A board that swaps is slow; a hook that hangs is killed.
const MAKE_BOUND: Duration = Duration::from_secs(120);

/// How long a shim that did not answer about a container is left alone before it is asked again.
pub(crate) const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Why a container is lost whose shim lives.
pub(crate) const UNKNOWN: &str = "its shim does not know this container any more";

/// What a CRI runtime tells as exit code when the process never ran.
const START_ERROR_CODE: i32 = 128;

impl Engine {
    /// Starts a container. A failure leaves it exited with reason `StartError`.
    pub(crate) async fn start_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<(), ServiceError> {
        let _act = container.operation.lock().await;
        let phase = container.record().phase.clone();
        if phase != ContainerPhase::Created {
            let state = phase_name(&phase);
            return Err(ServiceError::WrongState { id: container.id.clone(), state, wanted: "created" });
        }
        let sandbox = self.sandbox(&container.sandbox_id)?;
        if !sandbox.is_ready() {
            return Err(ServiceError::SandboxNotReady { id: sandbox.id.clone() });
        }
        let shims = sandbox.shims()?;
        let started_at = wall_ns();
        container.change(&self.layout, |record| record.phase = ContainerPhase::Starting { started_at })?;
        // A stop of the pod says "not ready" before it looks at phases: either it waits for us, or we see that.
        let started = match sandbox.is_ready() {
            true => self.start_task(container, &shims).await,
            false => Err(ServiceError::SandboxNotReady { id: sandbox.id.clone() }),
        };
        match started {
            Ok(pid) => {
                let phase = ContainerPhase::Running { pid, started_at };
                if let Err(error) = container.change(&self.layout, |record| record.phase = phase) {
                    return Err(self.fail_start(container, &sandbox, error.into()).await);
                }
                self.tell(ContainerEventType::ContainerStartedEvent, container);
                self.watch_exit(container, shims.tasks().clone());
                Ok(())
            }
            Err(error) => Err(self.fail_start(container, &sandbox, error).await),
        }
    }

    async fn start_task(&self, container: &Container, shims: &Shims) -> Result<u32, ServiceError> {
        let (log, terminal, has_input) = {
            let record = container.record();
            (record.log_path.clone(), record.config.tty, record.config.stdin)
        };
        // A pod without a log folder wants no log, but somebody may attach.
        let output = if log.is_empty() { "/dev/null".to_owned() } else { format!("{CRI_LOG_SCHEME}{log}") };
        let stdin = if has_input { self.make_stdin(&container.id)? } else { String::new() };
        let mut create = task::CreateTaskRequest {
            id: container.id.clone(),
            bundle: self.layout.bundle(&container.id).to_string_lossy().into_owned(),
            terminal,
            stdin,
            stderr: if terminal { String::new() } else { output.clone() },
            stdout: output,
            ..Default::default()
        };
        if shims.foreign.is_some() {
            self.keep_log(container, shims, log, &mut create).await?;
        }
        let shim = shims.tasks();
        shim.call::<method::Create>(&create, MAKE_BOUND).await?;
        let start = task::StartRequest { id: container.id.clone(), ..Default::default() };
        Ok(shim.call::<method::Start>(&start, MAKE_BOUND).await?.pid)
    }

    /// Another shim knows no CRI logs: it writes to pipes, and ours from these to the log.
    async fn keep_log(
        &self,
        container: &Container,
        shims: &Shims,
        log: String,
        create: &mut task::CreateTaskRequest,
    ) -> Result<(), ServiceError> {
        let bundle = self.layout.bundle(&container.id);
        create.stdout = self.make_pipe(bundle.join("stdout"))?;
        if !create.terminal {
            create.stderr = self.make_pipe(bundle.join("stderr"))?;
        }
        create.options = self.task_options(&container.sandbox_id);
        let request = shim::KeepLogRequest {
            id: container.id.clone(),
            bundle: create.bundle.clone(),
            stdout: create.stdout.clone(),
            stderr: create.stderr.clone(),
            stdin: create.stdin.clone(),
            log,
            terminal: create.terminal,
        };
        shims.own.call::<method::KeepLog>(&request, MAKE_BOUND).await?;
        Ok(())
    }

    /// A named pipe, because the container's input outlives this runtime.
    fn make_stdin(&self, id: &str) -> Result<String, ServiceError> {
        self.make_pipe(self.layout.stdin(id))
    }

    fn make_pipe(&self, path: PathBuf) -> Result<String, ServiceError> {
        let mode = Mode::RUSR | Mode::WUSR;
        match mknodat(CWD, &path, FileType::Fifo, mode, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(path.to_string_lossy().into_owned()),
            Err(error) => Err(ServiceError::file("create", path)(error.into())),
        }
    }

    /// Takes away what a failed start left and makes the container exited. Answers the error of the start.
    async fn fail_start(
        self: &Arc<Self>,
        container: &Arc<Container>,
        sandbox: &Sandbox,
        error: ServiceError,
    ) -> ServiceError {
        let cgroup = self.container_cgroup(container, sandbox);
        if let Err(left) = self.end_task(sandbox, &container.id, &cgroup).await {
            tracing::warn!(container = %container.id, error = %chain(&left), "what a failed start left is not all gone");
        }
        let message = match &error {
            ServiceError::Shim(told) => told.message(),
            other => chain(other),
        };
        let exit = Exit {
            started_at: 0,
            finished_at: wall_ns(),
            code: START_ERROR_CODE,
            reason: "StartError".into(),
            message,
        };
        self.note_exit(container, exit);
        error
    }

    /// Waits for the end of a running container on a task that ends with it, its shim or the runtime.
    pub(crate) fn watch_exit(self: &Arc<Self>, container: &Arc<Container>, shim: ShimClient) {
        let (engine, container) = (self.clone(), container.clone());
        self.watch(async move {
            let wait = task::WaitRequest { id: container.id.clone(), ..Default::default() };
            let answer = loop {
                match shim.call_unbounded::<method::Wait>(&wait).await {
                    Ok(answer) => break Some(answer),
                    // The death of the shim is handled for all its containers at once.
                    Err(ShimError::Gone { .. }) => return,
                    // The runtime before had it deleted and did not live to write that down.
                    Err(error) if error.is_not_found() => break None,
                    Err(error) => {
                        tracing::warn!(container = %container.id, %error, "its end is not told; asked again");
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                }
            };
            let acting = engine.clone();
            // An act of its own, so that it does not stop halfway when the runtime closes.
            engine.tasks.spawn(async move {
                match answer {
                    Some(answer) => {
                        let finished_at = answer.exited_at.map_or_else(wall_ns, |at| at.unix_ns());
                        acting.container_exited(&container, answer.exit_status as i32, finished_at).await;
                    }
                    None => acting.lose_container(&container, UNKNOWN).await,
                }
            });
        });
    }

    /// The path of a container's cgroup.
    pub(crate) fn container_cgroup(&self, container: &Container, sandbox: &Sandbox) -> String {
        self.cgroups.container_path(&sandbox.cgroup_parent(), &container.id)
    }

    /// The exit record that the shim writes.
    pub(crate) fn exit_record(&self, id: &str) -> PathBuf {
        self.layout.bundle(id).join(coracle_shim::protocol::EXIT_RECORD)
    }
}
