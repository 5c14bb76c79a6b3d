//! The whole pod lifecycle on the fake runtime, with tokio's clock paused and stand-ins for disk and images.

mod adoption;
mod api;
mod basics;
mod chaos;
mod ending;
mod faults;
mod probes;
mod resizes;
mod restarts;
mod whole;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coracle_cri::testing::FakeRuntime;
use coracle_cri::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, LinuxContainerConfig, LinuxContainerResources,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};
use tokio::sync::watch;

use super::*;
use crate::api::{Container, ContainerStatus, Pod, PodStatus};
use crate::clock::WallSetter;
use crate::container_config::{
    CONTAINER_NAME_LABEL, CpuPolicy, HASH_ANNOTATION, HostFacts, ImageRef, PRE_STOP_ANNOTATION,
    RESTART_COUNT_ANNOTATION, TERMINATION_GRACE_ANNOTATION, container_hash, container_size,
};
use crate::events::Event;
use crate::image_pull::PullError;
use crate::node_ips::NodeIps;
use crate::pod::edges::StepError;
use crate::pod::labels::{POD_NAME, POD_NAMESPACE, POD_UID};
use crate::pod_cgroup::Extent;
use crate::qos::PodCgroupLimits;
use crate::source::PodSet;
use crate::volume::Layer;

/// Long in the fake's time, nothing in ours.
const LONG: Duration = Duration::from_secs(3600);

/// Stand-in for folders and volumes that remembers which pods have them.
#[derive(Default)]
struct Disk {
    prepared: Mutex<BTreeMap<String, u32>>,
    torn_down: Mutex<Vec<String>>,
    refused: Mutex<Option<StepError>>,
    panics: AtomicU32,
    /// How often volumes were rendered anew, and how many of the next tries fail.
    refreshed: AtomicU32,
    refresh_failures: AtomicU32,
    /// What `over_limit` answers.
    over_limit: Mutex<Vec<String>>,
    log_root: Mutex<String>,
    /// How the pod's cgroup was changed, with its memory then, and what it is said to use.
    resized: Mutex<Vec<(Extent, Option<i64>)>>,
    memory_use: AtomicU64,
    /// What containers were said to have written.
    layers: Mutex<Vec<Layer>>,
}

#[async_trait]
impl Resources for Disk {
    async fn prepare(&self, pod: &Arc<Pod>) -> Result<(), StepError> {
        if self.panics.load(Ordering::Relaxed) > 0 {
            self.panics.fetch_sub(1, Ordering::Relaxed);
            panic!("the disk stand-in was told to panic");
        }
        if let Some(error) = self.refused.lock().unwrap().clone() {
            return Err(error);
        }
        *self.prepared.lock().unwrap().entry(pod.metadata.uid.to_string()).or_default() += 1;
        Ok(())
    }

    fn revision(&self, _pod: &Pod) -> u64 {
        // As if every change of an object were one of this pod's.
        u64::from(self.refreshed.load(Ordering::Relaxed)) + 1
    }

    fn limits(&self, pod: &Pod) -> PodCgroupLimits {
        crate::qos::pod_cgroup_limits(pod, true, 100_000)
    }

    async fn resize(&self, pod: &Arc<Pod>, from: &PodCgroupLimits, extent: Extent) -> Result<(), StepError> {
        let limits = match extent {
            Extent::Raise => self.limits(pod).at_least(from),
            Extent::All => self.limits(pod),
        };
        self.resized.lock().unwrap().push((extent, limits.memory));
        Ok(())
    }

    async fn memory_use(&self, _pod: &Arc<Pod>) -> Option<u64> {
        Some(self.memory_use.load(Ordering::Relaxed))
    }

    fn container_size(&self, pod: &Pod, container: &Container) -> LinuxContainerResources {
        container_size(pod, container, &HostFacts::default(), CpuPolicy::default())
    }

    fn sandbox_size(&self, pod: &Pod) -> [LinuxContainerResources; 2] {
        crate::sandbox_config::sandbox_size(pod, CpuPolicy::default())
    }

    async fn over_limit(&self, _pod: &Pod, layers: Vec<Layer>) -> Vec<String> {
        *self.layers.lock().unwrap() = layers;
        self.over_limit.lock().unwrap().clone()
    }

