//! The start of a runtime over what an earlier one left: running pods are adopted, half-made ones torn down,
//! pods of an earlier boot forgotten.
//!
//! Runs once, before the first call. One sandbox that cannot be adopted never keeps the others from it.

use std::sync::Arc;
use std::time::Duration;

use coracle_shim::protocol::{method, task};

use super::{Engine, StartError};
use crate::container::start::{ASK_AGAIN, UNKNOWN};
use crate::container::{Container, overlay};
use crate::record::{self, ContainerPhase, ContainerRecord, Exit, SandboxPhase, SandboxRecord};
use crate::sandbox::{self, Sandbox};
use crate::service::wall_ns;
use crate::service_error::{ServiceError, chain};
use crate::shim_client::{ShimClient, ShimError};

/// How long a living shim may take to answer about a container.
const ANSWER_BOUND: Duration = Duration::from_secs(10);

impl Engine {
    /// Takes over what the state folder records and sweeps what nothing records.
    pub(crate) async fn adopt(self: &Arc<Self>, same_boot: bool) -> Result<(), StartError> {
        let sandboxes = record::sandboxes(&self.layout)?;
        let containers = record::containers(&self.layout)?;
        for (name, error) in sandboxes.torn.iter().chain(&containers.torn) {
            if let Some(error) = error {
                tracing::warn!(%name, error = %chain(error), "record not usable; what it named is torn down");
            }
        }
        if !same_boot {
            tracing::info!(pods = sandboxes.records.len(), "records of an earlier boot: pods start afresh");
        }
        let made =
            sandboxes.records.iter().filter(|record| same_boot && record.phase != SandboxPhase::Creating);
        self.end_strays(&made.map(|record| record.id.as_str()).collect());
        for record in sandboxes.records {
            self.adopt_sandbox_record(record);
        }
        for record in containers.records {
            self.adopt_container_record(record);
        }
        let known: Vec<Arc<Sandbox>> = self.index().sandboxes.values().cloned().collect();
        futures_util::future::join_all(known.iter().map(|sandbox| self.adopt_sandbox(sandbox, same_boot)))
            .await;
        let torn = sandboxes.torn.into_iter().map(|(name, _)| name).collect();
        let torn_containers = containers.torn.into_iter().map(|(name, _)| name).collect();
        self.sweep(torn, torn_containers).await;
        self.note_boot()
    }

    fn adopt_sandbox_record(self: &Arc<Self>, record: SandboxRecord) {
        let id = record.id.clone();
        let name = sandbox::reserved_name(&record.config);
        let mut index = self.index();
        index.names.insert(name, id.clone());
        index.sandboxes.insert(id, Arc::new(Sandbox::new(record)));
    }

    fn adopt_container_record(self: &Arc<Self>, record: ContainerRecord) {
        let container = Arc::new(Container::new(record));
        let name = self.container_name(&container);
        let mut index = self.index();
        index.names.insert(name, container.id.clone());
        index.containers.insert(container.id.clone(), container);
    }

