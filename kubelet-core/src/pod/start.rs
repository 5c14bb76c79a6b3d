//! Starting one container: image, configuration, create, start, postStart hook.
//!
//! Called by `execute`. Follows the kubelet's `startContainer` (1.36): its events, its waiting reasons.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{ContainerConfig, CreateContainerRequest, PodSandboxConfig, StartContainerRequest};
use tokio::sync::watch;

use crate::api::{Container, Pod};
use crate::container_config::ImageRef;
use crate::events::{EventType, container_field_path};
use crate::hook;
use crate::image_pull::PullError;
use crate::pod::edges::{Node, StepError};
use crate::pod::execute::{Halt, Progress, Reporter};
use crate::pod::kill::{Order, kill_container};
use crate::pod::observation::{Instance, Observation};
use crate::pod::plan::KillReason;
use crate::pod::resize::Amounts;
use crate::pod::rpc::bounded;
use crate::pod::status::StartFailure;

/// Everything that starting a container of a pod needs.
pub(crate) struct Starting<'a> {
    pub(crate) node: &'a Node,
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) observed: &'a Observation,
    pub(crate) sandbox_id: Arc<str>,
    pub(crate) sandbox: &'a PodSandboxConfig,
    pub(crate) ips: &'a [String],
    pub(crate) report: &'a Reporter,
    pub(crate) halt: &'a Halt,
}

/// Why a start failed, and when to try again if that is known (since boot).
pub(crate) struct Failed {
    pub(crate) failure: StartFailure,
    pub(crate) retry_at: Option<Duration>,
}

impl From<StartFailure> for Failed {
    fn from(failure: StartFailure) -> Self {
        Self { failure, retry_at: None }
    }
}

/// How a start went, when it did not fail.
pub(crate) enum Started {
    /// It runs.
    Yes,
    /// The pod is to end; the container was not made.
    Halted,
}

