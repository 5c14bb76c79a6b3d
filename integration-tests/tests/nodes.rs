//! What befalls a node of a real cluster: its Node is deleted, a critical pod needs room.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves them out.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::time::Duration;

use coracle_integration_tests::cluster::api::Api;
use coracle_integration_tests::cluster::{self, Cluster};
use coracle_integration_tests::images::EXAMPLE;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(180);
const NODE: &str = "/api/v1/nodes/ours";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/ours";

/// A pod of the host's network, bound to the node, with such a request for CPU.
fn pod(name: &str, cpu: &str, more: &Value) -> Value {
    let mut spec = json!({
        "nodeName": "ours", "hostNetwork": true, "terminationGracePeriodSeconds": 5,
        "containers": [{"name": "main", "image": EXAMPLE, "resources": {"requests": {"cpu": cpu}}}],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn path(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn is_ready(object: &Value) -> bool {
    cluster::is_true(object, "Ready")
}

fn wait(cluster: &Cluster, what: &str, holds: impl Fn(&Api) -> anyhow::Result<bool>) {
    cluster.wait(what, LIMIT, holds, || cluster.node("ours").unwrap().last_words()).unwrap();
}

/// The pod that ends for a critical one is told as a kubelet tells it, and its neighbour that takes nothing stays.
#[test]
fn a_critical_pod_makes_room_for_itself() {
    let cluster = Cluster::of_test("preemption", &[]).unwrap();
    let cores: u64 =
        cluster.api.get(NODE).unwrap()["status"]["capacity"]["cpu"].as_str().unwrap().parse().unwrap();
    let most = format!("{}m", cores * 1000 - 300);
    for (name, cpu) in [("large", most.as_str()), ("small", "10m")] {
        cluster.api.create("/api/v1/namespaces/default/pods", &pod(name, cpu, &json!({}))).unwrap();
        wait(&cluster, name, |api| Ok(is_ready(&api.get(&path("default", name))?)));
    }
    let critical = pod("critical", "500m", &json!({"priorityClassName": "system-node-critical"}));
    cluster.api.create("/api/v1/namespaces/kube-system/pods", &critical).unwrap();
    wait(&cluster, "the critical pod runs", |api| Ok(is_ready(&api.get(&path("kube-system", "critical"))?)));
    wait(&cluster, "the large one has ended", |api| {
        Ok(api.get(&path("default", "large"))?["status"]["phase"] == "Failed")
    });
    let large = cluster.api.get(&path("default", "large")).unwrap();
    assert_eq!(large["status"]["reason"], "Preempting", "{:#}", large["status"]);
    assert_eq!(large["status"]["message"], "Preempted in order to admit critical pod");
    let target = condition(&large, "DisruptionTarget").unwrap();
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
    assert_eq!(target["message"], "Pod was preempted by Kubelet to accommodate a critical pod.");
    assert!(is_ready(&cluster.api.get(&path("default", "small")).unwrap()));
    let events = cluster.ask(&["get", "events", "--field-selector=reason=Preempting"]).unwrap();
    assert!(events.contains("pod/large"), "{events}");
    cluster.down().unwrap();
}

/// Somebody deletes the Node: the agent registers anew, pods run on, and what belongs to the Node belongs to the new one.
#[test]
fn a_deleted_node_comes_back_and_its_pods_run_on() {
    let cluster = Cluster::of_test("deleted-node", &[]).unwrap();
    let mut fixed = pod("fixed", "1m", &json!({}));
    fixed["spec"].as_object_mut().unwrap().remove("nodeName");
    let folder = cluster.node("ours").unwrap().machine.folder.join("lib/node/manifests");
    std::fs::write(folder.join("fixed.json"), fixed.to_string()).unwrap();
    cluster.api.create("/api/v1/namespaces/default/pods", &pod("bound", "1m", &json!({}))).unwrap();
    let (bound, mirror) = (path("default", "bound"), path("default", "fixed-ours"));
    wait(&cluster, "both run", |api| Ok(is_ready(&api.get(&bound)?) && is_ready(&api.get(&mirror)?)));
    let container = |api: &Api, path: &str| {
        Ok::<_, anyhow::Error>(api.get(path)?["status"]["containerStatuses"][0]["containerID"].clone())
    };
    let containers = (container(&cluster.api, &bound).unwrap(), container(&cluster.api, &mirror).unwrap());
    let before = cluster.api.get(NODE).unwrap()["metadata"]["uid"].clone();

    cluster.api.delete(NODE).unwrap();
    wait(&cluster, "the Node is back and Ready", |api| {
        let node = api.get(NODE)?;
        Ok(node["metadata"]["uid"] != before && is_ready(&node))
    });
    let uid = cluster.api.get(NODE).unwrap()["metadata"]["uid"].clone();
    for (what, path) in [("the lease", LEASE), ("the mirror pod", mirror.as_str())] {
        wait(&cluster, &format!("{what} belongs to the new Node"), |api| {
            let object = api.get(path)?;
            Ok(object["metadata"]["ownerReferences"][0]["uid"] == uid)
        });
    }
    // Longer than the control plane leaves pods of a node that is gone.
    std::thread::sleep(Duration::from_secs(60));
    wait(&cluster, "both are ready", |api| Ok(is_ready(&api.get(&bound)?) && is_ready(&api.get(&mirror)?)));
    let after = (container(&cluster.api, &bound).unwrap(), container(&cluster.api, &mirror).unwrap());
    assert_eq!(after, containers, "a container was started anew");
    cluster.down().unwrap();
}
