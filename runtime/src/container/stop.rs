//! Stopping and removing containers. Both are idempotent.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::ContainerEventType;
use coracle_shim::protocol::{Code, method, task};

use super::{Container, image_volumes, overlay};
use crate::record::ContainerPhase;
use crate::service::Engine;
use crate::service_error::{ServiceError, chain};
use crate::shim_client::{ShimClient, ShimError};

/// How long sending a signal may take: it runs the maker.
const SIGNAL_BOUND: Duration = Duration::from_secs(30);

/// How long processes may take to vanish after SIGKILL.
const KILL_SECONDS: u64 = 30;

const SIGKILL: u32 = 9;

impl Engine {
    /// Stops a container: its stop signal, SIGKILL after `grace`, and at last every process of its cgroup.
    ///
    /// Holds no lock while it waits, so that a second stop with a shorter grace overtakes the first.
    pub(crate) async fn stop_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        grace: Duration,
    ) -> Result<(), ServiceError> {
        container.settled().await;
        let (signal, running) = {
            let record = container.record();
            (record.stop_signal, matches!(record.phase, ContainerPhase::Running { .. }))
        };
        if !running {
            return Ok(());
        }
        let sandbox = self.sandbox(&container.sandbox_id)?;
        if let Ok(shim) = sandbox.tasks() {
            if !grace.is_zero() {
                self.signal(container, &shim, signal as u32, false).await?;
                if tokio::time::timeout(grace, container.ended()).await.is_ok() {
                    return Ok(());
                }
            }
            // A maker that cannot deliver even SIGKILL is replaced by the kernel below.
            if let Err(error) = self.signal(container, &shim, SIGKILL, true).await {
                tracing::warn!(container = %container.id, error = %chain(&error), "the shim could not kill");
            } else if tokio::time::timeout(Duration::from_secs(2), container.ended()).await.is_ok() {
                return Ok(());
            }
        }
        self.cgroups.kill(&self.container_cgroup(container, &sandbox)).await?;
        match tokio::time::timeout(Duration::from_secs(KILL_SECONDS), container.ended()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(ServiceError::Unkillable { id: container.id.clone(), seconds: KILL_SECONDS }),
        }
    }

    async fn signal(
        &self,
        container: &Container,
        shim: &ShimClient,
        signal: u32,
        all: bool,
    ) -> Result<(), ServiceError> {
        let request = task::KillRequest { id: container.id.clone(), signal, all, ..Default::default() };
        match shim.call::<method::Kill>(&request, SIGNAL_BOUND).await {
            // Ended meanwhile, or dead with its shim: both are told by the end of the container.
            Err(ShimError::Refused { code: Code::NotFound | Code::FailedPrecondition, .. })
            | Err(ShimError::Gone { .. }) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }

    /// Removes a container, killing it first when it runs; its writable layer goes, its log stays.
    pub(crate) async fn remove_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<(), ServiceError> {
        self.stop_container(container, Duration::ZERO).await?;
        let _act = container.operation.lock().await;
        if !self.index().containers.contains_key(&container.id) {
            return Ok(());
        }
        ServiceError::all(self.demolish_container(container).await)?;
        let name = self.container_name(container);
        self.index().containers.remove(&container.id);
        self.release_name(&name, &container.id);
        self.tell(ContainerEventType::ContainerDeletedEvent, container);
        Ok(())
    }

    /// Takes a container away, its record last. Nothing of it may run any more.
    pub(crate) async fn demolish_container(&self, container: &Container) -> Vec<ServiceError> {
        let mut errors = Vec::new();
        if let Ok(sandbox) = self.sandbox(&container.sandbox_id) {
            let cgroup = self.container_cgroup(container, &sandbox);
            let ended = match container.record().phase {
                // Its end took all of this away.
                ContainerPhase::Exited(_) => None,
                _ => Some(()),
            };
            let cleared = match ended {
                None => self.clear_task(&sandbox, &container.id, &cgroup).await,
                Some(()) => self.end_task(&sandbox, &container.id, &cgroup).await,
            };
            errors.extend(cleared.err());
        }
        let rootfs = self.layout.rootfs(&container.id);
        let links = self.layout.bundle(&container.id).join("lower");
        let unmounted = overlay::unmount_all(&rootfs)
            .and_then(|()| overlay::unmount_links(&links))
            .and_then(|()| image_volumes::unmount(&self.layout, &container.id));
        if let Err(error) = unmounted {
            errors.push(ServiceError::file("unmount", rootfs)(error));
            // Removing the folder would now empty the writable layer through the mount.
            return errors;
        }
        self.layer_usage.forget(&container.id);
        let layer = self.layout.layer(&container.id);
        errors.extend(empty_layer(layer.clone()).await.err());
        let mounts = container.record().config.mounts.clone();
        self.release_images(&container.id, &mounts).await;
        if let Err(error) = self.images.release(&container.id).await {
            tracing::warn!(container = %container.id, error = %chain(&error), "the image of a removed container stays");
        }
        if errors.is_empty() {
            errors.extend(remove_tree(self.layout.bundle(&container.id)).await.err());
            // Nobody waits for the empty folders that the kernel keeps below an overlay; the next start sweeps them too.
            let id = container.id.clone();
            self.tasks.spawn(async move {
                if let Err(error) = remove_tree(layer).await {
                    tracing::warn!(container = %id, error = %chain(&error), "folders of a removed container stay");
                }
            });
        }
        errors
    }

    pub(crate) fn container_name(&self, container: &Container) -> String {
        let sandbox = self.sandbox(&container.sandbox_id).map(|sandbox| sandbox.record().config.clone());
        super::reserved_name(&container.record().config, &sandbox.unwrap_or_default())
    }
}

/// Removes what a container wrote, and its image's volumes: all but the work folder of the overlay, five empty folders
/// whose removal takes a disk as long as everything else here. Idempotent.
async fn empty_layer(path: PathBuf) -> Result<(), ServiceError> {
    let layer = path.clone();
    let emptied = tokio::task::spawn_blocking(move || {
        for entry in fs::read_dir(&layer)? {
            let entry = entry?;
            if entry.file_name() != overlay::WORK {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    });
    match emptied.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ServiceError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a folder that may hold millions of files, off the async threads. Idempotent.
pub(crate) async fn remove_tree(path: PathBuf) -> Result<(), ServiceError> {
    let removed = path.clone();
    let result = tokio::task::spawn_blocking(move || fs::remove_dir_all(&removed)).await;
    match result.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ServiceError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}
