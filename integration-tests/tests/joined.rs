//! Pods of an API server on a node of ours: users of their own, what is reserved from them, the runtime of their class.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves them out.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

#[path = "support/joined.rs"]
mod support;

use coracle_integration_tests::cluster::Cluster;
use coracle_integration_tests::images::EXAMPLE;
use coracle_integration_tests::peers::Peers;
use serde_json::{Value, json};
use support::{LIMIT, PODS, container, is_ready};

/// hostUsers: false: root in the pod is nobody on the host, volumes are the pod's, and it stays so over a restart of
/// the agent and of the container.
#[test]
fn a_pod_may_have_users_of_its_own() {
    let cluster = Cluster::of_test("users", &[]).unwrap();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"k": "v"}});
    cluster.api.create("/api/v1/namespaces/default/configmaps", &map).unwrap();
    let mounts = json!([{"name": "v", "mountPath": "/v"}, {"name": "m", "mountPath": "/m"}]);
    let mut first = container(json!({"args": ["write", "/v/file", "from root"], "volumeMounts": mounts}));
    first["name"] = "first".into();
    let mut main = container(json!({"args": ["serve", "8080"], "volumeMounts": mounts}));
    main["readinessProbe"] = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1});
    for name in ["one", "two"] {
        let spec = json!({"hostUsers": false, "nodeName": "ours", "terminationGracePeriodSeconds": 1,
            "securityContext": {"fsGroup": 2000}, "initContainers": [first], "containers": [main],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "m", "configMap": {"name": "m"}}]});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec, "metadata": {"name": name}});
        cluster.api.create(PODS, &pod).unwrap();
    }
    let machine = &cluster.node("ours").unwrap().machine;
    let shown = || cluster.node("ours").unwrap().last_words();
    let uid = |name: &str| {
        let pod = cluster.api.get(&format!("{PODS}/{name}")).unwrap();
        pod["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    // The main process of the container, as the host counts, and the host's id of its root.
    let root_of = |name: &str| -> Option<(u32, u32)> {
        let uid = uid(name);
        let processes = machine.processes().into_iter();
        let mut own = processes.filter(|(pid, cgroup)| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            cgroup.contains(&uid) && line.starts_with("/example")
        });
        let (pid, _) = own.next()?;
        let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).ok()?;
        let groups = std::fs::read_to_string(format!("/proc/{pid}/gid_map")).ok()?;
        assert_eq!(map, groups);
        let numbers: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!((numbers.len(), numbers[0], numbers[2]), (3, 0, 65536), "{map}");
        Some((pid, numbers[1]))
    };
    let ready = |name: &str| {
        let path = format!("{PODS}/{name}");
        cluster.wait(name, LIMIT, |api| Ok(is_ready(&api.get(&path)?)), shown).unwrap();
        root_of(name).unwrap()
    };
    let ((pid, one), (_, two)) = (ready("one"), ready("two"));
    assert!(one != two && one >= 65536 && one % 65536 == 0 && two % 65536 == 0, "{one} {two}");
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), one);
    // On the disk what root in the pod wrote is root's and the fsGroup's, as for a pod without users of its own.
    let volume =
        machine.folder.join("lib/kubelet/pods").join(uid("one")).join("volumes/kubernetes.io~empty-dir/v");
    let file = std::fs::metadata(volume.join("file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (0, 2000));
    let kept = machine.folder.join("lib/kubelet/pods").join(uid("one")).join("userns");
    assert!(std::fs::read_to_string(&kept).unwrap().contains(&format!("\"hostId\":{one}")));

    machine.kill_service("coracle").unwrap();
    machine.start_service_again("coracle").unwrap();
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let path = format!("{PODS}/one");
    let again = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1 && is_ready(pod);
    cluster.wait("it is started anew", LIMIT, |api| Ok(again(&api.get(&path)?)), shown).unwrap();
    assert_eq!(root_of("one").unwrap().1, one);
    for name in ["one", "two"] {
        cluster.api.delete(&format!("{PODS}/{name}")).unwrap();
    }
    let gone = |api: &coracle_integration_tests::cluster::api::Api| {
        Ok(api.get(PODS)?["items"].as_array().is_some_and(Vec::is_empty) && !kept.exists())
    };
    cluster.wait("they are gone", LIMIT, gone, shown).unwrap();
    cluster.down().unwrap();
}

/// What is reserved is kept from pods: in what the Node tells, in the cgroup of all pods, and in what a pod without
/// limits is told. A pod that is not admitted is among the node's pods with its reason.
#[test]
fn what_is_reserved_is_kept_from_pods() {
    let flags = [
        "--system-reserved=cpu=200m,memory=128Mi,pid=1000",
        "--kube-reserved=cpu=100m,memory=64Mi",
        // Beside the address that the harness gives.
        "--node-ip=fd00:7::7",
    ];
    let cluster = Cluster::of_test("reserved", &flags).unwrap();
    let big = container(json!({"resources": {"requests": {"memory": "9Ti"}}}));
    let limit = json!([{"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}}]);
    let plain = container(json!({"env": limit}));
    for (name, container, host) in [("big", big, false), ("plain", plain, true)] {
        let spec = json!({"nodeName": "ours", "terminationGracePeriodSeconds": 1, "containers": [container],
            "hostNetwork": host});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec, "metadata": {"name": name}});
        cluster.api.create(PODS, &pod).unwrap();
    }
    let shown = || cluster.node("ours").unwrap().last_words();
    let path = format!("{PODS}/plain");
    cluster.wait("it is ready", LIMIT, |api| Ok(is_ready(&api.get(&path)?)), shown).unwrap();
    let rejected = |api: &coracle_integration_tests::cluster::api::Api| {
        Ok(api.get(&format!("{PODS}/big"))?["status"]["reason"] == "OutOfmemory")
    };
    cluster.wait("it is not admitted", LIMIT, rejected, shown).unwrap();

    let node = cluster.api.get("/api/v1/nodes/ours").unwrap()["status"].clone();
    let kibibytes = |value: &Value| value.as_str().unwrap().trim_end_matches("Ki").parse::<i64>().unwrap();
    let (memory, left) = (kibibytes(&node["capacity"]["memory"]), kibibytes(&node["allocatable"]["memory"]));
    assert_eq!(memory - left, (192 + 100) * 1024, "reserved and what would mean pressure");
    let cores: i64 = node["capacity"]["cpu"].as_str().unwrap().parse().unwrap();
    assert_eq!(node["allocatable"]["cpu"], format!("{}m", cores * 1000 - 300));
    let addresses: Vec<&str> =
        node["addresses"].as_array().unwrap().iter().filter_map(|it| it["address"].as_str()).collect();
    assert!(addresses.contains(&"fd00:7::7") && addresses.len() == 3, "{addresses:?}");
    let pod = cluster.api.get(&path).unwrap();
    assert_eq!(pod["status"]["hostIPs"].as_array().unwrap().len(), 2, "{pod:#}");

    let machine = &cluster.node("ours").unwrap().machine;
    let read = |v1: &str, v2: &str| {
        let text = machine.run(&["cat", v1]).or_else(|_| machine.run(&["cat", v2])).unwrap();
        text.trim().parse::<i64>().unwrap()
    };
    let limit =
        read("/sys/fs/cgroup/memory/kubepods/memory.limit_in_bytes", "/sys/fs/cgroup/kubepods/memory.max");
    assert_eq!(limit, (memory - 192 * 1024) * 1024 / 4096 * 4096);
    let (pid, _) = machine
        .processes()
        .into_iter()
        .find(|(pid, cgroup)| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            cgroup.contains("kubepods") && line.starts_with("/example")
        })
        .unwrap();
    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.contains(&format!("LIMIT={}\0", left * 1024)), "{environment}");

    let pods = cluster.api.get("/api/v1/nodes/ours/proxy/pods").unwrap();
    let reasons: Vec<_> = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| (pod["metadata"]["name"].as_str().unwrap(), pod["status"]["reason"].as_str()))
        .collect();
    assert!(
        reasons.len() == 2
            && reasons.contains(&("big", Some("OutOfmemory")))
            && reasons.contains(&("plain", None)),
        "{reasons:?}"
    );
    let given = cluster.api.get("/api/v1/nodes/ours").unwrap()["spec"]["podCIDR"].clone();
    let kept = std::fs::read_to_string(machine.folder.join("lib/coracle/agent/pod-cidrs")).unwrap();
    assert_eq!(given, kept.trim());
    for name in ["big", "plain"] {
        cluster.api.delete(&format!("{PODS}/{name}")).unwrap();
    }
    let gone = |api: &coracle_integration_tests::cluster::api::Api| {
        Ok(api.get("/api/v1/nodes/ours/proxy/pods")?["items"].as_array().is_none_or(Vec::is_empty))
    };
    cluster.wait("they are gone", LIMIT, gone, shown).unwrap();
    cluster.down().unwrap();
}