    async fn adopt_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>, same_boot: bool) {
        let phase = sandbox.record().phase.clone();
        let shims = match same_boot {
            true => self.connect_shims(&sandbox.id).await,
            false => None,
        };
        let shim = shims.as_ref().map(|shims| shims.tasks().clone());
        sandbox.set_shims(shims);
        if !same_boot || phase == SandboxPhase::Creating {
            self.forget_sandbox(sandbox).await;
            return;
        }
        for container in self.containers_of(&sandbox.id) {
            self.adopt_container(sandbox, &container, shim.as_ref()).await;
        }
        match (&phase, shim) {
            (SandboxPhase::Ready { .. }, Some(_)) => {
                self.end_unknown_tasks(sandbox).await;
                self.watch_shim(sandbox);
                if self.holder_bundle(&sandbox.id).exists() {
                    self.watch_holder(sandbox);
                }
            }
            (SandboxPhase::Ready { .. }, None) => {
                tracing::warn!(sandbox = %sandbox.id, "its shim died while no runtime was there; the pod is made again");
                let changed = sandbox.change(&self.layout, |record| record.phase = SandboxPhase::NotReady);
                if let Err(error) = changed {
                    tracing::warn!(sandbox = %sandbox.id, error = %chain(&error), "record not written");
                }
                self.finish_giving_back(sandbox).await;
            }
            // A stop may have been cut in half.
            (SandboxPhase::NotReady | SandboxPhase::Creating, _) => {
                if let Err(error) = self.stop_sandbox(sandbox).await {
                    tracing::warn!(sandbox = %sandbox.id, error = %chain(&error), "a stopped sandbox is not all given back");
                }
            }
        }
    }

    async fn finish_giving_back(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        for error in self.give_back_sandbox(sandbox).await {
            tracing::warn!(sandbox = %sandbox.id, error = %chain(&error), "a stopped sandbox is not all given back");
        }
    }

    /// Tears down a half-made sandbox, or one of an earlier boot, with all its containers.
    async fn forget_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let mut errors = Vec::new();
        for container in self.containers_of(&sandbox.id) {
            errors.extend(self.forget_container(&container).await);
        }
        errors.extend(self.demolish_sandbox(sandbox).await);
        for error in &errors {
            tracing::warn!(sandbox = %sandbox.id, error = %chain(error), "a forgotten sandbox left something");
        }
        self.index().sandboxes.remove(&sandbox.id);
        self.release_name(&sandbox.reserved_name(), &sandbox.id);
    }

    async fn forget_container(self: &Arc<Self>, container: &Arc<Container>) -> Vec<ServiceError> {
        let errors = self.demolish_container(container).await;
        let name = self.container_name(container);
        self.index().containers.remove(&container.id);
        self.release_name(&name, &container.id);
        errors
    }

    async fn adopt_container(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        container: &Arc<Container>,
        shim: Option<&ShimClient>,
    ) {
        let record = container.record().clone();
        if record.phase == ContainerPhase::Creating {
            for error in self.forget_container(container).await {
                tracing::warn!(container = %container.id, error = %chain(&error), "a half-made container left something");
            }
            return;
        }
        if let Err(error) = self.images.hold(&container.id, &record.image_id) {
            tracing::warn!(container = %container.id, error = %chain(&error), "the image of a container is gone");
        }
        self.hold_images_again(&container.id, &record.config.mounts);
        match (&record.phase, shim) {
            (ContainerPhase::Creating, _) => {}
            (ContainerPhase::Exited(_), _) => {
                if let Err(error) = overlay::unmount_all(&self.layout.rootfs(&container.id)) {
                    tracing::warn!(container = %container.id, %error, "the root of an ended container stays mounted");
                }
            }
            (ContainerPhase::Created, Some(_)) => {}
            (ContainerPhase::Running { .. } | ContainerPhase::Starting { .. }, Some(shim)) => {
                self.adopt_task(sandbox, container, shim).await;
            }
            _ => {
                self.lose_container(container, "the shim of this container died while no runtime watched")
                    .await
            }
        }
    }

    /// Takes over a container that ran, or was being started, when the last runtime ended. While its shim does not
    /// answer, its record stands: a shim that is slow is no reason to end what it runs.
    async fn adopt_task(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        container: &Arc<Container>,
        shim: &ShimClient,
    ) {
        let error = match task_pid(container, shim).await {
            Ok(pid) => return self.take_task(sandbox, container, shim, pid).await,
            Err(error) => error,
        };
        tracing::warn!(container = %container.id, error = %chain(&error), "how this container fares is asked again");
        let (engine, shim) = (self.clone(), shim.clone());
        let (sandbox, container) = (sandbox.clone(), container.clone());
        self.watch(async move {
            let pid = loop {
                tokio::time::sleep(ASK_AGAIN).await;
                if let Ok(pid) = task_pid(&container, &shim).await {
                    break pid;
                }
            };
            // An act of its own, so that it does not stop halfway when the runtime closes.
            let acting = engine.clone();
            engine.tasks.spawn(async move { acting.take_task(&sandbox, &container, &shim, pid).await });
        });
    }

    async fn take_task(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        container: &Arc<Container>,
        shim: &ShimClient,
        pid: Option<u32>,
    ) {
        let act = container.operation.lock().await;
        let phase = container.record().phase.clone();
        match (phase, pid) {
            (ContainerPhase::Starting { started_at }, Some(pid)) => {
                let next = ContainerPhase::Running { pid, started_at };
                if let Err(error) = container.change(&self.layout, |record| record.phase = next) {
                    tracing::warn!(container = %container.id, error = %chain(&error), "record not written");
                }
                self.watch_exit(container, shim.clone());
            }
            (ContainerPhase::Starting { .. }, None) => {
                let cgroup = self.container_cgroup(container, sandbox);
                if let Err(error) = self.end_task(sandbox, &container.id, &cgroup).await {
                    tracing::warn!(container = %container.id, error = %chain(&error), "an unfinished start left something");
                }
                let exit = Exit {
                    started_at: 0,
                    finished_at: wall_ns(),
                    code: 128,
                    reason: "StartError".into(),
                    message: "the runtime ended while this container was being started".into(),
                };
                self.note_exit(container, exit);
            }
            (ContainerPhase::Running { .. }, Some(_)) => self.watch_exit(container, shim.clone()),
            (ContainerPhase::Running { .. }, None) => {
                drop(act);
                self.lose_container(container, UNKNOWN).await;
            }
            // It ended while its shim was asked.
            _ => {}
        }
    }

    /// Ends what a shim runs without a record of ours: a removal that was cut in half.
    async fn end_unknown_tasks(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let Ok(shim) = sandbox.shim() else { return };
        let Ok(info) = shim.call::<method::Info>(&Default::default(), ANSWER_BOUND).await else { return };
        for task in info.containers {
            let expected = task.id == sandbox.id
                || self.container(&task.id).is_ok_and(|container| {
                    let phase = &container.record().phase;
                    matches!(phase, ContainerPhase::Running { .. } | ContainerPhase::Starting { .. })
                });
            if !expected {
                let cgroup = self.cgroups.container_path(&sandbox.cgroup_parent(), &task.id);
                if let Err(error) = self.end_task(sandbox, &task.id, &cgroup).await {
                    tracing::warn!(task = %task.id, error = %chain(&error), "a task without a record stays");
                }
            }
        }
    }
}

/// The pid of a container's first process, unless its shim runs none or is gone. An error is no answer yet.
async fn task_pid(container: &Container, shim: &ShimClient) -> Result<Option<u32>, ShimError> {
    let request = task::StateRequest { id: container.id.clone(), exec_id: String::new() };
    match shim.call::<method::State>(&request, ANSWER_BOUND).await {
        Ok(state) => {
            let runs =
                matches!(state.status(), task::State::Running | task::State::Paused | task::State::Stopped);
            Ok(runs.then_some(state.pid))
        }
        Err(ShimError::Gone { .. }) => Ok(None),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
