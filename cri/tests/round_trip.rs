//! Client, server and fake together: every call crosses a real socket and comes back as the fake said it.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_cri::client::Client;
use coracle_cri::server::{Listener, ServeError};
use coracle_cri::testing::{ExecScript, FakeRuntime, Fault, Method};
use coracle_cri::{Code, Deadlines, ImageService, RuntimeService, Status, v1::*};
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const DEADLINE: Duration = Duration::from_secs(20);

/// A fake behind a socket. The server ends when `stop` is dropped.
struct Served {
    dir: tempfile::TempDir,
    fake: FakeRuntime,
    client: Client,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), ServeError>>,
}

fn serve_at(
    path: &std::path::Path,
    fake: &FakeRuntime,
) -> (oneshot::Sender<()>, JoinHandle<Result<(), ServeError>>) {
    let listener = Listener::bind(path).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    // As trait objects, which is how kubelet-core holds them.
    let runtime: Arc<dyn RuntimeService> = Arc::new(fake.clone());
    let images: Arc<dyn ImageService> = Arc::new(fake.clone());
    let server = tokio::spawn(listener.serve(runtime, images, async {
        let _ = stopped.await;
    }));
    (stop, server)
}

fn serve() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cri.sock");
    let fake = FakeRuntime::new();
    let (stop, server) = serve_at(&path, &fake);
    let client = Client::new(&format!("unix://{}", path.display())).unwrap();
    Served { dir, fake, client, stop, server }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("must not hang")
}

/// Makes a call with an empty request; a stream is read to its end.
async fn call<S: RuntimeService + ImageService>(s: &S, method: Method) -> Result<(), Status> {
    macro_rules! call {
        ($name:ident) => {
            s.$name(Default::default()).await.map(drop)
        };
        (stream $name:ident) => {
            s.$name(Default::default()).await?.try_collect::<Vec<_>>().await.map(drop)
        };
    }
    match method {
        Method::Version => call!(version),
        Method::RunPodSandbox => call!(run_pod_sandbox),
        Method::StopPodSandbox => call!(stop_pod_sandbox),
        Method::RemovePodSandbox => call!(remove_pod_sandbox),
        Method::PodSandboxStatus => call!(pod_sandbox_status),
        Method::ListPodSandbox => call!(list_pod_sandbox),
        Method::StreamPodSandboxes => call!(stream stream_pod_sandboxes),
        Method::CreateContainer => call!(create_container),
        Method::StartContainer => call!(start_container),
        Method::StopContainer => call!(stop_container),
        Method::RemoveContainer => call!(remove_container),
        Method::ListContainers => call!(list_containers),
        Method::StreamContainers => call!(stream stream_containers),
        Method::ContainerStatus => call!(container_status),
        Method::UpdateContainerResources => call!(update_container_resources),
        Method::ReopenContainerLog => call!(reopen_container_log),
        Method::ExecSync => call!(exec_sync),
        Method::Exec => call!(exec),
        Method::Attach => call!(attach),
        Method::PortForward => call!(port_forward),
        Method::ContainerStats => call!(container_stats),
        Method::ListContainerStats => call!(list_container_stats),
        Method::StreamContainerStats => call!(stream stream_container_stats),
        Method::PodSandboxStats => call!(pod_sandbox_stats),
        Method::ListPodSandboxStats => call!(list_pod_sandbox_stats),
        Method::StreamPodSandboxStats => call!(stream stream_pod_sandbox_stats),
        Method::UpdateRuntimeConfig => call!(update_runtime_config),
        Method::Status => call!(status),
        Method::CheckpointContainer => call!(checkpoint_container),
        Method::GetContainerEvents => call!(stream get_container_events),
        Method::ListMetricDescriptors => call!(list_metric_descriptors),
        Method::ListPodSandboxMetrics => call!(list_pod_sandbox_metrics),
        Method::StreamPodSandboxMetrics => call!(stream stream_pod_sandbox_metrics),
        Method::RuntimeConfig => call!(runtime_config),
        Method::UpdatePodSandboxResources => call!(update_pod_sandbox_resources),
        Method::ListImages => call!(list_images),
        Method::StreamImages => call!(stream stream_images),
        Method::ImageStatus => call!(image_status),
        Method::PullImage => call!(pull_image),
        Method::RemoveImage => call!(remove_image),
        Method::ImageFsInfo => call!(image_fs_info),
    }
}

#[tokio::test]
async fn every_call_reaches_its_method_and_its_error_comes_back() {
    let served = serve();
    for (index, method) in Method::ALL.iter().enumerate() {
        let code = Code::from_i32(1 + index as i32 % 16);
        served.fake.fail_next(*method, Status::new(code, format!("{method} refused: ä%\n")));
        let error = within(call(&served.client, *method)).await.expect_err(method.name());
        assert_eq!((error.code(), error.message()), (code, format!("{method} refused: ä%\n").as_str()));
        assert_eq!(served.fake.calls().last().map(|call| call.method), Some(*method));
    }
    assert_eq!(served.fake.calls().len(), Method::ALL.len());
}

