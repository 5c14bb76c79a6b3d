//! A pod from nothing to gone, on a real file system and this machine's cgroups.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;
use crate::api::{ConfigMap, Secret};
use crate::clock::Clock;
use crate::node_ips::NodeIps;
use crate::sys;

#[derive(Default)]
struct Objects(Mutex<Option<Arc<ConfigMap>>>);

impl Objects {
    fn put(&self, value: Value) {
        *self.0.lock().unwrap() = Some(Arc::new(serde_json::from_value(value).unwrap()));
    }
}

impl ObjectSource for Objects {
    fn config_map(&self, _: &str, _: &str) -> Option<Arc<ConfigMap>> {
        self.0.lock().unwrap().clone()
    }

    fn secret(&self, _: &str, _: &str) -> Option<Arc<Secret>> {
        None
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    objects: Arc<Objects>,
    events: EventRecorder,
    resources: PodResources,
    uid: String,
}

impl Fixture {
    fn new(test: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("coracle-resources-").tempdir().unwrap();
        std::fs::write(dir.path().join("resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
        std::fs::write(dir.path().join("hosts"), "192.0.2.1 node\n").unwrap();
        let mut config = PodResourcesConfig::new(dir.path().join("root"));
        config.log_root = dir.path().join("logs");
        config.resolv_conf = Some(dir.path().join("resolv.conf"));
        config.hosts_file = dir.path().join("hosts");
        config.node_ips = NodeIps::given(["192.0.2.1".parse().unwrap()]);
        config.cgroup_root = format!("/coracle-resources-{test}-{}", std::process::id());
        let (objects, events) = (Arc::new(Objects::default()), EventRecorder::new(Clock::system(), 50));
        let resources = PodResources::new(config, objects.clone(), events.clone()).unwrap();
        Self { dir, objects, events, resources, uid: format!("uid-{test}") }
    }

    fn pod(&self, spec: Value) -> Arc<Pod> {
        let metadata = json!({"name": "web", "namespace": "ns", "uid": self.uid});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
    }

    fn pod_dir(&self) -> PathBuf {
        self.dir.path().join("root/pods").join(&self.uid)
    }

    async fn container(&self, pod: &Pod, attempt: u32) -> Result<ContainerConfig, ConfigError> {
        let image = ImageRef { id: "sha256:1".into(), ..ImageRef::default() };
        self.resources.container_config(pod, "c", attempt, &image, &["10.0.0.7".parse().unwrap()]).await
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let inner = &self.resources.0;
        assert!(inner.teardown(&self.uid).is_ok() || std::thread::panicking());
        // The tiers stay on a node; here they go with the test.
        for mount in sys::cgroup_v1_mounts()
            .unwrap()
            .into_iter()
            .map(|(_, point)| point)
            .chain(["/sys/fs/cgroup".into()])
        {
            let root = mount.join(inner.config.cgroup_root.trim_start_matches('/'));
            for group in ["kubepods/burstable", "kubepods/besteffort", "kubepods", ""] {
                let _ = std::fs::remove_dir(root.join(group));
            }
        }
    }
}

fn mount<'a>(config: &'a ContainerConfig, inside: &str) -> &'a coracle_cri::v1::Mount {
    config.mounts.iter().find(|mount| mount.container_path == inside).unwrap()
}

#[tokio::test]
async fn a_pod_from_nothing_to_gone() {
    let fixture = Fixture::new("whole");
    fixture.objects.put(json!({"metadata": {"name": "cm"}, "data": {"k": "1"}}));
    let pod = fixture.pod(json!({
        "dnsPolicy": "ClusterFirst",
        "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["alias"]}],
        "volumes": [{"name": "e", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}},
            {"name": "cm", "configMap": {"name": "cm"}}, {"name": "h", "hostPath": {"path": "/etc"}}],
        "containers": [{"name": "c", "image": "i", "terminationMessagePath": "/dev/termination-log",
            "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}],
            "volumeMounts": [{"name": "e", "mountPath": "/e", "subPathExpr": "of-$(POD_IP)"},
                {"name": "m", "mountPath": "/m", "mountPropagation": "HostToContainer"},
                {"name": "cm", "mountPath": "/cm"}, {"name": "h", "mountPath": "/h", "readOnly": true}]}]
    }));
    for _ in 0..2 {
        fixture.resources.prepare(&pod).await.unwrap();
    }
    assert_eq!(fixture.resources.pods_on_disk().unwrap(), std::slice::from_ref(&fixture.uid));

    let sandbox = fixture.resources.sandbox_config(&pod, 0).unwrap();
    assert_eq!(sandbox.dns_config.unwrap().servers, ["192.0.2.53"]);
    assert!(Path::new(&sandbox.log_directory).is_dir());
    assert_eq!(fixture.events.snapshot()[0].reason, "MissingClusterDNS");

