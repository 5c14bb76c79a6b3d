//! A runtime over what another one left: living pods are adopted, everything else is cleaned up and told.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod service_support;

use std::fs;
use std::process::Command;

use coracle_cri::RuntimeService as _;
use coracle_cri::v1::*;
use futures_util::StreamExt as _;
use service_support::{Node, script_container, until};

fn kill(pid: u32) {
    signal("-9", pid);
}

fn signal(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

async fn containers(node: &Node) -> Vec<Container> {
    let request = ListContainersRequest::default();
    node.runtime().list_containers(request).await.unwrap().containers
}

async fn sandboxes(node: &Node) -> Vec<PodSandbox> {
    let request = ListPodSandboxRequest::default();
    node.runtime().list_pod_sandbox(request).await.unwrap().items
}

#[tokio::test]
async fn running_containers_and_ends_without_a_runtime_are_adopted() {
    let mut node = Node::start().await;
    let pod = node.sandbox("survives");
    let sandbox = node.run_sandbox(&pod).await;
    let script = "trap 'exit 5' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done";
    let living = node.run(&sandbox, &pod, "living", script).await;
    let gate = node.dir.path().join("gate");
    fs::create_dir(&gate).unwrap();
    let mut config = script_container(&pod, "ends", "until test -e /gate/open; do sleep 0.02; done; exit 42");
    config.mounts = vec![Mount {
        container_path: "/gate".into(),
        host_path: gate.to_string_lossy().into_owned(),
        ..Default::default()
    }];
    let ends = node.create(&sandbox, &pod, config).await;
    node.start_container(&ends).await;
    let created = node.create(&sandbox, &pod, script_container(&pod, "waits", "echo started; exit 0")).await;
    node.log_has(&living, "line 3").await;
    let before = node.status(&living).await;

    node.stop().await;
    fs::write(gate.join("open"), "").unwrap();
    let record = node.state().join("containers").join(&ends).join("exit.json");
    until("the shim to record the end", || async { record.exists().then_some(()) }).await;
    let log = fs::read_to_string(&before.log_path).unwrap().lines().count();
    until("the log to go on", || async {
        (fs::read_to_string(&before.log_path).unwrap().lines().count() > log + 3).then_some(())
    })
    .await;
    node.restart().await;

    let after = node.status(&living).await;
    assert_eq!(after, before);
    let ended = node.exit(&ends).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (42, "Error"));
    assert_eq!(node.sandbox_status(&sandbox).await.state(), PodSandboxState::SandboxReady);
    let again = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
    assert_eq!(
        node.runtime().run_pod_sandbox(again).await.unwrap_err().code(),
        coracle_cri::Code::AlreadyExists
    );
    // What was created before starts now, what ran is stopped by its signal, commands run.
    node.start_container(&created).await;
    node.log_has(&created, "started").await;
    assert_eq!(node.exec(&living, &["true"]).await.exit_code, 0);
    node.stop_container(&living, 20).await;
    assert_eq!(node.status(&living).await.exit_code, 5);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn a_killed_shim_takes_its_containers_with_it_and_says_so() {
    let node = Node::start().await;
    let mut events = node.runtime().get_container_events(GetEventsRequest {}).await.unwrap();
    let (pod, other) = (node.sandbox("victim"), node.sandbox("bystander"));
    let (sandbox, beside) = (node.run_sandbox(&pod).await, node.run_sandbox(&other).await);
    let id = node.run(&sandbox, &pod, "main", "sleep 1000").await;
    let unharmed = node.run(&beside, &other, "main", "sleep 1000").await;
    kill(node.shim_pid(&sandbox));
    let status = node.exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Unknown"));
    assert!(status.message.contains("shim"), "{}", status.message);
    until("the sandbox not to be ready", || async {
        (node.sandbox_status(&sandbox).await.state() == PodSandboxState::SandboxNotready).then_some(())
    })
    .await;
    let stopped = async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            if event.container_event_type() == ContainerEventType::ContainerStoppedEvent {
                return event.container_id;
            }
        }
    };
    let limit = service_support::patient(std::time::Duration::from_secs(10));
    assert_eq!(tokio::time::timeout(limit, stopped).await.unwrap(), id);
    assert_eq!(node.status(&unharmed).await.state(), ContainerState::ContainerRunning);
    node.remove_sandbox(&sandbox).await;
    // The name is free again: the pod is made anew.
    let sandbox = node.run_sandbox(&pod).await;
    node.run(&sandbox, &pod, "main", "sleep 1000").await;
    node.remove_sandbox(&sandbox).await;
    node.remove_sandbox(&beside).await;
    node.finish().await;
}

