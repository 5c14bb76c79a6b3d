//! Whether this node takes a pod that was bound to it: resources, node selector and affinity, name, ports, taints,
//! operating system.
//!
//! Called by the reader of the API's pods for each new one; pure. Order, reasons and texts are those of the kubelet's
//! `lifecycle/predicate.go` and of the scheduler's plugins that it calls (1.36).

use crate::api::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};
use crate::qos::{amount, pod_requests};

/// Why a pod is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The kubelet's reason, such as `OutOfcpu`.
    pub reason: String,
    /// What a person reads.
    pub message: String,
}

/// The reason why a pod is not taken, or `None` for one that may run beside `others`.
pub fn reject(pod: &Pod, node: &Node, others: &[&Pod]) -> Option<Rejection> {
    let rejection = |reason: &str, message: &str| {
        Some(Rejection { reason: reason.to_owned(), message: message.to_owned() })
    };
    if let Some(evicted) = crate::eviction::plan::reject(pod, node) {
        return Some(evicted);
    }
    if pod.metadata.labels.get("kubernetes.io/os").is_some_and(|os| os != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return rejection("PodOSSelectorNodeLabelDoesNotMatch", message);
    }
    if pod.spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return rejection("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
    }
    if let Some(lack) = lacking(pod, node, others) {
        return Some(lack);
    }
    let (predicate, why) = failed_predicate(pod, node, others)?;
    Some(Rejection { reason: predicate.to_owned(), message: format!("Predicate {predicate} failed: {why}") })
}

fn failed_predicate(pod: &Pod, node: &Node, others: &[&Pod]) -> Option<(&'static str, &'static str)> {
    if !matches_node(pod, node) {
        return Some(("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    if !pod.spec.node_name.is_empty() && pod.spec.node_name != node.metadata.name {
        return Some(("NodeName", "node(s) didn't match the requested node name"));
    }
    if !ports_are_free(pod, others) {
        return Some(("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
    }
    let untolerated = |taint: &&Taint| {
        taint.effect == "NoExecute" && !pod.spec.tolerations.iter().any(|t| tolerates(t, taint))
    };
    if node.spec.taints.iter().any(|taint| untolerated(&taint)) {
        return Some(("TaintToleration", "node(s) had taints that the pod didn't tolerate"));
    }
    None
}

/// The first resource of which the node has too little left.
fn lacking(pod: &Pod, node: &Node, others: &[&Pod]) -> Option<Rejection> {
    let lack = |resource: &str, requested: i64, used: i64, capacity: i64| {
        Some(Rejection {
            reason: format!("OutOf{resource}"),
            message: format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, \
                 capacity: {capacity}"
            ),
        })
    };
    let capacity = |name: &str| node.status.allocatable.get(name).map(|quantity| amount(name, quantity));
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if let Some(pods) = capacity("pods").filter(|pods| count + 1 > *pods) {
        return lack("pods", 1, count, pods);
    }
    let requests = pod_requests(pod, true);
    let mut names: Vec<&str> = vec!["cpu", "memory", "ephemeral-storage"];
    names.extend(
        requests.keys().copied().filter(|name| !matches!(*name, "cpu" | "memory" | "ephemeral-storage")),
    );
    for name in names {
        let requested = requests.get(name).copied().unwrap_or(0);
        let Some(capacity) = capacity(name).filter(|_| requested > 0) else { continue };
        let used = others.iter().map(|other| pod_requests(other, true).get(name).copied().unwrap_or(0));
        let used = used.fold(0, i64::saturating_add);
        if requested > capacity.saturating_sub(used) {
            return lack(name, requested, used, capacity);
        }
    }
    None
}

/// Node selector and required node affinity.
fn matches_node(pod: &Pod, node: &Node) -> bool {
    let selected =
        pod.spec.node_selector.iter().all(|(key, value)| node.metadata.labels.get(key) == Some(value));
    let affinity = pod.spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected
        && required.is_none_or(|selector| selector.node_selector_terms.iter().any(|t| matches_term(t, node)))
}

/// A term without any requirement matches nothing.
fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let is_empty = term.match_expressions.is_empty() && term.match_fields.is_empty();
    let name = |requirement: &NodeSelectorRequirement| match requirement.key.as_str() {
        "metadata.name" => Some(node.metadata.name.as_str()),
        _ => None,
    };
    let label = |requirement: &NodeSelectorRequirement| {
        node.metadata.labels.get(&requirement.key).map(String::as_str)
    };
    !is_empty
        && term.match_expressions.iter().all(|requirement| holds(requirement, label(requirement)))
        && term.match_fields.iter().all(|requirement| holds(requirement, name(requirement)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let listed = || value.is_some_and(|value| requirement.values.iter().any(|v| v == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let bound = number(requirement.values.first().map(String::as_str));
    let compared =
        |is: fn(i64, i64) -> bool| number(value).zip(bound).is_some_and(|(value, bound)| is(value, bound));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(|value, bound| value > bound),
        "Lt" => compared(|value, bound| value < bound),
        _ => false,
    }
}

/// Whether a toleration bears a taint (`v1.Toleration.ToleratesTaint`).
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    if !toleration.effect.is_empty() && toleration.effect != taint.effect {
        return false;
    }
    if !toleration.key.is_empty() && toleration.key != taint.key {
        return false;
    }
    match toleration.operator.as_str() {
        "" | "Equal" => toleration.value == taint.value,
        "Exists" => true,
        _ => false,
    }
}

/// Whether no port of the host that the pod wants is another pod's.
fn ports_are_free(pod: &Pod, others: &[&Pod]) -> bool {
    let taken: Vec<HostPort<'_>> = others.iter().flat_map(|other| host_ports(other)).collect();
    host_ports(pod).iter().all(|port| !taken.iter().any(|other| port.collides(other)))
}

struct HostPort<'a> {
    ip: &'a str,
    protocol: &'a str,
    port: i32,
}

impl HostPort<'_> {
    fn collides(&self, other: &HostPort<'_>) -> bool {
        let any = |ip: &str| matches!(ip, "" | "0.0.0.0");
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(self.ip) || any(other.ip))
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort<'_>> {
    let sidecars = pod.spec.init_containers.iter().filter(|container| container.is_restartable_init());
    let ports = sidecars.chain(&pod.spec.containers).flat_map(|container| &container.ports);
    let held = ports.filter(|port| port.host_port > 0).map(|port| HostPort {
        ip: &port.host_ip,
        protocol: if port.protocol.is_empty() { "TCP" } else { &port.protocol },
        port: port.host_port,
    });
    held.collect()
}

#[cfg(test)]
mod tests;