    fn sandbox_config(&self, pod: &Pod, attempt: u32) -> Result<PodSandboxConfig, StepError> {
        let network = if pod.spec.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        let options = NamespaceOption { network: network.into(), ..NamespaceOption::default() };
        let security = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let root = self.log_root.lock().unwrap().clone();
        Ok(PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: pod.metadata.name.clone(),
                namespace: pod.metadata.namespace.clone(),
                uid: pod.metadata.uid.to_string(),
                attempt,
            }),
            labels: labels(pod),
            log_directory: if root.is_empty() { root } else { format!("{root}/{}", pod.metadata.uid) },
            linux: Some(LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
            ..PodSandboxConfig::default()
        })
    }

    async fn container_config(
        &self,
        pod: &Pod,
        name: &str,
        attempt: u32,
        image: &ImageRef,
        _ips: &[IpAddr],
    ) -> Result<ContainerConfig, StepError> {
        let container = pod.container(name).expect("the worker asks for containers of the pod");
        let mut annotations = HashMap::from([
            (HASH_ANNOTATION.to_owned(), format!("{:x}", container_hash(container))),
            (RESTART_COUNT_ANNOTATION.to_owned(), attempt.to_string()),
        ]);
        if let Some(seconds) = pod.spec.termination_grace_period_seconds {
            annotations.insert(TERMINATION_GRACE_ANNOTATION.to_owned(), seconds.to_string());
        }
        if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
            annotations.insert(PRE_STOP_ANNOTATION.to_owned(), serde_json::to_string(hook).unwrap());
        }
        let mut labels = labels(pod);
        labels.insert(CONTAINER_NAME_LABEL.to_owned(), name.to_owned());
        Ok(ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt }),
            image: Some(ImageSpec { image: image.id.clone(), ..ImageSpec::default() }),
            labels,
            annotations,
            log_path: format!("{name}/{attempt}.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(self.container_size(pod, container)),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        })
    }

    async fn refresh(&self, _pod: &Pod) -> Result<(), StepError> {
        if self.refresh_failures.load(Ordering::Relaxed) > 0 {
            self.refresh_failures.fetch_sub(1, Ordering::Relaxed);
            return Err(StepError { reason: "FailedMount".into(), message: "no such key".into() });
        }
        self.refreshed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn on_disk(&self) -> Result<Vec<String>, StepError> {
        Ok(self.prepared.lock().unwrap().keys().cloned().collect())
    }

    async fn teardown(&self, uid: &str) -> Result<(), StepError> {
        self.torn_down.lock().unwrap().push(uid.to_owned());
        self.prepared.lock().unwrap().remove(uid);
        Ok(())
    }
}

fn labels(pod: &Pod) -> HashMap<String, String> {
    HashMap::from([
        (POD_NAME.to_owned(), pod.metadata.name.clone()),
        (POD_NAMESPACE.to_owned(), pod.metadata.namespace.clone()),
        (POD_UID.to_owned(), pod.metadata.uid.to_string()),
    ])
}

/// Stand-in for the puller: images are there, but for those that are told to fail.
#[derive(Default)]
struct Pictures {
    failing: Mutex<BTreeMap<String, PullError>>,
}

#[async_trait]
impl Images for Pictures {
    async fn ensure(
        &self,
        _pod: &Arc<Pod>,
        container: &Container,
        _sandbox: &PodSandboxConfig,
    ) -> Result<ImageRef, PullError> {
        match self.failing.lock().unwrap().get(&container.image) {
            Some(error) => Err(error.clone()),
            None => Ok(ImageRef { id: container.image.clone(), ..ImageRef::default() }),
        }
    }
}

/// A kubelet on a fake runtime.
struct Bench {
    fake: FakeRuntime,
    disk: Arc<Disk>,
    images: Arc<Pictures>,
    ips: NodeIps,
    clock: Clock,
    wall: WallSetter,
    pods: watch::Sender<PodSet>,
    kubelet: Kubelet,
}

impl Bench {
    async fn new() -> Self {
        Self::with_pods([]).await
    }

    async fn with_pods(pods: impl IntoIterator<Item = Pod>) -> Self {
        let fake = FakeRuntime::new();
        for image in ["web", "job", "side", "web:2", "absent"] {
            fake.add_image(image);
        }
        let (clock, wall) = Clock::following_tokio(unix_seconds(&fake));
        Self::on(fake, clock, wall, pods).await
    }

    async fn on(
        fake: FakeRuntime,
        clock: Clock,
        wall: WallSetter,
        pods: impl IntoIterator<Item = Pod>,
    ) -> Self {
        let (disk, images) = (Arc::new(Disk::default()), Arc::new(Pictures::default()));
        let ips = NodeIps::given(["192.0.2.7".parse().unwrap()]);
        let (pods, receiver) = watch::channel(set(pods));
        let kubelet = start(&fake, &clock, &disk, &images, &ips, receiver, PodViews::default()).await;
        Self { fake, disk, images, ips, clock, wall, pods, kubelet }
    }

    /// Drops the kubelet without a word, as a kill does, and starts another.
    async fn restart(self) -> Self {
        self.restart_knowing(PodViews::default()).await
    }

    /// The same, with what was written down of the pods.
    async fn restart_knowing(self, last: PodViews) -> Self {
        let Self { fake, disk, images, ips, clock, wall, pods, kubelet } = self;
        drop(kubelet);
        let kubelet = start(&fake, &clock, &disk, &images, &ips, pods.subscribe(), last).await;
        Self { fake, disk, images, ips, clock, wall, pods, kubelet }
    }

    fn desire(&self, pods: impl IntoIterator<Item = Pod>) {
        self.pods.send_replace(set(pods));
    }