#[test]
fn a_runtime_class_chooses_the_handler_and_an_image_is_a_volume() {
    let runc = Peers::new().program("runc").unwrap();
    let handler = format!("--runtime-handler=other={}", runc.display());
    let cluster = Cluster::of_test("classes", &[&handler]).unwrap();
    for (name, handler) in [("small", "other"), ("broken", "nobody")] {
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name},
            "handler": handler, "overhead": {"podFixed": {"memory": "8Mi"}}});
        cluster.api.create("/apis/node.k8s.io/v1/runtimeclasses", &class).unwrap();
    }
    let shown = || cluster.node("ours").unwrap().last_words();
    let create = |name: &str, class: &str, arguments: &[&str]| {
        let main = container(json!({"args": arguments, "volumeMounts": [
            {"name": "image", "mountPath": "/image"}, {"name": "image", "mountPath": "/etc-of-it", "subPath": "etc"}]}));
        let volume = json!({"name": "image", "image": {"reference": EXAMPLE, "pullPolicy": "IfNotPresent"}});
        let spec = json!({"nodeName": "ours", "runtimeClassName": class, "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1, "containers": [main], "volumes": [volume]});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        cluster.api.create(PODS, &pod).unwrap();
    };
    create("runs", "small", &["sleep"]);
    create("reads", "small", &["open", "/image/example"]);
    create("part", "small", &["open", "/etc-of-it/passwd"]);
    create("stays", "broken", &["sleep"]);
    let wait = |name: &str, is_so: &dyn Fn(&Value) -> bool| {
        let path = format!("{PODS}/{name}");
        cluster.wait(name, LIMIT, |api| Ok(is_so(&api.get(&path)?)), shown).unwrap();
    };
    wait("runs", &is_ready);
    wait("reads", &|pod| pod["status"]["phase"] == "Succeeded");
    wait("part", &|pod| pod["status"]["phase"] == "Succeeded");
    let pod = cluster.api.get(&format!("{PODS}/runs")).unwrap();
    assert_eq!(pod["spec"]["overhead"]["memory"], "8Mi");
    let made =
        cluster.node("ours").unwrap().machine.run(&["find", "/run/coracle/maker", "-name", "state.json"]);
    assert!(made.unwrap().lines().count() >= 1, "runc makes the containers of its class");
    let refused = || cluster.ask(&["describe", "pod", "stays"]).unwrap_or_default();
    let said = |_: &_| Ok(refused().contains("no runtime for \"nobody\" is configured"));
    cluster.wait("the pod of a handler that nobody has", LIMIT, said, refused).unwrap();
    let node = cluster.api.get("/api/v1/nodes/ours").unwrap();
    let handlers = node["status"]["runtimeHandlers"].as_array().unwrap();
    assert!(handlers.iter().any(|handler| handler["name"] == "other"), "{node}");
    cluster.down().unwrap();
}