#[tokio::test]
async fn a_container_outlives_a_start_at_which_its_shim_does_not_answer() {
    let mut node = Node::start().await;
    let pod = node.sandbox("stuck");
    let sandbox = node.run_sandbox(&pod).await;
    let id =
        node.run(&sandbox, &pod, "main", "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done").await;
    node.log_has(&id, "up").await;
    let shim = node.shim_pid(&sandbox);
    node.stop().await;
    signal("-STOP", shim);
    node.restart().await;
    assert_eq!(node.status(&id).await.state(), ContainerState::ContainerRunning);
    signal("-CONT", shim);
    assert_eq!(node.exec(&id, &["echo", "alive"]).await.stdout, b"alive\n");
    // Its end is seen though nobody here asked for it.
    assert_eq!(node.exec(&id, &["kill", "-TERM", "1"]).await.exit_code, 0);
    assert_eq!(node.exit(&id).await.exit_code, 7);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn a_shim_that_died_without_a_runtime_is_told_at_the_next_start() {
    let mut node = Node::start().await;
    let pod = node.sandbox("orphan");
    let sandbox = node.run_sandbox(&pod).await;
    let id = node.run(&sandbox, &pod, "main", "sleep 1000").await;
    let shim = node.shim_pid(&sandbox);
    node.stop().await;
    kill(shim);
    node.restart().await;
    let status = node.status(&id).await;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Unknown"));
    assert_eq!(node.sandbox_status(&sandbox).await.state(), PodSandboxState::SandboxNotready);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn records_of_an_earlier_boot_are_forgotten_and_cleaned_up() {
    let mut node = Node::start().await;
    let pod = node.sandbox("rebooted");
    let sandbox = node.run_sandbox(&pod).await;
    let id = node.run(&sandbox, &pod, "main", "echo data > /data/file; echo up; sleep 1000").await;
    node.log_has(&id, "up").await;
    let shim = node.shim_pid(&sandbox);
    node.stop().await;
    kill(shim);
    fs::write(node.state().join("boot_id"), "another boot\n").unwrap();
    node.restart().await;
    assert_eq!((containers(&node).await.len(), sandboxes(&node).await.len()), (0, 0));
    until("nothing to be left", || async { node.leftovers().is_empty().then_some(()) }).await;
    // The pod starts afresh under its old name.
    let sandbox = node.run_sandbox(&pod).await;
    let id = node.run(&sandbox, &pod, "main", "test -e /data/file || exit 3").await;
    assert_eq!(node.exit(&id).await.exit_code, 3, "the writable layer is new");
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn half_made_and_unreadable_things_are_torn_down() {
    let mut node = Node::start().await;
    let (one, two, three) = (node.sandbox("half"), node.sandbox("torn"), node.sandbox("whole"));
    let half = node.run_sandbox(&one).await;
    let torn = node.run_sandbox(&two).await;
    let whole = node.run_sandbox(&three).await;
    node.run(&half, &one, "main", "sleep 1000").await;
    let unfinished = node.create(&whole, &three, script_container(&three, "unfinished", "true")).await;
    let running = node.run(&whole, &three, "running", "sleep 1000").await;
    node.stop().await;
    let edit = |path: std::path::PathBuf, change: &dyn Fn(&mut serde_json::Value)| {
        let mut record = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut record);
        fs::write(&path, record.to_string()).unwrap();
    };
    let creating =
        |record: &mut serde_json::Value| record["phase"] = serde_json::json!({"state": "creating"});
    edit(node.state().join("sandboxes").join(&half).join("record.json"), &creating);
    edit(node.state().join("containers").join(&unfinished).join("record.json"), &creating);
    fs::write(node.state().join("sandboxes").join(&torn).join("record.json"), "{\"version\":1,").unwrap();
    // Layers and bundles that nothing names.
    fs::create_dir_all(node.config.root.join("containers/feed/upper")).unwrap();
    fs::create_dir_all(node.state().join("containers/feed/rootfs")).unwrap();
    // A network record that a kill cut off before its rename.
    fs::create_dir_all(node.state().join("cni/results")).unwrap();
    fs::write(node.state().join("cni/results/.feed.new"), "{").unwrap();
    node.restart().await;

    let ids: Vec<String> = containers(&node).await.into_iter().map(|container| container.id).collect();
    assert_eq!(ids, [running.as_str()]);
    let ids: Vec<String> = sandboxes(&node).await.into_iter().map(|sandbox| sandbox.id).collect();
    assert_eq!(ids, [whole.as_str()]);
    assert_eq!(node.status(&running).await.state(), ContainerState::ContainerRunning);
    node.remove_sandbox(&whole).await;
    // A torn record cannot tell the pod's cgroup, which stays, empty, for the kubelet to remove.
    let pods = format!("{}/pods", node.cgroup.trim_start_matches('/'));
    for tree in service_support::cgroup_trees() {
        let _ = fs::remove_dir(tree.join(&pods).join("torn"));
    }
    node.finish().await;
}
