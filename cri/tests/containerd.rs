//! The client against a real containerd: Debian's, with a root, state and socket of its own.
//!
//! One containerd serves all tests of this file one after another; a small static program is pause image
//! and container alike. What containerd answers shows that fields arrive where they belong.
#![allow(clippy::unwrap_used)]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_cri::client::Client;
use coracle_cri::{Code, ImageService, RuntimeService, Status, v1::*};

const PAUSE: &str = "coracle.test/pause:1";
/// Long enough for a busy machine; every wait ends as soon as its condition holds.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for SIGTERM's default to be overruled by nobody: PID 1 only ends when killed, unless told to exit.
const PROGRAM: &str = r#"
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["exit", code] => std::process::exit(code.parse().unwrap()),
        ["env", name] => print!("{}", std::env::var(name).unwrap()),
        ["fail"] => { eprint!("to stderr"); std::process::exit(7) }
        _ => loop { std::thread::sleep(std::time::Duration::from_secs(3600)) },
    }
}
"#;

struct Containerd {
    dir: tempfile::TempDir,
    process: Child,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs",
    "io.containerd.internal.v1.opt"]
[grpc]
address = "{dir}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
disable_apparmor = true
restrict_oom_score_adj = true
sandbox_image = "{PAUSE}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{dir}/cni/bin"
conf_dir = "{dir}/cni/net.d"
"#
    )
}

impl Containerd {
    async fn start() -> (Self, Client) {
        let dir = tempfile::Builder::new().prefix("coracle-cri-").tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), config(dir.path())).unwrap();
        let log = std::fs::File::create(dir.path().join("containerd.log")).unwrap();
        let process = Command::new("containerd")
            .arg("--config")
            .arg(dir.path().join("config.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            // Not the terminal's signals: an interrupted test still cleans up.
            .process_group(0)
            .spawn()
            .expect("containerd is installed (apt-get install containerd runc)");
        let mut containerd = Containerd { dir, process };
        let client = Client::new(&format!("unix://{}", containerd.socket().display())).unwrap();
        let begun = Instant::now();
        while let Err(error) = client.version(VersionRequest::default()).await {
            let ended = containerd.process.try_wait().unwrap();
            let state = || format!("{error}; process {ended:?}\n{}", containerd.log());
            assert!(ended.is_none() && begun.elapsed() < DEADLINE, "{}", state());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        (containerd, client)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("containerd.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("containerd.log")).unwrap_or_default()
    }

    /// Loads an image that holds one static program, `/program`.
    fn load_image(&self) {
        let dir = self.dir.path().join("image");
        std::fs::create_dir_all(dir.join("rootfs")).unwrap();
        std::fs::write(dir.join("program.rs"), PROGRAM).unwrap();
        run(Command::new("rustc")
            .args([
                "-Ctarget-feature=+crt-static",
                "-Copt-level=s",
                "-Cstrip=symbols",
                "-o",
                "rootfs/program",
            ])
            .arg("program.rs")
            .current_dir(&dir));
        run(Command::new("tar").args(["-C", "rootfs", "-cf", "layer.tar", "."]).current_dir(&dir));
        let sum = Command::new("sha256sum").arg("layer.tar").current_dir(&dir).output().unwrap();
        let diff = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"Entrypoint":["/program"],"User":"12"}},
                "rootfs":{{"type":"layers","diff_ids":["sha256:{diff}"]}}}}"#
        );
        std::fs::write(dir.join("config.json"), config).unwrap();
        let manifest =
            format!(r#"[{{"Config":"config.json","RepoTags":["{PAUSE}"],"Layers":["layer.tar"]}}]"#);
        std::fs::write(dir.join("manifest.json"), manifest).unwrap();
        run(Command::new("tar")
            .args(["-cf", "image.tar", "manifest.json", "config.json", "layer.tar"])
            .current_dir(&dir));
        run(Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io", "images", "import", "--snapshotter", "native"])
            .arg(dir.join("image.tar")));
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Nothing of ours may outlive the test, whatever failed; both may be over already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The pod's cgroup is its creator's to remove, as with a kubelet: one per hierarchy on cgroup v1.
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for parent in hierarchies.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
            let _ = std::fs::remove_dir(parent.join(pod_cgroup()));
        }
    }
}

/// A cgroup of this run only, because others may test on this host.
fn pod_cgroup() -> String {
    format!("coracle-cri-test-{}", std::process::id())
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_owned())
}

fn image(reference: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: reference.to_owned(), ..Default::default() })
}

