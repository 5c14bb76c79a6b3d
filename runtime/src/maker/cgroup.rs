//! The cgroups of a container as the maker handles them: where its process is, who else is in them, their end, and
//! what of a spec's limits the mounted controllers can hold. Limits themselves are written by libcgroups.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;

/// How long a cgroup may take to empty after its processes were killed.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);

/// The cgroup mounts of this mount namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mounts {
    /// Mount point by v1 controller name; named hierarchies as `name=x`.
    pub v1: BTreeMap<String, PathBuf>,
    /// Mount point of the unified hierarchy.
    pub v2: Option<PathBuf>,
}

impl Mounts {
    pub(super) fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// Reads a mountinfo text. Pure.
    pub(super) fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let (Some(root), Some(point), Some(options)) = (left.get(3), left.get(4), right.get(2)) else {
                continue;
            };
            // A bind of a part of a hierarchy is not the hierarchy, unless a cgroup namespace shows it as "/..".
            if *root != "/" && !root.starts_with("/..") {
                continue;
            }
            match right[0] {
                "cgroup2" => {
                    mounts.v2.get_or_insert_with(|| PathBuf::from(point));
                }
                "cgroup" => {
                    for option in options
                        .split(',')
                        .filter(|o| crate::cgroup::CONTROLLERS.contains(o) || o.starts_with("name="))
                    {
                        mounts.v1.entry(option.to_owned()).or_insert_with(|| PathBuf::from(point));
                    }
                }
                _ => {}
            }
        }
        mounts
    }

    /// Only cgroup v2 counts as unified: a host whose controllers sit on v1 is driven through v1.
    pub(super) fn unified(&self) -> bool {
        self.v2.is_some() && !self.v1.keys().any(|name| !name.starts_with("name="))
    }

    /// The controllers that limits can be written to.
    fn controllers(&self) -> BTreeSet<String> {
        if !self.unified() {
            return self.v1.keys().cloned().collect();
        }
        let listed =
            self.v2.as_ref().and_then(|root| fs::read_to_string(root.join("cgroup.controllers")).ok());
        listed.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    }

    /// The directories of the cgroups that a process is in, without hierarchies where it sits at the root.
    pub(super) fn of_process(&self, pid: i32) -> io::Result<Vec<PathBuf>> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mut dirs = BTreeSet::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(number), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let relative = path.trim_start_matches('/');
            if relative.is_empty() || relative.starts_with("..") {
                continue;
            }
            let mount = match number {
                "0" => self.v2.as_ref(),
                _ => names.split(',').find_map(|name| self.v1.get(name)),
            };
            dirs.extend(mount.map(|mount| mount.join(relative)));
        }
        Ok(dirs.into_iter().collect())
    }

    /// Takes out of the resources what no mounted controller can hold, and names it. A Raspberry Pi without a
    /// memory controller must run its pods, unlimited.
    pub(super) fn keep_possible(&self, resources: &mut LinuxResources) -> Vec<&'static str> {
        let have = self.controllers();
        let has = |name: &str| have.contains(name);
        let mut missing = Vec::new();
        if resources.memory().is_some() && !has("memory") {
            resources.set_memory(None);
            missing.push("memory");
        }
        if resources.pids().is_some() && !has("pids") {
            resources.set_pids(None);
            missing.push("pids");
        }
        if resources.hugepage_limits().as_ref().is_some_and(|list| !list.is_empty()) && !has("hugetlb") {
            resources.set_hugepage_limits(None);
            missing.push("hugetlb");
        }
        if let Some(cpu) = resources.cpu_mut() {
            if !has("cpu") && (cpu.shares().is_some() || cpu.quota().is_some() || cpu.period().is_some()) {
                cpu.set_shares(None);
                cpu.set_quota(None);
                cpu.set_period(None);
                missing.push("cpu");
            }
            if !has("cpuset") && (cpu.cpus().is_some() || cpu.mems().is_some()) {
                cpu.set_cpus(None);
                cpu.set_mems(None);
                missing.push("cpuset");
            }
        }
        if !self.unified() && !has("blkio") && resources.block_io().is_some() {
            resources.set_block_io(None);
            missing.push("blkio");
        }
        if !self.unified() {
            resources.set_unified(None);
        }
        if let Some(files) = resources.unified_mut() {
            files.retain(|file, _| match file.split_once('.') {
                Some((controller, _)) => controller == "cgroup" || has(controller),
                None => true,
            });
        }
        missing
    }
}