    /// Waits for a status of the pod of that name.
    async fn until(&self, pod: &str, mut holds: impl FnMut(&PodStatus) -> bool) -> Arc<PodStatus> {
        let mut statuses = self.kubelet.statuses();
        let find = |views: &PodViews| {
            views
                .values()
                .filter(|view| view.pod.metadata.name == pod)
                .map(|view| view.status.clone())
                .next_back()
        };
        let wait = statuses.wait_for(|views| find(views).is_some_and(|status| holds(&status)));
        let met = tokio::time::timeout(LONG, wait).await.map(|views| find(&views.unwrap()).unwrap());
        match met {
            Ok(status) => status,
            Err(_) => panic!(
                "not reached: {:#?}\n{:#?}\n{:#?}",
                find(&self.kubelet.statuses().borrow()),
                self.events(),
                self.fake
            ),
        }
    }

    /// Waits until the kubelet knows nothing of the pod any more.
    async fn until_gone(&self, pod: &str) {
        let mut statuses = self.kubelet.statuses();
        let gone = |views: &PodViews| !views.values().any(|view| view.pod.metadata.name == pod);
        let met = tokio::time::timeout(LONG, statuses.wait_for(gone)).await.is_ok();
        assert!(met, "{pod} is still there: {:#?}\n{:#?}", self.fake, self.events());
    }

    async fn until_event(&self, holds: impl Fn(&Event) -> bool) -> Arc<Event> {
        let (past, mut live) = self.kubelet.events().follow();
        if let Some(event) = past.into_iter().find(|event| holds(event)) {
            return event;
        }
        let wait = async {
            loop {
                let event = live.recv().await.unwrap();
                if holds(&event) {
                    return event;
                }
            }
        };
        match tokio::time::timeout(LONG, wait).await {
            Ok(event) => event,
            Err(_) => panic!("no such event: {:#?}\n{:#?}", self.events(), self.fake),
        }
    }

    /// `reason: message` of each event, in order.
    fn events(&self) -> Vec<String> {
        let events = self.kubelet.events().snapshot();
        events.iter().map(|event| format!("{}: {}", event.reason, event.message)).collect()
    }

    /// How many containers of that name run in the fake.
    fn running(&self, name: &str) -> usize {
        let running = coracle_cri::v1::ContainerState::ContainerRunning;
        let all = self.fake.containers();
        all.iter()
            .filter(|c| c.status.state() == running && c.status.metadata.as_ref().unwrap().name == name)
            .count()
    }
}

fn unix_seconds(fake: &FakeRuntime) -> i64 {
    let since = fake.now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

async fn start(
    fake: &FakeRuntime,
    clock: &Clock,
    disk: &Arc<Disk>,
    images: &Arc<Pictures>,
    ips: &NodeIps,
    pods: watch::Receiver<PodSet>,
    last: PodViews,
) -> Kubelet {
    let mut config = KubeletConfig::new(PodResourcesConfig::new("/nonexistent"));
    config.clock = clock.clone();
    config.log_links = None;
    config.last_statuses = last.iter().map(|(uid, view)| (uid.clone(), view.status.clone())).collect();
    config.node_ips = ips.clone();
    let parts = Parts {
        events: EventRecorder::new(clock.clone(), 1000),
        resources: disk.clone(),
        images: images.clone(),
        changes: watch::channel(0).1,
    };
    Kubelet::assemble(config, Arc::new(fake.clone()), pods, parts).await.unwrap()
}

fn set(pods: impl IntoIterator<Item = Pod>) -> PodSet {
    Arc::new(pods.into_iter().map(|pod| (pod.metadata.uid.clone(), Arc::new(pod))).collect())
}

/// A pod of one container `main`.
fn pod(name: &str) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = name.to_owned();
    pod.metadata.namespace = "default".to_owned();
    pod.metadata.uid = Arc::from(format!("uid-{name}"));
    pod.spec.restart_policy = "Always".to_owned();
    pod.spec.termination_grace_period_seconds = Some(30);
    pod.spec.containers = vec![container("main")];
    pod
}

fn container(name: &str) -> Container {
    Container { name: name.to_owned(), image: "web".to_owned(), ..Container::default() }
}

fn sidecar(name: &str) -> Container {
    Container { restart_policy: Some("Always".to_owned()), ..container(name) }
}

/// The status of a container of whatever kind.
fn of<'a>(status: &'a PodStatus, container: &str) -> &'a ContainerStatus {
    let all = status.init_container_statuses.iter().chain(&status.container_statuses);
    all.chain(&status.ephemeral_container_statuses).find(|s| s.name == container).unwrap()
}

fn condition(status: &PodStatus, kind: &str) -> String {
    let found = status.conditions.iter().find(|c| c.r#type == kind).unwrap();
    [found.status.as_str(), &found.reason, &found.message].join("|").trim_end_matches('|').to_owned()
}

fn waiting_reason<'a>(status: &'a PodStatus, container: &str) -> &'a str {
    of(status, container).state.waiting.as_ref().map_or("", |waiting| &waiting.reason)
}

fn is_running(status: &PodStatus) -> bool {
    status.phase == "Running" && condition(status, "Ready") == "True"
}
