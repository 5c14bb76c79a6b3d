//! A joined kubelet on the fake runtime and a scripted API server, in real time.

use coracle_cluster::DeleteOptions;
use coracle_cluster::testing::{FakeApi, Fault, Rule};
use http::Method;
use serde_json::{Value, json};

use super::*;
use crate::admission::HostRules;
use crate::joined::{Joined, JoinedConfig, watch_node};
use crate::source::ApiPodForTests as Served;

const PODS: &str = "/api/v1/pods";
const NODE: &str = "n";

/// A node that joined.
struct Joint {
    api: FakeApi,
    fake: FakeRuntime,
    disk: Arc<Disk>,
    statics: watch::Sender<PodSet>,
    joined: Joined,
    kubelet: Kubelet,
    watching: tokio::task::JoinHandle<()>,
}

impl Joint {
    async fn new() -> Self {
        let fake = FakeRuntime::new();
        fake.add_image("web");
        let api = FakeApi::start().await;
        api.put(
            "/api/v1/nodes",
            json!({"metadata": {"name": NODE}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"}}}),
        );
        Self::on(api, fake, Arc::default(), watch::channel(PodSet::default()).0).await
    }

    async fn on(api: FakeApi, fake: FakeRuntime, disk: Arc<Disk>, statics: watch::Sender<PodSet>) -> Self {
        let clock = Clock::system();
        let cluster = api.cluster();
        let (node, watching) = watch_node(cluster.clone(), NODE.to_owned());
        let watching = tokio::spawn(watching);
        let mut joined = Joined::start(JoinedConfig {
            cluster,
            node_name: NODE.to_owned(),
            static_pods: statics.subscribe(),
            node,
            clock: clock.clone(),
            host: HostRules::default(),
            kept: None,
        });
        let mut config = KubeletConfig::new(PodResourcesConfig::new("/nonexistent"));
        config.clock = clock.clone();
        config.log_links = None;
        config.node_ips = NodeIps::given(["192.0.2.7".parse().unwrap()]);
        config.sources_seen = Some(joined.sources_seen());
        let parts = Parts {
            events: EventRecorder::new(clock.clone(), 1000),
            resources: disk.clone(),
            images: Arc::new(Pictures::default()),
            changes: watch::channel(0).1,
        };
        let kubelet = Kubelet::assemble(config, Arc::new(fake.clone()), joined.pods(), parts).await.unwrap();
        joined.follow(&kubelet);
        Self { api, fake, disk, statics, joined, kubelet, watching }
    }

    /// As a kill does, then anew. `api` may be away meanwhile.
    async fn restart(self) -> Self {
        let Self { api, fake, disk, statics, joined, kubelet, watching } = self;
        watching.abort();
        drop((joined, kubelet));
        Self::on(api, fake, disk, statics).await
    }

    fn bind(&self, name: &str, spec: Value) -> Value {
        self.api.put(
            PODS,
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "generation": 1},
                "spec": merge_specs(spec),
                "status": {"phase": "Pending", "qosClass": "BestEffort", "conditions": [
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        )
    }

    async fn until(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.api.wait_for(PODS, "default", name, wanted).await
    }

    async fn until_gone(&self, name: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while self.api.object(PODS, "default", name).is_some() {
            assert!(tokio::time::Instant::now() < deadline, "{name} is still there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn delete(&self, name: &str, grace: u32) {
        let options = DeleteOptions { grace_period_seconds: Some(grace), uid: None };
        self.api.cluster().delete::<Served>(Some("default"), name, &options).await.unwrap();
    }

    fn requests(&self, method: &Method, path: &str) -> usize {
        self.api.seen().iter().filter(|seen| seen.method == *method && seen.path.contains(path)).count()
    }
}

fn merge_specs(spec: Value) -> Value {
    let mut whole = json!({"nodeName": NODE, "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
        "containers": [{"name": "main", "image": "web"}]});
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    whole
}

/// A pod of the folder.
fn lone(hash: &str) -> Pod {
    let mut lone = pod("lone-n");
    lone.metadata.uid = Arc::from(hash);
    lone.metadata.annotations.insert("kubernetes.io/config.source".into(), "file".into());
    lone.metadata.annotations.insert("kubernetes.io/config.hash".into(), hash.into());
    lone.spec.node_name = NODE.into();
    lone
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    pod["status"]["phase"] == "Running" && conditions.is_some_and(|all| all.iter().any(ready))
}

#[tokio::test]
async fn a_bound_pod_runs_and_is_deleted_when_it_has_ended() {
    let node = Joint::new().await;
    let uid = node.bind("web", json!({}))["metadata"]["uid"].clone();
    let pod = node.until("web", is_ready).await;
    let status = &pod["status"];
    assert_eq!(status["hostIP"], "192.0.2.7");
    assert_eq!(status["observedGeneration"], 1);
    assert_eq!(status["conditions"].as_array().unwrap().len(), 5);
    assert_eq!(
        status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "PodScheduled").unwrap()["lastTransitionTime"],
        "2026-01-01T00:00:00Z",
        "what others found stays"
    );
    let container = &status["containerStatuses"][0];
    assert!(container["containerID"].as_str().unwrap().contains("://"));
    assert!(container["state"]["running"]["startedAt"].is_string());
    node.delete("web", 5).await;
    node.until_gone("web").await;
    let seen = node.api.seen();
    let last = seen.iter().rfind(|seen| seen.method == Method::DELETE).unwrap();
    assert_eq!(last.body["gracePeriodSeconds"], 0);
    assert_eq!(last.body["preconditions"]["uid"], uid);
    let patch =
        seen.iter().rfind(|seen| seen.method == Method::PATCH && seen.path.ends_with("/status")).unwrap();
    assert!(["Succeeded", "Failed"].contains(&patch.body["status"]["phase"].as_str().unwrap()), "{patch:?}");
    assert!(node.disk.torn_down.lock().unwrap().contains(&uid.as_str().unwrap().to_owned()));
}

#[tokio::test]
async fn a_pod_that_is_not_taken_fails_and_runs_nothing() {
    let node = Joint::new().await;
    let big =
        json!({"containers": [{"name": "main", "image": "web", "resources": {"requests": {"cpu": "9"}}}]});
    node.bind("big", big);
    let pod = node.until("big", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(pod["status"]["reason"], "OutOfcpu");
    assert_eq!(
        pod["status"]["message"],
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 9000, used: 0, capacity: 2000"
    );
    assert!(node.fake.containers().is_empty());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let is_told = |event: &Value| event["reason"] == "OutOfcpu" && event["type"] == "Warning";
    while !node.api.objects("/api/v1/events").iter().any(is_told) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", node.api.objects("/api/v1/events"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_pod_of_the_folder_that_has_ended_takes_no_room() {
    let node = Joint::new().await;
    let mut done = lone("h1");
    done.spec.restart_policy = "Never".to_owned();
    let requests = [("cpu".to_owned(), "1500m".parse().unwrap())];
    done.spec.containers[0].resources.requests.extend(requests);
    node.statics.send_replace(set([done]));
    let asking =
        json!({"containers": [{"name": "main", "image": "web", "resources": {"requests": {"cpu": "1"}}}]});
    node.until("lone-n", is_ready).await;
    node.bind("early", asking.clone());
    let early = node.until("early", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(early["status"]["reason"], "OutOfcpu");
    let container = node.fake.containers()[0].status.id.clone();
    node.fake.exit_container(&container, 0);
    node.until("lone-n", |pod| pod["status"]["phase"] == "Succeeded").await;
    node.bind("late", asking);
    node.until("late", is_ready).await;
}

#[tokio::test]
async fn a_critical_pod_runs_once_those_that_make_room_have_ended() {
    let node = Joint::new().await;
    let asking = |cpu: &str, more: Value| {
        let mut spec = json!({"containers": [{"name": "main", "image": "web", "resources": {"requests": {"cpu": cpu}}}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    node.bind("small", asking("500m", json!({})));
    node.bind("large", asking("1500m", json!({})));
    let small = node.until("small", is_ready).await;
    node.until("large", is_ready).await;
    node.bind("critical", asking("1200m", json!({"priority": 2_000_000_000})));
    let large = node.until("large", |pod| pod["status"]["phase"] == "Failed").await;
    let status = &large["status"];
    assert_eq!(status["reason"], "Preempting");
    assert_eq!(status["message"], "Preempted in order to admit critical pod");
    let conditions = status["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
    assert_eq!(target["message"], "Pod was preempted by Kubelet to accommodate a critical pod.");
    let critical = node.until("critical", is_ready).await;
    let ended = &status["containerStatuses"][0]["state"]["terminated"]["finishedAt"];
    let started = &critical["status"]["containerStatuses"][0]["state"]["running"]["startedAt"];
    assert!(ended.as_str().unwrap() <= started.as_str().unwrap(), "{ended} {started}");
    let events = node.kubelet.events().snapshot();
    let told: Vec<_> = events.iter().filter(|event| event.reason == "Preempting").collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].message, "Preempted in order to admit critical pod");
    let now = node.until("small", is_ready).await;
    assert_eq!(now["status"]["containerStatuses"], small["status"]["containerStatuses"], "it was let be");
}

#[tokio::test]
async fn without_an_api_nothing_is_removed_and_the_folder_runs() {
    let node = Joint::new().await;
    node.bind("web", json!({}));
    node.until("web", is_ready).await;
    let containers = node.fake.containers().len();
    let mut node = node;
    node.api.stop().await;
    let mut node = node.restart().await;
    node.statics.send_replace(set([lone("h1")]));
    let mut statuses = node.kubelet.statuses();
    let runs = |views: &PodViews| views.values().any(|view| is_running(&view.status));
    tokio::time::timeout(Duration::from_secs(60), statuses.wait_for(runs)).await.unwrap().unwrap();
    assert_eq!(node.fake.containers().len(), containers + 1, "what ran runs on");
    node.api.restart().await;
    // The mirror shows that the node is heard again.
    node.until("lone-n", is_ready).await;
    let web = node.until("web", is_ready).await;
    assert_eq!(web["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(node.fake.containers().len(), containers + 1);
}

#[tokio::test]
async fn a_static_pod_is_shown_and_its_mirror_goes_with_it() {
    let node = Joint::new().await;
    node.statics.send_replace(set([lone("h1")]));
    let mirror = node.until("lone-n", is_ready).await;
    assert_eq!(mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"], "h1");
    assert_eq!(mirror["metadata"]["ownerReferences"][0]["kind"], "Node");
    // Someone deletes it: it comes back, and the pod was not touched.
    node.delete("lone-n", 0).await;
    let again = node.until("lone-n", is_ready).await;
    assert_ne!(again["metadata"]["uid"], mirror["metadata"]["uid"]);
    assert_eq!(node.fake.containers().len(), 1);
    // Another content is another pod under the same name.
    node.statics.send_replace(set([lone("h2")]));
    node.until("lone-n", |pod| {
        pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] == "h2" && is_ready(pod)
    })
    .await;
    node.statics.send_replace(PodSet::default());
    node.until_gone("lone-n").await;
}

#[tokio::test]
async fn statuses_outlive_refusals_and_are_written_once() {
    let node = Joint::new().await;
    for fault in [Fault::Status(500, "InternalError", None), Fault::Close] {
        node.api.add_rule(Rule::all(fault).method(Method::PATCH).path("/status").times(1));
    }
    node.bind("web", json!({}));
    node.until("web", is_ready).await;
    node.api.clear_rules();
    let before = node.requests(&Method::PATCH, "/status");
    // Somebody writes nonsense into the status: it is set right, once.
    let mut pod = node.api.object(PODS, "default", "web").unwrap();
    pod["status"]["phase"] = "Pending".into();
    node.api.put(PODS, pod);
    node.until("web", is_ready).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.requests(&Method::PATCH, "/status"), before + 1);
}

#[tokio::test]
async fn a_pod_gone_from_the_api_is_ended() {
    let node = Joint::new().await;
    node.bind("web", json!({}));
    node.until("web", is_ready).await;
    node.api.remove(PODS, "default", "web");
    let mut statuses = node.kubelet.statuses();
    let gone = statuses.wait_for(|views| views.is_empty());
    tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap().unwrap();
    assert!(node.fake.containers().is_empty());
}
