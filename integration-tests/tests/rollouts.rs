//! Deployments on a node of ours under a real control plane: rolled out, scaled, rolled back and deleted, while the
//! agent is killed with -9 at random moments, and while the API server is gone.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves it out.
//! `CORACLE_ROLLOUT_MOMENTS` sets how often the agent is killed, `CORACLE_OUTAGE_SECONDS` how long the API server is
//! gone; a run prints its seed, and `CORACLE_CHAOS_SEED` repeats its choices.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]
#![allow(clippy::print_stdout, reason = "the seed of a run and what it found are printed")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use coracle_integration_tests::Executables;
use coracle_integration_tests::cluster::{Cluster, Kind, Options};
use coracle_integration_tests::images::{self, EXAMPLE, Set};
use coracle_integration_tests::peers::Peers;
use coracle_integration_tests::random::{Random, number};
use coracle_integration_tests::victims::command_line;
use serde_json::{Value, json};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const PODS: &str = "/api/v1/namespaces/default/pods";
const NODE: &str = "ours";
const SERVICE: &str = "coracle";
const LIMIT: Duration = Duration::from_secs(300);

/// What runs or should run: the id of a pod's one container by the pod's UID.
type Containers = BTreeMap<String, String>;

/// A control plane with one node of ours.
struct Rollouts {
    cluster: Cluster,
}

impl Rollouts {
    fn start(name: &str) -> Self {
        let executables = Executables::of_this_build();
        images::write(&Peers::new(), Set::Basic, Some(&executables.example)).unwrap();
        let mut cluster = Cluster::start(&Options::of_test(name)).unwrap();
        cluster.add_node(NODE, &Kind::Coracle { executables, flags: Vec::new() }).unwrap();
        Self { cluster }
    }

    fn create(&self, name: &str, replicas: u64) {
        let labels = json!({"app": name});
        let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1});
        let container = json!({"name": "main", "image": EXAMPLE, "imagePullPolicy": "IfNotPresent",
            "args": ["serve", "8080"], "readinessProbe": probe, "env": [{"name": "VERSION", "value": "0"}]});
        let pod = json!({"metadata": {"labels": labels},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 1}});
        let spec = json!({"replicas": replicas, "selector": {"matchLabels": labels}, "template": pod});
        let object =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec});
        self.cluster.api.create(DEPLOYMENTS, &object).unwrap();
    }

    fn scale(&self, name: &str, replicas: u64) {
        self.cluster
            .api
            .merge(&format!("{DEPLOYMENTS}/{name}"), &json!({"spec": {"replicas": replicas}}))
            .unwrap();
    }

    /// Asks for pods of another version, each of which replaces one of the version before.
    fn roll(&self, name: &str, version: u64) {
        let annotations = json!({"version": version.to_string()});
        let change = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
        self.cluster.api.merge(&format!("{DEPLOYMENTS}/{name}"), &change).unwrap();
    }

    /// Waits until the deployment is as asked for, with no pod beside its replicas.
    fn settle(&self, name: &str, when: &str) {
        let is_done = |object: &Value| {
            let (meta, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
            let wanted = spec["replicas"].as_u64().unwrap_or_default();
            let has = |what: &str| status[what].as_u64().unwrap_or_default() == wanted;
            status["observedGeneration"] == meta["generation"]
                && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|what| has(what))
        };
        let path = format!("{DEPLOYMENTS}/{name}");
        let shown = || format!("{}\n{}", self.cluster.node(NODE).unwrap().last_words(), self.table());
        let settled = |object: &Value, pods: usize| {
            is_done(object) && object["spec"]["replicas"].as_u64() == u64::try_from(pods).ok()
        };
        self.cluster
            .wait(when, LIMIT, |api| Ok(settled(&api.get(&path)?, self.pods(name)?.len())), shown)
            .unwrap();
    }

    fn pods(&self, name: &str) -> anyhow::Result<Vec<Value>> {
        let list = self.cluster.api.get(&format!("{PODS}?labelSelector=app%3D{name}"))?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    fn table(&self) -> String {
        self.cluster.ask(&["get", "pods", "-o", "wide"]).unwrap_or_default()
    }

    /// The containers that the API says run.
    fn told(&self, name: &str) -> anyhow::Result<Containers> {
        let running = |pod: &Value| {
            let status = &pod["status"]["containerStatuses"][0];
            status["state"]["running"].is_object().then_some(())?;
            let id = status["containerID"].as_str()?.split_once("://")?.1.to_owned();
            Some((pod["metadata"]["uid"].as_str()?.to_owned(), id))
        };
        Ok(self.pods(name)?.iter().filter_map(running).collect())
    }

    /// The containers that run, by their processes; panics when a pod has two.
    fn running(&self) -> Containers {
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (pid, cgroup) in self.cluster.node(NODE).unwrap().machine.processes() {
            // What is about to become the program is none yet.
            let Some((uid, id)) = container_of(&cgroup) else { continue };
            if command_line(pid).starts_with("/example ") {
                found.entry(uid.to_owned()).or_default().insert(id.to_owned());
            }
        }
        let one = |(uid, ids): (String, BTreeSet<String>)| {
            assert_eq!(ids.len(), 1, "pod {uid} runs {ids:?}");
            (uid, ids.into_iter().next().unwrap())
        };
        found.into_iter().map(one).collect()
    }

    /// How long it takes until the API server says of the deployment's containers what is so.
    fn agreement(&self, name: &str, when: &str) -> Duration {
        let begun = Instant::now();
        loop {
            let (told, running) = (self.told(name).unwrap(), self.running());
            if told == running {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < LIMIT, "{when}: the API says {told:?}, there run {running:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// No container that ran was started a second time. One that was made and not yet started is made anew, as a
    /// kubelet does it.
    fn assert_no_restarts(&self, name: &str, when: &str) {
        for pod in self.pods(name).unwrap() {
            let status = &pod["status"]["containerStatuses"][0];
            let ran_before = status["lastState"]["terminated"]["startedAt"].is_string();
            assert!(status["restartCount"] == 0 || !ran_before, "{when}: restarted: {pod:#}");
        }
    }

    fn delete(self, name: &str) {
        self.cluster.api.delete(&format!("{DEPLOYMENTS}/{name}")).unwrap();
        let shown = || self.cluster.node(NODE).unwrap().last_words();
        self.cluster.wait("its pods are gone", LIMIT, |_| Ok(self.pods(name)?.is_empty()), shown).unwrap();
        let left = || format!("{:?}", self.running());
        self.cluster.wait("nothing of them runs", LIMIT, |_| Ok(self.running().is_empty()), left).unwrap();
        self.cluster.down().unwrap();
    }
}

/// The UID of the pod and the id of the container that have this cgroup, as the cgroupfs driver names them.
fn container_of(cgroup: &str) -> Option<(&str, &str)> {
    let (parent, id) = cgroup.rsplit_once('/')?;
    Some((parent.rsplit('/').next()?.strip_prefix("pod")?, id))
}

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
    let mut longest = Duration::ZERO;
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
        longest = longest.max(rollouts.agreement("web", &when));
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
            println!("moment {moment}: the API agreed within {longest:?} of every start");
        }
    }
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
