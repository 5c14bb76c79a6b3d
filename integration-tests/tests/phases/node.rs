//! `coracle cri` with gates in the place of its maker and its network, and what is asked of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_cri::client::Client;
use coracle_cri::v1::*;
use coracle_cri::{ImageService as _, RuntimeService as _, Status};
use coracle_integration_tests::victims::{children, command_line};
use coracle_integration_tests::{Executables, sys, target_dir};
use coracle_runtime::testing::{LayerCompression, Registry, RegistryOptions, Tarball, TestImage};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::LIMIT;
use super::gates::Gates;

/// A node, its registry, and the client of both.
pub(super) struct Node {
    pub(super) gates: Gates,
    pub(super) registry: Registry,
    pub(super) client: Client,
    pub(super) runtime: Runtime,
    agent: Child,
    folder: PathBuf,
    state: PathBuf,
    cgroup: String,
}

impl Node {
    pub(super) fn start() -> Self {
        let own = std::process::id();
        let (folder, state) =
            (target_dir().join("phases"), PathBuf::from(format!("/run/coracle-phases-{own}")));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("net.d")).unwrap();
        let list = r#"{"cniVersion": "0.4.0", "name": "gated", "plugins": [{"type": "gate"}]}"#;
        fs::write(folder.join("net.d/10-gated.conflist"), list).unwrap();
        let gates = Gates::make(&folder, &Executables::of_this_build().coracle);
        let registry = Registry::start(RegistryOptions::default()).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let client =
            runtime.block_on(async { Client::new(&format!("unix://{}/cri.sock", state.display())).unwrap() });
        let agent = Command::new("true").spawn().unwrap();
        let cgroup = format!("/coracle-phases-{own}");
        let mut node = Self { gates, registry, client, runtime, agent, folder, state, cgroup };
        node.agent.wait().unwrap();
        node.push("app", 1);
        node.begin();
        node.pull("app").unwrap();
        node
    }

    /// Puts an image into the registry, whose layer no other has.
    pub(super) fn push(&self, name: &str, content: u8) {
        let example = fs::read(Executables::of_this_build().example).unwrap();
        let tar = Tarball::new().executable("example", &example).file("content", &[content; 4096]);
        let config = serde_json::json!({"Entrypoint": ["/example"], "Cmd": ["sleep"], "Env": ["PATH=/"]});
        let image = TestImage::new().layer(&tar.finish(), LayerCompression::Gzip).config(config);
        self.registry.push(name, "1", &image);
    }

    pub(super) fn image(&self, name: &str) -> ImageSpec {
        ImageSpec { image: format!("{}:1", self.registry.name(name)), ..Default::default() }
    }

    pub(super) fn pull(&self, name: &str) -> Result<(), Status> {
        let request = PullImageRequest { image: Some(self.image(name)), ..Default::default() };
        self.runtime.block_on(self.client.pull_image(request)).map(drop)
    }

    /// Starts the runtime, anew after [`Node::kill_agent`], and waits until it answers.
    pub(super) fn begin(&mut self) {
        let executables = Executables::of_this_build();
        let log = fs::File::options().create(true).append(true).open(self.folder.join("cri.log")).unwrap();
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        self.agent = Command::new(&executables.coracle)
            .args(["cri".to_owned(), format!("--listen={}/cri.sock", self.state.display())])
            .arg(flag("data-dir", &self.folder.join("data")))
            .arg(flag("state-dir", &self.state))
            .arg(flag("shim", &executables.shim))
            .arg(flag("oci-runtime", &self.folder.join("maker")))
            .arg(flag("cni-conf-dir", &self.folder.join("net.d")))
            .arg(flag("cni-bin-dir", &self.folder.join("bin")))
            .arg(format!("--cgroup-root={}", self.cgroup))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.wait("the runtime answers", |node| {
            node.runtime.block_on(node.client.version(VersionRequest::default())).is_ok()
        });
    }

    pub(super) fn kill_agent(&mut self) {
        self.agent.kill().unwrap();
        self.agent.wait().unwrap();
    }

    /// Waits for something, with what the runtime said last if it never comes.
    pub(super) fn wait(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            if begun.elapsed() > LIMIT {
                let log = fs::read_to_string(self.folder.join("cri.log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(15).collect();
                panic!("not within {LIMIT:?}: {what}\nleft: {:#?}\n{last:#?}", self.leftovers());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A pod's configuration; its network is the gated one.
    pub(super) fn pod(&self, name: &str) -> PodSandboxConfig {
        let logs = self.folder.join("logs").join(name);
        fs::create_dir_all(&logs).unwrap();
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: name.into(), uid: name.into(), ..Default::default() }),
            log_directory: logs.to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pods/{name}", self.cgroup),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(super) fn run_sandbox(&self, name: &str) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(self.pod(name)), ..Default::default() };
        Ok(self.runtime.block_on(self.client.run_pod_sandbox(request))?.pod_sandbox_id)
    }

    pub(super) fn create(&self, sandbox: &str, name: &str) -> String {
        let pod = self.pod(name);
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(self.image("app")),
            log_path: "main.log".into(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: pod.linux.clone().unwrap().security_context.unwrap().namespace_options,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(pod),
        };
        self.runtime.block_on(self.client.create_container(request)).unwrap().container_id
    }

    /// Makes a call that a gate will hold.
    pub(super) fn begin_call<T: Send + 'static, F: Future<Output = Result<T, Status>> + Send + 'static>(
        &self,
        call: impl FnOnce(Client) -> F,
    ) -> JoinHandle<Result<(), Status>> {
        let call = call(self.client.clone());
        self.runtime.spawn(async move { call.await.map(drop) })
    }

    /// How such a call ended.
    pub(super) fn end_call(&self, call: JoinHandle<Result<(), Status>>) -> Result<(), Status> {
        self.runtime
            .block_on(async { tokio::time::timeout(LIMIT, call).await })
            .expect("no call hangs")
            .unwrap()
    }

    pub(super) fn start_container(&self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: id.into() };
        self.runtime.block_on(self.client.start_container(request)).map(drop)
    }

    pub(super) fn stop_container(&self, id: &str) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: id.into(), timeout: 0 };
        self.runtime.block_on(self.client.stop_container(request)).map(drop)
    }

    pub(super) fn exec(&self, id: &str) -> Result<i32, Status> {
        let cmd = ["/example", "exit", "3"].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout: 30 };
        Ok(self.runtime.block_on(self.client.exec_sync(request))?.exit_code)
    }

    pub(super) fn status(&self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.runtime.block_on(self.client.container_status(request)).unwrap().status.unwrap()
    }

    /// The end of a container, once it is told.
    pub(super) fn end_of(&self, id: &str) -> (i32, String) {
        self.wait("the container has ended", |node| {
            node.status(id).state() == ContainerState::ContainerExited
        });
        let status = self.status(id);
        (status.exit_code, status.reason)
    }

    /// The shim of the only sandbox, once it stands by itself.
    pub(super) fn shim(&self) -> u32 {
        let shims = |node: &Self| {
            let mut found = node.processes();
            found.retain(|(_, line)| line.contains(" serve ") && line.contains("--socket"));
            found
        };
        self.wait("there is one shim", |node| shims(node).len() == 1);
        shims(self)[0].0
    }

    /// A process below the agent that fetches an image.
    pub(super) fn worker(&self) -> Option<u32> {
        children(self.agent.id()).into_iter().find(|pid| command_line(*pid).contains(" image-worker"))
    }

    /// Processes of this node besides the agent.
    fn processes(&self) -> Vec<(u32, String)> {
        let (state, folder) = (self.state.to_string_lossy(), self.folder.to_string_lossy());
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| *pid != self.agent.id() && *pid != std::process::id())
            .map(|pid| (pid, command_line(pid)))
            .filter(|(_, line)| line.contains(&*state) || line.contains(&*folder))
            .collect()
    }

    /// The processes of containers.
    pub(super) fn contained(&self) -> usize {
        let tasks = Path::new("/sys/fs/cgroup/pids").join(self.cgroup.trim_start_matches('/')).join("pods");
        let tasks =
            if tasks.exists() { tasks } else { self.cgroup_tree(Path::new("/sys/fs/cgroup")).join("pods") };
        members(&tasks)
    }

    fn cgroup_tree(&self, root: &Path) -> PathBuf {
        root.join(self.cgroup.trim_start_matches('/'))
    }

    /// What is left although no pod is there.
    pub(super) fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.processes().into_iter().map(|(pid, line)| format!("{pid} {line}")).collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        let stays = |path: &Path| path == self.state || path.parent() == Some(&self.state);
        left.extend(
            points
                .filter(|path| path.starts_with(&self.state) && !stays(path))
                .map(|path| format!("mount {}", path.display())),
        );
        let folders = ["sandboxes", "containers", "shims", "cni/results"].map(|name| self.state.join(name));
        let folders = folders.into_iter().chain([self.folder.join("data/containers")]);
        left.extend(
            folders.flat_map(|folder| entries(&folder)).map(|path| format!("file {}", path.display())),
        );
        left.extend(self.gates.in_network().iter().map(|path| format!("network {}", path.display())));
        for tree in entries(Path::new("/sys/fs/cgroup")) {
            let pods = entries(&self.cgroup_tree(&tree).join("pods"));
            left.extend(
                pods.iter().filter(|path| path.is_dir()).map(|path| format!("cgroup {}", path.display())),
            );
        }
        left
    }

    /// Removes every pod, as a kubelet that wants none does, and waits until nothing is left.
    pub(super) fn clear(&self, when: &str) {
        self.wait(&format!("every pod is removed after {when}"), |node| {
            let list = node.runtime.block_on(node.client.list_pod_sandbox(ListPodSandboxRequest::default()));
            let items = list.unwrap().items;
            for pod_sandbox_id in items.iter().map(|item| item.id.clone()) {
                let request = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
                let _ = node.runtime.block_on(node.client.stop_pod_sandbox(request));
                let request = RemovePodSandboxRequest { pod_sandbox_id };
                let _ = node.runtime.block_on(node.client.remove_pod_sandbox(request));
            }
            items.is_empty()
        });
        self.wait(&format!("nothing is left after {when}"), |node| node.leftovers().is_empty());
    }

    /// Takes the node away.
    pub(super) fn finish(mut self) {
        self.kill_agent();
        remove_all(&self.state, &self.cgroup);
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        for (pid, _) in self.processes() {
            let _ = sys::kill(pid);
        }
        remove_all(&self.state, &self.cgroup);
    }
}

fn remove_all(state: &Path, cgroup: &str) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    points.retain(|point| Path::new(point).starts_with(state));
    for point in points.iter().rev() {
        let _ = Command::new("umount").args(["-l", point]).status();
    }
    let _ = fs::remove_dir_all(state);
    for tree in entries(Path::new("/sys/fs/cgroup")) {
        remove_cgroup(&tree.join(cgroup.trim_start_matches('/')));
    }
}

fn remove_cgroup(path: &Path) {
    for child in entries(path).iter().filter(|path| path.is_dir()) {
        remove_cgroup(child);
    }
    let _ = fs::remove_dir(path);
}

fn members(path: &Path) -> usize {
    let own = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines().count();
    own + entries(path).iter().filter(|path| path.is_dir()).map(|path| members(path)).sum::<usize>()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
