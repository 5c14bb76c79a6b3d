//! The status of each container of a pod: waiting, running or terminated, and how it ended before.
//!
//! Called by `status`; pure. Follows the kubelet's `convertToAPIContainerStatuses` and the prober's
//! `UpdatePodStatus` (1.36).

use super::resources::actual;
use super::{Inputs, MESSAGE_BYTES_OF_POD, NOT_LOCATED, RESTARTING_ALL, STATUS_UNKNOWN};
use crate::api::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, Time, VolumeMountStatus,
};
use crate::pod::observation::{ContainerPhase, Instance};
use crate::pod::plan::any_regular_created;
use crate::pod::restart;
use crate::probe::ProbeKind;

const GONE_WHILE_DELETED: &str =
    "The container could not be located when the pod was deleted.  The container used to be Running";
const INIT_INFERRED: &str = "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally";
const RESTART_ALL_MESSAGE: &str = "The container is removed because RestartAllContainers in place";

/// Statuses of the regular containers, sorted by name.
pub(super) fn regular(inputs: &Inputs<'_>) -> Vec<ContainerStatus> {
    let old = inputs.old.map_or(&[][..], |o| &o.container_statuses);
    let mut statuses = convert(inputs, &inputs.pod.spec.containers, old, false);
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    for status in &mut statuses {
        let container = inputs.pod.container(&status.name);
        set_started_and_ready(inputs, container, old, status);
    }
    statuses
}

/// Statuses of the init containers, in their order.
pub(super) fn init(inputs: &Inputs<'_>) -> Vec<ContainerStatus> {
    let old = inputs.old.map_or(&[][..], |o| &o.init_container_statuses);
    let mut statuses = convert(inputs, &inputs.pod.spec.init_containers, old, true);
    for (status, container) in statuses.iter_mut().zip(&inputs.pod.spec.init_containers) {
        if container.is_restartable_init() {
            set_started_and_ready(inputs, Some(container), old, status);
        } else {
            status.started = Some(is_started(inputs, Some(container), old, status));
            status.ready = status.state.terminated.as_ref().is_some_and(|t| t.exit_code == 0);
        }
    }
    statuses
}

/// Statuses of the ephemeral containers, sorted by name.
pub(super) fn ephemeral(inputs: &Inputs<'_>) -> Vec<ContainerStatus> {
    let old = inputs.old.map_or(&[][..], |o| &o.ephemeral_container_statuses);
    let mut statuses = convert(inputs, &inputs.pod.spec.ephemeral_containers, old, false);
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    statuses
}

fn convert(
    inputs: &Inputs<'_>,
    containers: &[Container],
    old: &[ContainerStatus],
    is_init: bool,
) -> Vec<ContainerStatus> {
    let mut statuses = Vec::with_capacity(containers.len());
    for container in containers {
        let old = old.iter().find(|status| status.name == container.name);
        let mut instances = inputs.observed.containers.iter().filter(|c| c.name == container.name);
        let mut status = match instances.next() {
            None => without_instance(inputs, container, old),
            Some(newest) => {
                let mut status = of_instance(inputs, container, newest, old);
                if newest.phase == ContainerPhase::Created {
                    // A kubelet hardly ever looks between making and starting; events of the runtime make us look.
                    status.state = blank(inputs, container).state;
                }
                if let Some(before) = instances.next() {
                    status.last_state = of_instance(inputs, container, before, old).state;
                }
                status
            }
        };
        apply_failure(inputs, container, is_init, &mut status);
        limit_messages(inputs, &mut status);
        statuses.push(status);
    }
    statuses
}

fn blank(inputs: &Inputs<'_>, container: &Container) -> ContainerStatus {
    let initializing = !inputs.pod.spec.init_containers.is_empty();
    let reason = if initializing { "PodInitializing" } else { "ContainerCreating" };
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone(),
        state: waiting(reason, ""),
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    }
}

/// The runtime knows nothing of the container: it was never made, or its record is gone.
fn without_instance(
    inputs: &Inputs<'_>,
    container: &Container,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let mut status = blank(inputs, container);
    let Some(old) = old else { return status };
    if old.state.terminated.is_some() && !inputs.restarting_all {
        return old.clone();
    }
    status.restart_count = old.restart_count;
    status.last_state = old.last_state.clone();
    if inputs.restarting_all && old.state.waiting.is_none() {
        status.state = waiting(RESTARTING_ALL, RESTART_ALL_MESSAGE);
        status.last_state = lost(RESTARTING_ALL, RESTART_ALL_MESSAGE);
        status.restart_count = old.restart_count + 1;
    } else if old.state.running.is_some() && status.last_state.terminated.is_none() {
        // It ran and left no trace: without an end of some kind the pod would look as if it had never run.
        status.last_state = lost(STATUS_UNKNOWN, GONE_WHILE_DELETED);
        if inputs.pod.metadata.deletion_timestamp.is_none() {
            status.restart_count += 1;
        }
    }
    status
}

fn of_instance(
    inputs: &Inputs<'_>,
    container: &Container,
    instance: &Instance,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let container_id = format!("{}://{}", inputs.node.runtime_name, instance.id);
    let mut status = ContainerStatus {
        name: instance.name.clone(),
        restart_count: i32::try_from(instance.restart_count).unwrap_or(i32::MAX),
        image: instance.image.clone(),
        image_id: instance.image_ref.clone(),
        volume_mounts: volume_mounts(container),
        allocated_resources: container.resources.requests.clone(),
        user: instance.user.as_ref().map(|(uid, gid, groups)| {
            let linux = LinuxContainerUser { uid: *uid, gid: *gid, supplemental_groups: groups.clone() };
            Box::new(ContainerUser { linux: Some(Box::new(linux)) })
        }),
        ..ContainerStatus::default()
    };
    // Also when it is empty: so it says that the node knows of resources.
    status.resources = Some(Box::new(actual(inputs, container, instance)));
    if let Some(old) = old {
        status.restart_count = status.restart_count.max(old.restart_count);
        status.last_state.terminated = if old.container_id != container_id && old.state.terminated.is_some() {
            old.state.terminated.clone()
        } else {
            old.last_state.terminated.clone()
        };
    }
    set_state(instance, old, &container_id, &mut status);
    status.container_id = container_id;
    status
}

