//! A runtime with folders, cgroups and an image of its own, for tests that run real pods.
//!
//! `$CORACLE_SHIM` names the shim, `$CORACLE_TEST_MAKER` an OCI runtime instead of our own, `$CORACLE_TEST_PATIENCE`
//! says how many times slower than usual this machine is, such as one with an emulated processor.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::print_stderr, reason = "what a failed test left is told")]
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coracle_cri::RuntimeService as _;
use coracle_cri::v1::*;
use coracle_runtime::testing::{LayerCompression, Member, Tarball, TestImage};
use coracle_runtime::{Config, Maker, Runtime};

pub const IMAGE: &str = "registry.test/busybox:1";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One node under test.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub config: Config,
    pub runtime: Option<Arc<Runtime>>,
    /// Below it are all cgroups of this node.
    pub cgroup: String,
}

/// The shim to test with: `$CORACLE_SHIM`, or a static one built beside the tests, as `cargo xtask` builds it. It
/// must be static because it is also the only file in the root of a PID namespace's holder.
pub fn shim() -> PathBuf {
    if let Some(path) = std::env::var_os("CORACLE_SHIM") {
        return path.into();
    }
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BUILT
        .get_or_init(|| {
            let version = Command::new("rustc").arg("-vV").output().unwrap().stdout;
            let version = String::from_utf8(version).unwrap();
            let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned();
            // target/debug/deps/service_run-… lies two folders below target.
            let executable = std::env::current_exe().unwrap();
            let target = executable.ancestors().nth(3).unwrap().join("static");
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut build = Command::new(cargo);
            build.args(["build", "--quiet", "--package", "coracle-shim", "--bin", "coracle-shim"]);
            build.args(["--profile", "shim", "--target", &host, "--target-dir"]).arg(&target);
            build.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
            assert!(build.status().unwrap().success(), "building coracle-shim failed; set CORACLE_SHIM");
            target.join(host).join("shim/coracle-shim")
        })
        .clone()
}

/// An OCI layout with a busybox in it.
pub fn write_image(dir: &Path) {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut tar = Tarball::new()
        .dir("bin")
        .dir("etc")
        .member(&Member { flag: b'5', name: "tmp", mode: 0o1777, ..Member::default() })
        .dir("proc")
        .dir("sys")
        .dir("dev")
        .dir("data")
        .executable("bin/busybox", &busybox)
        .file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home:/bin/sh\n")
        .file("etc/group", b"root:x:0:\nalice:x:1000:\nfriends:x:2000:alice\n");
    for name in [
        "sh", "sleep", "cat", "echo", "id", "hostname", "true", "false", "ps", "ping", "ip", "kill", "dd",
        "wc", "ls", "ipcs", "mount", "test", "seq", "yes", "readlink", "touch", "nc", "tail", "head", "grep",
        "tr", "env", "stty",
    ] {
        tar = tar.hard_link(&format!("bin/{name}"), "bin/busybox");
    }
    let image = TestImage::new()
        .layer(&tar.finish(), LayerCompression::Plain)
        .config(serde_json::json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]}));
    image.write_layout(dir, IMAGE).unwrap();
}

/// The configuration of a node in a folder, with its cgroups below one name.
pub fn configuration(dir: &Path, name: &str) -> Config {
    let mut config = Config::new(dir.join("root"), dir.join("state"), shim());
    config.helper = env!("CARGO_BIN_EXE_coracle-runtime-helper").into();
    config.shim_cgroup = format!("/{name}/shims");
    config.cni.conf_dir = dir.join("net.d");
    if let Some(path) = std::env::var_os("CORACLE_TEST_MAKER") {
        config.maker = Maker::Path(path.into());
    }
    config
}

