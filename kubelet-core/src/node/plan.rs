//! From the Node that the API has and the one that should be to the patch between them.
//!
//! Pure; the reporter calls it on every look and sends what it returns. Follows the kubelet's `updateNode`,
//! `nodeStatusHasChanged` and `PatchNodeStatus` (1.36).

use serde_json::{Map, Value, json};

use super::desired::{ATTACH_DETACH, Wanted};
use super::machine::MachineFacts;
use crate::api::{Node, NodeCondition, NodeStatus, ResourceList, Time};

/// Labels that a node puts back whenever somebody took them away.
pub(super) const KEPT_LABELS: [&str; 2] = ["kubernetes.io/os", "kubernetes.io/arch"];

/// What to send and what to tell.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Update {
    /// A strategic merge patch of the Node and its status.
    pub(super) patch: Value,
    /// Whether it changes more than the times of heartbeats.
    pub(super) is_change: bool,
    /// Reasons of events for conditions that came about.
    pub(super) events: Vec<&'static str>,
}

/// The patch that makes the observed Node the desired one. `labels` are those that are kept right.
pub(super) fn update(
    observed: &Node,
    desired: &Node,
    conditions: &[Wanted],
    labels: &[&str],
    now: Time,
) -> Update {
    let (conditions, conditions_changed, events) = merge_conditions(&observed.status, conditions, now);
    let mut status = status_difference(&observed.status, &desired.status);
    let metadata = metadata_difference(observed, desired, labels);
    let is_change = conditions_changed || !status.is_empty() || !metadata.is_empty();
    status.insert("conditions".to_owned(), json!(conditions));
    let mut patch = Map::new();
    if !metadata.is_empty() {
        patch.insert("metadata".to_owned(), Value::Object(metadata));
    }
    patch.insert("status".to_owned(), Value::Object(status));
    Update { patch: Value::Object(patch), is_change, events }
}

/// The conditions as they are sent, whether one differs in more than its heartbeat, and the events.
pub(super) fn merge_conditions(
    observed: &NodeStatus,
    wanted: &[Wanted],
    now: Time,
) -> (Vec<NodeCondition>, bool, Vec<&'static str>) {
    let (mut merged, mut changed, mut events) = (Vec::with_capacity(wanted.len()), false, Vec::new());
    for wanted in wanted {
        let status = if wanted.is_true { "True" } else { "False" };
        let old = observed.condition(wanted.r#type);
        let same = old.filter(|old| old.status == status);
        let mut condition = NodeCondition {
            r#type: wanted.r#type.to_owned(),
            status: status.to_owned(),
            reason: wanted.reason.to_owned(),
            message: wanted.message.clone(),
            last_heartbeat_time: Some(now),
            last_transition_time: same.and_then(|old| old.last_transition_time).or(Some(now)),
        };
        match same {
            Some(old) if !wanted.follows_message => {
                condition.reason = old.reason.clone();
                condition.message = old.message.clone();
            }
            Some(old) => changed |= old.reason != condition.reason || old.message != condition.message,
            None => {
                changed = true;
                // Readiness that a new node has from the start is no change of it.
                if old.is_some() || !wanted.follows_message {
                    events.push(wanted.event);
                }
            }
        }
        merged.push(condition);
    }
    (merged, changed, events)
}

fn metadata_difference(observed: &Node, desired: &Node, labels: &[&str]) -> Map<String, Value> {
    let (have, want) = (&observed.metadata, &desired.metadata);
    let mut metadata = Map::new();
    let wrong: Map<String, Value> = labels
        .iter()
        .filter_map(|label| want.labels.get_key_value(*label))
        .filter(|(label, value)| have.labels.get(*label) != Some(value))
        .map(|(label, value)| (label.clone(), json!(value)))
        .collect();
    if !wrong.is_empty() {
        metadata.insert("labels".to_owned(), Value::Object(wrong));
    }
    let attach_detach = want.annotations.get(ATTACH_DETACH);
    if have.annotations.get(ATTACH_DETACH) != attach_detach {
        metadata.insert("annotations".to_owned(), json!({ ATTACH_DETACH: attach_detach }));
    }
    metadata
}

/// The fields that differ, but for the conditions.
fn status_difference(observed: &NodeStatus, desired: &NodeStatus) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut put = |name: &str, differs: bool, value: &dyn Fn() -> Value| {
        if differs {
            fields.insert(name.to_owned(), value());
        }
    };
    let capacity = resource_difference(&observed.capacity, &desired.capacity);
    put("capacity", !capacity.is_empty(), &|| Value::Object(capacity.clone()));
    let allocatable = resource_difference(&observed.allocatable, &desired.allocatable);
    put("allocatable", !allocatable.is_empty(), &|| Value::Object(allocatable.clone()));
    put("addresses", observed.addresses != desired.addresses, &|| {
        // Two addresses of one type would be merged into one: the list is replaced.
        let mut list = vec![json!({ "$patch": "replace" })];
        list.extend(desired.addresses.iter().map(|address| json!(address)));
        Value::Array(list)
    });
    put("daemonEndpoints", observed.daemon_endpoints != desired.daemon_endpoints, &|| {
        json!(desired.daemon_endpoints)
    });
    put("nodeInfo", observed.node_info != desired.node_info, &|| {
        let mut info = json!(desired.node_info);
        if desired.node_info.swap.is_none() && observed.node_info.swap.is_some() {
            info["swap"] = Value::Null;
        }
        info
    });
    put("images", observed.images != desired.images, &|| json!(desired.images));
    put("runtimeHandlers", observed.runtime_handlers != desired.runtime_handlers, &|| {
        json!(desired.runtime_handlers)
    });
    put("features", observed.features != desired.features, &|| json!(desired.features));
    put("declaredFeatures", observed.declared_features != desired.declared_features, &|| {
        json!(desired.declared_features)
    });
    fields
}

fn resource_difference(observed: &ResourceList, desired: &ResourceList) -> Map<String, Value> {
    let is_same = |name: &String, quantity: &crate::api::Quantity| {
        observed.get(name).is_some_and(|old| old.is_same_amount(quantity))
    };
    let changed = desired.iter().filter(|(name, quantity)| !is_same(name, quantity));
    let gone = observed.keys().filter(|name| !desired.contains_key(*name));
    changed
        .map(|(name, quantity)| (name.clone(), json!(quantity)))
        .chain(gone.map(|name| (name.clone(), Value::Null)))
        .collect()
}

/// Whether an existing Node was written by another machine than this one. Ids that are unknown tell nothing.
pub(super) fn is_of_another_machine(existing: &Node, machine: &MachineFacts) -> bool {
    let info = &existing.status.node_info;
    let differs = |theirs: &str, ours: &str| !theirs.is_empty() && !ours.is_empty() && theirs != ours;
    differs(&info.machine_id, &machine.machine_id)
}

/// Whether a Node was last written before the machine's present boot.
pub(super) fn has_rebooted(existing: &Node, machine: &MachineFacts) -> bool {
    let before = &existing.status.node_info.boot_id;
    !before.is_empty() && *before != machine.boot_id
}

/// Of two versions of the Node whether the first is the newer one; versions are numbers that rise.
pub(super) fn is_newer(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version > than,
        _ => version != than,
    }
}
