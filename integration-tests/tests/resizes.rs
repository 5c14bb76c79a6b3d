//! Pods that get other resources while they run, on a node of ours beside the reference node.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves them out.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::time::Duration;

use coracle_integration_tests::cluster::{Cluster, Kind};
use coracle_integration_tests::images::EXAMPLE;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const LIMIT: Duration = Duration::from_secs(180);
const NODES: [&str; 2] = ["ours", "theirs"];

/// As much of both as it asks for.
fn container(name: &str, cpu: &str, memory: &str) -> Value {
    let amounts = json!({"cpu": cpu, "memory": memory});
    json!({"name": name, "image": EXAMPLE, "imagePullPolicy": "IfNotPresent", "args": ["fill", "8"],
        "resources": {"requests": amounts, "limits": amounts}})
}

fn pod(node: &str) -> Value {
    let mut anew = container("anew", "100m", "64Mi");
    anew["resizePolicy"] = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"},
        {"resourceName": "cpu", "restartPolicy": "NotRequired"}]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("sized-{node}")},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1,
            "containers": [container("stays", "100m", "64Mi"), anew]}})
}

/// Asks for other resources; a request and a limit are the same.
fn resize(cluster: &Cluster, node: &str, wanted: &[(&str, &str, &str)]) {
    let containers: Vec<Value> = wanted
        .iter()
        .map(|(name, cpu, memory)| {
            let amounts = json!({"cpu": cpu, "memory": memory});
            json!({"name": name, "resources": {"requests": amounts, "limits": amounts}})
        })
        .collect();
    let patch = json!({"spec": {"containers": containers}}).to_string();
    let name = format!("sized-{node}");
    cluster.ask(&["patch", "pod", &name, "--subresource=resize", "--patch", &patch]).unwrap();
}

fn condition(pod: &Value, kind: &str) -> Option<Value> {
    let mut all = pod["status"]["conditions"].as_array()?.iter();
    all.find(|condition| condition["type"] == kind).cloned()
}

/// The kubelet saw the last change and has nothing left to do.
fn is_done(pod: &Value) -> bool {
    pod["status"]["observedGeneration"] == pod["metadata"]["generation"]
        && condition(pod, "PodResizePending").is_none()
        && condition(pod, "PodResizeInProgress").is_none()
        && condition(pod, "Ready").is_some_and(|ready| ready["status"] == "True")
}

/// What a status says of resources, and how often each container started anew. Of the pod's own requests the reference
/// goes on telling the memory of before a resize.
fn shown(pod: &Value) -> Value {
    let containers = pod["status"]["containerStatuses"].as_array().unwrap();
    let each = containers.iter().map(|c| {
        json!([
            c["name"],
            c["restartCount"],
            c["resources"],
            c["allocatedResources"],
            c["started"],
            c["ready"]
        ])
    });
    json!({"containers": each.collect::<Vec<_>>(), "allocated": pod["status"]["allocatedResources"],
        "pod": pod["status"]["resources"]["limits"]})
}

/// The memory limits of the pod's group and of those in it, as this machine's kernel has them.
fn kernel_limits(uid: &str) -> Vec<u64> {
    fn walk(folder: &std::path::Path, uid: &str, inside: bool, limits: &mut Vec<u64>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if !path.is_dir() {
                continue;
            }
            let inside = inside || entry.file_name().to_string_lossy().contains(uid);
            for file in ["memory.max", "memory.limit_in_bytes"] {
                let text = std::fs::read_to_string(path.join(file)).unwrap_or_default();
                limits.extend(text.trim().parse::<u64>().ok().filter(|_| inside));
            }
            walk(&path, uid, inside, limits);
        }
    }
    let mut limits = Vec::new();
    let unified = std::path::Path::new("/sys/fs/cgroup/memory");
    let root = if unified.is_dir() { unified } else { std::path::Path::new("/sys/fs/cgroup") };
    walk(root, uid, false, &mut limits);
    limits.retain(|limit| *limit < 1 << 40);
    limits.sort_unstable();
    limits
}

