//! What is written, when, and that it comes back the same.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use coracle_cluster::testing::FakeApi;
use serde_json::{Value, json};

use super::*;
use crate::api::PodStatus;
use crate::clock::Clock;
use crate::kubelet::PodView;
use crate::objects::ObjectSource as _;

fn pod(name: &str, source: &str) -> Arc<Pod> {
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "d", "uid": format!("uid-{name}"), "generation": 2,
            "labels": {"a": "b"}, "creationTimestamp": "2026-01-31T12:00:00Z",
            "annotations": {"kubernetes.io/config.source": source}},
        "spec": {
            "nodeName": "n", "enableServiceLinks": true, "serviceAccountName": "default",
            "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "securityContext": {"runAsUser": 7, "sysctls": [{"name": "net.ipv4.ip_local_port_range", "value": "1 2"}]},
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"memory": "1Gi"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": "web", "scheme": "HTTP"}, "periodSeconds": 3},
                "lifecycle": {"preStop": {"exec": {"command": ["a", "b"]}}},
                "env": [{"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "s", "defaultMode": 420}},
                {"name": "w", "emptyDir": {"medium": "Memory", "sizeLimit": "5Mi"}},
                {"name": "m", "configMap": {"name": "m", "items": [{"key": "k", "path": "p", "mode": 256}]}}]},
        "status": {"phase": "Running", "startTime": "2026-01-31T12:00:01Z"}
    }))
    .unwrap();
    Arc::new(pod)
}

fn set(pods: &[&Arc<Pod>]) -> PodSet {
    Arc::new(pods.iter().map(|pod| (pod.metadata.uid.clone(), (*pod).clone())).collect())
}

struct Scene {
    folder: tempfile::TempDir,
    pods: watch::Sender<PodSet>,
    statuses: watch::Sender<PodViews>,
    objects: Arc<ApiObjects>,
    task: tokio::task::JoinHandle<()>,
}

impl Scene {
    async fn new(api: &FakeApi) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let objects = Arc::new(ApiObjects::new(api.cluster(), Clock::system()));
        let pods = watch::Sender::new(PodSet::default());
        let statuses = watch::Sender::new(PodViews::default());
        let task = tokio::spawn(keep(Inputs {
            path: folder.path().join("kept.json"),
            node_name: "n".to_owned(),
            pods: pods.subscribe(),
            seen: watch::Sender::new(true).subscribe(),
            statuses: statuses.subscribe(),
            objects: objects.clone(),
        }));
        Self { folder, pods, statuses, objects, task }
    }

    fn read(&self) -> Option<Kept> {
        Kept::read(&self.folder.path().join("kept.json"), "n").unwrap()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Kept) -> bool) -> Kept {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(kept) = self.read().filter(|kept| is_so(kept)) {
                return kept;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: {:?}", self.read());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn names(kept: &Kept) -> Vec<&str> {
    kept.pods.iter().map(|pod| pod.metadata.name.as_str()).collect()
}

fn object(kind: &str, name: &str, value: &str) -> Value {
    json!({"kind": kind, "metadata": {"name": name, "namespace": "d"}, "data": {"k": value}})
}

#[tokio::test]
async fn pods_and_what_they_refer_to_come_back_the_same() {
    let api = FakeApi::start().await;
    api.put("/api/v1/secrets", object("Secret", "s", "c2VjcmV0"));
    api.put("/api/v1/configmaps", object("ConfigMap", "m", "1"));
    api.put(
        "/api/v1/services",
        json!({"metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}}),
    );
    let scene = Scene::new(&api).await;
    let (one, of_folder, ended) = (pod("one", "api"), pod("static", "file"), pod("ended", "api"));
    scene.objects.settle(&one).await;
    let status = Arc::new(PodStatus { phase: "Succeeded".to_owned(), ..PodStatus::default() });
    let view = PodView { pod: ended.clone(), status, ended: true };
    scene.statuses.send_replace(Arc::new(BTreeMap::from([(ended.metadata.uid.clone(), view)])));
    scene.pods.send_replace(set(&[&one, &of_folder, &ended]));
    let kept = scene.until("the pod is kept", |kept| names(kept) == ["one"]).await;
    assert_eq!(*kept.pods[0], *one);
    let path = scene.folder.path().join("kept.json");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    // As after a reboot, with nobody who answers.
    drop(api);
    let nobody = FakeApi::start().await;
    let again = ApiObjects::new(nobody.cluster(), Clock::system());
    drop(nobody);
    again.restore(kept.objects, kept.tokens);
    let begun = tokio::time::Instant::now();
    again.settle(&one).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "it waits for nobody");
    assert_eq!(again.config_map("d", "m").unwrap().data["k"], "1");
    assert_eq!(again.secret("d", "s").unwrap().data["k"].0, b"secret");
    assert_eq!(again.services(&one).unwrap()[0].cluster_ip, "10.0.0.1");
    assert!(Kept::read(&path, "other").is_err(), "another node's");
    scene.task.abort();
}

#[tokio::test]
async fn nothing_is_written_for_a_status_and_objects_are_written_seldom() {
    let api = FakeApi::start().await;
    api.put("/api/v1/secrets", object("Secret", "s", "c2VjcmV0"));
    api.put("/api/v1/configmaps", object("ConfigMap", "m", "1"));
    let scene = Scene::new(&api).await;
    let one = pod("one", "api");
    scene.objects.settle(&one).await;
    scene.pods.send_replace(set(&[&one]));
    scene.until("the pod is kept", |kept| names(kept) == ["one"]).await;
    let path = scene.folder.path().join("kept.json");
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap());
    let before = inode();
    let status = Arc::new(PodStatus { phase: "Running".to_owned(), ..PodStatus::default() });
    let view = PodView { pod: one.clone(), status, ended: false };
    scene.statuses.send_replace(Arc::new(BTreeMap::from([(one.metadata.uid.clone(), view)])));
    let mut changes = scene.objects.kept_changes();
    changes.borrow_and_update();
    api.put("/api/v1/configmaps", object("ConfigMap", "m", "2"));
    tokio::time::timeout(Duration::from_secs(30), changes.changed()).await.unwrap().unwrap();
    tokio::time::sleep(GATHER * 2).await;
    assert_eq!(inode(), before, "written for a status, or at once for an object");
    // What goes with a pod is as new as the pod.
    let two = pod("two", "api");
    scene.pods.send_replace(set(&[&one, &two]));
    let kept = scene.until("both are kept", |kept| names(kept) == ["one", "two"]).await;
    assert!(serde_json::to_string(&kept.objects).unwrap().contains(r#""k":"2""#), "{kept:?}");
    scene.task.abort();
}
