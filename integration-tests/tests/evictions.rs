//! A node of a cluster that runs short of memory or of disk ends pods, and says so, as a kubelet does.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves them out.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

#[path = "support/joined.rs"]
mod support;

use coracle_integration_tests::cluster::Cluster;
use coracle_integration_tests::cluster::api::Api;
use serde_json::{Value, json};
use support::{LIMIT, PODS, container, is_ready};

/// A node that runs short ends its pods one by one, those above their requests first and the system's never, says so as
/// a kubelet does, and takes no new pod without requests.
#[test]
fn a_node_that_runs_short_evicts_in_the_kubelets_order() {
    let cluster = Cluster::of_test("evictions", &[]).unwrap();
    let requests = json!({"resources": {"requests": {"memory": "200Mi"}}, "args": ["fill", "1"]});
    let pods = [
        ("critical", container(json!({"args": ["fill", "60"]})), "kube-system"),
        ("within", container(requests), "default"),
        ("small", container(json!({"args": ["fill", "5"]})), "default"),
        ("large", container(json!({"args": ["fill", "40"]})), "default"),
    ];
    let create = |name: &str, container: &Value, namespace: &str| {
        let mut spec = json!({"nodeName": "ours", "terminationGracePeriodSeconds": 30, "containers": [container],
            "hostNetwork": true});
        if namespace == "kube-system" {
            spec["priorityClassName"] = "system-node-critical".into();
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec, "metadata": {"name": name}});
        cluster.api.create(&format!("/api/v1/namespaces/{namespace}/pods"), &pod).unwrap();
    };
    let path = |name: &str, namespace: &str| format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let shown = || cluster.node("ours").unwrap().last_words();
    for (name, container, namespace) in &pods {
        create(name, container, namespace);
        let path = path(name, namespace);
        cluster.wait(name, LIMIT, |api| Ok(is_ready(&api.get(&path)?)), shown).unwrap();
    }
    // From now on there is never enough.
    let machine = &cluster.node("ours").unwrap().machine;
    machine.kill_service("coracle").unwrap();
    let command =
        "sed -i 's/memory.available<[0-9A-Za-z]*/memory.available<1000Gi/' /run/services/coracle.command";
    machine.run(&["bash", "-c", command]).unwrap();
    machine.start_service_again("coracle").unwrap();

    let mut order = Vec::new();
    let all = |api: &Api| {
        for name in ["within", "small", "large"] {
            let pod = api.get(&path(name, "default"))?;
            if pod["status"]["reason"] == "Evicted" && !order.contains(&name) {
                order.push(name);
            }
        }
        Ok(order.len() == 3)
    };
    cluster.wait("all that may go are gone", LIMIT, all, shown).unwrap();
    assert_eq!(order, ["large", "small", "within"]);
    let large = cluster.api.get(&path("large", "default")).unwrap()["status"].clone();
    assert_eq!(large["phase"], "Failed", "{large:#}");
    let message = large["message"].as_str().unwrap();
    assert!(
        message.starts_with("The node was low on resource: memory. Threshold quantity: 1000Gi, available: ")
            && message.contains("Container main was using ")
            && message.ends_with("request is 0, has larger consumption of memory. "),
        "{message}"
    );
    let target =
        large["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
    assert_eq!(target["message"], large["message"]);
    assert!(
        is_ready(&cluster.api.get(&path("critical", "kube-system")).unwrap()),
        "the system's pod was ended"
    );
    let tainted = |api: &Api| {
        let node = api.get("/api/v1/nodes/ours")?;
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        Ok(taints.iter().any(|taint| taint["key"] == "node.kubernetes.io/memory-pressure"))
    };
    cluster.wait("the node is tainted", LIMIT, tainted, shown).unwrap();
    create("late", &container(json!({})), "default");
    let refused = |api: &Api| {
        let status = api.get(&path("late", "default"))?["status"].clone();
        Ok(status["reason"] == "Evicted"
            && status["message"] == "Pod was rejected: The node had condition: [MemoryPressure]. ")
    };
    cluster
        .wait("a new pod is not taken", LIMIT, refused, || cluster.ask(&["describe", "pod", "late"]).unwrap())
        .unwrap();
    let events = cluster.ask(&["get", "events", "-A"]).unwrap();
    assert!(
        events.contains("EvictionThresholdMet") && events.contains("Attempting to reclaim memory"),
        "{events}"
    );
    cluster.down().unwrap();
}

