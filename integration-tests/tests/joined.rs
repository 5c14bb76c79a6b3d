//! Pods of an API server on a node of ours, held against the reference node.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves them out.
#![allow(clippy::print_stdout, reason = "what only the reference tells is printed")]
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::time::Duration;

use coracle_integration_tests::Executables;
use coracle_integration_tests::cluster::{self, Cluster, Kind, Options};
use coracle_integration_tests::images::{self, EXAMPLE, Set};
use coracle_integration_tests::peers::Peers;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const LIMIT: Duration = Duration::from_secs(180);

/// A kind of pod, its specification, and what its status comes to.
struct Sample {
    name: &'static str,
    spec: Value,
    settled: fn(&Value) -> bool,
}

fn container(more: Value) -> Value {
    let mut container = json!({"name": "main", "image": EXAMPLE, "imagePullPolicy": "IfNotPresent"});
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

fn waits_for(pod: &Value, reason: &str) -> bool {
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
}

fn is_ready(pod: &Value) -> bool {
    cluster::is_true(pod, "Ready")
}

/// Ended, and its sandbox is gone.
fn has_ended(pod: &Value) -> bool {
    let gone = |c: &Value| c["type"] == "PodReadyToStartContainers" && c["status"] == "False";
    let is_terminal = matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded"));
    is_terminal && pod["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(gone))
}

fn samples() -> Vec<Sample> {
    let requests = json!({"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"memory": "256Mi"}});
    let sample = |name, spec, settled| Sample { name, spec, settled };
    vec![
        sample("ready", json!({"containers": [container(json!({"resources": requests}))]}), is_ready),
        sample("host", json!({"hostNetwork": true, "containers": [container(json!({}))]}), is_ready),
        sample(
            "ended",
            json!({"restartPolicy": "Never",
                "initContainers": [{"name": "first", "image": EXAMPLE, "args": ["exit", "0"]}],
                "containers": [container(json!({"args": ["write", "/dev/termination-log", "bye"]}))]}),
            has_ended,
        ),
        sample(
            "failed",
            json!({"restartPolicy": "Never", "containers": [container(json!({"args": ["exit", "3"]}))]}),
            has_ended,
        ),
        sample(
            "big",
            json!({"containers": [container(json!({"resources": {"requests": {"memory": "9Ti"}}}))]}),
            |pod| pod["status"]["phase"] == "Failed",
        ),
        sample("windows", json!({"os": {"name": "windows"}, "containers": [container(json!({}))]}), |pod| {
            pod["status"]["phase"] == "Failed"
        }),
        sample(
            "unset",
            json!({"containers": [container(json!({"env": [{"name": "A",
                "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "a"}}}]}))]}),
            |pod| waits_for(pod, "CreateContainerConfigError"),
        ),
        sample(
            "unmounted",
            json!({"containers": [container(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}))],
                "volumes": [{"name": "v", "secret": {"secretName": "absent"}}]}),
            |pod| waits_for(pod, "ContainerCreating") && pod["status"]["hostIP"].is_string(),
        ),
    ]
}

/// What a status says besides times, addresses, ids and names that are made for each pod.
fn plain(mut status: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(map) => {
                for key in ["lastTransitionTime", "startTime", "startedAt", "finishedAt", "imageID", "image"]
                {
                    if map.get(key).is_some_and(|value| !value.is_null()) {
                        map.insert(key.to_owned(), "set".into());
                    }
                }
                for key in ["containerID", "hostIP", "podIP", "ip"] {
                    if map.get(key).is_some_and(|value| value.as_str() != Some("")) {
                        map.insert(key.to_owned(), "set".into());
                    }
                }
                // The reference's first start of a container fails now and then on a busy machine.
                map.remove("restartCount");
                map.remove("lastState");
                let name = map.get("name").and_then(Value::as_str).unwrap_or_default();
                if name.starts_with("kube-api-access-") {
                    map.insert("name".to_owned(), "kube-api-access".into());
                }
                map.values_mut().for_each(walk);
            }
            Value::Array(items) => items.iter_mut().for_each(walk),
            _ => {}
        }
    }
    walk(&mut status);
    // On cgroup v1 a kubelet takes the kernel's word for "no limit" for a limit.
    if status["resources"]["limits"]["memory"] == "9007199254740988Ki" {
        status["resources"] = json!({});
    }
    // What the machine has is not the same as what is left of it.
    let message = status["message"].as_str().unwrap_or_default().split(", used").next().unwrap_or_default();
    status["message"] = message.to_owned().into();
    status
}

#[test]
fn statuses_are_those_of_the_reference_node() {
    let executables = Executables::of_this_build();
    images::write(&Peers::new(), Set::Basic, Some(&executables.example)).unwrap();
    let mut cluster = Cluster::start(&Options::of_test("joined")).unwrap();
    cluster.add_node("ours", &Kind::Coracle { executables, flags: Vec::new() }).unwrap();
    cluster.add_node("theirs", &Kind::Reference).unwrap();
    for sample in samples() {
        for node in ["ours", "theirs"] {
            let mut spec = sample.spec.clone();
            spec["nodeName"] = node.into();
            spec["terminationGracePeriodSeconds"] = 1.into();
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec,
                "metadata": {"name": format!("{}-{node}", sample.name)}});
            cluster.api.create(PODS, &pod).unwrap();
        }
    }
    let shown = || cluster.node("ours").unwrap().last_words();
    let mut wrong = Vec::new();
    for sample in samples() {
        let status = |node: &str| {
            let path = format!("{PODS}/{}-{node}", sample.name);
            let name = format!("{} settles on {node}", sample.name);
            cluster.wait(&name, LIMIT, |api| Ok((sample.settled)(&api.get(&path)?)), shown).unwrap();
            plain(cluster.api.get(&path).unwrap()["status"].clone())
        };
        // The reference's containers end once in a while as they start, and are ready a moment later.
        let same = cluster.wait(sample.name, LIMIT, |_| Ok(status("ours") == status("theirs")), String::new);
        if same.is_err() {
            wrong.push(format!("{}:\nours {:#}\ntheirs {:#}", sample.name, status("ours"), status("theirs")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    for sample in samples() {
        cluster.api.delete(&format!("{PODS}/{}-ours", sample.name)).unwrap();
    }
    let is_empty = |list: &Value| {
        let all = list["items"].as_array().into_iter().flatten();
        !all.into_iter().any(|pod| pod["spec"]["nodeName"] == "ours")
    };
    cluster.wait("our pods are gone", LIMIT, |api| Ok(is_empty(&api.get(PODS)?)), shown).unwrap();
    cluster.down().unwrap();
}

/// What kubectl shows, without what differs from pod to pod and from moment to moment: words with digits in them.
fn plain_words(shown: &str, node: &str) -> String {
    let line = |line: &str| {
        let words = line.split_whitespace().map(|word| {
            if word.starts_with("kube-api-access-") {
                "kube-api-access"
            } else if word.chars().any(|letter| letter.is_ascii_digit()) {
                "#"
            } else if word.trim_matches('-').is_empty() {
                "-"
            } else {
                word
            }
        });
        words.collect::<Vec<_>>().join(" ").replace(node, "NODE")
    };
    let mut lines: Vec<String> = shown.lines().map(line).collect();
    // kubectl shows events by the time of their last repetition.
    let events = lines.iter().position(|line| line == "Events:").unwrap_or(lines.len());
    for line in &mut lines[events..] {
        *line = line.replace("# # over #", "#");
    }
    lines[events..].sort();
    lines.join("\n")
}

#[test]
fn kubectl_shows_what_it_shows_of_the_reference_node() {
    let executables = Executables::of_this_build();
    images::write(&Peers::new(), Set::Basic, Some(&executables.example)).unwrap();
    let mut cluster = Cluster::start(&Options::of_test("shown")).unwrap();
    cluster.add_node("ours", &Kind::Coracle { executables, flags: Vec::new() }).unwrap();
    cluster.add_node("theirs", &Kind::Reference).unwrap();
    cluster.start_metrics_server().unwrap();
    let kinds = [
        ("runs", json!({"args": ["fill", "20"]}), "Running"),
        ("fails", json!({"args": ["exit", "3"]}), "Failed"),
        ("waits", json!({"image": "No:Such:Name"}), "Pending"),
    ];
    for (name, more, _) in &kinds {
        for node in ["ours", "theirs"] {
            let spec = json!({"nodeName": node, "terminationGracePeriodSeconds": 1, "restartPolicy": "Never",
                "containers": [container(more.clone())]});
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec,
                "metadata": {"name": format!("{name}-{node}")}});
            cluster.api.create(PODS, &pod).unwrap();
        }
    }
    let shown = || cluster.node("ours").unwrap().last_words();
    let mut wrong = Vec::new();
    let mut compare = |what: &str, words: &dyn Fn(&str) -> String| {
        // Events and phases come one after the other, so what is shown is awaited.
        let same = cluster.wait(
            what,
            Duration::from_secs(60),
            |_| Ok(words("ours") == words("theirs")),
            String::new,
        );
        if same.is_err() {
            let (ours, theirs) = (words("ours"), words("theirs"));
            let only = |these: &str, those: &str| {
                let missing = these.lines().filter(|line| !those.lines().any(|other| other == *line));
                missing.collect::<Vec<_>>().join("\n")
            };
            let (first, second) = (only(&ours, &theirs), only(&theirs, &ours));
            wrong.push(format!("{what}, only ours:\n{first}\nonly theirs:\n{second}"));
        }
    };
    for (name, _, phase) in &kinds {
        for node in ["ours", "theirs"] {
            let path = format!("{PODS}/{name}-{node}");
            let settled = |pod: &Value| pod["status"]["phase"] == *phase;
            cluster.wait(name, LIMIT, |api| Ok(settled(&api.get(&path)?)), shown).unwrap();
        }
        compare(&format!("describe {name}"), &|node| {
            let told = cluster.ask(&["describe", "pod", &format!("{name}-{node}")]).unwrap_or_default();
            plain_words(&told, node)
        });
        compare(&format!("get {name}"), &|node| {
            let told =
                cluster.ask(&["get", "pod", &format!("{name}-{node}"), "-o", "wide"]).unwrap_or_default();
            plain_words(&told, node)
        });
        // One that runs on is not followed to its end.
        let flags: &[&str] = if *phase == "Running" { &["--tail=1", "-p"] } else { &["-f", "-p"] };
        for flag in flags {
            compare(&format!("logs {flag} {name}"), &|node| {
                let told = cluster.ask(&["logs", flag, &format!("{name}-{node}")]);
                plain_words(&told.unwrap_or_else(|error| format!("{error:#}")), node)
            });
        }
    }
    compare("get node", &|node| {
        let told = cluster.ask(&["get", "node", node, "-o", "wide"]).unwrap_or_default();
        plain_words(&told, node)
    });
    compare("describe node", &|node| {
        // Its events depend on how long the harness waited for what.
        let told = cluster.ask(&["describe", "node", node]).unwrap_or_default();
        plain_words(told.split("\nEvents:").next().unwrap_or_default(), node)
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let mebibytes = |node: &str| {
        let told = cluster.ask(&["top", "pod", &format!("runs-{node}"), "--no-headers"]).ok()?;
        told.split_whitespace().last()?.strip_suffix("Mi")?.parse::<i32>().ok()
    };
    let both = || Some((mebibytes("ours")?, mebibytes("theirs")?));
    cluster.wait("kubectl top pod", LIMIT, |_| Ok(both().is_some()), shown).unwrap();
    let (ours, theirs) = both().unwrap();
    assert!(ours >= 20 && (ours - theirs).abs() <= 2, "{ours} and {theirs} MiB for a program that holds 20");
    // What dashboards read of containers, ours and the reference's: the same families with the same labels.
    let families = |node: &str| {
        let text = cluster.api.text(&format!("/api/v1/nodes/{node}/proxy/metrics/cadvisor")).unwrap();
        let pod = format!("pod=\"runs-{node}\"");
        let of_pod = text.lines().filter(|line| line.contains(&pod) && line.contains("container=\"main\""));
        let shown = of_pod.filter_map(|line| {
            let (name, rest) = line.split_once('{')?;
            let labels = rest.split_once('}')?.0.split("\",").filter_map(|part| part.split('=').next());
            Some((name.to_owned(), labels.map(str::to_owned).collect::<Vec<_>>()))
        });
        shown.collect::<std::collections::BTreeMap<_, _>>()
    };
    let (own, reference) = (families("ours"), families("theirs"));
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_memory_rss",
        "container_memory_cache",
        "container_memory_usage_bytes",
        "container_start_time_seconds",
        "container_spec_memory_limit_bytes",
    ] {
        assert!(own.contains_key(name), "{name} is not in {own:#?}");
        assert!(
            reference.get(name).is_none_or(|labels| *labels == own[name]),
            "{name}: {own:#?}\n{reference:#?}"
        );
    }
    let missing: Vec<_> = reference.keys().filter(|name| !own.contains_key(*name)).collect();
    println!("families that only the reference has of a container: {missing:?}");
    let network = cluster.api.text("/api/v1/nodes/ours/proxy/metrics/cadvisor").unwrap();
    assert!(
        network.lines().any(|line| line.starts_with("container_network_receive_bytes_total{")
            && line.contains("pod=\"runs-ours\"")
            && line.contains("interface=\"eth0\"")),
        "{network}"
    );
    let nodes = cluster.ask(&["top", "node", "--no-headers"]).unwrap();
    assert!(!nodes.contains("<unknown>") && nodes.lines().count() == 2, "{nodes}");
    cluster.down().unwrap();
}

/// hostUsers: false: root in the pod is nobody on the host, volumes are the pod's, and it stays so over a restart of
/// the agent and of the container.
#[test]
fn a_pod_may_have_users_of_its_own() {
    let executables = Executables::of_this_build();
    images::write(&Peers::new(), Set::Basic, Some(&executables.example)).unwrap();
    let mut cluster = Cluster::start(&Options::of_test("users")).unwrap();
    cluster.add_node("ours", &Kind::Coracle { executables, flags: Vec::new() }).unwrap();
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
    let executables = Executables::of_this_build();
    images::write(&Peers::new(), Set::Basic, Some(&executables.example)).unwrap();
    let mut cluster = Cluster::start(&Options::of_test("reserved")).unwrap();
    let flags = ["--system-reserved=cpu=200m,memory=128Mi,pid=1000", "--kube-reserved=cpu=100m,memory=64Mi"];
    let mut flags = flags.map(str::to_owned).to_vec();
    // Beside the address that the harness gives.
    flags.push("--node-ip=fd00:7::7".to_owned());
    cluster.add_node("ours", &Kind::Coracle { executables, flags }).unwrap();
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

/// A node that runs short ends its pods one by one, those above their requests first and the system's never, says so as
/// a kubelet does, and takes no new pod without requests.
#[test]
fn a_node_that_runs_short_evicts_in_the_kubelets_order() {
    let executables = Executables::of_this_build();
    images::write(&Peers::new(), Set::Basic, Some(&executables.example)).unwrap();
    let mut cluster = Cluster::start(&Options::of_test("evictions")).unwrap();
    cluster.add_node("ours", &Kind::Coracle { executables, flags: Vec::new() }).unwrap();
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
    let all = |api: &coracle_integration_tests::cluster::api::Api| {
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
    let tainted = |api: &coracle_integration_tests::cluster::api::Api| {
        let node = api.get("/api/v1/nodes/ours")?;
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        Ok(taints.iter().any(|taint| taint["key"] == "node.kubernetes.io/memory-pressure"))
    };
    cluster.wait("the node is tainted", LIMIT, tainted, shown).unwrap();
    create("late", &container(json!({})), "default");
    let refused = |api: &coracle_integration_tests::cluster::api::Api| {
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
    let executables = Executables::of_this_build();
    images::write(&Peers::new(), Set::Basic, Some(&executables.example)).unwrap();
    let mut cluster = Cluster::start(&Options::of_test("short-disk")).unwrap();
    let flags =
        ["soft=nodefs.available<1%", "soft-grace-period=nodefs.available=30s", "max-pod-grace-period=5"];
    let flags = flags.map(|flag| format!("--eviction-{flag}")).to_vec();
    cluster.add_node("ours", &Kind::Coracle { executables, flags }).unwrap();
    for (name, arguments) in [("pours", vec!["pour", "/poured", "20"]), ("idles", vec!["sleep"])] {
        let spec = json!({"nodeName": "ours", "hostNetwork": true, "containers": [container(json!({"args": arguments}))]});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        cluster.api.create(PODS, &pod).unwrap();
    }
    let of =
        |api: &coracle_integration_tests::cluster::api::Api, name: &str| api.get(&format!("{PODS}/{name}"));
    let shown = || cluster.node("ours").unwrap().last_words();
    let both = |api: &coracle_integration_tests::cluster::api::Api| {
        Ok(is_ready(&of(api, "pours")?) && is_ready(&of(api, "idles")?))
    };
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

    let is_told = |api: &coracle_integration_tests::cluster::api::Api| {
        let node = api.get("/api/v1/nodes/ours")?;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.iter().any(|c| c["type"] == "DiskPressure" && c["status"] == "True"))
    };
    cluster.wait("the pressure is told", LIMIT, is_told, shown).unwrap();
    assert!(is_ready(&of(&cluster.api, "pours").unwrap()), "ended before its time");
    let are_gone = |api: &coracle_integration_tests::cluster::api::Api| {
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

#[test]
fn a_runtime_class_chooses_the_handler_and_an_image_is_a_volume() {
    let executables = Executables::of_this_build();
    images::write(&Peers::new(), Set::Basic, Some(&executables.example)).unwrap();
    let mut cluster = Cluster::start(&Options::of_test("classes")).unwrap();
    let runc = Peers::new().program("runc").unwrap();
    let flags = vec![format!("--runtime-handler=other={}", runc.display())];
    cluster.add_node("one", &Kind::Coracle { executables, flags }).unwrap();
    for (name, handler) in [("small", "other"), ("broken", "nobody")] {
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name},
            "handler": handler, "overhead": {"podFixed": {"memory": "8Mi"}}});
        cluster.api.create("/apis/node.k8s.io/v1/runtimeclasses", &class).unwrap();
    }
    let shown = || cluster.node("one").unwrap().last_words();
    let create = |name: &str, class: &str, arguments: &[&str]| {
        let main = container(json!({"args": arguments, "volumeMounts": [
            {"name": "image", "mountPath": "/image"}, {"name": "image", "mountPath": "/etc-of-it", "subPath": "etc"}]}));
        let volume = json!({"name": "image", "image": {"reference": EXAMPLE, "pullPolicy": "IfNotPresent"}});
        let spec = json!({"nodeName": "one", "runtimeClassName": class, "restartPolicy": "Never",
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
        cluster.node("one").unwrap().machine.run(&["find", "/run/coracle/maker", "-name", "state.json"]);
    assert!(made.unwrap().lines().count() >= 1, "runc makes the containers of its class");
    let refused = || cluster.ask(&["describe", "pod", "stays"]).unwrap_or_default();
    let said = |_: &_| Ok(refused().contains("no runtime for \"nobody\" is configured"));
    cluster.wait("the pod of a handler that nobody has", LIMIT, said, refused).unwrap();
    let node = cluster.api.get("/api/v1/nodes/one").unwrap();
    let handlers = node["status"]["runtimeHandlers"].as_array().unwrap();
    assert!(handlers.iter().any(|handler| handler["name"] == "other"), "{node}");
    cluster.down().unwrap();
}
