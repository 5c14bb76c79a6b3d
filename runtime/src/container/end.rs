//! The end of a container, however it came: its leftovers are taken away and its record tells how it was.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::ContainerEventType;
use coracle_shim::protocol::{method, shim, task};
use serde::Deserialize;
use tokio::process::Command;

use super::{Container, overlay};
use crate::config::CgroupDriver;
use crate::record::{ContainerPhase, Exit};
use crate::sandbox::Sandbox;
use crate::service::{Engine, wall_ns};
use crate::service_error::{ServiceError, chain};
use crate::shim_client::ShimError;

/// How long one request of a teardown may take.
const BOUND: Duration = Duration::from_secs(20);

/// What the kernel's SIGKILL makes of an exit code.
const KILLED: i32 = 137;

/// What a shim wrote when the first process of a container ended.
#[derive(Deserialize)]
pub(crate) struct ExitRecord {
    pub(crate) exit_status: i32,
    pub(crate) exited_at_unix_ns: i64,
    #[serde(default)]
    pub(crate) oom: bool,
}

impl Engine {
    /// The shim's record of a container's end, if it wrote one.
    pub(crate) fn read_exit_record(&self, id: &str) -> Option<ExitRecord> {
        serde_json::from_slice(&fs::read(self.exit_record(id)).ok()?).ok()
    }

    /// Handles the end that a shim told.
    pub(crate) async fn container_exited(
        self: &Arc<Self>,
        container: &Arc<Container>,
        code: i32,
        finished_at: i64,
    ) {
        let _act = container.operation.lock().await;
        let ContainerPhase::Running { started_at, .. } = container.record().phase else { return };
        let mut oom = self.read_exit_record(&container.id).is_some_and(|record| record.oom);
        if let Ok(sandbox) = self.sandbox(&container.sandbox_id) {
            let cgroup = self.container_cgroup(container, &sandbox);
            // Another shim tells it by an event, which may come later.
            oom |= self.has_foreign_shim(&sandbox.id) && self.cgroups.oom_killed(&cgroup);
            if let Err(error) = self.end_task(&sandbox, &container.id, &cgroup).await {
                tracing::warn!(container = %container.id, error = %chain(&error), "an exited container left something");
            }
        }
        let reason = match code {
            _ if oom => "OOMKilled",
            0 => "Completed",
            _ => "Error",
        };
        let exit = Exit { started_at, finished_at, code, reason: reason.into(), message: String::new() };
        self.note_exit(container, exit);
    }

    /// Ends a container whose shim is gone: nobody else can tell how it went.
    pub(crate) async fn lose_container(self: &Arc<Self>, container: &Arc<Container>, why: &str) {
        let _act = container.operation.lock().await;
        let phase = container.record().phase.clone();
        let started_at = match phase {
            ContainerPhase::Running { started_at, .. } => started_at,
            ContainerPhase::Starting { .. } | ContainerPhase::Created => 0,
            ContainerPhase::Creating | ContainerPhase::Exited(_) => return,
        };
        if let Ok(sandbox) = self.sandbox(&container.sandbox_id) {
            let cgroup = self.container_cgroup(container, &sandbox);
            if let Err(error) = self.clear_task(&sandbox, &container.id, &cgroup).await {
                tracing::warn!(container = %container.id, error = %chain(&error), "a lost container left something");
            }
        }
        // The shim may have written the end before it died itself.
        let exit = match self.read_exit_record(&container.id) {
            Some(record) => Exit {
                started_at,
                finished_at: record.exited_at_unix_ns,
                code: record.exit_status,
                reason: match record.exit_status {
                    _ if record.oom => "OOMKilled".into(),
                    0 => "Completed".into(),
                    _ => "Error".into(),
                },
                message: String::new(),
            },
            None => Exit {
                started_at,
                finished_at: wall_ns(),
                code: KILLED,
                reason: "Unknown".into(),
                message: format!("{why}; its processes were killed"),
            },
        };
        self.note_exit(container, exit);
    }

