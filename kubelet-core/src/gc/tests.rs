//! The collector over a fake runtime and real folders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;

use coracle_cri::testing::{FakeRuntime, Method, Script};
use tempfile::TempDir;

use super::*;
use crate::api::Time;
use crate::image_pull::PullRecords;

#[derive(Default)]
struct Folders {
    uids: Mutex<BTreeSet<String>>,
    stuck: Mutex<BTreeSet<String>>,
}

#[async_trait]
impl PodFolders for Folders {
    fn uids(&self) -> std::io::Result<Vec<String>> {
        Ok(self.uids.lock().unwrap().iter().cloned().collect())
    }

    async fn remove(&self, uid: &str) -> Result<(), String> {
        if self.stuck.lock().unwrap().contains(uid) {
            return Err("device busy".to_owned());
        }
        self.uids.lock().unwrap().remove(uid);
        Ok(())
    }
}

struct Fixture {
    runtime: FakeRuntime,
    folders: Arc<Folders>,
    known: Arc<Mutex<Known>>,
    events: EventRecorder,
    root: TempDir,
    collector: GarbageCollector,
}

impl Fixture {
    fn new() -> Self {
        let runtime = FakeRuntime::new();
        let root = TempDir::new().unwrap();
        for folder in ["pods", "containers"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        let usage = FilesystemUsage {
            fs_id: Some(FilesystemIdentifier { mountpoint: root.path().display().to_string() }),
            ..Default::default()
        };
        runtime
            .set_image_fs_info(ImageFsInfoResponse { image_filesystems: vec![usage], ..Default::default() });
        let (clock, _) = Clock::following_tokio(Time::from_unix_nanos(i64::MAX / 4).unwrap().0);
        let events = EventRecorder::new(clock.clone(), 100);
        let folders = Arc::new(Folders::default());
        let known: Arc<Mutex<Known>> = Arc::default();
        let config = GcConfig {
            pod_logs: root.path().join("pods"),
            log_links: Some(root.path().join("containers")),
            ..GcConfig::new("node")
        };
        let reader = known.clone();
        let collector = GarbageCollector::new(
            Arc::new(runtime.clone()),
            Arc::new(runtime.clone()),
            folders.clone(),
            Box::new(move || Some(reader.lock().unwrap().clone())),
            events.clone(),
            clock,
            config,
        );
        Self { runtime, folders, known, events, root, collector }
    }

    /// A sandbox with containers that ran so often; its ID.
    async fn pod(&self, uid: &str, attempt: u32, containers: &[(&str, u32)]) -> String {
        let metadata =
            PodSandboxMetadata { name: uid.into(), uid: uid.into(), namespace: "default".into(), attempt };
        let config = PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let sandbox = self.runtime.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
        for (name, runs) in containers {
            for attempt in 0..*runs {
                let config_of = ContainerConfig {
                    metadata: Some(ContainerMetadata { name: (*name).into(), attempt }),
                    image: Some(ImageSpec { image: "busybox".into(), ..Default::default() }),
                    mounts: vec![Mount {
                        image: Some(ImageSpec {
                            image: "docker.io/library/model:latest".into(),
                            ..Default::default()
                        }),
                        ..Default::default()
                    }],
                    labels: [("io.kubernetes.pod.uid".to_owned(), uid.to_owned())].into(),
                    ..Default::default()
                };
                let request = CreateContainerRequest {
                    pod_sandbox_id: sandbox.clone(),
                    config: Some(config_of),
                    sandbox_config: Some(config.clone()),
                };
                let container_id = self.runtime.create_container(request).await.unwrap().container_id;
                self.runtime.start_container(StartContainerRequest { container_id }).await.unwrap();
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        }
        sandbox
    }

    fn know(&self, uids: &[&str]) {
        *self.known.lock().unwrap() = uids.iter().map(|uid| Arc::from(*uid)).collect();
    }

    fn containers(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for container in self.runtime.containers() {
            *counts.entry(container.pod).or_default() += 1;
        }
        counts
    }
}

fn entries(path: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(start_paused = true)]
async fn dead_containers_and_gone_pods_are_collected() {
    let fixture = Fixture::new();
    fixture.runtime.add_image("busybox");
    fixture.runtime.script_container("job", [Script::exits(1)]);
    fixture.pod("wanted", 0, &[("job", 3), ("app", 1)]).await;
    let gone = fixture.pod("gone", 0, &[("job", 2)]).await;
    fixture.runtime.kill_sandbox(&gone);
    let old = fixture.pod("wanted-2", 0, &[]).await;
    fixture.runtime.kill_sandbox(&old);
    let new = fixture.pod("wanted-2", 1, &[]).await;
    fixture.runtime.kill_sandbox(&new);
    fixture.know(&["wanted", "wanted-2"]);
    assert!(fixture.collector.collect_pods().await.is_empty());
    assert_eq!(fixture.containers(), BTreeMap::from([("wanted".to_owned(), 2)]));
    let sandboxes: BTreeSet<_> =
        fixture.runtime.sandboxes().into_iter().map(|sandbox| sandbox.status.id).collect();
    assert!(!sandboxes.contains(&gone) && !sandboxes.contains(&old) && sandboxes.contains(&new));
    fixture.runtime.clear_calls();
    assert!(fixture.collector.collect_pods().await.is_empty());
    assert!(fixture.runtime.changes().is_empty(), "nothing is left to do");
}

#[tokio::test(start_paused = true)]
async fn folders_logs_and_links_of_gone_pods_are_removed() {
    let fixture = Fixture::new();
    fixture.runtime.add_image("busybox");
    fixture.pod("ending", 0, &[("app", 1)]).await;
    let running = fixture.runtime.containers()[0].status.id.clone();
    fixture.folders.uids.lock().unwrap().extend(["wanted", "gone", "ending", "stuck"].map(String::from));
    fixture.folders.stuck.lock().unwrap().insert("stuck".into());
    fixture.know(&["wanted"]);
    let (logs, links) = (fixture.root.path().join("pods"), fixture.root.path().join("containers"));
    for folder in ["default_a_wanted", "default_b_gone", "default_c_stuck", "not-ours"] {
        fs::create_dir_all(logs.join(folder).join("app")).unwrap();
        fs::write(logs.join(folder).join("app/0.log"), "x").unwrap();
    }
    for (link, target) in [
        ("a_default_app-1.log".to_owned(), "default_a_wanted/app/0.log"),
        ("b_default_app-2.log".to_owned(), "default_b_gone/app/0.log"),
        (format!("c_default_app-{running}.log"), "nowhere"),
        ("README".to_owned(), "nowhere"),
    ] {
        std::os::unix::fs::symlink(logs.join(target), links.join(link)).unwrap();
    }
    let errors = fixture.collector.collect_pods().await;
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["cannot remove what pod stuck left: device busy"]);
    let left: Vec<_> = fixture.folders.uids.lock().unwrap().iter().cloned().collect();
    assert_eq!(left, ["ending", "stuck", "wanted"], "what may still run keeps its volumes");
    assert_eq!(entries(&logs), ["default_a_wanted", "not-ours"]);
    assert_eq!(entries(&links), ["README", "a_default_app-1.log", &format!("c_default_app-{running}.log")]);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_does_not_answer_costs_nobody_his_folder() {
    let fixture = Fixture::new();
    fixture.folders.uids.lock().unwrap().insert("gone".into());
    fixture.runtime.fail_next(Method::ListContainers, Status::unavailable("down"));
    let errors = fixture.collector.collect_pods().await;
    assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), ["ListContainers "]);
    assert_eq!(fixture.folders.uids.lock().unwrap().len(), 1);
    fixture.runtime.fail_next(Method::RemoveContainer, Status::unknown("busy"));
    fixture.runtime.script_container("job", [Script::exits(0)]);
    fixture.runtime.add_image("busybox");
    fixture.pod("p", 0, &[("job", 2)]).await;
    let errors = fixture.collector.collect_pods().await;
    assert_eq!(errors.len(), 1, "one failed, the other went: {errors:?}");
    assert_eq!(fixture.containers()["p"], 1);
}

