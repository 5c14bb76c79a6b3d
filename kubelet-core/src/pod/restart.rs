//! Restart rules: whether a container that ended with an exit code starts again.
//!
//! Called by planning and by status; pure. Follows `ContainerShouldRestart` of Kubernetes 1.36: rules of the
//! container first, then its own restart policy, then the pod's.

use crate::api::{Container, Pod, PodSpec};
use crate::pod::observation::{ContainerPhase, Observation};

/// Restarts every container of the pod, not only the one that ended.
pub(crate) const RESTART_ALL: &str = "RestartAllContainers";

/// The action of the first rule that matches the exit code.
pub(crate) fn matching_rule(container: &Container, exit_code: i32) -> Option<&str> {
    container.restart_policy_rules.iter().find_map(|rule| {
        let codes = rule.exit_codes.as_ref()?;
        let listed = codes.values.contains(&exit_code);
        let matches = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        matches.then_some(rule.action.as_str())
    })
}

/// Whether a container that ended with `exit_code` is to be started again.
pub(crate) fn restarts_after(container: &Container, spec: &PodSpec, exit_code: i32) -> bool {
    if let Some(policy) = container.restart_policy.as_deref() {
        if matches!(matching_rule(container, exit_code), Some("Restart" | RESTART_ALL)) {
            return true;
        }
        if let Some(decision) = by_policy(policy, exit_code) {
            return decision;
        }
    }
    by_policy(&spec.restart_policy, exit_code).unwrap_or(true)
}

/// Whether a container that must be killed while it runs (a probe failed) is started again: exit-code rules
/// do not count, since there is no exit code yet.
pub(crate) fn restarts_after_kill(container: &Container, spec: &PodSpec) -> bool {
    container.restart_policy.as_deref().unwrap_or(&spec.restart_policy) != "Never"
}

fn by_policy(policy: &str, exit_code: i32) -> Option<bool> {
    match policy {
        "Always" => Some(true),
        "OnFailure" => Some(exit_code != 0),
        "Never" => Some(false),
        _ => None,
    }
}

/// Whether a container should be started, as its last instance stands (`ShouldContainerBeRestarted`).
pub(crate) fn should_start(container: &Container, pod: &Pod, observation: &Observation) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    match observation.latest(&container.name) {
        None => true,
        Some(last) => match last.phase {
            ContainerPhase::Running => false,
            ContainerPhase::Created | ContainerPhase::Unknown => true,
            ContainerPhase::Exited => restarts_after(container, &pod.spec, last.exit_code),
        },
    }
}

/// Whether some container ended with a code whose rule restarts the whole pod in place.
pub(crate) fn all_containers_restart(pod: &Pod, observation: &Observation) -> bool {
    pod.spec.init_containers.iter().chain(&pod.spec.containers).any(|container| {
        observation.latest(&container.name).is_some_and(|last| {
            last.phase == ContainerPhase::Exited
                && matching_rule(container, last.exit_code) == Some(RESTART_ALL)
        })
    })
}

/// Whether any rule of the pod can restart all its containers.
pub(crate) fn could_restart_all(spec: &PodSpec) -> bool {
    let containers = spec.init_containers.iter().chain(&spec.containers);
    containers.flat_map(|c| &c.restart_policy_rules).any(|rule| rule.action == RESTART_ALL)
}
