//! The fake behaves as containerd where a kubelet can tell, on a clock that the test moves.

use std::time::UNIX_EPOCH;

use futures_util::StreamExt;
use tonic::Code;

use super::*;
use crate::{ImageService, RuntimeService, Stream};

const EPOCH: Duration = Duration::from_secs(1_800_000_000);

fn fake() -> FakeRuntime {
    FakeRuntime::at(UNIX_EPOCH + EPOCH)
}

fn seconds(nanos: i64) -> i64 {
    nanos / 1_000_000_000 - EPOCH.as_secs() as i64
}

fn sandbox_config(pod: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.into(),
            uid: format!("uid-{pod}"),
            namespace: "default".into(),
            attempt: 0,
        }),
        log_directory: format!("/var/log/pods/{pod}"),
        labels: [("pod".to_owned(), pod.to_owned())].into(),
        ..Default::default()
    }
}

async fn run_pod(fake: &FakeRuntime, pod: &str) -> String {
    let request = RunPodSandboxRequest { config: Some(sandbox_config(pod)), ..Default::default() };
    fake.run_pod_sandbox(request).await.unwrap().pod_sandbox_id
}

fn create_request(fake: &FakeRuntime, pod: &str, name: &str, attempt: u32) -> CreateContainerRequest {
    let image = ImageSpec { image: fake.add_image("busybox"), ..Default::default() };
    CreateContainerRequest {
        pod_sandbox_id: fake.sandbox(pod).map(|sandbox| sandbox.status.id).unwrap_or_default(),
        config: Some(ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt }),
            image: Some(image),
            log_path: format!("{name}/{attempt}.log"),
            ..Default::default()
        }),
        sandbox_config: Some(sandbox_config(pod)),
    }
}

async fn create(fake: &FakeRuntime, pod: &str, name: &str, attempt: u32) -> String {
    fake.create_container(create_request(fake, pod, name, attempt)).await.unwrap().container_id
}

async fn start(fake: &FakeRuntime, id: &str) -> Result<(), Status> {
    fake.start_container(StartContainerRequest { container_id: id.to_owned() }).await.map(drop)
}

async fn stop(fake: &FakeRuntime, id: &str, timeout: i64) -> Result<(), Status> {
    fake.stop_container(StopContainerRequest { container_id: id.to_owned(), timeout }).await.map(drop)
}

async fn status(fake: &FakeRuntime, id: &str) -> Result<ContainerStatus, Status> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    Ok(fake.container_status(request).await?.status.unwrap())
}

async fn running(fake: &FakeRuntime, pod: &str, name: &str) -> String {
    run_pod(fake, pod).await;
    let id = create(fake, pod, name, 0).await;
    start(fake, &id).await.unwrap();
    id
}

