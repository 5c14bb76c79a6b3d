//! The public face: a folder of manifests, real folders, volumes and cgroups, the real puller and the house-
//! keeping, on the fake runtime and the system's clock.

use super::*;
use crate::source::{ManifestDir, ManifestDirConfig};

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {level: low}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  dnsPolicy: Default
  terminationGracePeriodSeconds: 3
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: scratch, emptyDir: {}}
  containers:
  - name: main
    image: web
    env: [{name: LEVEL, valueFrom: {configMapKeyRef: {name: settings, key: level}}}]
    volumeMounts: [{name: settings, mountPath: /settings}, {name: scratch, mountPath: /tmp}]
"#;

struct Whole {
    dir: tempfile::TempDir,
    fake: FakeRuntime,
    folder: ManifestDir,
    kubelet: Option<Kubelet>,
    cgroup_root: String,
}

impl Whole {
    async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("coracle-kubelet-").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        std::fs::write(dir.path().join("resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
        let folder = ManifestDir::start(ManifestDirConfig {
            path: dir.path().join("manifests"),
            node_name: "node".into(),
            allow_object_references: true,
            clock: Clock::system(),
        });
        let folder = folder.await.unwrap();
        let cgroup_root = format!("/coracle-kubelet-{}", std::process::id());
        let mut whole = Self { dir, fake: FakeRuntime::new(), folder, kubelet: None, cgroup_root };
        whole.start().await;
        whole
    }

    async fn start(&mut self) {
        let mut resources = PodResourcesConfig::new(self.dir.path().join("root"));
        resources.log_root = self.dir.path().join("logs");
        resources.resolv_conf = Some(self.dir.path().join("resolv.conf"));
        resources.node_ips = NodeIps::given(["192.0.2.1".parse().unwrap()]);
        resources.cgroup_root = self.cgroup_root.clone();
        let mut config = KubeletConfig::new(resources);
        config.log_links = Some(self.dir.path().join("links"));
        let (runtime, images) = (Arc::new(self.fake.clone()), Arc::new(self.fake.clone()));
        let (pods, objects) = (self.folder.pods(), self.folder.objects());
        self.kubelet = Some(Kubelet::start(config, runtime, images, pods, objects).await.unwrap());
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&PodViews) -> bool) {
        let kubelet = self.kubelet.as_ref().unwrap();
        let mut statuses = kubelet.statuses();
        let met = tokio::time::timeout(Duration::from_secs(20), statuses.wait_for(|views| holds(views)));
        let met = met.await.is_ok();
        let events = kubelet.events().snapshot();
        assert!(met, "{what}: {:#?}\n{:#?}\n{events:#?}", kubelet.statuses().borrow(), self.fake);
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        let mounts = crate::sys::cgroup_v1_mounts().unwrap().into_iter().map(|(_, point)| point);
        for mount in mounts.chain(["/sys/fs/cgroup".into()]) {
            let root = mount.join(self.cgroup_root.trim_start_matches('/'));
            for group in ["kubepods/burstable", "kubepods/besteffort", "kubepods", ""] {
                let _ = std::fs::remove_dir(root.join(group));
            }
        }
    }
}

#[tokio::test]
async fn a_manifest_becomes_a_pod_and_goes_without_a_trace() {
    let mut whole = Whole::new().await;
    let manifest = whole.dir.path().join("manifests/web.yaml");
    std::fs::write(&manifest, MANIFEST).unwrap();
    whole.until("running", |views| views.values().any(|view| is_running(&view.status))).await;
    let kubelet = whole.kubelet.as_ref().unwrap();
    let reasons: Vec<String> = kubelet.events().snapshot().iter().map(|e| e.reason.clone()).collect();
    assert_eq!(reasons, ["Pulling", "Pulled", "Created", "Started"]);
    let made = whole.fake.container("main").unwrap();
    assert_eq!(made.config.envs.iter().find(|e| e.key == "LEVEL").unwrap().value, b"low");
    let settings = made.config.mounts.iter().find(|m| m.container_path == "/settings").unwrap();
    let file = std::path::Path::new(&settings.host_path).join("level");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "low");
    assert_eq!(std::fs::read_dir(whole.dir.path().join("links")).unwrap().count(), 1);

    // A changed object reaches the running pod.
    let changed = MANIFEST.replace("level: low", "level: high");
    std::fs::write(&manifest, &changed).unwrap();
    let begun = std::time::Instant::now();
    while std::fs::read_to_string(&file).ok().as_deref() != Some("high") {
        assert!(begun.elapsed() < Duration::from_secs(20), "the volume was not refreshed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(whole.fake.containers().len(), 1);

    // Another agent takes over, and takes it all away when the manifest goes.
    drop(whole.kubelet.take());
    whole.start().await;
    whole.until("adopted", |views| views.values().any(|view| is_running(&view.status))).await;
    assert_eq!(whole.fake.containers().len(), 1);
    std::fs::remove_file(&manifest).unwrap();
    whole.until("gone", |views| views.is_empty()).await;
    assert!(whole.fake.sandboxes().is_empty());
    let left = std::fs::read_dir(whole.dir.path().join("root/pods")).unwrap().count();
    assert_eq!(left, 0);
}
