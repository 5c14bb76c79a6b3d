//! What requests do to the state of the fake, with containerd's refusals and their texts.
//!
//! Called under the fake's lock; only log files touch the disk, and only when a test asks for them.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tonic::Status;

use super::images;
use super::script::{Exit, Script};
use super::state::{Container, Sandbox, State};
use super::stats::labels_match;
use crate::v1::{self, *};

pub(super) fn run_sandbox(state: &mut State, request: RunPodSandboxRequest) -> Result<String, Status> {
    let config = request.config.unwrap_or_default();
    let Some(metadata) = config.metadata.as_ref() else {
        return Err(Status::unknown("sandbox config must include metadata"));
    };
    if let Some(holder) = state.sandboxes.values().find(|s| s.config.metadata.as_ref() == Some(metadata)) {
        let name = format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt);
        let holder = &holder.id;
        return Err(Status::unknown(format!(
            "failed to reserve sandbox name \"{name}\": name \"{name}\" is reserved for \"{holder}\""
        )));
    }
    let pod = metadata.name.clone();
    let id = state.next_id();
    let default_ip = format!("10.244.{}.{}", state.serial / 250, state.serial % 250 + 2);
    let mut sandbox = Sandbox {
        id: id.clone(),
        config,
        runtime_handler: request.runtime_handler,
        state: PodSandboxState::SandboxReady,
        created_at: state.creation_time(),
        ips: Vec::new(),
        resources: None,
    };
    if !sandbox.host_network() {
        sandbox.ips = state.pod_ips.get(&pod).cloned().unwrap_or_else(|| vec![default_ip]);
    }
    state.sandboxes.insert(id.clone(), sandbox);
    state.emit(&id, &id, ContainerEventType::ContainerCreatedEvent);
    state.emit(&id, &id, ContainerEventType::ContainerStartedEvent);
    Ok(id)
}

pub(super) fn create_container(state: &mut State, request: CreateContainerRequest) -> Result<String, Status> {
    let config = request.config.ok_or_else(|| Status::unknown("container config must include metadata"))?;
    let sandbox = state.sandboxes.get(&request.pod_sandbox_id).ok_or_else(|| {
        Status::not_found(format!("failed to find sandbox id \"{}\": not found", request.pod_sandbox_id))
    })?;
    if sandbox.state != PodSandboxState::SandboxReady {
        return Err(not_running(&sandbox.id));
    }
    let (sandbox_id, pod) = (sandbox.id.clone(), sandbox.pod().to_owned());
    let given = request.sandbox_config.as_ref().unwrap_or(&sandbox.config);
    let log_path = Path::new(&given.log_directory).join(&config.log_path);
    let log_path = if config.log_path.is_empty() { String::new() } else { log_path.display().to_string() };
    let reserved_name = reserve_container_name(state, &config, given)?;
    let reference = config.image.as_ref().map_or("", |image| &image.image);
    let image = state
        .images
        .resolve(reference)
        .ok_or_else(|| Status::not_found(format!("failed to resolve image \"{reference}\": not found")))?;
    let image_id = image.id.clone();
    let script = next_script(state, &config, &pod, &image_id);
    let id = state.next_id();
    let container = Container {
        id: id.clone(),
        sandbox_id: sandbox_id.clone(),
        pod,
        reserved_name,
        image_id,
        log_path,
        state: ContainerState::ContainerCreated,
        created_at: state.creation_time(),
        started_at: 0,
        finished_at: 0,
        exit: Exit::default(),
        resources: config.linux.as_ref().and_then(|linux| linux.resources.clone()),
        config,
        log_reopened: 0,
        script,
        ended: watch::Sender::new(false),
        timer: None,
    };
    state.containers.insert(id.clone(), container);
    state.emit(&id, &sandbox_id, ContainerEventType::ContainerCreatedEvent);
    Ok(id)
}

/// containerd's name of a container, which no other container may have.
fn reserve_container_name(
    state: &State,
    config: &ContainerConfig,
    sandbox: &PodSandboxConfig,
) -> Result<String, Status> {
    let metadata =
        config.metadata.as_ref().ok_or_else(|| Status::unknown("container config must include metadata"))?;
    let pod = sandbox
        .metadata
        .as_ref()
        .ok_or_else(|| Status::unknown("pod sandbox config must include metadata"))?;
    let (name, attempt) = (&metadata.name, metadata.attempt);
    let reserved = format!("{name}_{}_{}_{}_{attempt}", pod.name, pod.namespace, pod.uid);
    match state.containers.values().find(|container| container.reserved_name == reserved) {
        Some(holder) => Err(Status::unknown(format!(
            "failed to reserve container name \"{reserved}\"; check if another CreateContainer request is in \
             progress: name \"{reserved}\" is reserved for \"{}\"",
            holder.id
        ))),
        None => Ok(reserved),
    }
}

