//! The difference between the status that the API has of a pod and the one that it should have, as one strategic
//! merge patch.
//!
//! Pure. Only what a node writes is looked at: conditions of others, and fields that no code of ours knows, stay as
//! they are. Lists of containers are replaced as a whole, conditions and addresses are merged by key, as the API's
//! types say.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api::{PodCondition, PodStatus, Quantity, ResourceRequirements, Time};
use crate::pod::status::{is_owned_condition, is_shared_condition, is_terminal_phase};

/// What the API should have: the node's status with the conditions of others as they are there. A pod does not
/// become terminal there while a container of it may run, because others then use what it holds.
pub(super) fn merged(base: &PodStatus, own: &PodStatus, ended: bool) -> PodStatus {
    let mut merged = own.clone();
    let foreign = base.conditions.iter().filter(|condition| !is_owned_condition(&condition.r#type));
    let is_told = |kind: &str| base.conditions.iter().any(|condition| condition.r#type == kind);
    let owned = own.conditions.iter().filter(|condition| {
        let kind = &condition.r#type;
        is_owned_condition(kind) || (is_shared_condition(kind) && !is_told(kind))
    });
    merged.conditions = foreign.chain(owned).cloned().collect();
    let becomes_terminal = !is_terminal_phase(&base.phase) && is_terminal_phase(&own.phase);
    if becomes_terminal && !ended && may_run(own) {
        merged.phase.clone_from(&base.phase);
        merged.reason.clone_from(&base.reason);
        merged.message.clone_from(&base.message);
    }
    if is_terminal_phase(&merged.phase) {
        not_ready(base, &mut merged);
    }
    // The API never goes back in what it has seen.
    merged.observed_generation = merged.observed_generation.max(base.observed_generation);
    if base.start_time.is_some() {
        merged.start_time = base.start_time;
    }
    merged
}

fn may_run(status: &PodStatus) -> bool {
    let all = status.init_container_statuses.iter().chain(&status.container_statuses);
    all.chain(&status.ephemeral_container_statuses).any(|container| container.state.running.is_some())
}

/// No pod is ended and ready at once.
fn not_ready(base: &PodStatus, merged: &mut PodStatus) {
    let reason = if merged.phase == "Succeeded" { "PodCompleted" } else { "PodFailed" };
    for condition in &mut merged.conditions {
        let is_ready = matches!(condition.r#type.as_str(), "Ready" | "ContainersReady");
        if is_ready && condition.status == "True" {
            let old = base.conditions.iter().find(|c| c.r#type == condition.r#type && c.status == "False");
            let at = old.and_then(|c| c.last_transition_time).or(latest(&base.conditions));
            *condition = PodCondition {
                status: "False".to_owned(),
                reason: reason.to_owned(),
                message: String::new(),
                last_transition_time: at.max(condition.last_transition_time),
                ..condition.clone()
            };
        }
    }
}

fn latest(conditions: &[PodCondition]) -> Option<Time> {
    conditions.iter().filter_map(|condition| condition.last_transition_time).max()
}

/// The content of `status` in the patch that makes `base` the `wanted` one; `None` if it is.
pub(super) fn patch(base: &PodStatus, wanted: &PodStatus) -> Option<Value> {
    let mut patch = Map::new();
    scalar(&mut patch, "observedGeneration", &base.observed_generation, &wanted.observed_generation);
    text(&mut patch, "phase", &base.phase, &wanted.phase);
    text(&mut patch, "message", &base.message, &wanted.message);
    text(&mut patch, "reason", &base.reason, &wanted.reason);
    text(&mut patch, "hostIP", &base.host_ip, &wanted.host_ip);
    text(&mut patch, "podIP", &base.pod_ip, &wanted.pod_ip);
    text(&mut patch, "qosClass", &base.qos_class, &wanted.qos_class);
    scalar(&mut patch, "startTime", &base.start_time, &wanted.start_time);
    let ips = |ips: &[crate::api::HostIP]| ips.iter().map(|ip| ip.ip.clone()).collect::<Vec<_>>();
    addresses(&mut patch, "hostIPs", &ips(&base.host_ips), &ips(&wanted.host_ips));
    let ips = |ips: &[crate::api::PodIP]| ips.iter().map(|ip| ip.ip.clone()).collect::<Vec<_>>();
    addresses(&mut patch, "podIPs", &ips(&base.pod_ips), &ips(&wanted.pod_ips));
    for (key, base, wanted) in [
        ("initContainerStatuses", &base.init_container_statuses, &wanted.init_container_statuses),
        ("containerStatuses", &base.container_statuses, &wanted.container_statuses),
        (
            "ephemeralContainerStatuses",
            &base.ephemeral_container_statuses,
            &wanted.ephemeral_container_statuses,
        ),
    ] {
        if base != wanted {
            patch.insert(key.to_owned(), if wanted.is_empty() { Value::Null } else { value(wanted) });
        }
    }
    if base.allocated_resources != wanted.allocated_resources {
        let change = amounts(&base.allocated_resources, &wanted.allocated_resources);
        patch.insert("allocatedResources".to_owned(), change);
    }
    if base.resources != wanted.resources {
        let none = ResourceRequirements::default();
        let own = base.resources.as_deref().unwrap_or(&none);
        let resources = wanted.resources.as_deref().map_or(Value::Null, |wanted| {
            let mut change = Map::new();
            for (key, own, wanted) in
                [("limits", &own.limits, &wanted.limits), ("requests", &own.requests, &wanted.requests)]
            {
                if own != wanted {
                    change.insert(key.to_owned(), amounts(own, wanted));
                }
            }
            Value::Object(change)
        });
        patch.insert("resources".to_owned(), resources);
    }
    conditions(&mut patch, &base.conditions, &wanted.conditions);
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn value(of: &impl Serialize) -> Value {
    // Statuses are plain data with text keys.
    serde_json::to_value(of).expect("invariant: a status can be written as JSON")
}

/// The difference of two maps, which an API server merges: what is gone is null.
fn amounts(base: &BTreeMap<String, Quantity>, wanted: &BTreeMap<String, Quantity>) -> Value {
    let changed = wanted.iter().filter(|(name, quantity)| base.get(*name) != Some(quantity));
    let mut change: Map<String, Value> = changed.map(|(name, q)| (name.clone(), value(q))).collect();
    let gone = base.keys().filter(|name| !wanted.contains_key(*name));
    change.extend(gone.map(|name| (name.clone(), Value::Null)));
    Value::Object(change)
}

fn scalar<T: Serialize + PartialEq>(patch: &mut Map<String, Value>, key: &str, base: &T, wanted: &T) {
    if base != wanted {
        patch.insert(key.to_owned(), value(wanted));
    }
}

fn text(patch: &mut Map<String, Value>, key: &str, base: &str, wanted: &str) {
    if base != wanted {
        let value = if wanted.is_empty() { Value::Null } else { Value::from(wanted) };
        patch.insert(key.to_owned(), value);
    }
}

fn addresses(patch: &mut Map<String, Value>, key: &str, base: &[String], wanted: &[String]) {
    if base == wanted {
        return;
    }
    let gone = base.iter().filter(|ip| !wanted.contains(ip));
    let mut list: Vec<Value> = wanted.iter().map(|ip| json!({"ip": ip})).collect();
    list.extend(gone.map(|ip| json!({"$patch": "delete", "ip": ip})));
    patch.insert(key.to_owned(), Value::Array(list));
    let order = wanted.iter().map(|ip| json!({"ip": ip})).collect();
    patch.insert(format!("$setElementOrder/{key}"), Value::Array(order));
}

fn conditions(patch: &mut Map<String, Value>, base: &[PodCondition], wanted: &[PodCondition]) {
    let owned = |list: &'_ [PodCondition]| -> Vec<PodCondition> {
        let may = |kind: &str| is_owned_condition(kind) || is_shared_condition(kind);
        list.iter().filter(|condition| may(&condition.r#type)).cloned().collect()
    };
    let (base_owned, wanted_owned) = (owned(base), owned(wanted));
    let mut list: Vec<Value> = Vec::new();
    for condition in &wanted_owned {
        let old = base_owned.iter().find(|c| c.r#type == condition.r#type);
        if old != Some(condition) {
            list.push(condition_patch(old, condition));
        }
    }
    let gone = base_owned.iter().filter(|c| !wanted_owned.iter().any(|w| w.r#type == c.r#type));
    list.extend(gone.map(|c| json!({"$patch": "delete", "type": c.r#type})));
    if list.is_empty() {
        return;
    }
    patch.insert("conditions".to_owned(), Value::Array(list));
    let types = |list: &[PodCondition]| list.iter().map(|c| c.r#type.clone()).collect::<Vec<_>>();
    if types(&base_owned) != types(&wanted_owned) {
        let order = wanted.iter().map(|c| json!({"type": c.r#type})).collect();
        patch.insert("$setElementOrder/conditions".to_owned(), Value::Array(order));
    }
}

/// A condition as it should be, with what it no longer has taken away.
fn condition_patch(old: Option<&PodCondition>, wanted: &PodCondition) -> Value {
    let new = value(wanted);
    let (Some(old), Value::Object(mut map)) = (old.map(value), new.clone()) else { return new };
    for key in old.as_object().into_iter().flat_map(Map::keys) {
        if !map.contains_key(key) {
            map.insert(key.clone(), Value::Null);
        }
    }
    map.retain(|key, value| key == "type" || old.get(key) != Some(value));
    Value::Object(map)
}

#[cfg(test)]
mod tests;
