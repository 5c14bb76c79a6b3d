//! What containers of a pod share with one another and with the node, their limits and their usage.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod service_support;

use std::fs;

use coracle_cri::v1::*;
use coracle_cri::{Code, RuntimeService as _};
use service_support::{Node, namespaces, script_container, until};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn host_namespace(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_string_lossy().into_owned()
}

#[tokio::test]
async fn containers_of_a_pod_share_ipc_and_shm_but_not_processes() {
    let node = Node::start().await;
    let pod = node.sandbox("shares");
    let sandbox = node.run_sandbox(&pod).await;
    let one = node.run(&sandbox, &pod, "one", "echo hello > /dev/shm/greeting; sleep 1000").await;
    let two = node.run(&sandbox, &pod, "two", "sleep 2000").await;
    let link = async |id: &str, kind: &str| {
        text(&node.exec(id, &["readlink", &format!("/proc/self/ns/{kind}")]).await.stdout)
    };
    assert_eq!(link(&one, "ipc").await, link(&two, "ipc").await);
    assert_ne!(link(&one, "ipc").await, host_namespace("ipc"));
    assert_eq!(link(&one, "net").await, host_namespace("net"));
    assert_eq!(link(&one, "uts").await, host_namespace("uts"));
    assert_ne!(link(&one, "pid").await, link(&two, "pid").await);
    until("the greeting", || async {
        (text(&node.exec(&two, &["cat", "/dev/shm/greeting"]).await.stdout) == "hello").then_some(())
    })
    .await;
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn a_shared_pid_namespace_has_a_holder_that_reaps_and_leaves() {
    let node = Node::start().await;
    let mut pod = node.sandbox("together");
    let context = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options = Some(namespaces(NamespaceMode::Node, NamespaceMode::Pod));
    let sandbox = node.run_sandbox(&pod).await;
    let one = node.run(&sandbox, &pod, "one", "sleep 1111").await;
    let two = node.run(&sandbox, &pod, "two", "sleep 2222").await;
    let list = text(&node.exec(&two, &["ps"]).await.stdout);
    assert!(list.contains("sleep 1111") && list.contains("sleep 2222"), "{list}");
    assert!(list.contains("/coracle-shim hold"), "{list}");
    // Only its own processes end with a container that shares the namespace.
    node.stop_container(&one, 0).await;
    until("the first container's processes to end", || async {
        (!text(&node.exec(&two, &["ps"]).await.stdout).contains("sleep 1111")).then_some(())
    })
    .await;
    assert_eq!(node.status(&two).await.state(), ContainerState::ContainerRunning);
    assert_eq!(node.sandbox_status(&sandbox).await.state(), PodSandboxState::SandboxReady);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn host_pid_sees_the_node_and_leaves_no_process_behind() {
    let node = Node::start().await;
    let mut pod = node.sandbox("sees");
    let context = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options = Some(namespaces(NamespaceMode::Node, NamespaceMode::Node));
    let sandbox = node.run_sandbox(&pod).await;
    let id = node.run(&sandbox, &pod, "main", "sleep 3333 & sleep 4444").await;
    let link = text(&node.exec(&id, &["readlink", "/proc/self/ns/pid"]).await.stdout);
    assert_eq!(link, host_namespace("pid"));
    let cgroup = format!("{}/pods/sees/{id}/cgroup.procs", node.cgroup.trim_start_matches('/'));
    node.stop_container(&id, 0).await;
    for tree in service_support::cgroup_trees() {
        assert_eq!(fs::read_to_string(tree.join(&cgroup)).unwrap_or_default(), "");
    }
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn a_container_past_its_memory_limit_is_told_as_oom_killed() {
    let node = Node::start().await;
    let pod = node.sandbox("eats");
    let sandbox = node.run_sandbox(&pod).await;
    let mut config = script_container(&pod, "hungry", "exec tail /dev/zero");
    let resources = LinuxContainerResources { memory_limit_in_bytes: 24 << 20, ..Default::default() };
    config.linux.as_mut().unwrap().resources = Some(resources);
    let id = node.create(&sandbox, &pod, config).await;
    node.start_container(&id).await;
    let status = node.exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    assert_eq!(status.resources.unwrap().linux.unwrap().memory_limit_in_bytes, 24 << 20);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn usage_is_told_and_limits_change_while_it_runs() {
    let node = Node::start().await;
    let pod = node.sandbox("measured");
    let sandbox = node.run_sandbox(&pod).await;
    let script =
        "dd if=/dev/zero of=/data/file bs=1024 count=512 2>/dev/null; echo written; while :; do :; done";
    let mut config = script_container(&pod, "busy", script);
    let resources = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    config.linux.as_mut().unwrap().resources = Some(resources);
    let id = node.create(&sandbox, &pod, config).await;
    node.start_container(&id).await;
    node.log_has(&id, "written").await;
    let stats = until("CPU time to show", || async {
        let request = ContainerStatsRequest { container_id: id.clone() };
        let stats = node.runtime().container_stats(request).await.unwrap().stats.unwrap();
        let cpu = stats.cpu.as_ref()?;
        (cpu.usage_core_nano_seconds?.value > 10_000_000 && cpu.usage_nano_cores.is_some()).then_some(stats)
    })
    .await;
    let memory = stats.memory.unwrap();
    assert!(memory.usage_bytes.unwrap().value > 0 && memory.working_set_bytes.unwrap().value <= 64 << 20);
    assert!(memory.available_bytes.unwrap().value <= 64 << 20);
    assert!(stats.writable_layer.unwrap().used_bytes.unwrap().value >= 512 << 10);

    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() }),
        ..Default::default()
    };
    // Whoever reads the specification meanwhile, as a command that starts does, reads the old one or the new.
    let bundle = node.state().join("containers").join(&id);
    let mut reader = fs::File::open(bundle.join("config.json")).unwrap();
    node.runtime().update_container_resources(request).await.unwrap();
    let limit = |from: &mut dyn std::io::Read| {
        let spec: serde_json::Value = serde_json::from_reader(from).unwrap();
        spec["linux"]["resources"]["memory"]["limit"].as_i64().unwrap() >> 20
    };
    let mut new = fs::File::open(bundle.join("config.json")).unwrap();
    assert_eq!((limit(&mut reader), limit(&mut new)), (64, 96));
    let limits: Vec<String> = service_support::cgroup_trees()
        .iter()
        .map(|tree| tree.join(format!("{}/pods/measured/{id}", node.cgroup.trim_start_matches('/'))))
        .flat_map(|dir| [dir.join("memory.limit_in_bytes"), dir.join("memory.max")])
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect();
    assert_eq!(limits.iter().map(|limit| limit.trim()).collect::<Vec<_>>(), [(96 << 20).to_string()]);
    let status = node.status(&id).await;
    assert_eq!(status.resources.unwrap().linux.unwrap().memory_limit_in_bytes, 96 << 20);

    let request = PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
    let pod_stats = node.runtime().pod_sandbox_stats(request).await.unwrap().stats.unwrap().linux.unwrap();
    assert_eq!(pod_stats.containers.len(), 1);
    assert!(pod_stats.process.unwrap().process_count.unwrap().value >= 1);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn a_renamed_log_goes_on_in_a_new_file() {
    let node = Node::start().await;
    let pod = node.sandbox("rotates");
    let sandbox = node.run_sandbox(&pod).await;
    let id = node.run(&sandbox, &pod, "chatty", "while :; do echo tick; sleep 0.05; done").await;
    node.log_has(&id, "tick").await;
    let path = node.status(&id).await.log_path;
    fs::rename(&path, format!("{path}.1")).unwrap();
    let request = ReopenContainerLogRequest { container_id: id.clone() };
    node.runtime().reopen_container_log(request).await.unwrap();
    node.log_has(&id, "tick").await;
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn a_pods_own_limits_are_remembered_its_usage_is_listed_and_checkpoints_are_refused() {
    let node = Node::start().await;
    let (pod, other) = (node.sandbox("one"), node.sandbox("two"));
    let (sandbox, beside) = (node.run_sandbox(&pod).await, node.run_sandbox(&other).await);
    let id = node.run(&sandbox, &pod, "main", "sleep 1000").await;
    let list = |id: &str| {
        let filter = Some(PodSandboxStatsFilter { id: id.into(), ..Default::default() });
        node.runtime().list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter })
    };
    let stats = list("").await.unwrap().stats;
    let mut told: Vec<_> = stats.iter().map(|stats| stats.attributes.as_ref().unwrap().id.clone()).collect();
    told.sort();
    let mut all = [sandbox.clone(), beside.clone()];
    all.sort();
    assert_eq!(told, all);
    let [stats] = <[_; 1]>::try_from(list(&sandbox).await.unwrap().stats).unwrap();
    let linux = stats.linux.unwrap();
    assert_eq!(linux.containers.len(), 1);
    assert_eq!(linux.containers[0].attributes.as_ref().unwrap().id, id);
    assert!(linux.memory.unwrap().working_set_bytes.unwrap().value > 0);

    let update = |id: &str| UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.into(),
        overhead: None,
        resources: Some(LinuxContainerResources { memory_limit_in_bytes: 77 << 20, ..Default::default() }),
    };
    node.runtime().update_pod_sandbox_resources(update(&sandbox)).await.unwrap();
    let record = fs::read(node.state().join("sandboxes").join(&sandbox).join("record.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let config = hex::decode(record["config"].as_str().unwrap()).unwrap();
    let config = <PodSandboxConfig as prost::Message>::decode(config.as_slice()).unwrap();
    assert_eq!(config.linux.unwrap().resources.unwrap().memory_limit_in_bytes, 77 << 20);
    let request = StopPodSandboxRequest { pod_sandbox_id: beside.clone() };
    node.runtime().stop_pod_sandbox(request).await.unwrap();
    let refused = node.runtime().update_pod_sandbox_resources(update(&beside)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);

    let request = CheckpointContainerRequest { container_id: id, location: "/tmp/none".into(), timeout: 0 };
    let refused = node.runtime().checkpoint_container(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    node.remove_sandbox(&sandbox).await;
    node.remove_sandbox(&beside).await;
    node.finish().await;
}
