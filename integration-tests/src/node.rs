//! A node that `demo` and the benches start: its own folders, state, bridge and cgroup, all gone afterwards.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::Executables;

/// A running agent and the folders it was given.
pub struct Node {
    coracle: PathBuf,
    agent: Child,
    /// Where manifests go.
    pub manifests: PathBuf,
    /// Images, volumes and logs: what lies on flash on a device.
    pub disk: PathBuf,
    state: PathBuf,
    bridge: String,
}

impl Node {
    /// Starts an agent on a folder of manifests, with the image archive loaded.
    pub fn start(built: &Executables, name: &str, manifests: &Path, archive: &Path) -> Result<Self> {
        let disk = crate::target_dir().join(name);
        let state = PathBuf::from(format!("/run/coracle-{name}-{}", std::process::id()));
        let images = disk.join("data/agent/images");
        std::fs::create_dir_all(&images).with_context(|| format!("cannot create {}", images.display()))?;
        std::fs::copy(archive, images.join("example.tar")).context("cannot copy the image archive")?;
        let bridge = format!("cora{}", std::process::id() % 1_000_000);
        let log = std::fs::File::create(disk.join("agent.log")).context("cannot create the agent's log")?;
        let mut command = Command::new(&built.coracle);
        command
            .arg("run")
            .arg("--manifests")
            .arg(manifests)
            .arg("--data-dir")
            .arg(disk.join("data"))
            .arg("--root-dir")
            .arg(disk.join("pods"))
            .arg("--pod-logs-dir")
            .arg(disk.join("logs/pods"))
            .arg("--container-logs-dir")
            .arg(disk.join("logs/containers"))
            .arg("--state-dir")
            .arg(&state)
            .arg("--shim")
            .arg(&built.shim)
            .arg("--cgroup-root")
            .arg(format!("/{}", state.file_name().and_then(|name| name.to_str()).unwrap_or(name)))
            .args(["--cni-conf-dir", "/nonexistent", "--bridge", &bridge, "--pod-cidr", "10.89.0.0/16"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let agent = command.spawn().with_context(|| format!("cannot start {}", built.coracle.display()))?;
        let mut node = Self {
            coracle: built.coracle.clone(),
            agent,
            manifests: manifests.to_owned(),
            disk,
            state,
            bridge,
        };
        node.wait("the agent answers", Duration::from_secs(30), |node| Ok(node.pods().is_ok()))?;
        Ok(node)
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

    /// Waits until `predicate` holds; the error shows the agent's last words.
    pub fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        mut predicate: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            if predicate(self)? {
                return Ok(start.elapsed());
            }
            let ended = self.agent.try_wait().context("cannot look at the agent")?;
            if ended.is_some() || start.elapsed() > limit {
                let pods = self.pods().unwrap_or_default();
                let log = std::fs::read_to_string(self.disk.join("agent.log")).unwrap_or_default();
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

    /// Runs a command of the same executable against this node and returns what it printed.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.coracle);
        command.args(arguments).arg("--state-dir").arg(&self.state).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("cannot start {}", self.coracle.display()))?;
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

    fn remove(&self) {
        let _ = Command::new("ip").args(["link", "delete", &self.bridge]).stderr(Stdio::null()).status();
        let _ = std::fs::remove_dir_all(&self.state);
        for part in ["data", "pods", "logs"] {
            let _ = std::fs::remove_dir_all(self.disk.join(part));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if matches!(self.agent.try_wait(), Ok(None)) {
            let _ = self.ask(&["stop-pods", "--timeout", "30"]);
            self.end_agent();
            self.remove();
        }
    }
}

/// Proportional set size of a process, in KiB.
pub fn pss_kib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    field(&text, "Pss:")
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
