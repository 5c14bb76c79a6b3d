//! One container in memory, and the acts on containers: create, start, stop, remove, exec.
//!
//! The record lives in a `watch`: readers borrow it for a moment, waiters subscribe to see the end. Phases
//! change only through [`Container::change`], which writes the disk first; `operation` lets one of create,
//! start, remove and the handling of an exit run at a time, while a stop only waits.

mod create;
mod end;
mod exec;
pub(crate) mod image_volumes;
pub(crate) mod overlay;
pub(crate) mod process;
mod relabel;
mod specification;
pub(crate) mod start;
mod stop;
mod update;
mod volumes;

use coracle_cri::v1;
use tokio::sync::watch;

use crate::config::Layout;
use crate::record::{ContainerPhase, ContainerRecord, RecordError};

/// A container.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    record: watch::Sender<ContainerRecord>,
    /// Held by the act that changes the container.
    pub(crate) operation: tokio::sync::Mutex<()>,
}

impl Container {
    pub(crate) fn new(record: ContainerRecord) -> Container {
        Container {
            id: record.id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            record: watch::Sender::new(record),
            operation: tokio::sync::Mutex::new(()),
        }
    }

    /// The record. The borrow must not live across an await.
    pub(crate) fn record(&self) -> watch::Ref<'_, ContainerRecord> {
        self.record.borrow()
    }

    /// Changes the record, first on disk and then in memory.
    pub(crate) fn change(
        &self,
        layout: &Layout,
        change: impl FnOnce(&mut ContainerRecord),
    ) -> Result<(), RecordError> {
        let mut next = self.record.borrow().clone();
        change(&mut next);
        let stored = next.store(layout);
        if stored.is_ok() || matches!(next.phase, ContainerPhase::Exited(_)) {
            // An end that cannot be written is an end all the same; the next start finds it again.
            self.record.send_replace(next);
        }
        stored
    }

    /// Waits until the container has ended.
    pub(crate) async fn ended(&self) {
        let mut record = self.record.subscribe();
        // The sender is ours and lives as long as `self`.
        let _ = record.wait_for(|record| matches!(record.phase, ContainerPhase::Exited(_))).await;
    }

    /// Waits until no start is under way.
    pub(crate) async fn settled(&self) {
        let mut record = self.record.subscribe();
        let _ = record.wait_for(|record| !matches!(record.phase, ContainerPhase::Starting { .. })).await;
    }

    pub(crate) fn is_visible(&self) -> bool {
        !matches!(self.record().phase, ContainerPhase::Creating)
    }

    pub(crate) fn state(&self) -> v1::ContainerState {
        state(&self.record().phase)
    }
}

/// What CRI calls a phase. A start under way still counts as created, as containerd tells it.
pub(crate) fn state(phase: &ContainerPhase) -> v1::ContainerState {
    match phase {
        ContainerPhase::Creating | ContainerPhase::Created | ContainerPhase::Starting { .. } => {
            v1::ContainerState::ContainerCreated
        }
        ContainerPhase::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerPhase::Exited(_) => v1::ContainerState::ContainerExited,
    }
}

/// The name of a phase in error messages.
pub(crate) fn phase_name(phase: &ContainerPhase) -> &'static str {
    match phase {
        ContainerPhase::Creating => "being created",
        ContainerPhase::Created => "created",
        ContainerPhase::Starting { .. } => "starting",
        ContainerPhase::Running { .. } => "running",
        ContainerPhase::Exited(_) => "exited",
    }
}

/// The name that no other container may have.
pub(crate) fn reserved_name(config: &v1::ContainerConfig, sandbox: &v1::PodSandboxConfig) -> String {
    let metadata = config.metadata.clone().unwrap_or_default();
    let pod = sandbox.metadata.clone().unwrap_or_default();
    format!("{}_{}_{}_{}_{}", metadata.name, pod.name, pod.namespace, pod.uid, metadata.attempt)
}