    let config = fixture.container(&pod, 0).await.unwrap();
    let env: Vec<_> = config.envs.iter().map(|e| (e.key.as_str(), e.value.as_slice())).collect();
    assert_eq!(env, [("POD_IP", b"10.0.0.7".as_slice()), ("HOST", b"192.0.2.1")]);
    let pod_dir = fixture.pod_dir();
    let bound = mount(&config, "/e");
    assert_eq!(Path::new(&bound.host_path), pod_dir.join("volume-subpaths/e/c/0"));
    assert!(pod_dir.join("volumes/kubernetes.io~empty-dir/e/of-10.0.0.7").is_dir());
    assert_eq!(mount(&config, "/m").propagation, 1);
    assert!(mount(&config, "/cm").readonly && mount(&config, "/h").readonly && !bound.readonly);
    assert_eq!(mount(&config, "/h").host_path, "/etc");
    let gets_label = |inside| mount(&config, inside).selinux_relabel;
    assert!(["/e", "/m", "/cm", "/etc/hosts"].into_iter().all(gets_label) && !gets_label("/h"));
    let hosts = std::fs::read_to_string(&mount(&config, "/etc/hosts").host_path).unwrap();
    assert!(hosts.contains("10.0.0.7\tweb\n") && hosts.ends_with("192.0.2.9\talias\n"), "{hosts}");
    let last_words = std::fs::metadata(&mount(&config, "/dev/termination-log").host_path).unwrap();
    assert_eq!(last_words.mode() & 0o777, 0o666);
    assert!(fixture.dir.path().join(format!("logs/ns_web_{}/c", fixture.uid)).is_dir());

    fixture.objects.put(json!({"metadata": {"name": "cm"}, "data": {"k": "2"}}));
    fixture.resources.refresh(&pod).await.unwrap();
    let file = Path::new(&mount(&config, "/cm").host_path).join("k");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "2");

    for _ in 0..2 {
        fixture.resources.teardown(&fixture.uid).await.unwrap();
        assert!(!pod_dir.exists() && sys::mounts_below(&pod_dir).unwrap().is_empty());
    }
    assert!(fixture.resources.pods_on_disk().unwrap().is_empty());
}

