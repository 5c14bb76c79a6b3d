//! What the API and kubectl tell of pods on a node of ours, held against the reference node.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves them out.
#![allow(clippy::print_stdout, reason = "what only the reference tells is printed")]
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

#[path = "support/joined.rs"]
mod support;

use std::time::Duration;

use coracle_integration_tests::cluster::{Cluster, Kind};
use coracle_integration_tests::images::EXAMPLE;
use serde_json::{Value, json};
use support::{LIMIT, PODS, container, is_ready};

/// A kind of pod, its specification, and what its status comes to.
struct Sample {
    name: &'static str,
    spec: Value,
    settled: fn(&Value) -> bool,
}

fn waits_for(pod: &Value, reason: &str) -> bool {
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
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
    let mut cluster = Cluster::of_test("joined", &[]).unwrap();
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
    let mut cluster = Cluster::of_test("shown", &[]).unwrap();
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