#[tokio::test]
async fn every_call_answers_through_the_socket_as_it_does_without() {
    let served = serve();
    // The event stream has no end; it is tested by itself.
    for method in Method::ALL.iter().filter(|method| **method != Method::GetContainerEvents) {
        let direct =
            call(&served.fake, *method).await.map_err(|error| (error.code(), error.message().to_owned()));
        let wired = within(call(&served.client, *method)).await;
        assert_eq!(wired.map_err(|error| (error.code(), error.message().to_owned())), direct, "{method}");
    }
}

/// A pod with one running container, made through the client; the container's ID.
async fn run_container(served: &Served, pod: &str) -> String {
    let client = &served.client;
    let image = Some(ImageSpec { image: "busybox".into(), ..Default::default() });
    client.pull_image(PullImageRequest { image: image.clone(), ..Default::default() }).await.unwrap();
    let sandbox = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: pod.into(), uid: pod.into(), ..Default::default() }),
        labels: [("app".to_owned(), pod.to_owned())].into(),
        ..Default::default()
    };
    let request = RunPodSandboxRequest { config: Some(sandbox.clone()), runtime_handler: String::new() };
    let pod_sandbox_id = client.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 2 }),
        image,
        envs: vec![KeyValue { key: "BYTES".into(), value: vec![0, 159, 255] }],
        ..Default::default()
    };
    let request =
        CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: Some(sandbox) };
    let container_id = client.create_container(request).await.unwrap().container_id;
    client.start_container(StartContainerRequest { container_id: container_id.clone() }).await.unwrap();
    container_id
}

#[tokio::test]
async fn a_pod_lives_through_the_socket() {
    let served = serve();
    let id = run_container(&served, "web").await;
    for pod in ["b", "c", "d"] {
        run_container(&served, pod).await;
    }
    let (fake, client) = (&served.fake, &served.client);
    let config = fake.container("web/main").unwrap().config;
    assert_eq!(config.envs, [KeyValue { key: "BYTES".into(), value: vec![0, 159, 255] }]);

    let request = ContainerStatusRequest { container_id: id.clone(), verbose: false };
    assert_eq!(
        client.container_status(request.clone()).await.unwrap(),
        fake.container_status(request).await.unwrap()
    );
    let request = ListContainersRequest::default();
    let listed = client.list_containers(request).await.unwrap().containers;
    let pieces = client.stream_containers(StreamContainersRequest::default()).await.unwrap();
    let pieces: Vec<_> = pieces.try_collect().await.unwrap();
    assert_eq!((listed.len(), pieces.len()), (4, 2), "four containers in two pieces");
    assert_eq!(pieces.into_iter().flat_map(|piece| piece.containers).collect::<Vec<_>>(), listed);

    fake.script_exec("main", [ExecScript::exits(3).stdout(vec![0, 255, b'\n']).stderr("no")]);
    let request = ExecSyncRequest { container_id: id.clone(), cmd: vec!["true".into()], timeout: 5 };
    let output = client.exec_sync(request).await.unwrap();
    assert_eq!(
        output,
        ExecSyncResponse { stdout: vec![0, 255, b'\n'], stderr: b"no".to_vec(), exit_code: 3 }
    );
    client.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 1 }).await.unwrap();
    assert_eq!(fake.container("web/main").unwrap().status.exit_code, 143);
    client.remove_container(RemoveContainerRequest { container_id: id }).await.unwrap();
    assert!(fake.container("web/main").is_none());
}

#[tokio::test]
async fn events_stream_until_the_server_drains() {
    let served = serve();
    let mut events = within(served.client.get_container_events(GetEventsRequest {})).await.unwrap();
    let id = run_container(&served, "web").await;
    for kind in ["CREATED", "STARTED", "CREATED", "STARTED"] {
        let event = within(events.next()).await.unwrap().unwrap();
        assert_eq!(event.container_event_type().as_str_name(), format!("CONTAINER_{kind}_EVENT"));
    }
    served.fake.exit_container(&id, 9);
    let event = within(events.next()).await.unwrap().unwrap();
    assert_eq!((event.container_id.as_str(), event.containers_statuses[0].exit_code), (id.as_str(), 9));
    drop(served.stop);
    assert!(within(events.next()).await.is_none());
    drop(served.client);
    within(served.server).await.unwrap().unwrap();
    assert!(!served.dir.path().join("cri.sock").exists());
}

