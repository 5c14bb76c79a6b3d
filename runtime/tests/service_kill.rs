//! A runtime that is killed at random moments while pods come and go: nothing is lost, doubled or left.
//!
//! The test executes itself again as the victim, inside a network namespace of its own. `$CORACLE_TEST_KILLS`
//! sets how often it is killed.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod service_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_cri::RuntimeService as _;
use coracle_cri::v1::*;
use coracle_runtime::{BridgeNetwork, Config, Runtime};
use service_support::{IMAGE, Node, namespaces};

const TEST: &str = "killed_at_random_moments_nothing_is_lost_doubled_or_left";
const SURVIVOR: &str = "survivor";

/// Xorshift: the moments must differ, not surprise.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let mut seed = [0; 8];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut seed).unwrap();
        Random(u64::from_le_bytes(seed) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn network(config: &mut Config) {
    config.cni.default = Some(BridgeNetwork { bridge: "corkill0".into(), subnet: "10.197.0.0/16".into() });
}

fn pod(dir: &Path, cgroup: &str, name: &str, kind: u64) -> PodSandboxConfig {
    let options = match kind {
        0 => namespaces(NamespaceMode::Pod, NamespaceMode::Container),
        1 => namespaces(NamespaceMode::Node, NamespaceMode::Pod),
        _ => namespaces(NamespaceMode::Node, NamespaceMode::Container),
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: name.into(), uid: name.into(), ..Default::default() }),
        log_directory: dir.join("logs").to_string_lossy().into_owned(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("{cgroup}/pods/{name}"),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The digits of a node's cgroup, with which the numbers of its processes begin.
fn prefix(cgroup: &str) -> String {
    let digits: String = cgroup.split('/').nth(1).unwrap().chars().filter(char::is_ascii_digit).collect();
    format!("7{digits}7")
}

/// A container whose only process is known by a number of its own.
async fn run_container(
    runtime: &Runtime,
    sandbox: &str,
    pod: &PodSandboxConfig,
) -> Result<(), coracle_cri::Status> {
    let parent = &pod.linux.as_ref().unwrap().cgroup_parent;
    let marker = format!("{}{}", prefix(parent), 100_000 + Random::new().below(1 << 20));
    let context = pod.linux.clone().unwrap().security_context.unwrap();
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
        command: vec!["sleep".into(), marker.clone()],
        labels: [("marker".to_owned(), marker)].into(),
        log_path: format!("{}.log", pod.metadata.as_ref().unwrap().name),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: context.namespace_options,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(config),
        sandbox_config: Some(pod.clone()),
    };
    let container_id = runtime.create_container(request).await?.container_id;
    runtime.start_container(StartContainerRequest { container_id }).await?;
    Ok(())
}

async fn sandboxes(runtime: &Runtime) -> Vec<PodSandbox> {
    runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().items
}

/// Makes and removes pods until it is killed.
async fn churn(dir: PathBuf, name: String) {
    let mut config = service_support::configuration(&dir, &name);
    network(&mut config);
    let runtime = Runtime::start(config).await.unwrap();
    fs::write(dir.join("churning"), "").unwrap();
    let worker = |lane: u64, runtime: Arc<Runtime>| {
        let (dir, cgroup) = (dir.clone(), format!("/{name}"));
        async move {
            let mut random = Random::new();
            loop {
                let mine = format!("lane{lane}-");
                let existing = sandboxes(&runtime).await;
                let mut own = existing.into_iter().filter(|item| {
                    item.metadata.as_ref().is_some_and(|metadata| metadata.name.starts_with(&mine))
                });
                match own.next() {
                    Some(item) if random.below(3) > 0 => {
                        let request = RemovePodSandboxRequest { pod_sandbox_id: item.id };
                        runtime.remove_pod_sandbox(request).await.unwrap();
                    }
                    _ => {
                        let name = format!("{mine}{}", random.below(u64::MAX));
                        let pod = pod(&dir, &cgroup, &name, random.below(3));
                        let request =
                            RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
                        let id = runtime.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
                        run_container(&runtime, &id, &pod).await.unwrap();
                    }
                }
            }
        }
    };
    tokio::join!(worker(0, runtime.clone()), worker(1, runtime.clone()), worker(2, runtime.clone()));
}

/// How many processes of a node run each marker.
fn markers(node: &Node) -> BTreeMap<String, usize> {
    let prefix = prefix(&node.cgroup);
    let mut found = BTreeMap::new();
    for path in service_support::entries(Path::new("/proc")) {
        let Ok(line) = fs::read(path.join("cmdline")) else { continue };
        let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        if words.next().as_deref() == Some("sleep")
            && let Some(marker) = words.next().filter(|word| word.starts_with(&prefix))
        {
            *found.entry(marker.into_owned()).or_default() += 1;
        }
    }
    found
}

/// Every running container has its process once, and nothing else runs that this test started.
async fn check(node: &Node, round: usize) {
    let request = ListContainersRequest::default();
    let containers = node.runtime().list_containers(request).await.unwrap().containers;
    let deadline = Instant::now() + service_support::patient(Duration::from_secs(20));
    loop {
        let running = markers(node);
        let mut expected = BTreeMap::new();
        for container in &containers {
            let status = node.status(&container.id).await;
            if status.state() == ContainerState::ContainerRunning {
                expected.insert(container.labels["marker"].clone(), 1);
            }
        }
        if running == expected {
            return;
        }
        assert!(Instant::now() < deadline, "round {round}: runs {running:?}, recorded {expected:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn killed_at_random_moments_nothing_is_lost_doubled_or_left() {
    if let Some(dir) = std::env::var_os("CORACLE_TEST_CHURN") {
        churn(dir.into(), std::env::var("CORACLE_TEST_NAME").unwrap()).await;
        return;
    }
    if std::env::var_os("CORACLE_TEST_NETNS").is_none() {
        let mut command = Command::new("unshare");
        command.arg("--net").arg(std::env::current_exe().unwrap()).args(["--exact", TEST, "--nocapture"]);
        command.env("CORACLE_TEST_NETNS", "1").env("CORACLE_SHIM", service_support::shim());
        assert!(command.status().unwrap().success(), "the test failed in its network namespace");
        return;
    }
    let kills: usize = std::env::var("CORACLE_TEST_KILLS").map_or(12, |text| text.parse().unwrap());
    let mut node = Node::with(network).await;
    fs::create_dir(node.logs()).unwrap();
    let keep = pod(node.dir.path(), &node.cgroup, SURVIVOR, 0);
    let survivor = node.run_sandbox(&keep).await;
    run_container(node.runtime(), &survivor, &keep).await.unwrap();
    let request = ListContainersRequest::default();
    let kept = node.runtime().list_containers(request).await.unwrap().containers.remove(0).id;
    let first = node.status(&kept).await;
    let mut random = Random::new();
    for round in 0..kills {
        node.stop().await;
        let churning = node.dir.path().join("churning");
        let _ = fs::remove_file(&churning);
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env("CORACLE_TEST_CHURN", node.dir.path())
            .env("CORACLE_TEST_NAME", node.cgroup.trim_start_matches('/'))
            .env("CORACLE_SHIM", &node.config.shim)
            .spawn()
            .unwrap();
        // Half of the kills fall into its start, which adopts and sweeps.
        if random.below(2) == 0 {
            service_support::until("the victim to work", || async { churning.exists().then_some(()) }).await;
        }
        tokio::time::sleep(Duration::from_millis(random.below(1200))).await;
        assert!(victim.try_wait().unwrap().is_none(), "the victim ended by itself");
        victim.kill().unwrap();
        victim.wait().unwrap();
        node.restart().await;
        check(&node, round).await;
        assert_eq!(node.status(&kept).await, first, "round {round}: the survivor changed");
    }
    for sandbox in sandboxes(node.runtime()).await {
        node.remove_sandbox(&sandbox.id).await;
    }
    let links = Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
    assert!(!String::from_utf8_lossy(&links).contains("veth"), "{}", String::from_utf8_lossy(&links));
    node.finish().await;
}

/// A pod's life on a node whose helpers die at random: any call may fail, none may hang or leave something.
async fn live(node: &Node, lane: u64, rounds: usize) {
    let mut random = Random::new();
    for round in 0..rounds {
        let pod = pod(node.dir.path(), &node.cgroup, &format!("lane{lane}-{round}"), 1 + random.below(2));
        let request = RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
        let Ok(made) = node.runtime().run_pod_sandbox(request).await else { continue };
        if run_container(node.runtime(), &made.pod_sandbox_id, &pod).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(random.below(150))).await;
        }
        let request = RemovePodSandboxRequest { pod_sandbox_id: made.pod_sandbox_id };
        if random.below(2) == 0
            && let Err(error) = node.runtime().remove_pod_sandbox(request).await
        {
            // A helper that dies in the middle of a removal: the next try must succeed.
            tracing::warn!(%error, "removal failed once");
        }
    }
}

#[tokio::test]
async fn shims_and_makers_killed_at_random_take_only_their_own_pods() {
    let node = Node::start().await;
    fs::create_dir(node.logs()).unwrap();
    let done = std::cell::Cell::new(false);
    let killer = async {
        let mut random = Random::new();
        let mut killed = 0;
        while !done.get() {
            tokio::time::sleep(Duration::from_millis(random.below(60))).await;
            let mut victims = node.processes();
            victims.retain(|(pid, line)| *pid != std::process::id() && !line.starts_with("sleep"));
            if !victims.is_empty() {
                let (pid, _) = victims[usize::try_from(random.below(victims.len() as u64)).unwrap()];
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
                killed += 1;
            }
        }
        killed
    };
    let lives = async {
        tokio::join!(live(&node, 0, 15), live(&node, 1, 15), live(&node, 2, 15));
        done.set(true);
    };
    let (killed, ()) = tokio::join!(killer, lives);
    assert!(killed > 10, "only {killed} helpers were killed");
    check(&node, killed).await;
    for sandbox in sandboxes(node.runtime()).await {
        node.remove_sandbox(&sandbox.id).await;
    }
    check(&node, killed).await;
    node.finish().await;
}
