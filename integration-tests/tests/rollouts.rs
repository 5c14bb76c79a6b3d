//! Deployments on a node of ours under a real control plane: rolled out, scaled, rolled back and deleted, while the
//! agent is killed with -9 at random moments, and while the API server is gone.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves it out.
//! `CORACLE_ROLLOUT_MOMENTS` sets how often the agent is killed, `CORACLE_OUTAGE_SECONDS` how long the API server is
//! gone; a run prints its seed, and `CORACLE_CHAOS_SEED` repeats its choices.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]
#![allow(clippy::print_stdout, reason = "the seed of a run and what it found are printed")]

#[path = "support/rollouts.rs"]
mod support;

use std::time::{Duration, Instant};

use coracle_integration_tests::images::EXAMPLE;
use coracle_integration_tests::random::{Random, number};
use serde_json::json;
use support::{DEPLOYMENTS, LIMIT, NODE, Rollouts, SERVICE};

#[test]
fn a_deployment_of_twenty_rolls_out_scales_rolls_back_and_goes() {
    let rollouts = Rollouts::start("rollouts");
    rollouts.create("web", 20);
    rollouts.settle("web", "twenty pods are ready");
    rollouts.roll("web", 1);
    rollouts.settle("web", "all twenty are replaced");
    rollouts.scale("web", 5);
    rollouts.settle("web", "five are left");
    rollouts.roll("web", 0);
    rollouts.settle("web", "the version before is back");
    rollouts.assert_no_restarts("web", "at the end");
    rollouts.delete("web");
}

#[test]
fn no_container_is_lost_or_doubled_when_the_agent_is_killed_in_a_rollout() {
    let seed = number("CORACLE_CHAOS_SEED", u64::from(std::process::id()) * 2_654_435_761 + 1);
    let moments = number("CORACLE_ROLLOUT_MOMENTS", 8);
    println!("seed {seed}, {moments} moments");
    let mut random = Random::new(seed);
    let rollouts = Rollouts::start("rollout-kills");
    rollouts.create("web", 4);
    rollouts.settle("web", "the first pods are ready");
    let mut agreements = Vec::new();
    for moment in 0..moments {
        let when = format!("moment {moment}, seed {seed}");
        if random.below(2) == 0 {
            rollouts.scale("web", 2 + random.below(6));
        } else {
            rollouts.roll("web", moment + 1);
        }
        std::thread::sleep(Duration::from_millis(random.below(2500)));
        let machine = &rollouts.cluster.node(NODE).unwrap().machine;
        machine.kill_service(SERVICE).unwrap();
        let before = rollouts.running();
        machine.start_service_again(SERVICE).unwrap();
        // A container that ran is the same one or is gone with its pod; that none was restarted is held below.
        agreements.push(rollouts.agreement("web", &when));
        for (uid, id) in rollouts.running() {
            assert!(
                before.get(&uid).is_none_or(|earlier| *earlier == id),
                "{when}: pod {uid} was started anew"
            );
        }
        if moment % 4 == 3 || moment + 1 == moments {
            rollouts.settle("web", &when);
            rollouts.agreement("web", &when);
            rollouts.assert_no_restarts("web", &when);
        }
    }
    Rollouts::assert_prompt(agreements);
    rollouts.delete("web");
}

#[test]
fn pods_outlive_the_api_server_and_a_rollout_goes_on() {
    let seconds = number("CORACLE_OUTAGE_SECONDS", 45);
    let rollouts = Rollouts::start("outage");
    rollouts.create("web", 4);
    rollouts.create("still", 3);
    rollouts.settle("web", "pods are ready");
    rollouts.settle("still", "pods are ready");
    let machine = &rollouts.cluster.node(NODE).unwrap().machine;
    let still = rollouts.told("still").unwrap();
    let lines = |text: &str| text.lines().count();
    let said = || std::fs::read_to_string(machine.log_of(SERVICE)).unwrap();
    let before = lines(&said());

    rollouts.roll("web", 1);
    let has_begun = |_: &_| Ok(rollouts.pods("web")?.len() > 4);
    rollouts.cluster.wait("the rollout begins", LIMIT, has_begun, || rollouts.table()).unwrap();
    rollouts.cluster.kill_api_server().unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        let running = rollouts.running();
        assert!(
            still.iter().all(|(uid, id)| running.get(uid) == Some(id)),
            "a pod ended without the API server"
        );
        std::thread::sleep(Duration::from_secs(1));
    }
    let during = said();
    rollouts.cluster.start_api_server().unwrap();
    rollouts.settle("web", "the rollout goes on");
    rollouts.settle("still", "nothing else changed");
    assert_eq!(rollouts.told("still").unwrap(), still, "pods were replaced");
    rollouts.assert_no_restarts("still", "after the outage");
    rollouts.assert_no_restarts("web", "after the outage");
    let new: Vec<&str> = during.lines().skip(before).collect();
    println!("said in {seconds} s without the API server:\n{}", new.join("\n"));
    assert!(new.len() < 40, "an outage is told once, not in a loop");
    rollouts.cluster.api.delete(&format!("{DEPLOYMENTS}/still")).unwrap();
    rollouts.delete("web");
}