#[tokio::test]
async fn a_pod_on_the_hosts_network_has_its_files_and_addresses() {
    let fixture = Fixture::new("hostnet");
    let pod = fixture.pod(json!({"hostNetwork": true, "dnsPolicy": "Default", "containers": [{"name": "c",
        "env": [{"name": "POD_IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}}]}]}));
    fixture.resources.prepare(&pod).await.unwrap();
    let config = fixture.container(&pod, 0).await.unwrap();
    assert_eq!(config.envs[0].value, b"192.0.2.1");
    let hosts = std::fs::read_to_string(&mount(&config, "/etc/hosts").host_path).unwrap();
    assert_eq!(hosts, "# Kubernetes-managed hosts file (host network).\n192.0.2.1 node\n");
    assert!(fixture.events.snapshot().is_empty());
}

#[tokio::test]
async fn failures_carry_the_kubelets_reasons_and_texts() {
    let fixture = Fixture::new("failures");
    let pod = fixture.pod(json!({"volumes": [{"name": "v", "configMap": {"name": "gone"}}]}));
    let error = fixture.resources.prepare(&pod).await.unwrap_err();
    assert_eq!(error.reason(), "FailedMount");
    assert_eq!(error.to_string(), "MountVolume.SetUp failed for volume \"v\" : configmap \"gone\" not found");

    let refused = async |container: Value| {
        let mut container = container;
        container["name"] = json!("c");
        let volumes = json!([{"name": "e", "emptyDir": {}}]);
        let pod = fixture.pod(json!({"containers": [container], "volumes": volumes}));
        fixture.resources.prepare(&pod).await.unwrap();
        let error = fixture.container(&pod, 0).await.unwrap_err();
        assert_eq!(error.reason(), "CreateContainerConfigError");
        error.to_string()
    };
    let reference = json!({"configMapKeyRef": {"name": "gone", "key": "k"}});
    assert_eq!(
        refused(json!({"env": [{"name": "V", "valueFrom": reference}]})).await,
        "configmap \"gone\" not found"
    );
    let with = async |mount: Value| refused(json!({"volumeMounts": [mount]})).await;
    assert_eq!(
        with(json!({"name": "none", "mountPath": "/x"})).await,
        "cannot find volume \"none\" to mount into container \"c\""
    );
    assert_eq!(
        with(json!({"name": "e", "mountPath": "/x", "subPath": "/etc"})).await,
        "error SubPath `/etc` must not be an absolute path"
    );
    assert_eq!(
        with(json!({"name": "e", "mountPath": "/x", "subPathExpr": "$(NONE)"})).await,
        "missing value for NONE"
    );
    assert_eq!(
        with(json!({"name": "e", "mountPath": "/x", "mountPropagation": "Bidirectional"})).await,
        "Bidirectional mount propagation of volume \"e\" is available only to privileged containers"
    );
    assert_eq!(
        with(json!({"name": "e", "mountPath": "/x", "readOnly": true, "recursiveReadOnly": "Enabled"})).await,
        "failed to resolve recursive read-only mode: volume \"e\" requested recursive read-only mode, but it is \
         not supported by the runtime"
    );
    let link = fixture.pod_dir().join("volumes/kubernetes.io~empty-dir/e/link");
    std::os::unix::fs::symlink("/etc", &link).unwrap();
    assert_eq!(
        with(json!({"name": "e", "mountPath": "/x", "subPath": "link"})).await,
        "failed to prepare subPath for volumeMount \"e\" of container \"c\""
    );
    assert_eq!(
        refused(json!({"volumeDevices": [{"name": "d", "devicePath": "/dev/d"}]})).await,
        "cannot find volume \"d\" to pass into container \"c\""
    );
    assert_eq!(
        fixture.container(&fixture.pod(json!({})), 0).await.unwrap_err().to_string(),
        "container \"c\" not found in pod"
    );
}

#[tokio::test]
async fn names_that_lead_elsewhere_touch_nothing() {
    let fixture = Fixture::new("names");
    let precious = fixture.dir.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    for uid in ["../../precious", "", ".", ".."] {
        let error = fixture.resources.teardown(uid).await.unwrap_err().to_string();
        assert!(error.contains("cannot name a file"), "{error}");
    }
    let volume = fixture.pod(json!({"volumes": [{"name": "../../../precious/x", "emptyDir": {}}]}));
    let error = fixture.resources.prepare(&volume).await.unwrap_err();
    assert_eq!((error.reason(), error.to_string().starts_with("volume ")), ("FailedSync", true));
    let container = fixture.pod(json!({"containers": [{"name": "a/b"}]}));
    assert!(fixture.resources.prepare(&container).await.is_err());
    assert_eq!(std::fs::read_dir(&precious).unwrap().count(), 0);
}

#[tokio::test]
async fn termination_logs_of_old_runs_go() {
    let fixture = Fixture::new("termlogs");
    let container = json!({"name": "c", "terminationMessagePath": "/dev/termination-log"});
    let pod = fixture.pod(json!({"containers": [container]}));
    fixture.resources.prepare(&pod).await.unwrap();
    for attempt in 0..5 {
        fixture.container(&pod, attempt).await.unwrap();
    }
    let dir = fixture.pod_dir().join("containers/c");
    let mut left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["00000003", "00000004"]);
}

#[tokio::test]
async fn work_whose_caller_went_away_does_not_meet_the_next() {
    let fixture = Fixture::new("gate");
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (finish, may_finish) = std::sync::mpsc::channel::<()>();
    let resources = fixture.resources.clone();
    let done = Arc::new(Mutex::new(false));
    let in_work = done.clone();
    let caller = tokio::spawn(async move {
        let work = move || {
            started.send(()).unwrap();
            may_finish.recv().unwrap();
            *in_work.lock().unwrap() = true;
        };
        resources.blocking("u", work).await
    });
    has_started.await.unwrap();
    caller.abort();
    let next = tokio::spawn({
        let (resources, done) = (fixture.resources.clone(), done.clone());
        async move { resources.blocking("u", move || *done.lock().unwrap()).await }
    });
    tokio::task::yield_now().await;
    finish.send(()).unwrap();
    assert_eq!(next.await.unwrap(), Some(true), "the next waits for the work and not for its caller");
}

#[tokio::test]
async fn an_image_volume_is_the_runtimes_to_mount_and_read_only() {
    let fixture = Fixture::new("image-volume");
    let pod = fixture.pod(json!({
        "volumes": [{"name": "model", "image": {"reference": "models/tiny:1", "pullPolicy": "Never"}}],
        "containers": [{"name": "c", "image": "i", "volumeMounts": [
            {"name": "model", "mountPath": "/model"}, {"name": "model", "mountPath": "/part", "subPath": "a/b"}]}],
    }));
    fixture.resources.prepare(&pod).await.unwrap();
    let config = fixture.resources.container_config(&pod, "c", 0, &ImageRef::default(), &[]).await.unwrap();
    let (whole, part) = (mount(&config, "/model"), mount(&config, "/part"));
    for mount in [whole, part] {
        assert_eq!(mount.image.as_ref().unwrap().user_specified_image, "models/tiny:1");
        assert!(mount.readonly && mount.host_path.is_empty(), "{mount:?}");
    }
    assert_eq!((whole.image_sub_path.as_str(), part.image_sub_path.as_str()), ("", "a/b"));
    fixture.resources.teardown(&pod.metadata.uid).await.unwrap();
}
