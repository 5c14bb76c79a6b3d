//! A sandbox's shim process: started, watched, ended.
//!
//! The shim's own start leaves a process that is nobody's child and outlives us; all we hold is the socket.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::ContainerEventType;
use coracle_shim::protocol::{method, task};
use tokio::process::Command;

use super::{Sandbox, Shims};
use crate::config::CgroupDriver;
use crate::record::SandboxPhase;
use crate::service::Engine;
use crate::service_error::{ServiceError, chain};
use crate::shim_client::{ShimClient, ShimError};

/// A shim is up in milliseconds; a board under load may take a hundred times that.
const START_BOUND: Duration = Duration::from_secs(30);

/// How long a shim may take to end.
const SHUTDOWN_BOUND: Duration = Duration::from_secs(10);

impl Engine {
    /// Starts the shim of a sandbox, and the one that its handler names, if it names one.
    pub(crate) async fn start_shims(&self, sandbox: &Sandbox) -> Result<Shims, ServiceError> {
        let handler = sandbox.record().runtime_handler.clone();
        let own = self.start_shim(&sandbox.id, &handler).await?;
        let foreign = match self.foreign_shim(&handler) {
            Some(shim) => Some(self.start_foreign(&sandbox.id, shim).await?),
            None => None,
        };
        Ok(Shims { own, foreign })
    }

    /// Connects to the shims of a sandbox; none when one that it has is gone.
    pub(crate) async fn connect_shims(&self, id: &str) -> Option<Shims> {
        let own = ShimClient::connect(&self.layout.shim_socket(id)).await.ok()?;
        match self.connect_foreign(id).await {
            None => Some(Shims { own, foreign: None }),
            Some(foreign) => Some(Shims { own, foreign: Some(foreign?) }),
        }
    }

    async fn start_shim(&self, id: &str, handler: &str) -> Result<ShimClient, ServiceError> {
        let socket = self.layout.shim_socket(id);
        let mut command = Command::new(&self.config.shim);
        command.arg("serve").arg("--socket").arg(&socket).args(["--id", id]);
        let maker = self.maker_of(handler);
        command.arg("--maker").arg(&maker[0]);
        for argument in &maker[1..] {
            command.arg("--maker-arg").arg(argument);
        }
        command.arg("--maker-root").arg(self.layout.maker_root());
        if self.config.cgroup_driver == CgroupDriver::Systemd {
            command.arg("--systemd-cgroup");
        }
        if let Some(limit) = self.config.descriptor_limit {
            command.arg("--descriptors").arg(limit.to_string());
        }
        command.arg("--cgroup").arg(&self.config.shim_cgroup);
        command.arg("--log").arg(self.layout.state.join("shim.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let fail = |source| ServiceError::ShimStart { path: self.config.shim.clone(), source };
        let child = command.spawn().map_err(fail)?;
        match tokio::time::timeout(START_BOUND, child.wait_with_output()).await {
            Ok(Ok(output)) if output.status.success() => {}
            Ok(Ok(output)) => {
                let told = String::from_utf8_lossy(&output.stderr);
                let problem = format!("{}: {}", output.status, told.trim());
                return Err(ServiceError::ShimSilent { path: self.config.shim.clone(), problem });
            }
            Ok(Err(source)) => return Err(fail(source)),
            Err(_) => {
                let problem = format!("not serving after {} s", START_BOUND.as_secs());
                return Err(ServiceError::ShimSilent { path: self.config.shim.clone(), problem });
            }
        }
        Ok(ShimClient::connect(&socket).await?)
    }

    /// Watches for the death of a sandbox's shim, and for what it tells of logs. The task ends with the connection or with the runtime.
    pub(crate) fn watch_shim(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let Ok(shims) = sandbox.shims() else { return };
        let (engine, sandbox) = (self.clone(), sandbox.clone());
        self.watch(async move {
            let foreign = async {
                match &shims.foreign {
                    Some(client) => client.closed().await,
                    None => std::future::pending().await,
                }
            };
            let logs = async {
                engine.clone().follow_logs(shims.own.clone(), sandbox.clone()).await;
                std::future::pending::<()>().await
            };
            // All only wait.
            tokio::select! {
                () = shims.own.closed() => {}
                () = foreign => {}
                () = logs => {}
            }
            // The cleanup is an act of its own: it must not stop halfway when the runtime closes.
            let (acting, dead) = (engine.clone(), sandbox.clone());
            engine.tasks.spawn(async move { acting.shim_died(&dead).await });
        });
    }

    /// Ends what a dead shim's sandbox still runs and tells so.
    pub(crate) async fn shim_died(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        if sandbox.shims().is_err() {
            // We ended it ourselves.
            return;
        }
        let was_ready = sandbox.is_ready();
        tracing::warn!(sandbox = %sandbox.id, "the shim died; its containers are killed and the pod is made again");
        if let Err(error) = sandbox.change(&self.layout, |record| record.phase = SandboxPhase::NotReady) {
            tracing::warn!(sandbox = %sandbox.id, error = %chain(&error), "record not written");
        }
        sandbox.set_shims(None);
        // Before the turn below: a stop that has the turn waits for these ends.
        for container in self.containers_of(&sandbox.id) {
            self.lose_container(&container, "the shim that watched this container died").await;
        }
        if was_ready {
            self.tell_sandbox(ContainerEventType::ContainerStoppedEvent, sandbox);
        }
        let _act = sandbox.operation.lock().await;
        for error in self.give_back_sandbox(sandbox).await {
            tracing::warn!(sandbox = %sandbox.id, error = %chain(&error), "a dead shim's sandbox was not all given back");
        }
    }

    /// Ends the shim behind `client` and everything it still runs. One that is gone already is success.
    pub(crate) async fn end_shim(&self, id: &str, client: &ShimClient) -> Result<(), ServiceError> {
        let request = task::ShutdownRequest { id: id.to_owned(), now: true };
        match client.call::<method::Shutdown>(&request, SHUTDOWN_BOUND).await {
            Ok(_) | Err(ShimError::Gone { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // Its end closes the connection; until then it may still write records into folders we are removing.
        let _ = tokio::time::timeout(SHUTDOWN_BOUND, client.closed()).await;
        Ok(())
    }
}