#[tokio::test(start_paused = true)]
async fn images_are_removed_when_the_disk_is_full_and_never_in_use() {
    let mut fixture = Fixture::new();
    let mut used = [fixture.runtime.add_image("busybox"), fixture.runtime.add_image("model")];
    used.sort();
    fixture.runtime.add_image("old");
    fixture.pod("p", 0, &[("app", 1)]).await;
    let folder = fixture.root.path().join("image_manager");
    let records = PullRecords::new(&folder);
    let all = fixture.runtime.images().into_iter().map(|image| image.id);
    all.chain(["sha256:gone".to_owned()]).for_each(|id| records.put(&id));
    fixture.collector.config.pull_records = Some(records.clone());
    // A threshold of zero is always reached, one of a hundred keeps the rest free.
    fixture.collector.config.policy.image_high_percent = 0;
    fixture.collector.config.policy.image_low_percent = 0;
    let too_young = fixture.collector.collect_images().await.unwrap_err();
    assert!(
        too_young.to_string().starts_with("Insufficient free disk space on the node's image filesystem (")
    );
    assert_eq!(fixture.runtime.images().len(), 3, "an image that just came may be about to be used");
    assert_eq!(records.recorded().names.len(), 3, "what is recorded of an image goes when it is gone");
    tokio::time::advance(Duration::from_secs(121)).await;
    let _ = fixture.collector.collect_images().await;
    let mut left: Vec<_> = fixture.runtime.images().into_iter().map(|image| image.id).collect();
    left.sort();
    assert_eq!(left, used, "the volume's image too");
    assert_eq!(fixture.events.snapshot()[0].reason, "FreeDiskSpaceFailed");
    // Far above what a disk can be, so that it is not looked at again soon.
    fixture.collector.config.policy.image_high_percent = 200;
    assert_eq!(fixture.collector.collect_images().await.unwrap(), Duration::from_secs(3600));
    assert_eq!(records.recorded().names.len(), 2, "the next look finds what was removed");
}

#[tokio::test(start_paused = true)]
async fn it_looks_when_kicked_and_sleeps_otherwise() {
    let fixture = Fixture::new();
    let (runtime, known) = (fixture.runtime.clone(), fixture.known.clone());
    runtime.script_container("job", [Script::exits(0)]);
    runtime.add_image("busybox");
    fixture.know(&["p"]);
    fixture.pod("p", 0, &[("job", 1)]).await;
    let mut collector = fixture.collector;
    // However full the disk of this machine is, it is not looked at for an hour.
    collector.config.policy.image_high_percent = 200;
    let trigger = collector.trigger();
    let task = tokio::spawn(collector.run());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let looks = runtime.count(Method::ListPodSandbox);
    tokio::time::sleep(Duration::from_secs(3000)).await;
    assert_eq!(runtime.count(Method::ListPodSandbox), looks, "an idle node sleeps");
    known.lock().unwrap().clear();
    (0..50).for_each(|_| trigger.kick());
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(runtime.containers(), []);
    assert!(runtime.count(Method::ListPodSandbox) <= looks + 2, "kicks are taken together");
    task.abort();
}