/// A disk that is short is told at once; pods end for it when it has been so for the time that was given, and nothing of
/// the node's own goes with them.
#[test]
fn a_node_whose_disk_is_short_evicts_after_the_grace_period() {
    let flags = [
        "--eviction-soft=nodefs.available<1%",
        "--eviction-soft-grace-period=nodefs.available=30s",
        "--eviction-max-pod-grace-period=5",
    ];
    let cluster = Cluster::of_test("short-disk", &flags).unwrap();
    for (name, arguments) in [("pours", vec!["pour", "/poured", "20"]), ("idles", vec!["sleep"])] {
        let spec = json!({"nodeName": "ours", "hostNetwork": true, "containers": [container(json!({"args": arguments}))]});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        cluster.api.create(PODS, &pod).unwrap();
    }
    let of = |api: &Api, name: &str| api.get(&format!("{PODS}/{name}"));
    let shown = || cluster.node("ours").unwrap().last_words();
    let both = |api: &Api| Ok(is_ready(&of(api, "pours")?) && is_ready(&of(api, "idles")?));
    cluster.wait("both run", LIMIT, both, shown).unwrap();
    let machine = &cluster.node("ours").unwrap().machine;
    let own = ["pki/kubeconfig", "pki/ca.crt", "pki/kubelet-client.pem", "agent/pod-cidrs"];
    let read = || own.map(|name| std::fs::read(machine.folder.join("lib/coracle").join(name)).unwrap());
    let before = read();
    machine.kill_service("coracle").unwrap();
    let command =
        "sed -i 's/soft=nodefs.available<1%/soft=nodefs.available<99%/' /run/services/coracle.command";
    machine.run(&["bash", "-c", command]).unwrap();
    machine.start_service_again("coracle").unwrap();

    let is_told = |api: &Api| {
        let node = api.get("/api/v1/nodes/ours")?;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.iter().any(|c| c["type"] == "DiskPressure" && c["status"] == "True"))
    };
    cluster.wait("the pressure is told", LIMIT, is_told, shown).unwrap();
    assert!(is_ready(&of(&cluster.api, "pours").unwrap()), "ended before its time");
    let are_gone = |api: &Api| {
        let is_gone = |name| Ok::<_, anyhow::Error>(of(api, name)?["status"]["reason"] == "Evicted");
        Ok(is_gone("pours")? && is_gone("idles")?)
    };
    cluster.wait("both are gone", LIMIT, are_gone, shown).unwrap();
    let ended = |name: &str| {
        let container = of(&cluster.api, name).unwrap()["status"]["containerStatuses"][0].clone();
        container["state"]["terminated"]["finishedAt"].as_str().unwrap().to_owned()
    };
    // Each has five seconds to end, and the other is begun with after that.
    assert!(ended("pours") < ended("idles"), "the one that takes more goes first");
    let status = of(&cluster.api, "pours").unwrap()["status"].clone();
    let message = status["message"].as_str().unwrap();
    assert!(
        message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: ")
            && message.contains(". Container main was using ")
            && message.ends_with(", request is 0, has larger consumption of ephemeral-storage. "),
        "{message}"
    );
    let target =
        status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!((&target["reason"], &target["message"]), (&json!("TerminationByKubelet"), &status["message"]));
    let events = cluster.ask(&["get", "events", "-A"]).unwrap();
    assert!(events.contains("Attempting to reclaim ephemeral-storage"), "{events}");
    assert_eq!(read(), before);
    cluster.down().unwrap();
}
