//! What the shim does with cgroups: moves itself into its own, finds a container's, lists its processes, reads its
//! out-of-memory kills. Works on version 1, version 2 and a mix; called from the loop and at start, and blocks only on
//! the kernel's own files.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::sys;

const ROOT: &str = "/sys/fs/cgroup";

/// A place where the shim could not be moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("cannot move into the cgroup {path}")]
    Join {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no cgroup hierarchy is mounted below {ROOT}")]
    NoHierarchy,
}

/// Moves this process into the cgroup `path` of every hierarchy, and makes it where it is missing.
///
/// Hierarchies that refuse are told by name as long as one takes it.
pub(crate) fn join(path: &str) -> Result<(), JoinError> {
    let mut failure = None;
    let mut joined = 0;
    for line in own_cgroups().lines() {
        let Some(hierarchy) = Line::parse(line).and_then(|line| line.mount()) else { continue };
        let target = hierarchy.join(path.trim_start_matches('/'));
        match enter(&hierarchy, &target) {
            Ok(()) => joined += 1,
            Err(source) => {
                let error = JoinError::Join { path: target, source };
                crate::tell(format_args!("{}", crate::Chain(&error)));
                failure = Some(error);
            }
        }
    }
    if joined > 0 { Ok(()) } else { Err(failure.unwrap_or(JoinError::NoHierarchy)) }
}

fn enter(hierarchy: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    if hierarchy.join("cpuset.cpus").exists() && !hierarchy.join("cgroup.controllers").exists() {
        inherit_cpuset(hierarchy, target)?;
    }
    File::options().write(true).open(target.join("cgroup.procs"))?.write_all(b"0")
}

/// A new cpuset of version 1 is empty and takes no process until it has its parent's processors and memory nodes.
fn inherit_cpuset(hierarchy: &Path, target: &Path) -> io::Result<()> {
    let mut at = hierarchy.to_path_buf();
    for part in target.strip_prefix(hierarchy).unwrap_or(target) {
        let parent = at.clone();
        at.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read_to_string(at.join(file))?.trim().is_empty() {
                fs::write(at.join(file), fs::read(parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

fn own_cgroups() -> String {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// One line of `/proc/PID/cgroup`: `hierarchy:controllers:path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    controllers: &'a str,
    pub(crate) path: &'a str,
}

impl<'a> Line<'a> {
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        let mut parts = line.splitn(3, ':').skip(1);
        Some(Self { controllers: parts.next()?, path: parts.next()? })
    }

    /// Where this hierarchy is mounted.
    pub(crate) fn mount(&self) -> Option<PathBuf> {
        let root = Path::new(ROOT);
        let candidates = match self.controllers {
            "" => [root.to_path_buf(), root.join("unified")],
            named => {
                let name = named.strip_prefix("name=").unwrap_or(named);
                [root.join(name), root.join(name.split(',').next().unwrap_or(name))]
            }
        };
        let file = if self.controllers.is_empty() { "cgroup.controllers" } else { "cgroup.procs" };
        candidates.into_iter().find(|candidate| candidate.join(file).exists())
    }

    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|name| name == controller)
    }
}

/// The cgroup of a container.
#[derive(Debug)]
pub(crate) struct Cgroup {
    /// A folder whose `cgroup.procs` lists the container's processes and nobody else's.
    processes: Option<PathBuf>,
    memory: Option<Memory>,
}

#[derive(Debug)]
struct Memory {
    /// The file with a line `oom_kill N`.
    file: PathBuf,
    kills_before: u64,
    /// Linux before 4.13 has no such line on version 1, only a notification.
    notified: Option<File>,
}

impl Cgroup {
    /// The cgroup of a container by its first process, which waits to be started.
    pub(crate) fn of(pid: i32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let own = own_cgroups();
        Self { processes: processes_folder(&text, &own), memory: Memory::find(&text) }
    }

    /// Whether the kernel has killed in it for want of memory.
    pub(crate) fn oom_killed(&self) -> bool {
        self.memory.as_ref().is_some_and(Memory::killed)
    }

    /// All its processes.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        if let Some(folder) = &self.processes {
            collect_pids(folder, &mut pids);
        }
        pids
    }

    /// Sends a signal to all its processes; returns how many there were.
    pub(crate) fn signal_all(&self, signal: i32) -> usize {
        let pids = self.pids();
        for pid in &pids {
            // One that has ended meanwhile is what was wanted.
            drop(sys::kill(*pid, signal));
        }
        pids.len()
    }
}

/// A cgroup that was not there before its container: what is in it came with the container.
#[derive(Debug)]
pub(crate) struct Fresh(Vec<PathBuf>);

