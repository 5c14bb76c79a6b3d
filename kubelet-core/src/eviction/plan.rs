//! Which pod goes first when memory, disk or process ids run short, and what its owner is told.
//!
//! Pure; order and words are those of the kubelet's eviction package (1.36). Called by the task beside it.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::admission::Rejection;
use crate::api::{Node, Pod, Quantity, Toleration};
use crate::node::pressure::{Observation, Observations, Pressing, Signal, Threshold};
use crate::qos::{QosClass, pod_requests, qos_class};
use crate::source::{is_mirror, is_static};

/// Priority from which on a pod is the system's (`system-cluster-critical`).
pub(crate) const CRITICAL: i32 = 2_000_000_000;
/// Seconds that a pod has to end when a threshold is hard.
const IMMEDIATE: i64 = 1;

/// A pod that runs, and what it uses. What could not be measured is absent.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) pod: Arc<Pod>,
    /// Bytes of working set.
    pub(crate) memory: Option<i64>,
    /// Bytes of writable layers, logs and volumes.
    pub(crate) disk: Option<i64>,
    pub(crate) processes: Option<i64>,
    /// Of its containers: bytes of working set, bytes of writable layer and log.
    pub(crate) containers: Vec<(String, i64, i64)>,
}

/// What runs short, as a kubelet names it.
pub(crate) fn resource(signal: Signal) -> &'static str {
    match signal {
        Signal::MemoryAvailable => "memory",
        Signal::NodefsAvailable | Signal::ImagefsAvailable => "ephemeral-storage",
        Signal::NodefsInodesFree | Signal::ImagefsInodesFree => "inodes",
        Signal::PidAvailable => "pids",
    }
}

/// Pods that are never evicted: static ones, their mirrors, and the system's.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    is_static(pod) || is_mirror(pod) || pod.spec.priority.is_some_and(|priority| priority >= CRITICAL)
}

/// Sorts candidates, the first to go first.
pub(crate) fn rank(signal: Signal, candidates: &mut [Candidate]) {
    let request = |candidate: &Candidate, name: &str| {
        pod_requests(&candidate.pod, true).get(name).copied().unwrap_or(0)
    };
    let priority = |candidate: &Candidate| candidate.pod.spec.priority.unwrap_or(0);
    let by_use = |use_of: fn(&Candidate) -> Option<i64>, name: &'static str| {
        move |a: &Candidate, b: &Candidate| {
            let over = |c: &Candidate| use_of(c).map(|used| used - request(c, name));
            let (over_a, over_b) = (over(a), over(b));
            // What could not be measured goes before what could.
            let exceeds = |over: Option<i64>| over.is_none_or(|over| over > 0);
            let known = (over_a.is_some(), over_b.is_some());
            let by_exceeding = exceeds(over_b).cmp(&exceeds(over_a));
            let unmeasured_first = known.0.cmp(&known.1);
            unmeasured_first.then(by_exceeding).then(priority(a).cmp(&priority(b))).then(over_b.cmp(&over_a))
        }
    };
    match signal {
        Signal::MemoryAvailable => candidates.sort_by(by_use(|c| c.memory, "memory")),
        Signal::PidAvailable => {
            candidates.sort_by_key(|c| (priority(c), Reverse(c.processes.unwrap_or(i64::MAX))))
        }
        _ => candidates.sort_by(by_use(|c| c.disk, "ephemeral-storage")),
    }
}

/// What a person reads of an evicted pod.
pub(crate) fn message(threshold: &Threshold, observations: &Observations, candidate: &Candidate) -> String {
    let signal = threshold.signal;
    let resource = resource(signal);
    let mut text = format!("The node was low on resource: {resource}. ");
    if let Some(Observation { available, capacity }) = observations.get(&signal) {
        let shown = |amount: i64| match signal {
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree | Signal::PidAvailable => amount.to_string(),
            _ => Quantity::from_bytes(amount).to_string(),
        };
        let (limit, available) = (shown(threshold.limit.amount(*capacity)), shown(*available));
        text.push_str(&format!("Threshold quantity: {limit}, available: {available}. "));
    }
    let all = candidate.pod.spec.containers.iter().chain(&candidate.pod.spec.init_containers);
    for container in all {
        let Some((_, memory, disk)) = candidate.containers.iter().find(|(name, ..)| *name == container.name)
        else {
            continue;
        };
        let used = match resource {
            "memory" => *memory,
            "ephemeral-storage" => *disk,
            _ => continue,
        };
        let request = container.resources.requests.get(resource);
        if used > request.map_or(0, Quantity::value) {
            let (name, used) = (&container.name, Quantity::from_bytes(used));
            let request = request.map_or("0", Quantity::as_str);
            text.push_str(&format!(
                "Container {name} was using {used}, request is {request}, has larger consumption of {resource}. "
            ));
        }
    }
    text
}