    /// Writes an end down and tells it.
    pub(crate) fn note_exit(&self, container: &Arc<Container>, exit: Exit) {
        if let Err(error) = overlay::unmount_all(&self.layout.rootfs(&container.id)) {
            tracing::warn!(container = %container.id, %error, "the root of an ended container stays mounted");
        }
        if let Err(error) =
            container.change(&self.layout, |record| record.phase = ContainerPhase::Exited(exit))
        {
            tracing::warn!(container = %container.id, error = %chain(&error), "the end of a container is not written");
        }
        self.tell(ContainerEventType::ContainerStoppedEvent, container);
    }

    /// Kills whatever a task still runs and makes shim and maker forget it. Idempotent.
    pub(crate) async fn end_task(
        &self,
        sandbox: &Sandbox,
        id: &str,
        cgroup: &str,
    ) -> Result<(), ServiceError> {
        // Processes that outlive the first one share the namespace of somebody else; they end with it here.
        self.cgroups.kill(cgroup).await?;
        if let Ok(shims) = sandbox.shims() {
            let shim = shims.tasks();
            let request = task::DeleteRequest { id: id.to_owned(), exec_id: String::new() };
            let deadline = tokio::time::Instant::now() + BOUND;
            let mut pause = Duration::from_millis(2);
            loop {
                match shim.call::<method::Delete>(&request, BOUND).await {
                    Ok(_) | Err(ShimError::Gone { .. }) => break,
                    Err(error) if error.is_not_found() => break,
                    // The kill above reaches the shim as a signal a moment later, and a creation that was under
                    // way answers with its own failure first.
                    Err(ShimError::Refused { .. }) if tokio::time::Instant::now() < deadline => {
                        self.cgroups.kill(cgroup).await?;
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_millis(200));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if shims.foreign.is_some() {
                let request = shim::ForgetLogRequest { id: id.to_owned() };
                match shims.own.call::<method::ForgetLog>(&request, BOUND).await {
                    Ok(_) | Err(ShimError::Gone { .. }) => {}
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.clear_task(sandbox, id, cgroup).await
    }

    /// Removes what is left of a task when no shim does it: processes, cgroup, the maker's state. Idempotent.
    pub(crate) async fn clear_task(
        &self,
        sandbox: &Sandbox,
        id: &str,
        cgroup: &str,
    ) -> Result<(), ServiceError> {
        self.cgroups.kill(cgroup).await?;
        let bundle = if id == sandbox.id { self.holder_bundle(id) } else { self.layout.bundle(id) };
        if sandbox.shims().is_err() && bundle.exists() && self.has_foreign_shim(&sandbox.id) {
            self.delete_by_foreign(&sandbox.id, id, &bundle).await;
        }
        let kept =
            [self.layout.maker_root().join(id), self.layout.maker_root().join(format!(".prepared-{id}"))];
        if kept.iter().any(|path| path.exists()) {
            // Only the maker knows its state, hooks to run, and whether a creation that was cut off still ends.
            let handler = sandbox.record().runtime_handler.clone();
            self.delete_by_maker(&handler, id).await;
            self.cgroups.kill(cgroup).await?;
        }
        self.cgroups.remove(cgroup).await?;
        for path in kept {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(ServiceError::file("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Runs the maker's `delete --force`. What it does not do is done by hand afterwards.
    async fn delete_by_maker(&self, handler: &str, id: &str) {
        let maker = self.maker_of(handler);
        let mut command = Command::new(&maker[0]);
        command.args(&maker[1..]).arg("--root").arg(self.layout.maker_root());
        if self.config.cgroup_driver == CgroupDriver::Systemd {
            command.arg("--systemd-cgroup");
        }
        command.args(["delete", "--force", id]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(BOUND, command.status()).await {
            Ok(Ok(status)) if status.success() => {}
            failed => tracing::warn!(task = %id, ?failed, "the maker could not delete what a dead shim left"),
        }
    }
}