fn set_state(instance: &Instance, old: Option<&ContainerStatus>, id: &str, status: &mut ContainerStatus) {
    match instance.phase {
        ContainerPhase::Running => {
            let started_at = Time::from_unix_nanos(instance.started_nanos);
            status.state.running = Some(Box::new(ContainerStateRunning { started_at }));
            let count = i32::try_from(instance.restart_count).unwrap_or(i32::MAX);
            if let Some(old) = old.filter(|o| o.state.terminated.is_some() && o.restart_count >= count) {
                status.restart_count = old.restart_count.saturating_add(1);
            }
        }
        ContainerPhase::Created => status.state = waiting("", ""),
        ContainerPhase::Exited => {
            status.state.terminated = Some(Box::new(ContainerStateTerminated {
                exit_code: instance.exit_code,
                reason: instance.reason.clone(),
                message: instance.message.clone(),
                started_at: Time::from_unix_nanos(instance.started_nanos),
                finished_at: Time::from_unix_nanos(instance.finished_nanos),
                container_id: id.to_owned(),
                ..ContainerStateTerminated::default()
            }));
        }
        ContainerPhase::Unknown => match old.filter(|o| o.state.running.is_some()) {
            Some(old) => {
                status.state = lost(STATUS_UNKNOWN, NOT_LOCATED);
                status.restart_count = old.restart_count.saturating_add(1);
            }
            None => status.state = waiting("", ""),
        },
    }
}

/// A container that should start and could not, waits with the reason.
fn apply_failure(inputs: &Inputs<'_>, container: &Container, is_init: bool, status: &mut ContainerStatus) {
    let latest = inputs.observed.latest(&container.name);
    if is_init {
        if latest.is_some_and(|last| last.phase == ContainerPhase::Exited && last.exit_code == 0) {
            return;
        }
        // An init container whose record is gone has done its work if the pod went on.
        let inferred = latest.is_none()
            && !container.is_restartable_init()
            && status.state.waiting.is_some()
            && any_regular_created(inputs.pod, inputs.observed);
        if inferred {
            status.state = terminated("Completed", INIT_INFERRED, 0);
            return;
        }
    }
    if !restart::should_start(container, inputs.pod, inputs.observed) {
        return;
    }
    let Some(failure) = inputs.failures.get(&container.name) else { return };
    if status.state.terminated.is_some() {
        status.last_state = std::mem::take(&mut status.state);
    }
    status.state = waiting(&failure.reason, &failure.message);
}

fn set_started_and_ready(
    inputs: &Inputs<'_>,
    container: Option<&Container>,
    old: &[ContainerStatus],
    status: &mut ContainerStatus,
) {
    let started = is_started(inputs, container, old, status);
    status.started = Some(started);
    let has_probe = container.is_some_and(|c| c.readiness_probe.is_some());
    let passed = || inputs.probes.get(status.bare_id(), ProbeKind::Readiness) == Some(true);
    status.ready = started && (!has_probe || passed());
}

fn is_started(
    inputs: &Inputs<'_>,
    container: Option<&Container>,
    old: &[ContainerStatus],
    status: &ContainerStatus,
) -> bool {
    if status.state.running.is_none() {
        return false;
    }
    if container.is_none_or(|c| c.startup_probe.is_none()) {
        return true;
    }
    if let Some(result) = inputs.probes.get(status.bare_id(), ProbeKind::Startup) {
        return result;
    }
    let same = old.iter().find(|o| o.name == status.name && o.container_id == status.container_id);
    same.is_some_and(|o| o.started == Some(true))
}

fn limit_messages(inputs: &Inputs<'_>, status: &mut ContainerStatus) {
    let limit = MESSAGE_BYTES_OF_POD / inputs.pod.all_containers().count().max(1);
    for state in [&mut status.state, &mut status.last_state] {
        if let Some(ended) = state.terminated.as_mut().filter(|t| t.message.len() > limit) {
            let end = (0..=limit).rev().find(|at| ended.message.is_char_boundary(*at)).unwrap_or(0);
            ended.message.truncate(end);
        }
    }
}

fn volume_mounts(container: &Container) -> Vec<VolumeMountStatus> {
    let mounts = container.volume_mounts.iter().map(|mount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only,
        recursive_read_only: mount.read_only.then(|| match mount.recursive_read_only.as_deref() {
            Some("Enabled") => "Enabled".to_owned(),
            _ => "Disabled".to_owned(),
        }),
    });
    mounts.collect()
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: reason.to_owned(), message: message.to_owned() };
    ContainerState { waiting: Some(Box::new(waiting)), ..ContainerState::default() }
}

fn lost(reason: &str, message: &str) -> ContainerState {
    terminated(reason, message, 137)
}

fn terminated(reason: &str, message: &str, exit_code: i32) -> ContainerState {
    let ended = ContainerStateTerminated {
        reason: reason.to_owned(),
        message: message.to_owned(),
        exit_code,
        ..ContainerStateTerminated::default()
    };
    ContainerState { terminated: Some(Box::new(ended)), ..ContainerState::default() }
}