#[test]
fn pods_are_resized_as_on_the_reference_node() {
    let mut cluster = Cluster::of_test("resize", &[]).unwrap();
    cluster.add_node("theirs", &Kind::Reference).unwrap();
    let last_words = || cluster.node("ours").unwrap().last_words();
    let get = |node: &str| cluster.api.get(&format!("{PODS}/sized-{node}")).unwrap();
    let until = |node: &str, what: &str, holds: &dyn Fn(&Value) -> bool| {
        let shown = || format!("{:#}\n{}", get(node)["status"], last_words());
        cluster.wait(&format!("{node}: {what}"), LIMIT, |_| Ok(holds(&get(node))), shown).unwrap();
        get(node)
    };
    let cores = |node: &str| {
        let node = cluster.api.get(&format!("/api/v1/nodes/{node}")).unwrap();
        node["status"]["allocatable"]["cpu"].as_str().unwrap().parse::<i64>().unwrap()
    };
    for node in NODES {
        cluster.api.create(PODS, &pod(node)).unwrap();
        until(node, "ready", &is_done);
    }

    // More and less at once: one goes on, one starts anew.
    let after = NODES.map(|node| {
        resize(&cluster, node, &[("stays", "250m", "48Mi"), ("anew", "50m", "128Mi")]);
        until(node, "resized", &is_done)
    });
    assert_eq!(shown(&after[0]), shown(&after[1]));
    let status = &after[0]["status"]["containerStatuses"];
    assert_eq!((&status[0]["name"], &status[0]["restartCount"]), (&json!("anew"), &json!(1)));
    assert_eq!((&status[1]["name"], &status[1]["restartCount"]), (&json!("stays"), &json!(0)));
    assert_eq!(status[1]["resources"]["limits"], json!({"cpu": "250m", "memory": "48Mi"}));
    let uid = after[0]["metadata"]["uid"].as_str().unwrap();
    assert_eq!(kernel_limits(uid), [48 << 20, 128 << 20, 176 << 20], "two containers in their pod");

    // More than is left: it waits, and says so, until another pod makes room.
    let wide = NODES.map(|node| {
        let path = format!("{PODS}/wide-{node}");
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("wide-{node}")},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": []}});
        // Nearly all that there is, for both together more than there is.
        let mut main = container("main", "1", "64Mi");
        main["resources"] = json!({"requests": {"cpu": format!("{}m", cores(node) * 1000 - 500)}});
        pod["spec"]["containers"] = json!([main]);
        cluster.api.create(PODS, &pod).unwrap();
        cluster.wait("a wide pod runs", LIMIT, |api| Ok(is_done(&api.get(&path)?)), last_words).unwrap();
        path
    });
    let waits = NODES.map(|node| {
        resize(&cluster, node, &[("stays", &format!("{}m", cores(node) * 1000 - 600), "48Mi")]);
        until(node, "waits", &|pod| condition(pod, "PodResizePending").is_some())
    });
    let words = |pod: &Value| {
        let pending = condition(pod, "PodResizePending").unwrap();
        let message = pending["message"].as_str().unwrap().split(", used").next().unwrap().to_owned();
        json!([pending["status"], pending["reason"], message, pending["observedGeneration"]])
    };
    assert_eq!(words(&waits[0]), words(&waits[1]));
    assert_eq!(waits[0]["status"]["containerStatuses"][1]["resources"]["limits"]["cpu"], "250m");
    let given = NODES.map(|node| {
        cluster.api.delete(&wide[usize::from(node == "theirs")]).unwrap();
        until(node, "is given what it waited for", &is_done)
    });
    assert_eq!(shown(&given[0]), shown(&given[1]));
    assert_ne!(given[0]["status"]["containerStatuses"][1]["resources"]["limits"]["cpu"], "250m");

    // Less memory than is used: not set, until more is asked for.
    let errors = NODES.map(|node| {
        resize(&cluster, node, &[("stays", "250m", "4Mi")]);
        let is_error =
            |pod: &Value| condition(pod, "PodResizeInProgress").is_some_and(|c| c["reason"] == "Error");
        until(node, "cannot be resized", &is_error)
    });
    for pod in &errors {
        let message = condition(pod, "PodResizeInProgress").unwrap()["message"].as_str().unwrap().to_owned();
        assert!(
            message.contains("container \"stays\" memory limit (4194304) below current usage"),
            "{message}"
        );
    }
    let back = NODES.map(|node| {
        resize(&cluster, node, &[("stays", "100m", "64Mi")]);
        until(node, "resized again", &is_done)
    });
    assert_eq!(shown(&back[0]), shown(&back[1]));
    let reasons = NODES.map(|node| {
        let field = format!("involvedObject.name=sized-{node}");
        let told = cluster.ask(&["get", "events", "--field-selector", &field, "-o", "json"]).unwrap();
        let list: Value = serde_json::from_str(&told).unwrap();
        let all = list["items"].as_array().unwrap().iter().map(|event| event["reason"].as_str().unwrap());
        let mut reasons: Vec<String> =
            all.filter(|reason| reason.starts_with("Resize")).map(str::to_owned).collect();
        reasons.sort();
        reasons.dedup();
        reasons
    });
    assert_eq!(reasons[0], reasons[1]);
    cluster.down().unwrap();
}
