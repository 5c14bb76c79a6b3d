//! A node that `demo` and the benches start: its own folders, state, bridge and cgroup, all gone afterwards.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use rustix::thread::LinkNameSpaceType;
use serde_json::Value;

use crate::Executables;
use crate::containerd::{Containerd, Place, Release};

/// Numbers the nodes of this process.
static NODES: AtomicU32 = AtomicU32::new(0);

/// What a node is started with besides its folders.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A program and its arguments that starts the agent, such as a filter of system calls.
    pub wrapper: Vec<String>,
    /// Further flags of `coracle run`.
    pub flags: Vec<String>,
    /// Whether the node shares the machine's network, to reach a server on its loopback. Else it has a network
    /// namespace of its own, so that bridges and rules go with it.
    pub on_host_network: bool,
    /// containerd in the place of our own runtime.
    pub containerd: Option<Release>,
}

/// A running agent and the folders it was given.
pub struct Node {
    executables: Executables,
    options: Options,
    agent: Child,
    /// Where manifests go.
    pub manifests: PathBuf,
    /// Images, volumes and logs: what lies on flash on a device.
    pub disk: PathBuf,
    /// Records, sockets and mounts of this boot.
    pub state: PathBuf,
    bridge: String,
    containerd: Option<Containerd>,
    /// Second byte of the pods' addresses, so that nodes of tests side by side do not meet.
    subnet: u32,
}

impl Node {
    /// Starts an agent on a folder of manifests, with the image archive loaded.
    pub fn start(executables: &Executables, name: &str, manifests: &Path, archive: &Path) -> Result<Self> {
        Self::start_with(executables, name, manifests, archive, Options::default())
    }

    /// The same with options.
    pub fn start_with(
        executables: &Executables,
        name: &str,
        manifests: &Path,
        archive: &Path,
        options: Options,
    ) -> Result<Self> {
        let own = std::process::id();
        let disk = crate::target_dir().join(name);
        let state = PathBuf::from(format!("/run/coracle-{name}-{own}"));
        let images = disk.join("data/agent/images");
        std::fs::create_dir_all(&images).with_context(|| format!("cannot create {}", images.display()))?;
        std::fs::copy(archive, images.join("example.tar")).context("cannot copy the image archive")?;
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let bridge = format!("cora{}n{number}", own % 1_000_000);
        let subnet = 100 + (own + number) % 100;
        let agent = Command::new("true").spawn().context("cannot start a process")?;
        let (executables, manifests) = (executables.clone(), manifests.to_owned());
        let containerd = None;
        let mut node =
            Self { executables, options, agent, manifests, disk, state, bridge, containerd, subnet };
        node.agent.wait().context("cannot wait for a process")?;
        if !node.options.on_host_network {
            let name = node.name();
            ip(&["netns", "add", &name])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        if let Some(release) = node.options.containerd {
            let netns = (!node.options.on_host_network).then(|| node.netns());
            let subnet = format!("10.{subnet}.0.0/16");
            let (disk, state, bridge) = (&node.disk, &node.state, node.bridge.as_str());
            let containerd = Containerd::start(&Place { release, disk, state, netns, bridge, subnet })?;
            containerd.import(archive)?;
            node.options.flags.push(format!("--container-runtime-endpoint={}", containerd.endpoint()));
            node.containerd = Some(containerd);
        }
        node.start_agent()?;
        Ok(node)
    }

    /// Starts the agent, anew after [`Node::kill_agent`], and waits until it answers.
    pub fn start_agent(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.disk.join("agent.log"));
        let log = log.context("cannot create the agent's log")?;
        let coracle = self.executables.coracle.display().to_string();
        let mut words = Vec::new();
        if !self.options.on_host_network {
            words.extend([
                "nsenter".to_owned(),
                format!("--net={}", self.netns().display()),
                "--".to_owned(),
            ]);
        }
        words.extend(self.options.wrapper.iter().cloned());
        words.extend([coracle, "run".to_owned()]);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg("--manifests")
            .arg(&self.manifests)
            .arg("--data-dir")
            .arg(self.disk.join("data"))
            .arg("--root-dir")
            .arg(self.disk.join("pods"))
            .arg("--pod-logs-dir")
            .arg(self.disk.join("logs/pods"))
            .arg("--container-logs-dir")
            .arg(self.disk.join("logs/containers"))
            .arg("--state-dir")
            .arg(&self.state)
            .arg("--shim")
            .arg(&self.executables.shim)
            .arg("--cgroup-root")
            .arg(self.cgroup())
            .args(["--cni-conf-dir", "/nonexistent", "--bridge", &self.bridge])
            .arg(format!("--pod-cidr=10.{}.0.0/16", self.subnet))
            .args(&self.options.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.agent = command.spawn().with_context(|| format!("cannot start {}", words[0]))?;
        self.wait("the agent answers", Duration::from_secs(90), |node| Ok(node.pods().is_ok()))?;
        Ok(())
    }

    /// Ends the agent without a chance to do anything, and waits until it is gone.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.kill().context("cannot kill the agent")?;
        self.agent.wait().context("cannot wait for the agent")?;
        Ok(())
    }

