//! Ending a sandbox: its containers are killed, its network, namespaces and mounts given back, its files
//! removed. Every step is idempotent, goes on after an error, and all errors are told together.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::ContainerEventType;

use super::{Sandbox, files};
use crate::netns;
use crate::record::SandboxPhase;
use crate::service::Engine;
use crate::service_error::ServiceError;
use crate::shim_client::ShimClient;

impl Engine {
    /// Stops a sandbox and everything in it at once.
    pub(crate) async fn stop_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), ServiceError> {
        let _act = sandbox.operation.lock().await;
        let was_ready = sandbox.is_ready();
        // The intent first: what is given back below must never be found as ready.
        sandbox.change(&self.layout, |record| record.phase = SandboxPhase::NotReady)?;
        let stops = self.containers_of(&sandbox.id).into_iter().map(|container| {
            let engine = self.clone();
            async move { engine.stop_container(&container, Duration::ZERO).await }
        });
        let mut errors: Vec<ServiceError> =
            futures_util::future::join_all(stops).await.into_iter().filter_map(Result::err).collect();
        errors.extend(self.give_back_sandbox(sandbox).await);
        if was_ready {
            self.tell_sandbox(ContainerEventType::ContainerStoppedEvent, sandbox);
        }
        ServiceError::all(errors)
    }

    /// Removes a stopped or running sandbox with its containers.
    pub(crate) async fn remove_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), ServiceError> {
        self.stop_sandbox(sandbox).await?;
        for container in self.containers_of(&sandbox.id) {
            self.remove_container(&container).await?;
        }
        let _act = sandbox.operation.lock().await;
        ServiceError::all(self.demolish_sandbox(sandbox).await)?;
        self.tell_sandbox(ContainerEventType::ContainerDeletedEvent, sandbox);
        self.index().sandboxes.remove(&sandbox.id);
        self.release_name(&sandbox.reserved_name(), &sandbox.id);
        Ok(())
    }

    /// Gives back all that a sandbox holds outside its own folder.
    pub(crate) async fn give_back_sandbox(&self, sandbox: &Sandbox) -> Vec<ServiceError> {
        let mut errors = Vec::new();
        if let Err(error) = self.end_holder(sandbox).await {
            errors.push(error);
        }
        errors.extend(self.cni.detach(&sandbox.id).await.into_iter().map(ServiceError::from));
        errors.extend(netns::remove(&self.layout.pins(&sandbox.id)).into_iter().map(ServiceError::from));
        if let Err(error) = files::unmount_shm(&self.layout.shm(&sandbox.id)) {
            errors.push(error);
        }
        let socket = self.layout.shim_socket(&sandbox.id);
        // One that we started and lost before it was recorded still listens on its socket.
        let client = match sandbox.shim() {
            Ok(client) => Some(client),
            Err(_) if socket.exists() => ShimClient::connect(&socket).await.ok(),
            Err(_) => None,
        };
        // From here on the end of the connection is no news.
        sandbox.set_shims(None);
        // Before ours, which takes its events.
        if let Err(error) = self.end_foreign(&sandbox.id).await {
            errors.push(error);
        }
        if let Some(client) = client
            && let Err(error) = self.end_shim(&sandbox.id, &client).await
        {
            errors.push(error);
        }
        remove_file(&socket, &mut errors);
        errors
    }

    /// Takes a sandbox away, its folder and record last. Nothing of it may be in use any more.
    pub(crate) async fn demolish_sandbox(&self, sandbox: &Sandbox) -> Vec<ServiceError> {
        let mut errors = self.give_back_sandbox(sandbox).await;
        let (owns_cgroup, parent) = (sandbox.record().owns_cgroup, sandbox.cgroup_parent());
        if owns_cgroup {
            // Its maker may have put a cgroup of its own pods below meanwhile; then it stays.
            let path = self.cgroups.parent_path(&parent);
            if self.cgroups.members(&path).is_empty()
                && self.cgroups.children(&path).is_empty()
                && let Err(error) = self.cgroups.remove(&path).await
            {
                errors.push(error.into());
            }
        }
        self.cgroups.forget_unified(&self.cgroups.parent_path(&parent));
        if errors.is_empty() {
            let dir = self.layout.sandbox(&sandbox.id);
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    errors.push(ServiceError::file("remove", dir)(error));
                }
                _ => {}
            }
        }
        errors
    }
}

fn remove_file(path: &std::path::Path, errors: &mut Vec<ServiceError>) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            errors.push(ServiceError::file("remove", path)(error));
        }
        _ => {}
    }
}
