//! A machine of the test cluster: namespaces of its own, a cgroup, folders, and a first process that holds them.
//!
//! The first process is the init of a PID namespace, so ending it ends everything the machine runs, containers
//! included, and its mounts, links and rules go with the last process. What stays are cgroups and the folder; `remove`
//! takes these. A machine of a test ends with the process that started it, even if that is killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

const MACHINE: &str = include_str!("machine.sh");
const SERVICE: &str = include_str!("service.sh");

/// How long a machine lives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lifetime {
    /// Until the process that started it ends.
    OfThisProcess,
    /// Until it is removed.
    UntilRemoved,
}

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    /// Its host name.
    pub name: String,
    /// Where its files lie: `lib` is its /var/lib, `log` its /var/log, `NAME.log` what a service says.
    pub folder: PathBuf,
    cgroup: String,
    init: u32,
    /// When the init began, in clock ticks: a process id alone may have found another bearer.
    begun: u64,
    /// What holds the machine's standard input.
    holder: Option<Child>,
}

impl Machine {
    /// Starts a machine in `folder`; `id` names its cgroup and is unique on this machine.
    pub(crate) fn start(id: &str, name: &str, folder: &Path, lifetime: Lifetime) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for (file, text) in [("machine.sh", MACHINE), ("service.sh", SERVICE)] {
            std::fs::write(folder.join(file), text).with_context(|| format!("cannot write {file}"))?;
        }
        let _ = std::fs::remove_file(folder.join("ready"));
        let log = File::create(folder.join("machine.log")).context("cannot create the machine's log")?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--net", "--uts", "--ipc", "bash"])
            .arg(folder.join("machine.sh"))
            .arg(folder)
            .args([name, if lifetime == Lifetime::OfThisProcess { "stdin" } else { "removed" }, id])
            .stdin(if lifetime == Lifetime::OfThisProcess { Stdio::piped() } else { Stdio::null() })
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log);
        detach(&mut command);
        let mut holder = command.spawn().context("cannot start unshare; install util-linux")?;
        let ready = folder.join("ready");
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready.exists() {
            let ended = holder.try_wait().context("cannot look at the machine")?;
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(folder.join("machine.log")).unwrap_or_default();
                bail!("the machine {name} does not start ({ended:?}): {log}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let init = children(holder.id()).first().copied().context("the machine has no first process")?;
        let begun = start_time(init).context("the machine's first process is gone")?;
        let holder = Some(holder);
        Ok(Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            cgroup: id.to_owned(),
            init,
            begun,
            holder,
        })
    }

    /// What another process needs to find this machine.
    pub(super) fn record(&self) -> Value {
        json!({
            "name": self.name, "folder": self.folder, "cgroup": self.cgroup, "init": self.init, "begun": self.begun,
        })
    }

    /// The machine of a record, which may have ended.
    pub(super) fn of_record(record: &Value) -> Result<Self> {
        let text =
            |field: &str| record[field].as_str().map(str::to_owned).with_context(|| format!("no {field}"));
        Ok(Self {
            name: text("name")?,
            folder: PathBuf::from(text("folder")?),
            cgroup: text("cgroup")?,
            init: u32::try_from(record["init"].as_u64().context("no init")?)
                .context("init is no process id")?,
            begun: record["begun"].as_u64().context("no begun")?,
            holder: None,
        })
    }

    /// Whether its first process is there.
    pub fn is_alive(&self) -> bool {
        start_time(self.init) == Some(self.begun)
    }

    /// Where the rest of the machine finds a path that this one has, such as a socket in its /run.
    pub fn path_inside(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.init));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The process id of its init, for links that are to be put into its network.
    pub(super) fn init(&self) -> u32 {
        self.init
    }

    /// A command that runs in the machine.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.to_string()])
            .args(["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--"])
            .arg(program.as_ref())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command in the machine and returns what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("a command has a program")?;
        checked(self.command(program).args(arguments))
    }

    /// Starts a service, whose words go to `NAME.log`; it ends with the machine.
    pub fn start_service(&self, name: &str, program: &Path, arguments: &[String]) -> Result<()> {
        let path = self.log_of(name);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = self.command("bash");
        command
            .arg(self.folder.join("service.sh"))
            .arg(name)
            .arg(program)
            .args(arguments)
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log);
        let status = command.status().context("cannot start nsenter; install util-linux")?;
        ensure!(status.success(), "cannot start {name}: {}", self.last_words(name, 5));
        Ok(())
    }

    /// Ends the main process of a service without a chance to do anything, and waits until it is gone.
    pub fn kill_service(&self, name: &str) -> Result<()> {
        let pid = self.pid_of(name).with_context(|| format!("{name} does not run on {}", self.name))?;
        let begun = start_time(pid);
        if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
            rustix::process::kill_process(pid, Signal::KILL)
                .with_context(|| format!("cannot kill {name}"))?;
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while begun.is_some() && start_time(pid) == begun {
            ensure!(Instant::now() < deadline, "{name} does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Starts a service once more that was started before, with the same arguments.
    pub fn start_service_again(&self, name: &str) -> Result<()> {
        let path = format!("/proc/{}/root/run/services/{name}.command", self.init);
        let text = std::fs::read_to_string(&path).with_context(|| format!("{name} was never started"))?;
        let mut words = text.split_terminator('\0').map(str::to_owned);
        let program = words.next().with_context(|| format!("{name} has no program"))?;
        self.start_service(name, Path::new(&program), &words.collect::<Vec<_>>())
    }

    /// Where the words of a service go.
    pub fn log_of(&self, service: &str) -> PathBuf {
        self.folder.join(format!("{service}.log"))
    }

    /// The last lines that a service has said.
    pub fn last_words(&self, service: &str, lines: usize) -> String {
        let text = std::fs::read_to_string(self.log_of(service)).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(lines).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// The main process of a service, as the host counts, if it runs.
    pub fn pid_of(&self, service: &str) -> Option<u32> {
        let record = format!("/proc/{}/root/run/services/{service}", self.init);
        let inner = std::fs::read_to_string(record).ok()?.trim().to_owned();
        self.processes_below(service).into_iter().find(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| {
                line.strip_prefix("NSpid:").is_some_and(|ids| ids.split_whitespace().nth(1) == Some(&inner))
            })
        })
    }

    /// The processes in the cgroup of a service, the cgroups below it apart, as the host counts.
    pub fn processes_below(&self, service: &str) -> Vec<u32> {
        let lists =
            cgroup_roots().into_iter().map(|root| root.join(&self.cgroup).join(service).join("cgroup.procs"));
        let mut pids: Vec<u32> = lists
            .filter_map(|list| std::fs::read_to_string(list).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<u32>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Every process in the machine with the cgroup it is in, as the machine counts cgroups: `/kubepods/…`.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let prefix = format!("/{}", self.cgroup);
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let found = pids.filter_map(|pid| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            // The longest path is the one in a hierarchy that the node uses.
            let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2)?.strip_prefix(&prefix));
            let path = paths.filter(|path| path.starts_with('/')).max_by_key(|path| path.len())?;
            Some((pid, path.to_owned()))
        });
        found.collect()
    }

    /// Ends the machine and takes away what it leaves.
    pub fn remove(&mut self) -> Result<()> {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.init.cast_signed())
        {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        if let Some(mut holder) = self.holder.take() {
            let _ = holder.wait();
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.is_alive() || !self.processes().is_empty() {
            if Instant::now() > deadline {
                bail!("the machine {} does not end: {:?} are left", self.name, self.processes());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for root in cgroup_roots() {
            remove_cgroup(&root.join(&self.cgroup), deadline);
        }
        if self.folder.exists() {
            std::fs::remove_dir_all(&self.folder)
                .with_context(|| format!("cannot remove {}", self.folder.display()))?;
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // One that was not removed in order: its test failed before the cluster was whole.
        if let Some(holder) = &mut self.holder
            && holder.stdin.is_some()
        {
            let _ = self.remove();
        }
    }
}

/// Out of the terminal's group of processes: Ctrl-C ends the command, which then ends the machine in order.
fn detach(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
}

/// Runs a command to its end; its error tells what it said.
pub(crate) fn checked(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let Output { status, stdout, stderr } =
        command.output().with_context(|| format!("cannot start {shown}"))?;
    ensure!(status.success(), "`{shown}` ended with {status}: {}", String::from_utf8_lossy(&stderr).trim());
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// The mount points of this machine's cgroup hierarchies.
pub(super) fn cgroup_roots() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.get(2).is_some_and(|kind| kind.starts_with("cgroup")))
        .filter_map(|fields| fields.get(1).map(PathBuf::from))
        .collect()
}

/// Removes a cgroup and those below it; the kernel may hold one for a moment after its last process.
fn remove_cgroup(path: &Path, deadline: Instant) {
    if let Ok(entries) = std::fs::read_dir(path) {
        for child in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
            remove_cgroup(&child, deadline);
        }
    }
    while path.exists() && std::fs::remove_dir(path).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// When a process began, in clock ticks since boot; none if there is none or it has ended.
fn start_time(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