/// Puts a process into these cgroups.
pub(super) fn join(cgroups: &[PathBuf], pid: i32) -> io::Result<()> {
    for cgroup in cgroups {
        fs::write(cgroup.join("cgroup.procs"), pid.to_string()).map_err(|error| {
            io::Error::new(error.kind(), format!("join cgroup {}: {error}", cgroup.display()))
        })?;
    }
    Ok(())
}

/// Every process in these cgroups and below.
pub(super) fn processes(cgroups: &[PathBuf]) -> BTreeSet<i32> {
    let mut pids = BTreeSet::new();
    for cgroup in cgroups {
        for dir in subtree(cgroup) {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        }
    }
    pids
}

/// A cgroup and all below it, deepest first.
fn subtree(cgroup: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut open = vec![cgroup.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
        all.push(dir);
    }
    all.reverse();
    all
}

/// Kills everything in these cgroups and removes them. A process that forks faster than it is killed is beaten by
/// `cgroup.kill` where the kernel has it (5.14), by the freezer on v1.
pub(super) fn kill_and_remove(cgroups: &[PathBuf]) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    let mut pause = Duration::from_micros(500);
    loop {
        let left = processes(cgroups);
        if !left.is_empty() {
            kill_all(cgroups, &left);
        }
        match remove(cgroups) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            // Killed processes leave their cgroup when they have exited, a moment later.
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn kill_all(cgroups: &[PathBuf], pids: &BTreeSet<i32>) {
    if cgroups.iter().any(|cgroup| fs::write(cgroup.join("cgroup.kill"), "1").is_ok()) {
        return;
    }
    let freeze = |state: &str| {
        for cgroup in cgroups {
            let file = cgroup.join("freezer.state");
            if file.exists() {
                let _ = fs::write(file, state);
            }
        }
    };
    freeze("FROZEN");
    for pid in pids.iter().chain(&processes(cgroups)) {
        let _ = super::sys::kill(*pid, libc::SIGKILL);
    }
    freeze("THAWED");
}

fn remove(cgroups: &[PathBuf]) -> io::Result<()> {
    for cgroup in cgroups {
        for dir in subtree(cgroup) {
            match fs::remove_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("remove cgroup {}: {error}", dir.display()),
                    ));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids};

    use super::*;

    const HYBRID: &str = "\
30 1 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
31 30 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
32 30 0:27 / /sys/fs/cgroup/net_cls,net_prio rw - cgroup cgroup rw,net_cls,net_prio\n\
33 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
34 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
35 30 0:26 /pod /somewhere rw - cgroup cgroup rw,cpu\n";

    #[test]
    fn mounts_are_told_apart() {
        let mounts = Mounts::parse(HYBRID);
        assert!(!mounts.unified());
        assert_eq!(mounts.v1["cpu"], Path::new("/sys/fs/cgroup/cpu"));
        assert_eq!(mounts.v1["net_prio"], Path::new("/sys/fs/cgroup/net_cls,net_prio"));
        assert_eq!(mounts.v1["name=systemd"], Path::new("/sys/fs/cgroup/systemd"));
        assert_eq!(mounts.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert!(Mounts::parse("1 0 0:2 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n").unified());
    }

    #[test]
    fn limits_without_a_controller_fall_away_and_are_named() {
        let mut resources = LinuxResources::default();
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(1 << 20));
        let mut cpu = LinuxCpu::default();
        cpu.set_shares(Some(10));
        cpu.set_cpus(Some("0".into()));
        resources.set_memory(Some(memory));
        resources.set_cpu(Some(cpu));
        resources.set_pids(Some(LinuxPids::default()));
        let missing = Mounts::parse(HYBRID).keep_possible(&mut resources);
        assert_eq!(missing, ["memory", "pids", "cpuset"]);
        assert!(resources.memory().is_none() && resources.pids().is_none());
        assert_eq!(resources.cpu().as_ref().unwrap().shares(), Some(10));
        assert_eq!(resources.cpu().as_ref().unwrap().cpus(), &None);
    }
}