/// As a reboot leaves a machine with no network: nothing runs, /run is empty, and no API server answers. It was off for
/// long: the certificate that it holds has ended.
#[test]
fn pods_start_again_after_a_reboot_without_the_api_server() {
    let rollouts = Rollouts::start("offline-reboot");
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "stringData": {"k": "kept"}});
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"k": "kept"}});
    rollouts.cluster.api.create("/api/v1/namespaces/default/secrets", &secret).unwrap();
    rollouts.cluster.api.create("/api/v1/namespaces/default/configmaps", &map).unwrap();
    rollouts.create("web", 3);
    let from = json!({"spec": {"template": {"spec": {
        "volumes": [{"name": "s", "secret": {"secretName": "s"}}, {"name": "m", "configMap": {"name": "m"}}],
        "containers": [{"name": "main", "image": EXAMPLE, "imagePullPolicy": "IfNotPresent",
            "args": ["serve", "8080"],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
            "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            "volumeMounts": [{"name": "s", "mountPath": "/s"}, {"name": "m", "mountPath": "/m"}]}]}}}});
    rollouts.cluster.api.merge(&format!("{DEPLOYMENTS}/web"), &from).unwrap();
    let job = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "done"},
        "spec": {"restartPolicy": "OnFailure", "nodeName": NODE, "containers": [
            {"name": "main", "image": EXAMPLE, "imagePullPolicy": "IfNotPresent", "args": ["exit", "0"]}]}});
    rollouts.cluster.api.create("/api/v1/namespaces/default/pods", &job).unwrap();
    rollouts.settle("web", "pods are ready");
    let before = rollouts.told("web").unwrap();
    let machine = &rollouts.cluster.node(NODE).unwrap().machine;
    let kept = machine.folder.join("lib/coracle/agent/pods.json");
    let is_kept = |_: &_| {
        let text = std::fs::read_to_string(&kept).unwrap_or_default();
        Ok(before.keys().all(|uid| text.contains(uid)) && !text.contains("\"name\":\"done\""))
    };
    let shown = || std::fs::read_to_string(&kept).unwrap_or_default();
    rollouts.cluster.wait("the pods are kept", LIMIT, is_kept, shown).unwrap();

    rollouts.cluster.kill_api_server().unwrap();
    let certificate = machine.folder.join("lib/coracle/pki/kubelet-client.pem");
    let ended = ended_certificate();
    std::fs::write(&certificate, &ended).unwrap();
    reboot(machine);
    let said = || machine.last_words(SERVICE, 40);
    let runs = |_: &_| {
        let running = rollouts.running();
        Ok(running.len() == before.len() && running.keys().eq(before.keys()))
    };
    let time = rollouts.cluster.wait("the pods run again", LIMIT, runs, said).unwrap();
    println!("without the API server {} pods ran {time:?} after the agent's start", before.len());
    let running = rollouts.running();
    assert!(running.iter().all(|(uid, id)| before[uid] != *id), "nothing survives a reboot");
    let told = std::fs::read_to_string(machine.log_of(SERVICE)).unwrap();
    assert_eq!(told.matches("the node's certificate ended at 2020-01-02T00:00:00Z").count(), 1, "{told}");

    rollouts.cluster.start_api_server().unwrap();
    rollouts.settle("web", "the API server knows them");
    rollouts.agreement("web", "after the reboot");
    assert_ne!(std::fs::read_to_string(&certificate).unwrap(), ended, "it joined again");
    assert_eq!(rollouts.told("web").unwrap(), running, "the same pods, and not started once more");
    let done = rollouts.cluster.api.get("/api/v1/namespaces/default/pods/done").unwrap();
    assert_eq!(done["status"]["phase"], "Succeeded", "{done:#}");
    rollouts.cluster.api.delete("/api/v1/namespaces/default/pods/done").unwrap();
    rollouts.delete("web");
}

/// A client certificate of the node whose time is over, with its key.
fn ended_certificate() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    parameters.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{NODE}"));
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2020, 1, 2);
    format!("{}{}", parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// Ends everything that belongs to the node's service and its pods, empties what does not outlive a boot, and starts
/// the service anew.
fn reboot(machine: &coracle_integration_tests::cluster::machine::Machine) {
    machine.kill_service(SERVICE).unwrap();
    let deadline = Instant::now() + LIMIT;
    let left = || {
        let all = machine.processes().into_iter();
        all.filter(|(_, cgroup)| cgroup.contains("kubepods") || cgroup.contains("coracle"))
            .collect::<Vec<_>>()
    };
    while !left().is_empty() {
        for (pid, _) in left() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        assert!(Instant::now() < deadline, "{:?}", left());
        std::thread::sleep(Duration::from_millis(50));
    }
    // The mounts of a machine are gone when it starts.
    let clear = "for path in $(awk '{print $5}' /proc/self/mountinfo | sort -r); do case $path in \
                 /run/coracle*|/run/netns*|/var/lib/kubelet/*|/var/lib/coracle/containers/*) umount -l $path;; esac; done; \
                 for link in $(ip -o link | sed -n 's/^[0-9]*: \\(veth[^@:]*\\|pods\\)[@:].*/\\1/p'); do ip link delete $link; done; \
                 rm -rf /run/coracle /run/netns /run/cni-networks";
    machine.run(&["bash", "-c", clear]).unwrap();
    machine.start_service_again(SERVICE).unwrap();
}