impl Node {
    /// A node that has run nothing yet.
    pub async fn start() -> Node {
        Node::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Node {
        // Shown for failed tests only, and only what RUST_LOG asks for.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::Builder::new().prefix("coracle-service-").tempdir().unwrap();
        let name = format!("coracle-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut config = configuration(dir.path(), &name);
        change(&mut config);
        let mut node = Node { dir, config, runtime: None, cgroup: format!("/{name}") };
        node.restart().await;
        let layout = node.dir.path().join("layout");
        write_image(&layout);
        node.runtime().images().load(&layout, |_| {}).await.unwrap();
        node
    }

    pub fn runtime(&self) -> &Arc<Runtime> {
        self.runtime.as_ref().expect("the runtime is started")
    }

    /// Ends the runtime in memory and starts another over the same folders.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.runtime = Some(Runtime::start(self.config.clone()).await.unwrap());
    }

    pub async fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.close(Duration::from_secs(20)).await;
        }
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// A sandbox on the host's network.
    pub fn sandbox(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: String::new(),
            log_directory: self.logs().join(name).to_string_lossy().into_owned(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pods/{name}", self.cgroup),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(NamespaceMode::Node, NamespaceMode::Container)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn run_sandbox(&self, config: &PodSandboxConfig) -> String {
        fs::create_dir_all(&config.log_directory).unwrap();
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        self.runtime().run_pod_sandbox(request).await.unwrap().pod_sandbox_id
    }

    pub async fn create(
        &self,
        sandbox_id: &str,
        sandbox: &PodSandboxConfig,
        config: ContainerConfig,
    ) -> String {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox_id.into(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        self.runtime().create_container(request).await.unwrap().container_id
    }

    pub async fn start_container(&self, id: &str) {
        self.runtime().start_container(StartContainerRequest { container_id: id.into() }).await.unwrap();
    }

    /// Creates and starts a container with a shell script.
    pub async fn run(
        &self,
        sandbox_id: &str,
        sandbox: &PodSandboxConfig,
        name: &str,
        script: &str,
    ) -> String {
        let id = self.create(sandbox_id, sandbox, script_container(sandbox, name, script)).await;
        self.start_container(&id).await;
        id
    }

    pub async fn status(&self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.runtime().container_status(request).await.unwrap().status.unwrap()
    }

    pub async fn sandbox_status(&self, id: &str) -> PodSandboxStatus {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        self.runtime().pod_sandbox_status(request).await.unwrap().status.unwrap()
    }

    /// Waits for the end of a container.
    pub async fn exit(&self, id: &str) -> ContainerStatus {
        until("the container to end", || async {
            let status = self.status(id).await;
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// Waits until the log of a container has a line that contains `text`.
    pub async fn log_has(&self, id: &str, text: &str) -> String {
        let path = self.status(id).await.log_path;
        until(&format!("{text:?} in {path}"), || async {
            let log = fs::read_to_string(&path).unwrap_or_default();
            log.contains(text).then_some(log)
        })
        .await
    }

    pub async fn exec(&self, id: &str, command: &[&str]) -> ExecSyncResponse {
        let request = ExecSyncRequest {
            container_id: id.into(),
            cmd: command.iter().map(|part| (*part).to_owned()).collect(),
            timeout: 20,
        };
        self.runtime().exec_sync(request).await.unwrap()
    }

    pub async fn stop_container(&self, id: &str, timeout: i64) {
        let request = StopContainerRequest { container_id: id.into(), timeout };
        self.runtime().stop_container(request).await.unwrap();
    }

    pub async fn remove_sandbox(&self, id: &str) {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime().stop_pod_sandbox(request).await.unwrap();
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime().remove_pod_sandbox(request).await.unwrap();
    }

    pub fn state(&self) -> &Path {
        &self.config.state
    }

    /// What this node still has: mounts, files, cgroups, processes.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let state = fs::canonicalize(&self.config.state).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below = format!("{}/", state.display());
        left.extend(
            mounts
                .lines()
                .filter_map(|line| line.split(' ').nth(4))
                .filter(|point| point.starts_with(&below))
                .map(|point| format!("mount {point}")),
        );
        for folder in ["sandboxes", "containers", "shims", "maker", "cni/results"] {
            let mut files = entries(&state.join(folder));
            // The maker keeps compiled seccomp filters for all containers.
            files.retain(|path| !path.ends_with("maker/.seccomp"));
            left.extend(files.iter().map(|path| format!("file {}", path.display())));
        }
        left.extend(
            entries(&self.config.root.join("containers"))
                .iter()
                .map(|path| format!("layer {}", path.display())),
        );
        for tree in cgroup_trees() {
            let pods = tree.join(self.cgroup.trim_start_matches('/')).join("pods");
            left.extend(
                entries(&pods)
                    .iter()
                    .filter(|path| path.is_dir())
                    .map(|path| format!("cgroup {}", path.display())),
            );
        }
        left.extend(self.processes().iter().map(|(pid, line)| format!("process {pid} {line}")));
        left
    }

    /// Processes whose command line names this node's folder.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let needle = self.dir.path().to_string_lossy().into_owned();
        entries(Path::new("/proc"))
            .iter()
            .filter_map(|path| path.file_name()?.to_str()?.parse::<u32>().ok())
            .filter_map(|pid| {
                let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?.replace('\0', " ");
                line.contains(&needle).then_some((pid, line))
            })
            .collect()
    }

    /// The shim of a sandbox.
    pub fn shim_pid(&self, sandbox_id: &str) -> u32 {
        let found = self
            .processes()
            .into_iter()
            .find(|(_, line)| line.contains(sandbox_id) && line.contains("serve"));
        found.expect("the sandbox has a shim").0
    }

    /// Waits until nothing is left, then takes the node itself away.
    pub async fn finish(mut self) {
        until("nothing to be left", || async {
            let left = self.leftovers();
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }.ok()
        })
        .await;
        self.stop().await;
        let state = fs::canonicalize(&self.config.state).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here =
            |line: &str| line.split(' ').nth(4).is_some_and(|point| Path::new(point).starts_with(&state));
        let left: Vec<&str> = mounts.lines().filter(|line| here(line)).collect();
        assert!(left.is_empty(), "a runtime that holds nothing leaves {left:?}");
        for tree in cgroup_trees() {
            remove_cgroup(&tree.join(self.cgroup.trim_start_matches('/')));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A failed test leaves pods: end them without the runtime under test.
        let state = fs::canonicalize(&self.config.state).unwrap_or_default();
        if std::thread::panicking() {
            for line in self.leftovers() {
                eprintln!("left: {line}");
            }
            eprintln!("shim log: {}", fs::read_to_string(state.join("shim.log")).unwrap_or_default());
        }
        for tree in cgroup_trees() {
            let dir = tree.join(self.cgroup.trim_start_matches('/'));
            for _ in 0..50 {
                let pids = members(&dir);
                if pids.is_empty() {
                    break;
                }
                for pid in pids {
                    let _ = Command::new("kill").args(["-9", &pid]).status();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            remove_cgroup(&dir);
        }
        for (pid, _) in self.processes() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut points: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| Path::new(point).starts_with(&state))
            .collect();
        points.reverse();
        for point in points {
            let _ = Command::new("umount").args(["-l", point]).status();
        }
    }
}

fn members(dir: &Path) -> Vec<String> {
    let mut pids: Vec<String> =
        fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().map(str::to_owned).collect();
    for child in entries(dir).iter().filter(|path| path.is_dir()) {
        pids.extend(members(child));
    }
    pids
}

fn remove_cgroup(dir: &Path) {
    for child in entries(dir).iter().filter(|path| path.is_dir()) {
        remove_cgroup(child);
    }
    let _ = fs::remove_dir(dir);
}

pub fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

pub fn namespaces(network: NamespaceMode, pid: NamespaceMode) -> NamespaceOption {
    let ipc = NamespaceMode::Pod.into();
    NamespaceOption { network: network.into(), pid: pid.into(), ipc, ..Default::default() }
}

/// The configuration of a container that runs a shell script with the sandbox's namespaces.
pub fn script_container(sandbox: &PodSandboxConfig, name: &str, script: &str) -> ContainerConfig {
    let context = sandbox.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
        command: vec!["sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}.log"),
        labels: [("container".to_owned(), name.to_owned())].into(),
        linux: Some(LinuxContainerConfig {
            resources: None,
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: context.namespace_options,
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// The roots of all trees of cgroups: one on version 2, one for each controller on version 1.
pub fn cgroup_trees() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() { vec![root] } else { entries(&root) }
}

/// A limit of time, as long as it must be on this machine.
pub fn patient(limit: Duration) -> Duration {
    let times = std::env::var("CORACLE_TEST_PATIENCE").map_or(1, |times| times.parse().unwrap());
    limit * times
}

/// Waits for `check` to give something, at most 30 seconds.
pub async fn until<T, F, Fut>(what: &str, mut check: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let limit = patient(Duration::from_secs(30));
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