impl Starting<'_> {
    /// Starts a container. A failure is told by event and is the container's waiting reason.
    pub(crate) async fn start(&self, container: &Container) -> Result<Started, Failed> {
        let image = tokio::select! {
            // Giving up waits for an image only gives up the wait.
            image = self.node.images.ensure(self.pod, container, self.sandbox) => image,
            () = self.halt.requested() => return Ok(Started::Halted),
        };
        let image = image.map_err(not_pulled)?;
        let volumes = tokio::select! {
            volumes = self.image_volumes(container) => volumes?,
            () = self.halt.requested() => return Ok(Started::Halted),
        };
        let id = {
            let permit = tokio::select! {
                permit = self.node.starts.acquire() => permit,
                () = self.halt.requested() => return Ok(Started::Halted),
            };
            let _permit = permit.expect("invariant: the semaphore is never closed");
            let id = self.create(container, &image, &volumes).await?;
            self.run(container, &id).await?;
            id
        };
        self.post_start(container, &id).await?;
        Ok(Started::Yes)
    }

    /// The images that the container mounts as volumes, by their references; pulled as their policies say.
    async fn image_volumes(&self, container: &Container) -> Result<HashMap<String, ImageRef>, Failed> {
        let mut images = HashMap::new();
        for mount in &container.volume_mounts {
            let volume = self.pod.spec.volumes.iter().find(|volume| volume.name == mount.name);
            let Some(source) = volume.and_then(|volume| volume.image.as_deref()) else { continue };
            let wish = Container {
                name: container.name.clone(),
                image: source.reference.clone(),
                image_pull_policy: source.pull_policy.clone(),
                ..Container::default()
            };
            let image = self.node.images.ensure(self.pod, &wish, self.sandbox).await.map_err(not_pulled)?;
            images.insert(source.reference.clone(), image);
        }
        Ok(images)
    }

    async fn create(
        &self,
        container: &Container,
        image: &ImageRef,
        volumes: &HashMap<String, ImageRef>,
    ) -> Result<Arc<str>, StartFailure> {
        let attempt = match self.observed.latest(&container.name) {
            Some(last) => last.restart_count.saturating_add(1),
            None => attempt_of_logs(&Path::new(&self.sandbox.log_directory).join(&container.name)).await,
        };
        let ips: Vec<IpAddr> = self.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
        let name = &container.name;
        let resources = &self.node.resources;
        let config = resources.container_config(self.pod, name, attempt, image, &ips).await;
        let mut config = config.map_err(|StepError { message, .. }| {
            self.failed(container, "", "CreateContainerConfigError", message)
        })?;
        self.set_target(container, &mut config)?;
        for image in config.mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
            if let Some(volume) = volumes.get(&image.user_specified_image) {
                image.image = volume.id.clone();
            }
        }
        let log_path = config.log_path.clone();
        let request = CreateContainerRequest {
            pod_sandbox_id: self.sandbox_id.to_string(),
            config: Some(config),
            sandbox_config: Some(self.sandbox.clone()),
        };
        let call = self.node.runtime.create_container(request);
        let answer = bounded("CreateContainer", self.node.deadlines.call, call).await;
        let id: Arc<str> = match answer {
            Ok(answer) => Arc::from(answer.container_id),
            Err(status) => {
                // The container may have been made all the same.
                self.report.send(Progress::Relist);
                return Err(self.failed(container, "", "CreateContainerError", status.message().to_owned()));
            }
        };
        self.report.send(Progress::Created {
            id: id.clone(),
            sandbox_id: self.sandbox_id.clone(),
            amounts: Amounts::of(self.pod, container),
        });
        self.event(container, &id, EventType::Normal, "Created", "Container created");
        self.link_log(container, &id, &log_path).await;
        Ok(id)
    }

    async fn run(&self, container: &Container, id: &Arc<str>) -> Result<(), StartFailure> {
        let request = StartContainerRequest { container_id: id.to_string() };
        let call = self.node.runtime.start_container(request);
        if let Err(status) = bounded("StartContainer", self.node.deadlines.call, call).await {
            return Err(self.failed(container, id, "RunContainerError", status.message().to_owned()));
        }
        self.event(container, id, EventType::Normal, "Started", "Container started");
        self.report.send(Progress::Started { name: container.name.clone() });
        Ok(())
    }

    async fn post_start(&self, container: &Container, id: &Arc<str>) -> Result<(), StartFailure> {
        let Some(post_start) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_deref()) else {
            return Ok(());
        };
        let pod_ip = self.ips.first().map(String::as_str);
        let hook = hook::run(self.node, self.pod, container, id, post_start, pod_ip);
        let result = tokio::select! {
            result = hook => result,
            // The pod is to end: its containers are killed next, whatever the hook still does.
            () = self.halt.requested() => return Ok(()),
        };
        let Err(error) = result else { return Ok(()) };
        self.log_hook(container, &error);
        self.event(container, id, EventType::Warning, "FailedPostStartHook", "PostStartHook failed");
        let instance = Instance { id: id.clone(), name: container.name.clone(), ..Instance::default() };
        let message = "FailedPostStartHook";
        let order = Order { instance: &instance, message, reason: KillReason::Other, pod_ip };
        // Nobody shortens the grace period of a single container.
        let mut limit = watch::channel(None).1;
        if let Err(status) = kill_container(self.node, self.pod, &order, None, None, &mut limit).await {
            tracing::warn!(pod = %self.pod.full_name(), container = %container.name, error = %status, "could not kill container");
        }
        let message = hook::failure_text(self.pod, container, post_start, &error);
        Err(StartFailure { reason: "PostStartHookError".to_owned(), message })
    }

    fn log_hook(&self, container: &Container, error: &hook::HookError) {
        let error = error as &dyn std::error::Error;
        tracing::warn!(pod = %self.pod.full_name(), container = %container.name, error, "postStart hook failed");
    }

    /// The namespace of an ephemeral container's target.
    fn set_target(&self, container: &Container, config: &mut ContainerConfig) -> Result<(), StartFailure> {
        let target = &container.target_container_name;
        if target.is_empty() {
            return Ok(());
        }
        let Some(instance) = self.observed.latest(target) else {
            let message = format!("unable to find target container {target}");
            return Err(self.failed(container, "", "CreateContainerConfigError", message));
        };
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        let options = security.namespace_options.get_or_insert_default();
        options.set_pid(coracle_cri::v1::NamespaceMode::Target);
        options.target_id = instance.id.to_string();
        Ok(())
    }

    /// `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`, where log collectors look.
    async fn link_log(&self, container: &Container, id: &str, log_path: &str) {
        let Some(folder) = &self.node.log_links else { return };
        let log = Path::new(&self.sandbox.log_directory).join(log_path);
        let metadata = &self.pod.metadata;
        // Names longer than a file name may be are cut before the id, as the kubelet cuts them.
        let mut stem = format!("{}_{}_{}", metadata.name, metadata.namespace, container.name);
        stem.truncate((251_usize).saturating_sub(id.len() + 1));
        let link = folder.join(format!("{stem}-{id}.log"));
        match tokio::fs::symlink(&log, &link).await {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                tracing::warn!(link = %link.display(), %error, "could not link container log");
            }
            _ => {}
        }
    }

    fn failed(&self, container: &Container, id: &str, reason: &str, message: String) -> StartFailure {
        self.event(container, id, EventType::Warning, "Failed", &format!("Error: {message}"));
        StartFailure { reason: reason.to_owned(), message }
    }

    fn event(&self, container: &Container, id: &str, r#type: EventType, reason: &str, message: &str) {
        // An id would make every event a new one.
        let message = if id.is_empty() { message.to_owned() } else { message.replace(id, &container.name) };
        let path = container_field_path(self.pod, &container.name);
        self.node.events.pod(self.pod, Some(&path), r#type, reason, message);
    }
}

fn not_pulled(error: PullError) -> Failed {
    let PullError { reason, message, retry_at } = error;
    // Until then another try would only be told to back off again.
    let retry_at = retry_at.filter(|_| reason == "ImagePullBackOff");
    Failed { failure: StartFailure { reason: reason.to_owned(), message }, retry_at }
}

/// `name_namespace(uid)`, as the kubelet names a pod in its texts.
pub(crate) fn describe(pod: &Pod) -> String {
    format!("{}_{}({})", pod.metadata.name, pod.metadata.namespace, pod.metadata.uid)
}

/// One more than the newest log of the container says, for a runtime that forgot its containers.
async fn attempt_of_logs(folder: &Path) -> u32 {
    let Ok(mut entries) = tokio::fs::read_dir(folder).await else { return 0 };
    let mut attempt = 0;
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name();
        let number =
            name.to_str().and_then(|n| n.split_once(".log")).and_then(|(n, _)| n.parse::<u32>().ok());
        if let Some(number) = number {
            attempt = attempt.max(number.saturating_add(1));
        }
    }
    attempt
}
