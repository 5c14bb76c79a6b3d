//! Creating a container: record first, then image, layer, root and bundle. Nothing runs yet.
//!
//! Runs as one whole task per call. Whatever fails, everything made is given back before the error is told.

use std::fs;
use std::sync::Arc;

use coracle_cri::v1::{self, ContainerEventType};

use super::overlay::{self, Overlay};
use super::{Container, reserved_name};
use crate::image::Image;
use crate::record::{ContainerPhase, ContainerRecord};
use crate::sandbox::check::check_log_path;
use crate::sandbox::{self, Sandbox};
use crate::service::{Engine, new_id, wall_ns};
use crate::service_error::{ServiceError, chain};
use crate::spec;

impl Engine {
    /// Creates a container in a ready sandbox and answers its id.
    pub(crate) async fn create_container(
        self: &Arc<Self>,
        sandbox_id: &str,
        config: v1::ContainerConfig,
    ) -> Result<String, ServiceError> {
        let sandbox = self.sandbox(sandbox_id)?;
        if !sandbox.is_ready() {
            return Err(ServiceError::SandboxNotReady { id: sandbox.id.clone() });
        }
        if config.metadata.is_none() {
            return Err(ServiceError::Missing { field: "metadata of the container" });
        }
        check_log_path(&config.log_path).map_err(|what| ServiceError::Invalid { what })?;
        let wanted = config.image.clone().unwrap_or_default().image;
        let image = self.images.resolve(&wanted).ok_or(ServiceError::NoImage { name: wanted })?;
        let id = new_id()?;
        let name = reserved_name(&config, &sandbox.record().config);
        self.reserve_name(&name, &id)?;
        let mut record = ContainerRecord::new(id.clone(), sandbox.id.clone(), config, wall_ns());
        record.image_id = image.id.clone();
        record.image_ref = image.repo_digests.first().unwrap_or(&image.id).clone();
        record.log_path = log_path(&sandbox.record().config, &record.config);
        record.stop_signal =
            crate::spec::signal::stop_signal(record.config.stop_signal(), &image.config.stop_signal);
        let container = Arc::new(Container::new(record));
        // The turn first, so that a removal of the pod that sees this container waits until it is made.
        let act = container.operation.lock().await;
        self.index().containers.insert(id.clone(), container.clone());
        // A stop says "not ready" before it looks for containers: either it sees this one, or we see that.
        let made = match sandbox.is_ready() {
            true => self.make_container(&sandbox, &container, &image).await,
            false => Err(ServiceError::SandboxNotReady { id: sandbox.id.clone() }),
        };
        if let Err(error) = made {
            for error in self.demolish_container(&container).await {
                tracing::warn!(container = %id, error = %chain(&error), "what a failed container held was not all given back");
            }
            drop(act);
            self.index().containers.remove(&id);
            self.release_name(&name, &id);
            return Err(error);
        }
        drop(act);
        self.tell(ContainerEventType::ContainerCreatedEvent, &container);
        Ok(id)
    }

    async fn make_container(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        container: &Arc<Container>,
        image: &Image,
    ) -> Result<(), ServiceError> {
        let id = &container.id;
        let bundle = self.layout.bundle(id);
        fs::create_dir(&bundle).map_err(ServiceError::file("create", &bundle))?;
        container.change(&self.layout, |_| {})?;
        self.images
            .hold(id, &image.id)
            .map_err(|source| ServiceError::Image { name: image.id.clone(), source: Box::new(source) })?;
        let layer = self.layout.layer(id);
        let overlay = Overlay {
            lower: image.lower_dirs.clone(),
            upper: layer.join("upper"),
            work: layer.join(overlay::WORK),
            target: self.layout.rootfs(id),
            label: spec::file_label(&container.record().config, &self.host),
        };
        for dir in [&layer, &overlay.upper, &overlay.work, &overlay.target] {
            fs::create_dir(dir).map_err(ServiceError::file("create", dir))?;
        }
        let target = overlay.target.clone();
        let pod = sandbox.record().config.clone();
        let mounted = match sandbox::user_mapping(&pod).map_err(|what| ServiceError::Invalid { what })? {
            None => overlay.mount(bundle.join("lower")).await,
            Some(mapping) => {
                let userns = self.layout.pins(&sandbox.id).join("user");
                overlay.mount_mapped(bundle.join("lower"), userns, mapping).await
            }
        };
        mounted.map_err(ServiceError::file("mount", target))?;
        let made = self.container_spec(sandbox, container, image).await?;
        self.write_spec(container, &made.spec)?;
        container.change(&self.layout, |record| {
            record.uid = made.user.uid;
            record.gid = made.user.gid;
            record.groups = made.user.additional_gids;
            record.phase = ContainerPhase::Created;
        })?;
        Ok(())
    }
}

/// Where the shim writes the log; empty when the pod wants none.
fn log_path(sandbox: &v1::PodSandboxConfig, config: &v1::ContainerConfig) -> String {
    if sandbox.log_directory.is_empty() || config.log_path.is_empty() {
        return String::new();
    }
    format!("{}/{}", sandbox.log_directory.trim_end_matches('/'), config.log_path.trim_start_matches('/'))
}