#[tokio::test]
async fn containerd_understands_the_client() {
    let (containerd, client) = Containerd::start().await;
    tells_about_itself(&client).await;
    refuses_what_is_not_there(&client).await;
    containerd.load_image();
    let loaded = image_arrives(&client).await;
    assert_eq!(loaded.uid.map(|uid| uid.value), Some(12));
    let sandbox = sandbox_config(containerd.dir.path());
    let request = RunPodSandboxRequest { config: Some(sandbox.clone()), ..Default::default() };
    let id = client.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
    // The guard of the sandbox is this: whatever the checks find, it is removed before they are judged.
    let pod = id.clone();
    let checks = tokio::spawn({
        let client = client.clone();
        async move { a_pod_lives(&client, &pod, sandbox).await }
    });
    let outcome = checks.await;
    client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
    client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await.unwrap();
    assert!(outcome.is_ok(), "{}", containerd.log());
    assert_eq!(client.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().items, []);
}

async fn tells_about_itself(client: &Client) {
    let version = client.version(VersionRequest { version: "v1".into() }).await.unwrap();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("containerd", "v1"));

    let status = client.status(StatusRequest { verbose: true }).await.unwrap();
    let conditions = status.status.unwrap().conditions;
    let condition =
        |kind: &str| conditions.iter().find(|condition| condition.r#type == kind).unwrap().clone();
    assert!(condition("RuntimeReady").status);
    let network = condition("NetworkReady");
    assert_eq!((network.status, network.reason.as_str()), (false, "NetworkPluginNotReady"));
    assert!(status.info["config"].contains(PAUSE), "verbose did not arrive: {:?}", status.info);
    assert!(client.status(StatusRequest { verbose: false }).await.unwrap().info.is_empty());

    let usage = client.image_fs_info(ImageFsInfoRequest {}).await.unwrap().image_filesystems.remove(0);
    assert!(usage.timestamp > 1_600_000_000_000_000_000, "{usage:?}");
    assert!(usage.fs_id.unwrap().mountpoint.ends_with("native"));
    let network_config = Some(NetworkConfig { pod_cidr: "10.1.2.0/24".into() });
    let runtime_config = Some(RuntimeConfig { network_config });
    client.update_runtime_config(UpdateRuntimeConfigRequest { runtime_config }).await.unwrap();

    assert_eq!(client.list_images(ListImagesRequest::default()).await.unwrap().images, []);
    assert_eq!(client.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().items, []);
    assert_eq!(client.list_containers(ListContainersRequest::default()).await.unwrap().containers, []);
}

async fn refuses_what_is_not_there(client: &Client) {
    let id = || "no-such-id".to_owned();
    let status = ContainerStatusRequest { container_id: id(), verbose: false };
    let (code, text) = refusal(client.container_status(status).await);
    assert_eq!(code, Code::NotFound);
    assert!(text.contains("\"no-such-id\""), "{text}");
    let status = PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false };
    assert_eq!(refusal(client.pod_sandbox_status(status).await).0, Code::NotFound);
    // Stopping is idempotent in containerd 2 only; whoever stops must take this as done.
    let stop = StopPodSandboxRequest { pod_sandbox_id: id() };
    assert_eq!(refusal(client.stop_pod_sandbox(stop).await).0, Code::NotFound);
    client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id() }).await.unwrap();
    client.remove_container(RemoveContainerRequest { container_id: id() }).await.unwrap();
    let absent = ImageStatusRequest { image: image("absent:1"), verbose: false };
    assert_eq!(client.image_status(absent).await.unwrap().image, None);

    // Without its image a sandbox cannot be: the text proves that config and metadata were read.
    let (_, text) = refusal(client.run_pod_sandbox(RunPodSandboxRequest::default()).await);
    assert!(text.contains("must include metadata"), "{text}");
    let pull = PullImageRequest { image: image("127.0.0.1:1/coracle/none:2"), ..Default::default() };
    let (_, text) = refusal(client.pull_image(pull).await);
    assert!(text.contains("127.0.0.1:1/coracle/none:2") && text.contains("refused"), "{text}");

    // Calls that came after Debian's containerd.
    assert_eq!(refusal(client.runtime_config(RuntimeConfigRequest {}).await).0, Code::Unimplemented);
    let events = client.get_container_events(GetEventsRequest {}).await.map(drop);
    assert_eq!(refusal(events).0, Code::Unimplemented);
}

/// containerd's CRI part hears of a loaded image by an event, a little later.
async fn image_arrives(client: &Client) -> Image {
    let begun = Instant::now();
    loop {
        let request = ImageStatusRequest { image: image(PAUSE), verbose: false };
        if let Some(found) = client.image_status(request).await.unwrap().image {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "{:?}", client.list_images(ListImagesRequest::default()).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The host's network, so that no CNI is needed, and a PID namespace for each container.
fn namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    }
}

fn sandbox_config(dir: &Path) -> PodSandboxConfig {
    let security =
        LinuxSandboxSecurityContext { namespace_options: Some(namespaces()), ..Default::default() };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web".into(),
            uid: format!("uid-{}", std::process::id()),
            namespace: "test".into(),
            attempt: 5,
        }),
        log_directory: dir.join("logs").display().to_string(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        annotations: [("note".to_owned(), "keep".to_owned())].into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", pod_cgroup()),
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn a_pod_lives(client: &Client, id: &str, sandbox: PodSandboxConfig) {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let status = client.pod_sandbox_status(request).await.unwrap().status.unwrap();
    assert_eq!(
        (status.metadata.as_ref(), status.state()),
        (sandbox.metadata.as_ref(), PodSandboxState::SandboxReady)
    );
    assert_eq!((&status.labels, &status.annotations), (&sandbox.labels, &sandbox.annotations));
    for (value, count) in [("web", 1), ("other", 0)] {
        let label_selector = [("app".to_owned(), value.to_owned())].into();
        let state = Some(PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() });
        let filter = Some(PodSandboxFilter { label_selector, state, ..Default::default() });
        let found = client.list_pod_sandbox(ListPodSandboxRequest { filter }).await.unwrap().items;
        assert_eq!(found.len(), count, "{value}");
    }
    ends_with_its_code(client, id, &sandbox).await;
    runs_commands_and_is_killed(client, id, &sandbox).await;
}

