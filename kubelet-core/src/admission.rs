//! Whether this node takes a pod that was bound to it: resources, node selector and affinity, name, ports, taints,
//! operating system; and which pods make room for a critical one.
//!
//! Called by the reader of the API's pods for each new one; pure. Order, reasons and texts are those of the kubelet's
//! `lifecycle/predicate.go` and of the scheduler's plugins that it calls (1.36).

mod apparmor;
mod preemption;
pub mod sysctls;

use std::fmt;

use self::preemption::{Need, Needs, victims};
use self::sysctls::AllowedSysctls;
use crate::api::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};
use crate::eviction::plan::is_critical;
use crate::qos::{amount, pod_requests};
use crate::source::is_static;

/// Why a pod is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The kubelet's reason, such as `OutOfcpu`.
    pub reason: String,
    /// What a person reads.
    pub message: String,
}

/// What the host lets pods ask of its kernel, known from the agent's start.
#[derive(Clone, Debug, Default)]
pub struct HostRules {
    /// Kernel parameters that a pod may set.
    pub sysctls: AllowedSysctls,
    /// Whether the kernel enforces AppArmor profiles.
    pub has_apparmor: bool,
}

impl HostRules {
    /// Why the host cannot give the pod what it asks for.
    pub(crate) fn reject(&self, pod: &Pod) -> Option<Rejection> {
        let apparmor = || (!self.has_apparmor).then(|| apparmor::reject(pod)).flatten();
        self.sysctls.reject(pod).or_else(apparmor)
    }
}

/// What this node makes of a pod that was bound to it.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict<'p> {
    /// It may run beside the others.
    Takes,
    /// It may not.
    Rejects(Rejection),
    /// It is critical, and may run once these have ended.
    Preempts(Vec<&'p Pod>),
}

/// Whether a pod may run beside `others`.
pub fn admit<'p>(pod: &Pod, node: &Node, others: &[&'p Pod]) -> Verdict<'p> {
    let rejects =
        |reason: &str, message: String| Verdict::Rejects(Rejection { reason: reason.to_owned(), message });
    if let Some(evicted) = crate::eviction::plan::reject(pod, node) {
        return Verdict::Rejects(evicted);
    }
    if pod.metadata.labels.get("kubernetes.io/os").is_some_and(|os| os != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return rejects("PodOSSelectorNodeLabelDoesNotMatch", message.to_owned());
    }
    if pod.spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return rejects("PodOSNotSupported", message.to_owned());
    }
    let lacks = lacking(pod, node, others);
    // Room can be made for a critical pod, if nothing else speaks against it.
    if let Some(lack) = lacks.first().filter(|_| !is_critical(pod)) {
        return rejects(&format!("OutOf{}", lack.resource), lack.to_string());
    }
    if let Some((predicate, why)) = failed_predicate(pod, node, others) {
        return rejects(predicate, format!("Predicate {predicate} failed: {why}"));
    }
    if lacks.is_empty() {
        return Verdict::Takes;
    }
    let need =
        |lack: &Lack| Need { resource: lack.resource.to_owned(), amount: lack.requested - lack.free() };
    match victims(pod, others, &Needs(lacks.iter().map(need).collect())) {
        Ok(victims) => Verdict::Preempts(victims),
        Err(unmet) => {
            let message =
                format!("Unexpected error while attempting to recover from admission failure: {unmet}");
            rejects("UnexpectedAdmissionError", message)
        }
    }
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
    if !is_static(pod) && node.spec.taints.iter().any(|taint| untolerated(&taint)) {
        return Some(("TaintToleration", "node(s) had taints that the pod didn't tolerate"));
    }
    None
}

/// A resource of which the node has too little left.
#[derive(Debug)]
struct Lack<'a> {
    resource: &'a str,
    requested: i64,
    used: i64,
    capacity: i64,
}

impl Lack<'_> {
    fn free(&self) -> i64 {
        self.capacity.saturating_sub(self.used)
    }
}

impl fmt::Display for Lack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, requested, used, capacity } = self;
        write!(
            f,
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        )
    }
}

/// What the pod lacks beside the others, in the scheduler's order.
fn lacking<'a>(pod: &'a Pod, node: &Node, others: &[&Pod]) -> Vec<Lack<'a>> {
    let requests = pod_requests(pod, true);
    let usual = ["cpu", "memory", "ephemeral-storage"];
    let more = requests.keys().copied().filter(|name| !usual.contains(name));
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    let wanted = usual.into_iter().chain(more).filter_map(|name| {
        let requested = requests.get(name).copied().filter(|requested| *requested > 0)?;
        let used = others.iter().map(|other| pod_requests(other, true).get(name).copied().unwrap_or(0));
        Some((name, requested, used.fold(0, i64::saturating_add)))
    });
    let all = std::iter::once(("pods", 1, count)).chain(wanted);
    let lacks = all.filter_map(|(resource, requested, used)| {
        let capacity = amount(resource, node.status.allocatable.get(resource)?);
        Some(Lack { resource, requested, used, capacity })
    });
    lacks.filter(|lack| lack.requested > lack.free()).collect()
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
