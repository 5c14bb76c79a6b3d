//! Tables of pods that a node takes and does not take.

use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec})).unwrap()
}

fn node() -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": "n", "labels": {"kubernetes.io/hostname": "n", "disk": "ssd", "cores": "4"}},
        "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2", "ephemeral-storage": "10Gi"}}
    }))
    .unwrap()
}

fn asking(resources: Value) -> Pod {
    pod(json!({"containers": [{"name": "c", "resources": {"requests": resources}}]}))
}

fn verdict(pod: &Pod, node: &Node, others: &[&Pod]) -> String {
    match admit(pod, node, others) {
        Verdict::Takes => "taken".to_owned(),
        Verdict::Rejects(Rejection { reason, message }) => format!("{reason}: {message}"),
        Verdict::Preempts(victims) => {
            victims.iter().map(|pod| format!("instead of {}", pod.metadata.name)).collect()
        }
    }
}

#[test]
fn what_is_left_decides() {
    let node = node();
    let one = asking(json!({"cpu": "1500m", "memory": "600Mi"}));
    assert_eq!(verdict(&one, &node, &[]), "taken");
    assert_eq!(
        verdict(&asking(json!({"cpu": "501m"})), &node, &[&one]),
        "OutOfcpu: Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000"
    );
    assert_eq!(
        verdict(&asking(json!({"memory": "500Mi"})), &node, &[&one]),
        "OutOfmemory: Node didn't have enough resource: memory, requested: 524288000, used: 629145600, \
         capacity: 1073741824"
    );
    assert_eq!(
        verdict(&asking(json!({})), &node, &[&one, &one]),
        "OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2"
    );
    assert_eq!(
        verdict(&asking(json!({"ephemeral-storage": "11Gi"})), &node, &[]),
        "OutOfephemeral-storage: Node didn't have enough resource: ephemeral-storage, requested: 11811160064, \
         used: 0, capacity: 10737418240"
    );
    // What the node does not know of is somebody else's affair.
    assert_eq!(verdict(&asking(json!({"example.com/gpu": "1"})), &node, &[]), "taken");
}

#[test]
fn room_is_made_for_a_critical_pod_unless_something_else_speaks_against_it() {
    let node = node();
    let other = asking(json!({"cpu": "1500m"}));
    let critical = |more: Value| {
        let mut spec = json!({"priority": 2_000_000_000,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pod(spec)
    };
    assert_eq!(verdict(&critical(json!({})), &node, &[&other]), "instead of p");
    assert_eq!(
        verdict(&critical(json!({"nodeName": "other"})), &node, &[&other]),
        "NodeName: Predicate NodeName failed: node(s) didn't match the requested node name"
    );
    let first = critical(json!({}));
    assert_eq!(
        verdict(&critical(json!({"overhead": {"cpu": "1"}})), &node, &[&first]),
        "UnexpectedAdmissionError: Unexpected error while attempting to recover from admission failure: \
         preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: \
         [(res: cpu, q: 1000), ]"
    );
}

#[test]
fn selectors_names_and_systems() {
    let affinity = |terms: Value| {
        pod(json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}))
    };
    let expressions = |key: &str, operator: &str, values: Value| {
        affinity(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
    };
    const AFFINITY: &str =
        "NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    for (pod, expected) in [
        (pod(json!({"nodeSelector": {"disk": "ssd"}})), "taken"),
        (pod(json!({"nodeSelector": {"disk": "hdd"}})), AFFINITY),
        (expressions("disk", "In", json!(["ssd", "nvme"])), "taken"),
        (expressions("disk", "NotIn", json!(["ssd"])), AFFINITY),
        (expressions("disk", "Exists", json!([])), "taken"),
        (expressions("disk", "DoesNotExist", json!([])), AFFINITY),
        (expressions("cores", "Gt", json!(["3"])), "taken"),
        (expressions("cores", "Lt", json!(["4"])), AFFINITY),
        (affinity(json!([{}])), AFFINITY),
        (
            affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}])),
            "taken",
        ),
        (
            pod(json!({"nodeName": "other"})),
            "NodeName: Predicate NodeName failed: node(s) didn't match the requested node name",
        ),
        (
            pod(json!({"os": {"name": "windows"}})),
            "PodOSNotSupported: Failed to admit pod as the OS field doesn't match node OS",
        ),
    ] {
        assert_eq!(verdict(&pod, &node(), &[]), expected);
    }
}

#[test]
fn ports_and_taints() {
    let port = |protocol: &str, ip: &str| {
        pod(json!({"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": 80, "protocol": protocol, "hostIP": ip}]}]}))
    };
    let (tcp, local) = (port("TCP", ""), port("TCP", "127.0.0.1"));
    assert_eq!(
        verdict(&tcp, &node(), &[&local]),
        "NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
    );
    assert_eq!(verdict(&port("UDP", ""), &node(), &[&local]), "taken");
    assert_eq!(verdict(&port("TCP", "10.0.0.1"), &node(), &[&local]), "taken");

    let taint =
        |effect: &str| Taint { key: "k".into(), value: "v".into(), effect: effect.into(), time_added: None };
    let tainted = |effect: &str| {
        let mut node = node();
        node.spec.taints = vec![taint(effect)];
        node
    };
    let bearing = |toleration: Value| pod(json!({"tolerations": [toleration]}));
    const UNTOLERATED: &str =
        "TaintToleration: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
    assert_eq!(verdict(&pod(json!({})), &tainted("NoSchedule"), &[]), "taken");
    assert_eq!(verdict(&pod(json!({})), &tainted("NoExecute"), &[]), UNTOLERATED);
    assert_eq!(verdict(&bearing(json!({"operator": "Exists"})), &tainted("NoExecute"), &[]), "taken");
    assert_eq!(verdict(&bearing(json!({"key": "k", "value": "v"})), &tainted("NoExecute"), &[]), "taken");
    let other = json!({"key": "k", "value": "w", "effect": "NoExecute"});
    assert_eq!(verdict(&bearing(other), &tainted("NoExecute"), &[]), UNTOLERATED);
}
