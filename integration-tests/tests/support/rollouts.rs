//! Deployments on one node of ours in a cluster of a test, and what is true of them whatever happens.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use coracle_integration_tests::cluster::Cluster;
pub(crate) use coracle_integration_tests::cluster::OURS as NODE;
use coracle_integration_tests::images::EXAMPLE;
use coracle_integration_tests::victims::command_line;
use serde_json::{Value, json};

pub(crate) const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";
pub(crate) const SERVICE: &str = "coracle";
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// What runs or should run: the id of a pod's one container by the pod's UID.
pub(crate) type Containers = BTreeMap<String, String>;

/// A control plane with one node of ours.
pub(crate) struct Rollouts {
    pub(crate) cluster: Cluster,
}

impl Rollouts {
    pub(crate) fn start(name: &str) -> Self {
        Self { cluster: Cluster::of_test(name, &[]).unwrap() }
    }

    pub(crate) fn create(&self, name: &str, replicas: u64) {
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

    pub(crate) fn scale(&self, name: &str, replicas: u64) {
        self.cluster
            .api
            .merge(&format!("{DEPLOYMENTS}/{name}"), &json!({"spec": {"replicas": replicas}}))
            .unwrap();
    }

    /// Asks for pods of another version, each of which replaces one of the version before.
    pub(crate) fn roll(&self, name: &str, version: u64) {
        let annotations = json!({"version": version.to_string()});
        let change = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
        self.cluster.api.merge(&format!("{DEPLOYMENTS}/{name}"), &change).unwrap();
    }

    /// Waits until the deployment is as asked for, with no pod beside its replicas.
    pub(crate) fn settle(&self, name: &str, when: &str) {
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

    pub(crate) fn pods(&self, name: &str) -> anyhow::Result<Vec<Value>> {
        let list = self.cluster.api.get(&format!("{PODS}?labelSelector=app%3D{name}"))?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    pub(crate) fn table(&self) -> String {
        self.cluster.ask(&["get", "pods", "-o", "wide"]).unwrap_or_default()
    }

    /// The containers that the API says run.
    pub(crate) fn told(&self, name: &str) -> anyhow::Result<Containers> {
        let running = |pod: &Value| {
            let status = &pod["status"]["containerStatuses"][0];
            status["state"]["running"].is_object().then_some(())?;
            let id = status["containerID"].as_str()?.split_once("://")?.1.to_owned();
            Some((pod["metadata"]["uid"].as_str()?.to_owned(), id))
        };
        Ok(self.pods(name)?.iter().filter_map(running).collect())
    }

    /// The containers that run, by their processes; panics when a pod has two.
    pub(crate) fn running(&self) -> Containers {
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
    pub(crate) fn agreement(&self, name: &str, when: &str) -> Duration {
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

    /// The API has to agree with what runs soon after a start. What a busy machine adds shows in few of several starts.
    pub(crate) fn assert_prompt(mut agreements: Vec<Duration>) {
        agreements.sort_unstable();
        let (median, longest) = (agreements[agreements.len() / 2], agreements[agreements.len() - 1]);
        println!("the API agreed within {median:?} of half of the starts, within {longest:?} of all");
        assert!(median <= Duration::from_secs(5), "the API agrees late: {agreements:?}");
        assert!(longest <= Duration::from_secs(30), "the API agreed very late once: {agreements:?}");
    }

    /// No container that ran was started a second time. One that was made and not yet started is made anew, as a
    /// kubelet does it.
    pub(crate) fn assert_no_restarts(&self, name: &str, when: &str) {
        for pod in self.pods(name).unwrap() {
            let status = &pod["status"]["containerStatuses"][0];
            let ran_before = status["lastState"]["terminated"]["startedAt"].is_string();
            assert!(status["restartCount"] == 0 || !ran_before, "{when}: restarted: {pod:#}");
        }
    }

    pub(crate) fn delete(self, name: &str) {
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