fn lines(calls: Vec<Call>) -> Vec<String> {
    calls.iter().map(Call::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn a_container_lives_and_tells_its_times() {
    let fake = fake();
    run_pod(&fake, "web").await;
    tokio::time::advance(Duration::from_secs(1)).await;
    let id = create(&fake, "web", "nginx", 3).await;
    let created = status(&fake, &id).await.unwrap();
    assert_eq!(
        (created.state(), created.started_at, created.finished_at),
        (ContainerState::ContainerCreated, 0, 0)
    );
    assert_eq!(created.log_path, "/var/log/pods/web/nginx/3.log");
    assert_eq!(created.image.unwrap().image, "docker.io/library/busybox:latest");
    assert!(created.image_ref.starts_with("docker.io/library/busybox@sha256:"), "{}", created.image_ref);
    assert!(created.image_id.starts_with("sha256:"), "{}", created.image_id);

    tokio::time::advance(Duration::from_secs(1)).await;
    start(&fake, &id).await.unwrap();
    assert_eq!(start(&fake, &id).await.unwrap_err().code(), Code::Unknown);
    tokio::time::advance(Duration::from_secs(5)).await;
    fake.exit_container("nginx", 2);
    let ended = status(&fake, &id).await.unwrap();
    assert_eq!(ended.state(), ContainerState::ContainerExited);
    assert_eq!([ended.created_at, ended.started_at, ended.finished_at].map(seconds), [1, 2, 7]);
    assert_eq!((ended.exit_code, ended.reason.as_str()), (2, "Error"));
}

#[tokio::test(start_paused = true)]
async fn scripts_apply_in_turn_and_the_last_stays() {
    let fake = fake();
    fake.script_container("job", [Script::exits(1), Script::exits(Exit::oom()), Script::exits(0)]);
    run_pod(&fake, "pod").await;
    let mut ends = Vec::new();
    for attempt in 0..4 {
        let id = create(&fake, "pod", "job", attempt).await;
        start(&fake, &id).await.unwrap();
        let status = status(&fake, &id).await.unwrap();
        ends.push((status.exit_code, status.reason));
    }
    let expected = [(1, "Error"), (137, "OOMKilled"), (0, "Completed"), (0, "Completed")];
    assert_eq!(ends, expected.map(|(code, reason)| (code, reason.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_script_of_the_pod_wins_over_the_name_and_the_image() {
    let fake = fake();
    fake.script_image("busybox", [Script::exits(1)]);
    fake.script_container("b", [Script::exits(2)]);
    fake.script_container("pod/c", [Script::exits(3)]);
    run_pod(&fake, "pod").await;
    for (name, code) in [("a", 1), ("b", 2), ("c", 3)] {
        let id = create(&fake, "pod", name, 0).await;
        start(&fake, &id).await.unwrap();
        assert_eq!(status(&fake, &id).await.unwrap().exit_code, code, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_timed_exit_comes_when_it_is_due() {
    let fake = fake();
    fake.script_container("job", [Script::exits_after(Duration::from_secs(60), 0)]);
    let id = running(&fake, "pod", "job").await;
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(status(&fake, &id).await.unwrap().state(), ContainerState::ContainerRunning);
    let ended = |fake: &FakeRuntime| fake.container("job").unwrap().status.finished_at != 0;
    fake.wait_until(Duration::from_secs(10), ended).await;
    assert_eq!(seconds(status(&fake, &id).await.unwrap().finished_at), 60);
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_ends_the_container() {
    let fake = fake();
    fake.script_container("bad", [Script::fails_to_start(Status::unknown("exec: \"/nope\": not found"))]);
    run_pod(&fake, "pod").await;
    let id = create(&fake, "pod", "bad", 0).await;
    assert_eq!(start(&fake, &id).await.unwrap_err().message(), "exec: \"/nope\": not found");
    let status = status(&fake, &id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str(), status.started_at), (128, "StartError", 0));
    assert_eq!(status.message, "exec: \"/nope\": not found");
}

#[tokio::test(start_paused = true)]
async fn stopping_waits_for_the_program_then_kills_it() {
    let fake = fake();
    fake.script_container("slow", [Script::runs().stops_after(Duration::from_secs(4), 0)]);
    fake.script_container("deaf", [Script::runs().ignores_stop_signal()]);
    let plain = running(&fake, "a", "plain").await;
    let slow = running(&fake, "b", "slow").await;
    let deaf = running(&fake, "c", "deaf").await;
    let now = running(&fake, "d", "now").await;
    for (id, timeout, took, code) in
        [(plain, 30, 0, 143), (slow, 30, 4, 0), (deaf, 30, 30, 137), (now, 0, 0, 137)]
    {
        let begun = tokio::time::Instant::now();
        stop(&fake, &id, timeout).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), took);
        assert_eq!(status(&fake, &id).await.unwrap().exit_code, code);
        stop(&fake, &id, timeout).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_told_to_stop_ends_though_nobody_waits() {
    let fake = fake();
    fake.script_container("slow", [Script::runs().stops_after(Duration::from_secs(4), 0)]);
    let id = running(&fake, "pod", "slow").await;
    let given_up = tokio::time::timeout(Duration::from_secs(1), stop(&fake, &id, 30)).await;
    assert!(given_up.is_err());
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(status(&fake, &id).await.unwrap().exit_code, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_not_found_and_stop_and_remove_do_not_mind() {
    let fake = fake();
    let missing = "nope".to_owned();
    assert_eq!(status(&fake, "nope").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(start(&fake, "nope").await.unwrap_err().code(), Code::NotFound);
    let sandbox = PodSandboxStatusRequest { pod_sandbox_id: missing.clone(), verbose: false };
    assert_eq!(fake.pod_sandbox_status(sandbox).await.unwrap_err().code(), Code::NotFound);
    let create = create_request(&fake, "nope", "web", 0);
    assert_eq!(fake.create_container(create).await.unwrap_err().code(), Code::NotFound);
    let exec = ExecSyncRequest { container_id: missing.clone(), ..Default::default() };
    assert_eq!(fake.exec_sync(exec).await.unwrap_err().code(), Code::NotFound);
    stop(&fake, "nope", 1).await.unwrap();
    fake.remove_container(RemoveContainerRequest { container_id: missing.clone() }).await.unwrap();
    fake.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: missing.clone() }).await.unwrap();
    fake.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: missing.clone() }).await.unwrap();
    let image = Some(ImageSpec { image: missing, ..Default::default() });
    assert!(
        fake.image_status(ImageStatusRequest { image: image.clone(), verbose: false })
            .await
            .unwrap()
            .image
            .is_none()
    );
    fake.remove_image(RemoveImageRequest { image }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_takes_its_containers_along() {
    let fake = fake();
    let id = running(&fake, "pod", "web").await;
    let sandbox = fake.sandbox("pod").unwrap().status;
    assert_eq!(sandbox.network.unwrap().ip, "10.244.0.3");
    fake.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() }).await.unwrap();
    assert_eq!(status(&fake, &id).await.unwrap().exit_code, 137);
    let stopped = fake.sandbox("pod").unwrap().status;
    assert_eq!(
        (stopped.state(), stopped.network.unwrap().ip.as_str()),
        (PodSandboxState::SandboxNotready, "")
    );
    let refused = fake.create_container(create_request(&fake, "pod", "late", 0)).await.unwrap_err();
    assert!(refused.message().ends_with("is not running"), "{refused}");
    fake.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox.id }).await.unwrap();
    assert!(fake.sandboxes().is_empty() && fake.containers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn names_are_reserved() {
    let fake = fake();
    run_pod(&fake, "pod").await;
    let again = RunPodSandboxRequest { config: Some(sandbox_config("pod")), ..Default::default() };
    let refused = fake.run_pod_sandbox(again).await.unwrap_err();
    assert!(refused.message().contains("\"pod_default_uid-pod_0\" is reserved for"), "{refused}");
    create(&fake, "pod", "web", 0).await;
    let refused = fake.create_container(create_request(&fake, "pod", "web", 0)).await.unwrap_err();
    assert!(refused.message().contains("\"web_pod_default_uid-pod_0\" is reserved for"), "{refused}");
    create(&fake, "pod", "web", 1).await;
}

async fn drain(events: &mut Stream<ContainerEventResponse>) -> Vec<(ContainerEventType, String, usize)> {
    let mut seen = Vec::new();
    while let Some(Some(event)) = futures_util::FutureExt::now_or_never(events.next()) {
        let event = event.unwrap();
        let names = event.containers_statuses.iter().filter_map(|status| status.metadata.as_ref());
        let name = names.map(|metadata| metadata.name.clone()).collect();
        seen.push((event.container_event_type(), name, event.container_id.len()));
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn events_tell_every_change_with_the_whole_pod() {
    use ContainerEventType::*;
    let fake = fake();
    let mut events = fake.get_container_events(GetEventsRequest {}).await.unwrap();
    let id = running(&fake, "pod", "web").await;
    let sandbox = fake.sandbox("pod").unwrap().status.id;
    fake.exit_container(&id, 0);
    fake.remove_container(RemoveContainerRequest { container_id: id }).await.unwrap();
    fake.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await.unwrap();
    let expected = [
        (ContainerCreatedEvent, ""),
        (ContainerStartedEvent, ""),
        (ContainerCreatedEvent, "web"),
        (ContainerStartedEvent, "web"),
        (ContainerStoppedEvent, "web"),
        (ContainerDeletedEvent, ""),
        (ContainerStoppedEvent, ""),
        (ContainerDeletedEvent, ""),
    ];
    assert_eq!(drain(&mut events).await, expected.map(|(kind, name)| (kind, name.to_owned(), 64)));
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_gone_ends_streams_and_keeps_containers() {
    let fake = fake();
    let mut events = fake.get_container_events(GetEventsRequest {}).await.unwrap();
    let id = running(&fake, "pod", "web").await;
    drain(&mut events).await;
    fake.set_available(false);
    assert_eq!(events.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert!(events.next().await.is_none());
    assert_eq!(status(&fake, &id).await.unwrap_err().code(), Code::Unavailable);
    fake.set_available(true);
    assert_eq!(status(&fake, &id).await.unwrap().state(), ContainerState::ContainerRunning);
}

#[tokio::test(start_paused = true)]
async fn faults_fail_lose_delay_and_hang() {
    let fake = fake();
    let fail = Fault::fail(Method::CreateContainer, Status::unavailable("no shim"));
    fake.inject(fail.on("pod/web").times(1));
    fake.inject(Fault::lose_response(Method::StartContainer, Status::unavailable("broken pipe")).times(1));
    run_pod(&fake, "pod").await;
    create(&fake, "pod", "other", 0).await;
    assert_eq!(
        fake.create_container(create_request(&fake, "pod", "web", 0)).await.unwrap_err().message(),
        "no shim"
    );
    assert!(fake.container("web").is_none());
    let id = create(&fake, "pod", "web", 0).await;
    assert_eq!(start(&fake, &id).await.unwrap_err().message(), "broken pipe");
    assert_eq!(status(&fake, &id).await.unwrap().state(), ContainerState::ContainerRunning);

    fake.delay(Method::ListContainers, Duration::from_secs(7));
    let begun = tokio::time::Instant::now();
    fake.list_containers(ListContainersRequest::default()).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(7));

    fake.hang(Method::StopContainer);
    let (hung, target) = (fake.clone(), id.clone());
    let task = tokio::spawn(async move { stop(&hung, &target, 1).await });
    fake.wait_until(Duration::from_secs(1), |fake| fake.count(Method::StopContainer) == 1).await;
    assert_eq!(status(&fake, &id).await.unwrap().state(), ContainerState::ContainerRunning);
    fake.release();
    task.await.unwrap().unwrap();
    assert_eq!(status(&fake, &id).await.unwrap().exit_code, 143);
    let expected = [
        "RunPodSandbox pod",
        "CreateContainer other",
        "CreateContainer web",
        "CreateContainer web",
        "StartContainer web",
        "StopContainer web",
    ];
    assert_eq!(lines(fake.changes()), expected);
}

#[tokio::test(start_paused = true)]
async fn commands_follow_their_scripts() {
    let fake = fake();
    let id = running(&fake, "pod", "web").await;
    let exec = |timeout| {
        let request = ExecSyncRequest { container_id: id.clone(), cmd: vec!["check".into()], timeout };
        let fake = fake.clone();
        async move { fake.exec_sync(request).await }
    };
    assert_eq!(exec(1).await.unwrap(), ExecSyncResponse::default());
    let slow = ExecScript::exits(0).takes(Duration::from_secs(3));
    fake.script_exec("web", [ExecScript::exits(7).stdout("out").stderr("err"), slow]);
    let failed = exec(1).await.unwrap();
    assert_eq!(
        (failed.exit_code, failed.stdout.as_slice(), failed.stderr.as_slice()),
        (7, &b"out"[..], &b"err"[..])
    );
    assert_eq!(exec(1).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(exec(0).await.unwrap().exit_code, 0);
    let pending = tokio::spawn(exec(0));
    fake.wait_until(Duration::from_secs(1), |fake| fake.execs().len() == 5).await;
    fake.exit_container("web", 1);
    assert_eq!(pending.await.unwrap().unwrap().exit_code, 137);
    assert!(exec(0).await.unwrap_err().message().contains("CONTAINER_EXITED"));
}

#[tokio::test(start_paused = true)]
async fn images_are_pulled_refused_and_guarded() {
    let fake = fake();
    let pull = |image: &str, auth: Option<(&str, &str)>| {
        let request = PullImageRequest {
            image: Some(ImageSpec { image: image.into(), ..Default::default() }),
            auth: auth.map(|(username, password)| AuthConfig {
                username: username.into(),
                password: password.into(),
                ..Default::default()
            }),
            sandbox_config: None,
        };
        let fake = fake.clone();
        async move { fake.pull_image(request).await }
    };
    let id = pull("busybox:1.37", None).await.unwrap().image_ref;
    for name in ["docker.io/library/busybox:1.37", "library/busybox:1.37", &id, &id["sha256:".len()..]] {
        let image = Some(ImageSpec { image: name.into(), ..Default::default() });
        let found = fake.image_status(ImageStatusRequest { image, verbose: false }).await.unwrap();
        assert_eq!(found.image.unwrap().id, id, "{name}");
    }
    fake.refuse_pull("nope", Status::not_found("nope: not found"));
    assert_eq!(pull("docker.io/library/nope:latest", None).await.unwrap_err().code(), Code::NotFound);
    fake.require_credentials("localhost:5000/private", "me", "secret");
    assert!(pull("localhost:5000/private", Some(("me", "wrong"))).await.is_err());
    pull("localhost:5000/private", Some(("me", "secret"))).await.unwrap();
    assert_eq!(fake.images().len(), 2);
    assert_eq!(fake.pulls().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn lists_filter_and_stats_count_what_runs() {
    let fake = fake();
    running(&fake, "a", "web").await;
    let id = running(&fake, "b", "db").await;
    fake.exit_container("a/web", 0);
    let cpu = CpuUsage { usage_core_nano_seconds: Some(UInt64Value { value: 5 }), ..Default::default() };
    fake.set_container_stats("db", ContainerStats { cpu: Some(cpu), ..Default::default() });

    let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() });
    let filter = Some(ContainerFilter { state, ..Default::default() });
    let found = fake.list_containers(ListContainersRequest { filter }).await.unwrap().containers;
    assert_eq!(found.iter().map(|container| &container.id).collect::<Vec<_>>(), [&id]);
    let label_selector = [("pod".to_owned(), "a".to_owned())].into();
    let filter = Some(PodSandboxFilter { label_selector, ..Default::default() });
    assert_eq!(fake.list_pod_sandbox(ListPodSandboxRequest { filter }).await.unwrap().items.len(), 1);

    let stats = fake.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.unwrap().stats;
    let used = |stats: &PodSandboxStats| {
        let linux = stats.linux.as_ref().unwrap();
        (linux.containers.len(), linux.cpu.as_ref().unwrap().usage_core_nano_seconds.unwrap().value)
    };
    assert_eq!(stats.iter().map(used).collect::<Vec<_>>(), [(0, 0), (1, 5)]);
}

#[tokio::test]
async fn log_files_are_made_and_made_anew_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let fake = fake();
    fake.create_log_files(true);
    run_pod(&fake, "pod").await;
    let mut request = create_request(&fake, "pod", "web", 0);
    request.sandbox_config.as_mut().unwrap().log_directory = dir.path().display().to_string();
    request.config.as_mut().unwrap().log_path = "0.log".into();
    let id = fake.create_container(request).await.unwrap().container_id;
    start(&fake, &id).await.unwrap();
    let log = dir.path().join("0.log");
    std::fs::remove_file(&log).unwrap();
    fake.reopen_container_log(ReopenContainerLogRequest { container_id: id }).await.unwrap();
    assert!(log.exists());
    assert_eq!(fake.container("web").unwrap().log_reopened, 1);
}

#[test]
fn references_normalize_as_containerd_does() {
    for (given, full) in [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("coracle/demo", "docker.io/coracle/demo:latest"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        ("ghcr.io/a/b:c", "ghcr.io/a/b:c"),
        ("busybox@sha256:00", "docker.io/library/busybox@sha256:00"),
        ("sha256:00", "sha256:00"),
    ] {
        assert_eq!(images::normalize(given), full);
    }
}