/// Whether a node under pressure takes a new pod: what it tells of itself decides, as everybody sees it.
pub(crate) fn reject(pod: &Pod, node: &Node) -> Option<Rejection> {
    let all = ["MemoryPressure", "DiskPressure", "PIDPressure"];
    let is_true =
        |kind: &&str| node.status.conditions.iter().any(|c| c.r#type == **kind && c.status == "True");
    let pressures: Vec<&str> = all.iter().filter(|kind| is_true(kind)).copied().collect();
    if pressures.is_empty() || is_critical(pod) {
        return None;
    }
    if pressures == ["MemoryPressure"] {
        let tolerates = |toleration: &Toleration| {
            let effect = matches!(toleration.effect.as_str(), "" | "NoSchedule");
            let key = matches!(toleration.key.as_str(), "" | "node.kubernetes.io/memory-pressure");
            effect
                && key
                && (toleration.operator == "Exists"
                    || (!toleration.key.is_empty() && toleration.value.is_empty()))
        };
        if qos_class(pod) != QosClass::BestEffort || pod.spec.tolerations.iter().any(tolerates) {
            return None;
        }
    }
    let message = format!("The node had condition: [{}]. ", pressures.join(" "));
    Some(Rejection { reason: "Evicted".to_owned(), message })
}

/// The threshold to act on: memory before all others.
pub(crate) fn most_urgent(pressing: &Pressing) -> Option<&Threshold> {
    let is_memory = |threshold: &&Threshold| threshold.signal == Signal::MemoryAvailable;
    pressing.met.iter().find(is_memory).or(pressing.met.first())
}

/// Seconds that an evicted pod has to end; for a soft threshold those of `max`, its own if that is negative.
pub(crate) fn grace(threshold: &Threshold, pod: &Pod, max: i64) -> i64 {
    let own = pod.spec.termination_grace_period_seconds;
    match max {
        _ if threshold.is_hard() => IMMEDIATE,
        ..0 => own.unwrap_or(IMMEDIATE),
        _ => own.map_or(max, |own| own.min(max)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use std::time::Duration;

    use crate::node::pressure::Limit;

    fn candidate(name: &str, request: &str, used: i64, more: Value) -> Candidate {
        let mut spec = json!({"containers": [{"name": "c", "resources": {"requests": {"memory": request}}}]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        let containers = vec![("c".to_owned(), used, used)];
        Candidate {
            pod: Arc::new(pod),
            memory: Some(used),
            disk: Some(used),
            processes: Some(used),
            containers,
        }
    }

    #[test]
    fn who_exceeds_its_request_goes_first_then_by_priority_and_excess() {
        let unmeasured = Candidate { memory: None, ..candidate("unmeasured", "0", 0, json!({})) };
        let mut all = vec![
            candidate("within", "100", 99, json!({"priority": -5})),
            candidate("much", "0", 500, json!({})),
            candidate("important", "0", 900, json!({"priority": 10})),
            candidate("more", "100", 700, json!({})),
            unmeasured,
        ];
        rank(Signal::MemoryAvailable, &mut all);
        let names: Vec<&str> = all.iter().map(|c| c.pod.metadata.name.as_str()).collect();
        assert_eq!(names, ["unmeasured", "more", "much", "important", "within"]);
        rank(Signal::PidAvailable, &mut all);
        assert_eq!(all[0].pod.metadata.name, "within");
    }

    #[test]
    fn the_owner_is_told_in_the_kubelets_words() {
        let limit = Threshold::hard(Signal::MemoryAvailable, Limit::Amount(100 << 20));
        let seen = Observation { available: 50 << 20, capacity: 1 << 30 };
        let observations = Observations::from([(Signal::MemoryAvailable, seen)]);
        let told = message(&limit, &observations, &candidate("p", "1Mi", 3 << 20, json!({})));
        assert_eq!(
            told,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 3Mi, request is 1Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn a_pod_has_more_time_where_the_threshold_is_soft() {
        let hard = Threshold::hard(Signal::NodefsAvailable, Limit::Part(0.1));
        let soft = Threshold { grace_period: Duration::from_secs(1), ..hard.clone() };
        let pod = candidate("p", "0", 0, json!({"terminationGracePeriodSeconds": 30})).pod;
        assert_eq!(grace(&hard, &pod, 60), 1);
        assert_eq!([60, 5, 0, -1].map(|max| grace(&soft, &pod, max)), [30, 5, 0, 30]);
    }

    #[test]
    fn memory_is_the_most_urgent() {
        let disk = Threshold::hard(Signal::NodefsAvailable, Limit::Part(0.1));
        let memory = Threshold::hard(Signal::MemoryAvailable, Limit::Part(0.1));
        let pressing = |met| Pressing { met, observations: Observations::new() };
        assert_eq!(most_urgent(&pressing(vec![disk.clone(), memory.clone()])), Some(&memory));
        assert_eq!(most_urgent(&pressing(vec![disk.clone()])), Some(&disk));
        assert_eq!(most_urgent(&pressing(Vec::new())), None);
    }

    #[test]
    fn a_node_under_pressure_takes_what_it_must() {
        let node = |kinds: &[&str]| -> Node {
            let conditions: Vec<Value> =
                kinds.iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
            serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": conditions}}))
                .unwrap()
        };
        let effort = candidate("p", "0", 0, json!({"containers": [{"name": "c"}]})).pod;
        let burst = candidate("p", "1Mi", 0, json!({})).pod;
        let tolerant = candidate(
            "p",
            "0",
            0,
            json!({"containers": [{"name": "c"}], "tolerations": [{"operator": "Exists"}]}),
        )
        .pod;
        let critical =
            candidate("p", "0", 0, json!({"containers": [{"name": "c"}], "priority": CRITICAL})).pod;
        let memory = node(&["MemoryPressure"]);
        assert_eq!(reject(&effort, &memory).unwrap().message, "The node had condition: [MemoryPressure]. ");
        for pod in [&burst, &tolerant, &critical] {
            assert_eq!(reject(pod, &memory), None);
        }
        let both = node(&["DiskPressure", "MemoryPressure"]);
        assert_eq!(
            reject(&burst, &both).unwrap().message,
            "The node had condition: [MemoryPressure DiskPressure]. "
        );
        assert_eq!(reject(&critical, &both), None);
        assert_eq!(reject(&effort, &node(&[])), None);
    }
}
