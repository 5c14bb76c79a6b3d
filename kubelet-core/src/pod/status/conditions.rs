//! The conditions of a pod that the node owns.
//!
//! Called by `status`; pure. Follows the kubelet's `status/generate.go` (1.36).

use super::{Inputs, is_terminal_phase};
use crate::api::{ContainerStatus, Pod, PodCondition, PodStatus};
use crate::pod::resize::{IN_PROGRESS, PENDING};
use crate::pod::restart;
use crate::pod::sandbox::sandbox_need;

const READY_TO_START: &str = "PodReadyToStartContainers";
const INITIALIZED: &str = "Initialized";
const READY: &str = "Ready";
const CONTAINERS_READY: &str = "ContainersReady";
const SCHEDULED: &str = "PodScheduled";
const RESTARTING: &str = "AllContainersRestarting";
const OWNED: [&str; 6] = [READY_TO_START, INITIALIZED, READY, CONTAINERS_READY, SCHEDULED, RESTARTING];

/// Told by whoever ends a pod for another reason than its own.
const DISRUPTION: &str = "DisruptionTarget";

/// Whether a node may write a condition if there is none: others write it too.
pub(crate) fn is_shared(r#type: &str) -> bool {
    r#type == DISRUPTION
}

/// Whether the node alone writes a condition.
pub(crate) fn is_owned(r#type: &str) -> bool {
    OWNED.contains(&r#type) || r#type == PENDING || r#type == IN_PROGRESS
}

/// All conditions, those of others first.
pub(super) fn conditions(inputs: &Inputs<'_>, status: &PodStatus) -> Vec<PodCondition> {
    let pod = inputs.pod;
    let foreign = pod.status.conditions.iter().filter(|c| !is_owned(&c.r#type));
    let mut all: Vec<PodCondition> = foreign.cloned().collect();
    if let Some(message) = inputs.eviction.and_then(|eviction| eviction.disruption.as_ref())
        && !all.iter().any(|condition| is_shared(&condition.r#type))
    {
        let old = inputs.old.and_then(|old| old.conditions.iter().find(|c| is_shared(&c.r#type)));
        all.push(PodCondition {
            reason: "TerminationByKubelet".to_owned(),
            message: message.clone(),
            observed_generation: pod.metadata.generation,
            last_transition_time: old.map_or(Some(inputs.now.wall()), |old| old.last_transition_time),
            ..condition(DISRUPTION, true)
        });
    }
    if !inputs.terminal && !is_terminal_phase(&status.phase) {
        all.extend(pending(inputs));
        all.extend(in_progress(inputs));
    }
    all.push(condition(READY_TO_START, !sandbox_need(pod, inputs.observed).create));
    all.push(initialized(inputs, status));
    all.push(ready(pod, status, &all));
    all.push(containers_ready(CONTAINERS_READY, pod, status));
    all.push(condition(SCHEDULED, true));
    if restart::could_restart_all(&pod.spec) {
        all.push(restarting(inputs, status));
    }
    for condition in all.iter_mut().filter(|c| OWNED.contains(&c.r#type.as_str())) {
        condition.observed_generation = pod.metadata.generation;
        let old = inputs.old.and_then(|o| o.conditions.iter().find(|c| c.r#type == condition.r#type));
        let unchanged = old.filter(|o| o.status == condition.status);
        condition.last_transition_time =
            unchanged.map_or(Some(inputs.now.wall()), |o| o.last_transition_time);
    }
    all
}

fn condition(r#type: &str, is_true: bool) -> PodCondition {
    let status = if is_true { "True" } else { "False" };
    PodCondition { r#type: r#type.to_owned(), status: status.to_owned(), ..PodCondition::default() }
}

/// Of resources that the API asks for and that were not given yet.
fn pending(inputs: &Inputs<'_>) -> Option<PodCondition> {
    let why = inputs.pod.pending_resize.as_deref()?.deferred.clone()?;
    let generation = inputs.pod.metadata.generation;
    Some(of_resize(inputs, PENDING, ("Deferred", why), generation))
}

fn in_progress(inputs: &Inputs<'_>) -> Option<PodCondition> {
    let resizing = inputs.resizing?;
    let because = resizing.error.as_ref().map_or(("", String::new()), |error| ("Error", error.clone()));
    Some(of_resize(inputs, IN_PROGRESS, because, resizing.generation))
}

/// These change with their reason, and say when anything of them was said last.
fn of_resize(
    inputs: &Inputs<'_>,
    r#type: &str,
    (reason, message): (&str, String),
    observed_generation: Option<i64>,
) -> PodCondition {
    let now = Some(inputs.now.wall());
    let old = inputs.old.and_then(|old| old.conditions.iter().find(|c| c.r#type == r#type));
    let same_reason = old.filter(|old| old.reason == reason);
    let same =
        same_reason.filter(|old| old.message == message && old.observed_generation == observed_generation);
    PodCondition {
        reason: reason.to_owned(),
        message,
        observed_generation,
        last_probe_time: same.map_or(now, |old| old.last_probe_time),
        last_transition_time: same_reason.map_or(now, |old| old.last_transition_time),
        ..condition(r#type, true)
    }
}

fn because(r#type: &str, reason: &str, message: String) -> PodCondition {
    PodCondition { reason: reason.to_owned(), message, ..condition(r#type, false) }
}

fn containers_ready(r#type: &str, pod: &Pod, status: &PodStatus) -> PodCondition {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.is_restartable_init());
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for container in sidecars.chain(&pod.spec.containers) {
        match find(status, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(found) if !found.ready => unready.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    if status.phase == "Succeeded" && unknown.is_empty() {
        return because(r#type, "PodCompleted", String::new());
    }
    if status.phase == "Failed" {
        return because(r#type, "PodFailed", String::new());
    }
    match complaint(&[("unknown", &unknown[..]), ("unready", &unready)]) {
        None => condition(r#type, true),
        Some(message) => because(r#type, "ContainersNotReady", message),
    }
}

fn ready(pod: &Pod, status: &PodStatus, conditions: &[PodCondition]) -> PodCondition {
    let containers = containers_ready(READY, pod, status);
    if containers.status != "True" {
        return containers;
    }
    let missing = pod.spec.readiness_gates.iter().filter_map(|gate| {
        let gate = gate.condition_type.as_str();
        match conditions.iter().find(|c| c.r#type == gate) {
            None => Some(format!("corresponding condition of pod readiness gate {gate:?} does not exist.")),
            Some(found) if found.status != "True" => Some(format!(
                "the status of pod readiness gate {gate:?} is not \"True\", but {}",
                found.status
            )),
            Some(_) => None,
        }
    });
    let missing: Vec<String> = missing.collect();
    if missing.is_empty() { containers } else { because(READY, "ReadinessGatesNotReady", missing.join(", ")) }
}

fn initialized(inputs: &Inputs<'_>, status: &PodStatus) -> PodCondition {
    let pod = inputs.pod;
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in &pod.spec.init_containers {
        let done = |s: &ContainerStatus| {
            if container.is_restartable_init() { s.started == Some(true) } else { s.ready }
        };
        match find(status, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(found) if !done(found) => incomplete.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    if status.phase == "Succeeded" && unknown.is_empty() {
        return PodCondition { reason: "PodCompleted".to_owned(), ..condition(INITIALIZED, true) };
    }
    let started = |s: &ContainerStatus| s.state.running.is_some() || s.state.terminated.is_some();
    if status.container_statuses.iter().any(started) {
        return condition(INITIALIZED, true);
    }
    let Some(message) = complaint(&[("unknown", &unknown[..]), ("incomplete", &incomplete)]) else {
        return condition(INITIALIZED, true);
    };
    let was = inputs
        .old
        .is_some_and(|o| o.conditions.iter().any(|c| c.r#type == INITIALIZED && c.status == "True"));
    if was {
        // Once initialized, a pod stays so, also while it restarts in place.
        return condition(INITIALIZED, true);
    }
    because(INITIALIZED, "ContainersNotInitialized", message)
}

fn restarting(inputs: &Inputs<'_>, status: &PodStatus) -> PodCondition {
    match status.phase.as_str() {
        "Succeeded" => because(RESTARTING, "PodCompleted", String::new()),
        "Failed" => because(RESTARTING, "PodFailed", String::new()),
        _ if inputs.restarting_all => PodCondition {
            reason: "RestartAllContainersStarted".to_owned(),
            message: "container exited with restart policy rule".to_owned(),
            ..condition(RESTARTING, true)
        },
        _ => condition(RESTARTING, false),
    }
}

/// `containers with unready status: [a b]`, as Go prints a list.
fn complaint(groups: &[(&str, &[&str])]) -> Option<String> {
    let texts = groups.iter().filter(|(_, names)| !names.is_empty());
    let texts: Vec<String> =
        texts.map(|(what, names)| format!("containers with {what} status: [{}]", names.join(" "))).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

fn find<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    status.init_container_statuses.iter().chain(&status.container_statuses).find(|s| s.name == name)
}