/// Go servers send no header before the first event; the hanging fake stands for one.
#[tokio::test]
async fn a_subscription_does_not_wait_for_the_first_event() {
    let served = serve();
    served.fake.hang(Method::GetContainerEvents);
    let mut events = within(served.client.get_container_events(GetEventsRequest {})).await.unwrap();
    assert_eq!(served.fake.count(Method::GetContainerEvents), 1);
    served.fake.release();
    let next = tokio::spawn(async move { events.next().await });
    // The fake subscribes somewhen after its release; pods come until one of them is seen.
    let mut pods = 0;
    within(async {
        while !next.is_finished() {
            run_container(&served, &format!("pod-{pods}")).await;
            pods += 1;
        }
    })
    .await;
    let event = next.await.unwrap().unwrap().unwrap();
    assert_eq!(event.container_id.len(), 64);
}

#[tokio::test]
async fn a_call_that_hangs_does_not_hold_the_server_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cri.sock");
    let fake = FakeRuntime::new();
    fake.hang(Method::PullImage);
    let listener = Listener::bind(&path).unwrap().with_drain(Duration::from_millis(100));
    let (stop, stopped) = oneshot::channel::<()>();
    let fakes = (Arc::new(fake.clone()), Arc::new(fake.clone()));
    let server = tokio::spawn(listener.serve(fakes.0, fakes.1, async {
        let _ = stopped.await;
    }));
    let client = Client::new(path.to_str().unwrap()).unwrap();
    let call = tokio::spawn(async move { client.pull_image(PullImageRequest::default()).await });
    fake.wait_until(DEADLINE, |fake| fake.count(Method::PullImage) == 1).await;
    drop(stop);
    let error = within(call).await.unwrap().unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unavailable, "the runtime is shutting down"));
    within(server).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_call_that_gets_no_answer_ends_at_its_deadline() {
    let served = serve();
    served.fake.hang(Method::Status);
    let deadlines = Deadlines { request: Duration::from_millis(300), ..Deadlines::default() };
    let client = served.client.clone().with_deadlines(deadlines);
    let begun = Instant::now();
    let error = within(client.status(StatusRequest::default())).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    // One call's deadline is not its neighbour's trouble.
    within(client.version(VersionRequest::default())).await.unwrap();
}

#[tokio::test]
async fn the_client_finds_a_runtime_that_starts_late_and_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cri.sock");
    let client = Client::new(path.to_str().unwrap()).unwrap();
    let error = within(client.version(VersionRequest::default())).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains(path.to_str().unwrap()), "{error}");
    assert!(error.message().contains("No such file"), "{error}");
    for _ in 0..3 {
        let fake = FakeRuntime::new();
        let (stop, server) = serve_at(&path, &fake);
        within(client.version(VersionRequest::default())).await.unwrap();
        drop(stop);
        // A lazy client lets go of an idle connection when the server says goodbye.
        within(server).await.unwrap().unwrap();
        let error = within(client.version(VersionRequest::default())).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
    }
}

#[tokio::test]
async fn large_messages_pass_and_larger_ones_are_refused() {
    let served = serve();
    let id = run_container(&served, "web").await;
    let request = || ExecSyncRequest { container_id: id.clone(), cmd: vec!["dump".into()], timeout: 20 };
    served.fake.script_exec("main", [ExecScript::exits(0).stdout(vec![7; 15 << 20])]);
    assert_eq!(within(served.client.exec_sync(request())).await.unwrap().stdout.len(), 15 << 20);
    served.fake.script_exec("main", [ExecScript::exits(0).stdout(vec![7; 17 << 20])]);
    let error = within(served.client.exec_sync(request())).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
}

#[tokio::test]
async fn the_socket_is_its_owners_and_taken_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cri.sock");
    let listener = Listener::bind(&path).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(matches!(Listener::bind(&path), Err(ServeError::InUse(_))));
    listener.set_mode(0o660).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    drop(listener);
    assert!(!path.exists());

    // What a killed server leaves is taken over; a file is not ours to remove.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(Listener::bind(&path).unwrap());
    std::fs::write(&path, "precious").unwrap();
    let refused = Listener::bind(&path).unwrap_err();
    assert!(matches!(refused, ServeError::Listen { .. }), "{refused:?}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn a_bad_endpoint_is_told() {
    for endpoint in ["", "tcp://localhost:1", "run/containerd.sock", "unix://run/containerd.sock"] {
        let error = Client::new(endpoint).unwrap_err().to_string();
        assert!(error.contains("unix:///"), "{error}");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_its_call() {
    let served = serve();
    served.fake.inject(Fault::hang(Method::PullImage).times(1));
    let call = served.client.pull_image(PullImageRequest::default());
    assert!(tokio::time::timeout(Duration::from_millis(200), call).await.is_err());
    drop(served.client);
    drop(served.stop);
    // A server that still held the call would drain for ten seconds.
    let begun = Instant::now();
    within(served.server).await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
