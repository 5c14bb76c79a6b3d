//! How long each call of a pod's life takes: `pod_times SHIM LAYOUT IMAGE COUNT [cni]`, times in milliseconds.
//!
//! LAYOUT is an OCI layout or an archive that holds IMAGE. `$CORACLE_HELPER` names another executable than this
//! one as maker and image worker. Runs in a temporary folder and cleans up after itself.
#![allow(clippy::print_stdout, reason = "it is a command")]
#![allow(clippy::unwrap_used, reason = "a bench ends at the first thing that is wrong")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use coracle_cri::RuntimeService as _;
use coracle_cri::v1::*;
use coracle_runtime::{BridgeNetwork, Config, Runtime};

fn main() {
    coracle_runtime::run_helper();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

fn pod(name: &str, base: &str, network: NamespaceMode) -> PodSandboxConfig {
    let options = NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: name.into(), uid: name.into(), ..Default::default() }),
        log_directory: format!("{base}/logs"),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("/coracle-pod-times-{}/{name}", std::process::id()),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container(pod: &PodSandboxConfig, image: &str) -> ContainerConfig {
    let context = pod.linux.clone().unwrap().security_context.unwrap();
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(ImageSpec { image: image.into(), ..Default::default() }),
        command: vec!["sleep".into(), "1000".into()],
        log_path: format!("{}.log", pod.metadata.as_ref().unwrap().name),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: context.namespace_options,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn run() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let count: usize = words[3].parse().unwrap();
    let network = match words.get(4).map(String::as_str) {
        Some("cni") => NamespaceMode::Pod,
        _ => NamespaceMode::Node,
    };
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().to_str().unwrap().to_owned();
    std::fs::create_dir(format!("{base}/logs")).unwrap();
    let mut config = Config::new(format!("{base}/root"), format!("{base}/state"), &words[0]);
    if let Some(helper) = std::env::var_os("CORACLE_HELPER") {
        config.helper = helper.into();
    }
    config.shim_cgroup = format!("/coracle-pod-times-{}/shims", std::process::id());
    config.cni.conf_dir = format!("{base}/net.d").into();
    config.cni.default = Some(BridgeNetwork { bridge: "cortimes0".into(), subnet: "10.198.0.0/16".into() });
    let runtime = Runtime::start(config).await.unwrap();
    runtime.images().load(words[1].as_ref(), |_| {}).await.unwrap();

    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut note = |what, since: Instant| times.entry(what).or_default().push(since.elapsed());
    let mut sandboxes = Vec::new();
    for number in 0..count {
        let pod = pod(&format!("pod-{number}"), &base, network);
        let whole = Instant::now();
        let begin = Instant::now();
        let request = RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
        let id = runtime.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
        note("1 RunPodSandbox", begin);
        let begin = Instant::now();
        let request = CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(container(&pod, &words[2])),
            sandbox_config: Some(pod),
        };
        let container_id = runtime.create_container(request).await.unwrap().container_id;
        note("2 CreateContainer", begin);
        let begin = Instant::now();
        runtime.start_container(StartContainerRequest { container_id }).await.unwrap();
        note("3 StartContainer", begin);
        note("4 all", whole);
        sandboxes.push(id);
    }
    for id in &sandboxes {
        let begin = Instant::now();
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
        note("5 StopPodSandbox", begin);
        let begin = Instant::now();
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
        note("6 RemovePodSandbox", begin);
    }
    let begin = Instant::now();
    let all = (0..count).map(|number| {
        let (runtime, pod, image) =
            (runtime.clone(), pod(&format!("burst-{number}"), &base, network), &words[2]);
        async move {
            let request = RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
            let id = runtime.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
            let request = CreateContainerRequest {
                pod_sandbox_id: id.clone(),
                config: Some(container(&pod, image)),
                sandbox_config: Some(pod),
            };
            let container_id = runtime.create_container(request).await.unwrap().container_id;
            runtime.start_container(StartContainerRequest { container_id }).await.unwrap();
            id
        }
    });
    let burst = futures_util::future::join_all(all).await;
    println!("{count} pods at once: {} ms", begin.elapsed().as_millis());
    for pod_sandbox_id in burst {
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await.unwrap();
    }
    for (what, mut times) in times {
        times.sort();
        let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1000.0;
        println!("{what:20} p50 {:7.2} p99 {:7.2}", at(50), at(99));
    }
    runtime.close(Duration::from_secs(10)).await;
    drop(runtime);
    let state = std::fs::canonicalize(format!("{base}/state")).unwrap();
    rustix::mount::unmount(state, rustix::mount::UnmountFlags::DETACH).unwrap();
    for tree in std::fs::read_dir("/sys/fs/cgroup").unwrap() {
        let dir = tree.unwrap().path().join(format!("coracle-pod-times-{}", std::process::id()));
        // A tree without our cgroups has nothing to remove.
        let _ = std::fs::remove_dir(dir.join("shims"));
        let _ = std::fs::remove_dir(dir);
    }
}