impl Fresh {
    /// The cgroup at `path` of every hierarchy; `None` when it is there already or is systemd's to name and remove.
    pub(crate) fn unless_there(path: &str) -> Option<Self> {
        let below = path.strip_prefix('/').filter(|below| !below.is_empty() && !below.contains(".."))?;
        let own = own_cgroups();
        let mounts = own.lines().filter_map(Line::parse).filter_map(|line| line.mount());
        let folders: Vec<PathBuf> = mounts.map(|mount| mount.join(below)).collect();
        (!folders.iter().any(|folder| folder.exists())).then_some(Self(folders))
    }

    /// Ends everything in it.
    pub(crate) fn kill(&self) {
        let mut pids = Vec::new();
        self.0.iter().for_each(|folder| collect_pids(folder, &mut pids));
        for pid in pids {
            drop(sys::kill(pid, libc::SIGKILL));
        }
    }

    /// Removes it; false while something in it is still ending.
    pub(crate) fn remove(&self) -> bool {
        let mut gone = true;
        for folder in &self.0 {
            gone &= fs::remove_dir(folder).is_ok() || !folder.exists();
        }
        gone
    }
}

/// The hierarchy that holds the container apart from the shim; a shared one must never be killed.
fn processes_folder(text: &str, own: &str) -> Option<PathBuf> {
    let lines = || text.lines().filter_map(Line::parse);
    let apart = |line: &Line<'_>| {
        line.path.len() > 1
            && !own
                .lines()
                .filter_map(Line::parse)
                .any(|mine| mine.controllers == line.controllers && mine.path == line.path)
    };
    ["memory", "pids", "devices", "cpu", "freezer", "", "name=systemd"]
        .into_iter()
        .filter_map(|controller| lines().find(|line| line.has(controller)))
        .filter(apart)
        .find_map(|line| Some(line.mount()?.join(line.path.trim_start_matches('/'))))
}

fn collect_pids(folder: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        collect_pids(&entry.path(), pids);
    }
}

impl Memory {
    fn find(text: &str) -> Option<Self> {
        let lines = || text.lines().filter_map(Line::parse);
        let (line, name) = match lines().find(|line| line.has("memory")) {
            Some(line) => (line, "memory.oom_control"),
            None => (lines().find(|line| line.controllers.is_empty())?, "memory.events"),
        };
        let folder = line.mount()?.join(line.path.trim_start_matches('/'));
        let file = folder.join(name);
        let kills = read_kills(&file).ok()?;
        let notified = if kills.is_none() { notify(&folder, &file).ok() } else { None };
        Some(Self { file, kills_before: kills.unwrap_or(0), notified })
    }

    fn killed(&self) -> bool {
        match &self.notified {
            // The counter answers once something was added to it, and would have to wait otherwise.
            Some(counter) => (&*counter).read(&mut [0; 8]).is_ok(),
            None => read_kills(&self.file).ok().flatten().is_some_and(|kills| kills > self.kills_before),
        }
    }
}

fn read_kills(file: &Path) -> io::Result<Option<u64>> {
    let text = fs::read_to_string(file)?;
    Ok(text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok()))
}

fn notify(folder: &Path, file: &Path) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    let counter = sys::event_counter()?;
    let control = File::open(file)?;
    fs::write(
        folder.join("cgroup.event_control"),
        format!("{} {}", counter.as_raw_fd(), control.as_raw_fd()),
    )?;
    Ok(counter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_versions() {
        assert_eq!(Line::parse("0::/a:b"), Some(Line { controllers: "", path: "/a:b" }));
        let line = Line::parse("4:cpu,cpuacct:/x").unwrap();
        assert!(line.has("cpu") && line.has("cpuacct") && !line.has("memory") && !line.has(""));
        assert_eq!(Line::parse("garbage"), None);
    }

    #[test]
    fn a_cgroup_shared_with_the_shim_is_never_a_containers() {
        let own = "3:memory:/pods\n0::/\n";
        assert_eq!(processes_folder("3:memory:/pods\n0::/\n", own), None);
        assert_eq!(processes_folder("3:memory:/\n0::/\n", "3:memory:/x\n0::/x\n"), None);
    }

    #[test]
    fn kills_are_read_from_either_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n").unwrap();
        assert_eq!(read_kills(&file).unwrap(), Some(3));
        fs::write(&file, "oom_kill_disable 0\nunder_oom 0\n").unwrap();
        assert_eq!(read_kills(&file).unwrap(), None);
        fs::write(&file, "low 0\noom 1\noom_kill 1\n").unwrap();
        assert_eq!(read_kills(&file).unwrap(), Some(1));
    }
}