async fn start(client: &Client, id: &str, sandbox: &PodSandboxConfig, config: ContainerConfig) -> String {
    let request = CreateContainerRequest {
        pod_sandbox_id: id.to_owned(),
        config: Some(config),
        sandbox_config: Some(sandbox.clone()),
    };
    let container_id = client.create_container(request).await.unwrap().container_id;
    client.start_container(StartContainerRequest { container_id: container_id.clone() }).await.unwrap();
    container_id
}

fn container_config(name: &str, args: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 4 }),
        image: image(PAUSE),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        envs: vec![KeyValue { key: "COLOR".into(), value: b"blue".to_vec() }],
        labels: [("tier".to_owned(), name.to_owned())].into(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                ..Default::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

async fn container_status(client: &Client, id: &str) -> ContainerStatus {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    client.container_status(request).await.unwrap().status.unwrap()
}

async fn ends_with_its_code(client: &Client, sandbox_id: &str, sandbox: &PodSandboxConfig) {
    let id = start(client, sandbox_id, sandbox, container_config("job", &["exit", "42"])).await;
    let begun = Instant::now();
    let status = loop {
        let status = container_status(client, &id).await;
        if status.state() == ContainerState::ContainerExited {
            break status;
        }
        assert!(begun.elapsed() < DEADLINE, "{status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    assert_eq!(status.metadata, Some(ContainerMetadata { name: "job".into(), attempt: 4 }));
    // containerd notes the start after it happened, so a program this short ends before it "started".
    let begins = status.created_at;
    assert!(begins > 0 && begins < status.started_at && begins < status.finished_at, "{status:?}");
    assert!(status.log_path.ends_with("logs/job.log"), "{}", status.log_path);
    assert_eq!(status.image, image(PAUSE));
}

async fn runs_commands_and_is_killed(client: &Client, sandbox_id: &str, sandbox: &PodSandboxConfig) {
    let id = start(client, sandbox_id, sandbox, container_config("web", &["wait"])).await;
    let exec = |command: &[&str]| ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["/program"].iter().chain(command).map(|part| (*part).to_owned()).collect(),
        timeout: 30,
    };
    let output = client.exec_sync(exec(&["env", "COLOR"])).await.unwrap();
    assert_eq!((output.stdout.as_slice(), output.exit_code), (&b"blue"[..], 0));
    let output = client.exec_sync(exec(&["fail"])).await.unwrap();
    assert_eq!((output.stderr.as_slice(), output.exit_code), (&b"to stderr"[..], 7));
    let (code, _) = refusal(client.exec_sync(ExecSyncRequest { timeout: 1, ..exec(&["wait"]) }).await);
    assert_eq!(code, Code::DeadlineExceeded);

    let request = ContainerStatsRequest { container_id: id.clone() };
    let stats = client.container_stats(request).await.unwrap().stats.unwrap();
    assert_eq!(stats.attributes.unwrap().labels["tier"], "web");
    assert!(stats.memory.unwrap().working_set_bytes.is_some_and(|bytes| bytes.value > 0));
    client.reopen_container_log(ReopenContainerLogRequest { container_id: id.clone() }).await.unwrap();
    let linux = Some(LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() });
    let request = UpdateContainerResourcesRequest { container_id: id.clone(), linux, ..Default::default() };
    client.update_container_resources(request).await.unwrap();
    let filter = Some(ContainerFilter {
        pod_sandbox_id: sandbox_id.to_owned(),
        state: Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() }),
        ..Default::default()
    });
    let found = client.list_containers(ListContainersRequest { filter }).await.unwrap().containers;
    assert_eq!(found.iter().map(|container| &container.id).collect::<Vec<_>>(), [&id]);

    // PID 1 does not mind SIGTERM, so the grace period of one second passes and SIGKILL follows.
    let begun = Instant::now();
    client.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 1 }).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(container_status(client, &id).await.exit_code, 137);
    client.remove_container(RemoveContainerRequest { container_id: id }).await.unwrap();
}
