//! What a pod of the API was given of CPU and memory, apart from what is asked for it now.
//!
//! Called by the table of the API's pods, which hands a pod to its worker with what it was given, and decides about
//! the rest by [`crate::admission`]; pure. A new agent reads what was given from the pod's own status. Order and rules
//! are those of the kubelet's `allocation_manager.go` (1.36).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::{Container, PendingResize, Pod, PodStatus, Quantity, ResourceRequirements};
use crate::pod::resize::{IN_PROGRESS, PENDING};
use crate::qos::{QosClass, amount, pod_requests, qos_class};

/// What can be changed while a pod runs.
const RESIZED: [&str; 2] = ["cpu", "memory"];

/// The pod as it is served, but with no more than it was given: what is wanted beyond that waits.
pub(crate) fn held(served: &Arc<Pod>, given: &Pod) -> Arc<Pod> {
    if !is_resized(given, served) {
        return served.clone();
    }
    let mut pod = Pod::clone(served);
    pod.spec.resources.clone_from(&given.spec.resources);
    for container in pod.spec.init_containers.iter_mut().chain(&mut pod.spec.containers) {
        if let Some(given) = given.container(&container.name) {
            container.resources.clone_from(&given.resources);
        }
    }
    let before = given.pending_resize.as_deref();
    pod.pending_resize = Some(Box::new(PendingResize {
        wanted: served.clone(),
        deferred: before.and_then(|before| before.deferred.clone()),
        since: before.map_or(u64::MAX, |before| before.since),
    }));
    Arc::new(pod)
}

/// Whether two descriptions of a pod differ in what can be resized.
pub(crate) fn is_resized(a: &Pod, b: &Pod) -> bool {
    let none = ResourceRequirements::default();
    let own = a.spec.resources.as_deref().unwrap_or(&none);
    let other = b.spec.resources.as_deref().unwrap_or(&none);
    let mut containers = b.spec.init_containers.iter().chain(&b.spec.containers);
    let differs = |container: &Container| {
        a.container(&container.name).is_some_and(|own| !same(&own.resources, &container.resources))
    };
    !same(own, other) || containers.any(differs)
}

fn same(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    let of = |list: &BTreeMap<String, Quantity>, name: &str| list.get(name).map(|q| amount(name, q));
    RESIZED.iter().all(|name| {
        of(&a.requests, name) == of(&b.requests, name) && of(&a.limits, name) == of(&b.limits, name)
    })
}

/// Whether a status tells that the pod has all that it asks for.
pub(crate) fn is_settled(pod: &Pod, status: &PodStatus) -> bool {
    status.observed_generation == pod.metadata.generation
        && !status.conditions.iter().any(|c| c.r#type == PENDING || c.r#type == IN_PROGRESS)
}

/// A pod that ran before this agent did, with what its status says that it was given; none if that is all.
pub(crate) fn given_by_status(served: &Pod) -> Option<Pod> {
    let status = &served.status;
    if is_settled(served, status) {
        return None;
    }
    let mut given = served.clone();
    for container in given.spec.init_containers.iter_mut().chain(&mut given.spec.containers) {
        let mut statuses = status.init_container_statuses.iter().chain(&status.container_statuses);
        let Some(status) = statuses.find(|status| status.name == container.name) else { continue };
        let Some(actual) = status.resources.as_deref() else { continue };
        for name in RESIZED {
            for (own, told) in [
                (&mut container.resources.requests, &status.allocated_resources),
                (&mut container.resources.limits, &actual.limits),
            ] {
                // None is ever taken away; what the status has beyond these comes from the pod as a whole.
                if own.contains_key(name) {
                    own.remove(name);
                    own.extend(told.get(name).map(|quantity| (name.to_owned(), quantity.clone())));
                }
            }
        }
    }
    is_resized(&given, served).then_some(given)
}

/// The place of a pod among those that wait: first what needs no more than it has, then by priority, by class, by age.
pub(crate) fn order(pod: &Pod) -> Option<(bool, Reverse<i32>, bool, u64)> {
    let pending = pod.pending_resize.as_deref()?;
    let (had, wants) = (pod_requests(pod, true), pod_requests(&pending.wanted, true));
    let grows = RESIZED.iter().any(|name| wants.get(name) > had.get(name));
    let priority = Reverse(pod.spec.priority.unwrap_or(0));
    Some((grows, priority, qos_class(pod) != QosClass::Guaranteed, pending.since))
}

/// The pod with the reason for which it has to wait; none if that was said before.
pub(crate) fn deferred(pod: &Pod, why: String, since: u64) -> Option<Pod> {
    let pending = pod.pending_resize.as_deref()?;
    if pending.deferred.as_ref() == Some(&why) {
        return None;
    }
    let mut pod = pod.clone();
    let since = pending.since.min(since);
    pod.pending_resize =
        Some(Box::new(PendingResize { wanted: pending.wanted.clone(), deferred: Some(why), since }));
    Some(pod)
}

#[cfg(test)]
mod tests;