    /// Ends the agent as a service is ended, and waits until it is gone; an error if it does not go by itself.
    pub fn terminate_agent(&mut self) -> Result<()> {
        rustix::process::kill_process(Pid::from_child(&self.agent), Signal::TERM)
            .context("cannot signal the agent")?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.agent.try_wait().context("cannot look at the agent")?.is_none() {
            if Instant::now() > deadline {
                bail!("the agent does not end\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What the node's cgroup and network namespace are called.
    fn name(&self) -> String {
        self.state
            .file_name()
            .map_or_else(|| "coracle-test".to_owned(), |name| name.to_string_lossy().into_owned())
    }

    /// The cgroup under which the node makes all of its own.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.name())
    }

    fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(self.name())
    }

    /// Does something in the node's network, such as asking a pod's host port.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if self.options.on_host_network {
            return work();
        }
        let namespace = std::fs::File::open(self.netns()).context("the node's network is gone")?;
        // A namespace is entered by a thread of its own, which ends in it.
        let entered = std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let kind = Some(LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
                    .context("cannot enter the network")?;
                work()
            });
            thread.join()
        });
        entered.map_err(|_| anyhow::anyhow!("the work in the node's network panicked"))?
    }

    /// What the agent has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.disk.join("agent.log")).unwrap_or_default()
    }

    /// The processes of this node's pods whose command line contains `words`.
    pub fn processes_with(&self, words: &str) -> Vec<u32> {
        let own = self.own_processes().unwrap_or_default();
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let is_meant = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let is_here = groups.contains(&format!(":{}/", self.cgroup()));
            is_here && line.starts_with("/example ") && line.contains(words) && !own.contains(pid)
        };
        pids.filter(is_meant).collect()
    }

    /// What the node has left although no pod is there: mounts, cgroups, links, records, layers, volumes.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for path in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            let path = Path::new(path);
            let is_own = path.starts_with(&self.state) || path.starts_with(&self.disk);
            if is_own && !self.may_stay(path) {
                left.push(format!("mount {}", path.display()));
            }
        }
        for folder in ["sandboxes", "containers", "pods"].map(|name| self.state.join(name)) {
            left.extend(children(&folder).map(|path| format!("record {}", path.display())));
        }
        for folder in
            ["data/containers", "pods/pods", "logs/pods", "logs/containers"].map(|name| self.disk.join(name))
        {
            left.extend(children(&folder).map(|path| format!("folder {}", path.display())));
        }
        let mut veths = Command::new("ip");
        if !self.options.on_host_network {
            veths.args(["-n", &self.name()]);
        }
        if let Ok(veths) = veths.args(["-o", "link", "show", "master", &self.bridge]).output() {
            left.extend(String::from_utf8_lossy(&veths.stdout).lines().map(|line| format!("link {line}")));
        }
        left.extend(self.pod_cgroups().into_iter().map(|path| format!("cgroup {}", path.display())));
        left
    }

    /// Mounts that a node without pods may hold: its folders made private, and a disk that a test gave it.
    fn may_stay(&self, path: &Path) -> bool {
        path == self.state || path == self.disk || path.parent() == Some(&self.state)
    }

    /// Cgroups of pods under the node's own.
    fn pod_cgroups(&self) -> Vec<PathBuf> {
        let own = self.name();
        let is_pod = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            name != own && (name.starts_with("pod") || name.contains("-pod"))
        };
        self.cgroups().into_iter().filter(is_pod).collect()
    }

    /// Every cgroup that the node made, in each hierarchy, parents first.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let is_cgroup = |line: &&str| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup"));
        let roots = mounts.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(1));
        let mut found = Vec::new();
        for root in roots {
            let mut folders = vec![Path::new(root).join(self.cgroup().trim_start_matches('/'))];
            while let Some(folder) = folders.pop() {
                if folder.is_dir() {
                    found.push(folder.clone());
                }
                folders.extend(children(&folder).filter(|path| path.is_dir()));
            }
        }
        found
    }

    /// The agent's process.
    pub fn agent_pid(&self) -> u32 {
        self.agent.id()
    }

    /// The agent and everything of ours that stays alive per pod.
    pub fn own_processes(&self) -> Result<Vec<u32>> {
        let mut pids = vec![self.agent_pid()];
        let state = self.state.as_os_str().as_encoded_bytes();
        for entry in std::fs::read_dir("/proc").context("cannot read /proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let is_shim =
                line.split(|byte| *byte == 0).next().is_some_and(|exe| exe.ends_with(b"coracle-shim"));
            if is_shim && line.windows(state.len()).any(|window| window == state) {
                pids.push(pid);
            }
        }
        Ok(pids)
    }

    /// The pods as the agent tells them: each with its specification and status.
    pub fn pods(&self) -> Result<Vec<Value>> {
        let mut stream = UnixStream::connect(self.state.join("coracle.sock"))?;
        stream.write_all(b"{\"version\":1,\"request\":\"pods\"}\n")?;
        let mut pods = Vec::new();
        for line in BufReader::new(stream).lines() {
            let mut answer: Value = serde_json::from_str(&line?)?;
            if answer == "done" {
                break;
            }
            pods.push(answer["pod"]["pod"].take());
        }
        Ok(pods)
    }

    /// How many pods are Running with every container ready.
    pub fn running(&self) -> Result<usize> {
        let is_running = |pod: &&Value| {
            pod["status"]["phase"] == "Running"
                && pod["status"]["containerStatuses"]
                    .as_array()
                    .is_some_and(|all| all.iter().all(|container| container["ready"] == true))
        };
        Ok(self.pods()?.iter().filter(is_running).count())
    }

    /// Waits until `predicate` holds; the error shows the agent's last words. `CORACLE_TEST_PATIENCE` says how many
    /// times slower than usual this machine is, such as one with an emulated processor.
    pub fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        mut predicate: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<Duration> {
        let start = Instant::now();
        let patience = std::env::var("CORACLE_TEST_PATIENCE").ok().and_then(|times| times.parse().ok());
        let limit = limit * patience.unwrap_or(1);
        loop {
            if predicate(self)? {
                return Ok(start.elapsed());
            }
            let ended = self.agent.try_wait().context("cannot look at the agent")?;
            if ended.is_some() || start.elapsed() > limit {
                let pods = self.pods().unwrap_or_default();
                let log = self.log();
                let tail: Vec<&str> = log.lines().rev().take(30).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!(
                    "{what}: not within {limit:?} (agent ended: {ended:?})\npods: {}\nagent's log:\n{}",
                    serde_json::to_string(&pods)?,
                    tail.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A command of the same executable against this node.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.executables.coracle);
        let (name, rest) = arguments.split_at(arguments.len().min(1));
        command.args(name).arg("--state-dir").arg(&self.state).args(rest).stdin(Stdio::null());
        command
    }

    /// Runs a command of the same executable against this node and returns what it printed.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(arguments)
            .output()
            .with_context(|| format!("cannot start {}", self.executables.coracle.display()))?;
        if !output.status.success() {
            bail!(
                "coracle {} failed: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Stops the pods and the agent, and removes what the node made.
    pub fn stop(mut self) -> Result<()> {
        let stopped = self.ask(&["stop-pods", "--timeout", "60"]);
        self.end_agent();
        self.containerd = None;
        self.remove();
        stopped.map(drop)
    }

    fn end_agent(&mut self) {
        // The child is not reaped yet, so the pid is still its own.
        let _ = rustix::process::kill_process(Pid::from_child(&self.agent), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.agent.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }

    /// Takes away whatever is left, also of a node that failed: processes, mounts, cgroups, links, folders.
    fn remove(&self) {
        let cgroups = self.cgroups();
        for path in &cgroups {
            let list = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            for pid in list.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines().rev() {
            let path = Path::new(line.split(' ').nth(4).unwrap_or(""));
            if path.starts_with(&self.state) || path.starts_with(&self.disk) {
                let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
            }
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        // Deepest first, and again while killed processes are on their way out.
        while cgroups.iter().rev().filter(|path| std::fs::remove_dir(path).is_err() && path.exists()).count()
            > 0
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.options.on_host_network {
            let _ = Command::new("ip").args(["link", "delete", &self.bridge]).stderr(Stdio::null()).status();
        } else {
            let _ = Command::new("ip").args(["netns", "delete", &self.name()]).stderr(Stdio::null()).status();
        }
        let _ = std::fs::remove_dir_all(&self.state);
        for part in ["data", "pods", "logs", "containerd"] {
            let _ = std::fs::remove_dir_all(self.disk.join(part));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // After a failure; a node that was stopped has nothing left to remove.
        if self.state.exists() {
            self.end_agent();
            self.containerd = None;
            self.remove();
        }
    }
}

/// Runs `ip` of iproute2.
fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(words).output().context("cannot start ip; install iproute2")?;
    if !output.status.success() {
        bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Proportional set size of a process, in KiB.
pub fn pss_kib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    field(&text, "Pss:")
}

/// Proportional set size of a process, and what of it no file stands behind, in KiB.
pub fn memory_kib(pid: u32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    (field(&text, "Pss:"), field(&text, "Pss_Anon:"))
}

/// Bytes that a process has caused to be written to storage.
pub fn written_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    field(&text, "write_bytes:")
}

/// Processor time of all threads of a process, in nanoseconds.
pub fn cpu_ns(pid: u32) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let times = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    times.sum()
}

fn field(text: &str, name: &str) -> u64 {
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or(0)
}

fn children(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok().map(|entry| entry.path()))
}
