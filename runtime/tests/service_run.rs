//! Pods on the embedded runtime from their start to their end.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod service_support;

use std::fs;

use coracle_cri::RuntimeService as _;
use coracle_cri::v1::*;
use futures_util::StreamExt as _;
use service_support::{Node, script_container, until};

#[tokio::test]
async fn a_pod_runs_logs_ends_and_leaves_nothing() {
    let node = Node::start().await;
    let mut events = node.runtime().get_container_events(GetEventsRequest {}).await.unwrap();
    let pod = node.sandbox("web");
    let sandbox = node.run_sandbox(&pod).await;
    assert_eq!(node.sandbox_status(&sandbox).await.state(), PodSandboxState::SandboxReady);

    let id = node.run(&sandbox, &pod, "hello", "echo out; echo err >&2; exit 3").await;
    let status = node.exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.started_at > 0 && status.finished_at >= status.started_at);
    let log = fs::read_to_string(&status.log_path).unwrap();
    assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");

    node.remove_sandbox(&sandbox).await;
    node.remove_sandbox(&sandbox).await;
    // The sandbox is told of as a container of its own name, as containerd does.
    use ContainerEventType::*;
    for (of, expected) in [
        (&sandbox, ContainerCreatedEvent),
        (&sandbox, ContainerStartedEvent),
        (&id, ContainerCreatedEvent),
        (&id, ContainerStartedEvent),
        (&id, ContainerStoppedEvent),
        (&sandbox, ContainerStoppedEvent),
        (&id, ContainerDeletedEvent),
        (&sandbox, ContainerDeletedEvent),
    ] {
        let event = events.next().await.unwrap().unwrap();
        assert_eq!((&event.container_id, event.container_event_type()), (of, expected));
        let told = event.pod_sandbox_status.unwrap();
        let gone = expected == ContainerDeletedEvent || (of, expected) == (&sandbox, ContainerStoppedEvent);
        assert_eq!((&told.id, told.state() == PodSandboxState::SandboxNotready), (&sandbox, gone));
    }
    assert!(fs::exists(&status.log_path).unwrap(), "logs belong to the kubelet");
    node.finish().await;
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_a_start_error() {
    let node = Node::start().await;
    let pod = node.sandbox("broken");
    let sandbox = node.run_sandbox(&pod).await;
    let mut config = script_container(&pod, "nope", "");
    config.command = vec!["/no/such/command".into()];
    let id = node.create(&sandbox, &pod, config).await;
    let started = node.runtime().start_container(StartContainerRequest { container_id: id.clone() }).await;
    let message = started.unwrap_err().message().to_owned();
    assert!(message.contains("/no/such/command"), "{message}");
    let status = node.status(&id).await;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert!(status.message.contains("/no/such/command"), "{}", status.message);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn stop_gives_grace_and_then_kills() {
    let node = Node::start().await;
    let pod = node.sandbox("stops");
    let sandbox = node.run_sandbox(&pod).await;
    let polite =
        node.run(&sandbox, &pod, "polite", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done").await;
    let deaf = node.run(&sandbox, &pod, "deaf", "trap '' TERM; echo up; while :; do sleep 0.05; done").await;
    node.log_has(&polite, "up").await;
    node.log_has(&deaf, "up").await;
    node.stop_container(&polite, 20).await;
    assert_eq!(node.status(&polite).await.exit_code, 7);
    node.stop_container(&deaf, 1).await;
    let status = node.status(&deaf).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    // Stopping again is no error.
    node.stop_container(&deaf, 1).await;
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn a_fork_bomb_ends_with_its_pod() {
    let node = Node::start().await;
    let pod = node.sandbox("bomb");
    let sandbox = node.run_sandbox(&pod).await;
    // The kubelet limits the processes of a pod in the pod's cgroup.
    let pods = format!("{}/pods/bomb/pids.max", node.cgroup.trim_start_matches('/'));
    let limited = service_support::cgroup_trees()
        .iter()
        .filter(|tree| fs::write(tree.join(&pods), "150").is_ok())
        .count();
    assert_eq!(limited, 1);
    let bomb =
        "echo armed; bomb() { bomb 2>/dev/null | bomb 2>/dev/null & }; while :; do bomb 2>/dev/null; done";
    let id = node.run(&sandbox, &pod, "main", bomb).await;
    node.log_has(&id, "armed").await;
    node.stop_container(&id, 0).await;
    assert_eq!(node.status(&id).await.state(), ContainerState::ContainerExited);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn commands_run_in_a_container_with_output_exit_code_and_deadline() {
    let node = Node::start().await;
    let pod = node.sandbox("execs");
    let sandbox = node.run_sandbox(&pod).await;
    let id = node.run(&sandbox, &pod, "main", "sleep 1000").await;
    let answer = node.exec(&id, &["sh", "-c", "echo a; echo b >&2; exit 9"]).await;
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.as_slice(), answer.exit_code),
        (&b"a\n"[..], &b"b\n"[..], 9)
    );
    let large = node.exec(&id, &["sh", "-c", "yes | head -c 3000000"]).await;
    assert_eq!(large.stdout.len(), 3_000_000);
    let request =
        ExecSyncRequest { container_id: id.clone(), cmd: vec!["sleep".into(), "777".into()], timeout: 1 };
    let error = node.runtime().exec_sync(request).await.unwrap_err();
    assert_eq!(error.code(), coracle_cri::Code::DeadlineExceeded, "{error}");
    until("the timed out command to be killed", || async {
        let list = node.exec(&id, &["ps"]).await;
        (!String::from_utf8_lossy(&list.stdout).contains("sleep 777")).then_some(())
    })
    .await;
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn lists_filter_by_id_state_sandbox_and_labels_and_names_are_unique() {
    let node = Node::start().await;
    let (one, two) = (node.sandbox("one"), node.sandbox("two"));
    let (first, second) = (node.run_sandbox(&one).await, node.run_sandbox(&two).await);
    let running = node.run(&first, &one, "a", "sleep 1000").await;
    let created = node.create(&second, &two, script_container(&two, "b", "true")).await;
    let list = async |filter: ContainerFilter| {
        let request = ListContainersRequest { filter: Some(filter) };
        let found = node.runtime().list_containers(request).await.unwrap().containers;
        found.into_iter().map(|container| container.id).collect::<Vec<_>>()
    };
    let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
    let by_state = state(ContainerState::ContainerRunning);
    assert_eq!(list(ContainerFilter { state: by_state, ..Default::default() }).await, [running.as_str()]);
    let by_sandbox = ContainerFilter { pod_sandbox_id: second.clone(), ..Default::default() };
    assert_eq!(list(by_sandbox).await, [created.as_str()]);
    let label_selector = [("container".to_owned(), "b".to_owned())].into();
    assert_eq!(list(ContainerFilter { label_selector, ..Default::default() }).await, [created.as_str()]);
    assert_eq!(
        list(ContainerFilter { id: running[..12].into(), ..Default::default() }).await,
        [running.as_str()]
    );
    assert_eq!(list(ContainerFilter::default()).await.len(), 2);

    let again = RunPodSandboxRequest { config: Some(one.clone()), runtime_handler: String::new() };
    let error = node.runtime().run_pod_sandbox(again).await.unwrap_err();
    assert_eq!(error.code(), coracle_cri::Code::AlreadyExists);
    assert!(error.message().contains("one_default_uid-one_0"), "{error}");
    let missing = ContainerStatusRequest { container_id: "nope".into(), verbose: false };
    assert_eq!(
        node.runtime().container_status(missing).await.unwrap_err().code(),
        coracle_cri::Code::NotFound
    );
    node.remove_sandbox(&first).await;
    node.remove_sandbox(&second).await;
    assert!(list(ContainerFilter::default()).await.is_empty());
    node.finish().await;
}