fn next_script(state: &mut State, config: &ContainerConfig, pod: &str, image_id: &str) -> Script {
    let name = config.metadata.as_ref().map_or("", |metadata| &metadata.name);
    let mut keys = vec![format!("{pod}/{name}"), name.to_owned()];
    if let Some(image) = &config.image {
        keys.extend(
            [&image.user_specified_image, &image.image].map(|reference| images::normalize(reference)),
        );
    }
    keys.extend(state.images.resolve(image_id).map(|image| image.repo_tags.clone()).unwrap_or_default());
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    state.scripts.next(&keys).unwrap_or_else(Script::runs)
}

/// Starts a container; what is to become of it by itself.
pub(super) fn start_container(state: &mut State, id: &str) -> Result<Option<(Duration, Exit)>, Status> {
    let (now, creates) = (state.clock.unix_nanos(), state.creates_log_files);
    let sandbox_id = state.container(id)?.sandbox_id.clone();
    let ready = state.sandboxes.get(&sandbox_id).is_some_and(|s| s.state == PodSandboxState::SandboxReady);
    let container = state.container_mut(id)?;
    if container.state != ContainerState::ContainerCreated {
        let text = container.state.as_str_name();
        return Err(Status::unknown(format!(
            "failed to set starting state for container \"{id}\": container is in {text} state"
        )));
    }
    let log = if creates { create_log(&container.log_path) } else { Ok(()) };
    let refused = if ready { log.err() } else { Some(not_running(&sandbox_id)) };
    if let Some(status) = refused.or_else(|| container.script.start_error.take()) {
        container.state = ContainerState::ContainerExited;
        container.finished_at = now;
        container.exit = Exit::from(128).reason("StartError").message(status.message());
        container.ended.send_replace(true);
        return Err(status);
    }
    container.state = ContainerState::ContainerRunning;
    container.started_at = now;
    let exit = container.script.exit.clone();
    state.emit(id, &sandbox_id, ContainerEventType::ContainerStartedEvent);
    Ok(exit)
}

pub(super) fn running<'a>(state: &'a State, id: &str) -> Result<&'a Container, Status> {
    let container = state.container(id)?;
    if container.state == ContainerState::ContainerRunning {
        return Ok(container);
    }
    Err(Status::unknown(format!("container is in {} state", container.state.as_str_name())))
}

fn not_running(sandbox: &str) -> Status {
    Status::unknown(format!("sandbox container \"{sandbox}\" is not running"))
}

pub(super) fn create_log(path: &str) -> Result<(), Status> {
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
    opened.map(drop).map_err(|error| Status::unknown(format!("failed to create and open log file: {error}")))
}

/// Only what an update names replaces what is set; zero and empty mean "leave it".
pub(super) fn merge_resources(
    now: LinuxContainerResources,
    update: LinuxContainerResources,
) -> LinuxContainerResources {
    let number = |new: i64, old: i64| if new == 0 { old } else { new };
    let text = |new: String, old: String| if new.is_empty() { old } else { new };
    let mut unified = now.unified;
    unified.extend(update.unified);
    let hugepage_limits =
        if update.hugepage_limits.is_empty() { now.hugepage_limits } else { update.hugepage_limits };
    LinuxContainerResources {
        cpu_period: number(update.cpu_period, now.cpu_period),
        cpu_quota: number(update.cpu_quota, now.cpu_quota),
        cpu_shares: number(update.cpu_shares, now.cpu_shares),
        memory_limit_in_bytes: number(update.memory_limit_in_bytes, now.memory_limit_in_bytes),
        oom_score_adj: number(update.oom_score_adj, now.oom_score_adj),
        cpuset_cpus: text(update.cpuset_cpus, now.cpuset_cpus),
        cpuset_mems: text(update.cpuset_mems, now.cpuset_mems),
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes: number(update.memory_swap_limit_in_bytes, now.memory_swap_limit_in_bytes),
    }
}

pub(super) fn sandboxes(state: &State, filter: Option<&PodSandboxFilter>) -> Vec<PodSandbox> {
    let items = state.sandboxes.values().map(Sandbox::item);
    let Some(filter) = filter else { return items.collect() };
    items
        .filter(|item| filter.id.is_empty() || filter.id == item.id)
        .filter(|item| filter.state.is_none_or(|wanted| wanted.state == item.state))
        .filter(|item| labels_match(&filter.label_selector, &item.labels))
        .collect()
}

pub(super) fn containers(state: &State, filter: Option<&ContainerFilter>) -> Vec<v1::Container> {
    let items = state.containers.values().map(Container::item);
    let Some(filter) = filter else { return items.collect() };
    items
        .filter(|item| filter.id.is_empty() || filter.id == item.id)
        .filter(|item| filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == item.pod_sandbox_id)
        .filter(|item| filter.state.is_none_or(|wanted| wanted.state == item.state))
        .filter(|item| labels_match(&filter.label_selector, &item.labels))
        .collect()
}
