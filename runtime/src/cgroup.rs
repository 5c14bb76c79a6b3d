//! The cgroups of pods and containers outside the maker: where they are, making parents, killing all that
//! is in one, taking them away. Called by sandbox and container operations; holds no state but what was
//! detected at start.
//!
//! Version 1 has one tree per controller, version 2 one tree for all; a hybrid host counts as version 1.

mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::CgroupDriver;
use tree::{below, delegate_controllers, inherit_cpuset, kill_frozen, make_below, processes, remove_tree};

/// How long processes of a killed cgroup may take to vanish.
const KILL_BOUND: Duration = Duration::from_secs(10);

/// A cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup file system is mounted.
    #[error("no cgroup file system at /sys/fs/cgroup; mount cgroup2 or the version 1 controllers there")]
    Missing,
    /// The mount table could not be read.
    #[error("read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// A cgroup could not be made.
    #[error("create cgroup {path}")]
    Create {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The processes of a cgroup could not be listed or killed.
    #[error("kill the processes of cgroup {path}")]
    Kill {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Processes outlived SIGKILL, most likely in an uninterruptible wait.
    #[error("processes {pids:?} of cgroup {path} outlive SIGKILL")]
    Survivors {
        /// The directory.
        path: PathBuf,
        /// Their ids.
        pids: Vec<u32>,
    },
    /// A cgroup could not be removed.
    #[error("remove cgroup {path}")]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The cgroup trees of this host.
#[derive(Clone, Debug)]
pub(crate) enum Hierarchy {
    /// Mount points by controller, `name=systemd` and [`UNIFIED`] among them.
    V1(BTreeMap<String, PathBuf>),
    /// The one mount point.
    V2(PathBuf),
}

/// The cgroup trees and the driver in use.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    pub(crate) hierarchy: Hierarchy,
    driver: CgroupDriver,
}

impl Cgroups {
    /// Finds the cgroup trees of this host.
    pub(crate) fn detect(driver: CgroupDriver) -> Result<Cgroups, CgroupError> {
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
        let hierarchy = hierarchy(&table).ok_or(CgroupError::Missing)?;
        Ok(Cgroups { hierarchy, driver })
    }

    /// What `linux.cgroupsPath` of a container's OCI spec must say.
    pub(crate) fn spec_path(&self, parent: &str, id: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("{}/{id}", absolute(parent)),
            CgroupDriver::Systemd => format!("{}:coracle:{id}", slice_name(parent)),
        }
    }

    /// The path of a container's cgroup below the mount points, with a leading slash.
    pub(crate) fn container_path(&self, parent: &str, id: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("{}/{id}", absolute(parent)),
            CgroupDriver::Systemd => format!("{}/coracle-{id}.scope", self.parent_path(parent)),
        }
    }

    /// The path of a pod's cgroup below the mount points, with a leading slash.
    pub(crate) fn parent_path(&self, parent: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => absolute(parent),
            CgroupDriver::Systemd => expand_slice(slice_name(parent)),
        }
    }

    /// Makes a pod's cgroup in every tree when it is missing. systemd makes its slices itself.
    ///
    /// Returns whether it was missing, so that only who made it takes it away.
    pub(crate) fn ensure_parent(&self, parent: &str) -> Result<bool, CgroupError> {
        match self.driver {
            CgroupDriver::Systemd => Ok(false),
            CgroupDriver::Cgroupfs => self.ensure(&absolute(parent)),
        }
    }

    /// Makes `path` in every tree; tells whether it was missing in one.
    pub(crate) fn ensure(&self, path: &str) -> Result<bool, CgroupError> {
        let mut made = false;
        match &self.hierarchy {
            Hierarchy::V1(trees) => {
                for (controller, tree) in trees.iter().filter(|(controller, _)| *controller != UNIFIED) {
                    made |= make_below(tree, path, |dir| match controller.as_str() {
                        "cpuset" => inherit_cpuset(dir),
                        _ => Ok(()),
                    })?;
                }
            }
            Hierarchy::V2(tree) => {
                made = make_below(tree, path, |dir| dir.parent().map_or(Ok(()), delegate_controllers))?;
            }
        }
        Ok(made)
    }

    /// Moves a process into `path` of every tree.
    pub(crate) fn enter(&self, path: &str, pid: u32) -> Result<(), CgroupError> {
        self.ensure(path)?;
        for tree in self.trees().filter(|tree| below(tree, path).exists()) {
            let file = below(tree, path).join("cgroup.procs");
            fs::write(&file, pid.to_string()).map_err(|source| CgroupError::Create { path: file, source })?;
        }
        Ok(())
    }

    /// Whether the kernel has killed in `path` for want of memory.
    pub(crate) fn oom_killed(&self, path: &str) -> bool {
        let Some(folder) = self.directory("memory", path) else { return false };
        let text = ["memory.events", "memory.oom_control"]
            .iter()
            .find_map(|file| fs::read_to_string(folder.join(file)).ok())
            .unwrap_or_default();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        kills.is_some_and(|kills| kills > 0)
    }

    /// Kills every process in `path` and below, also one that forks faster than it can be listed, and waits
    /// until they are gone. Nothing there is success.
    pub(crate) async fn kill(&self, path: &str) -> Result<(), CgroupError> {
        let dirs: Vec<PathBuf> =
            self.trees().map(|tree| below(tree, path)).filter(|dir| dir.exists()).collect();
        let Some(dir) = self.killing_tree(path).filter(|dir| dir.exists()).or_else(|| dirs.first().cloned())
        else {
            return Ok(());
        };
        let deadline = tokio::time::Instant::now() + KILL_BOUND;
        let mut pause = Duration::from_millis(1);
        loop {
            // Once is enough where the kernel kills the whole cgroup (Linux 5.14); by hand it takes turns.
            if fs::write(dir.join("cgroup.kill"), "1").is_err() {
                kill_frozen(&dir)?;
            }
            let pids = processes(&dir).map_err(|source| CgroupError::Kill { path: dir.clone(), source })?;
            if pids.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(CgroupError::Survivors { path: dir, pids });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Removes `path` and everything below it from every tree. Idempotent; processes must be gone.
    pub(crate) async fn remove(&self, path: &str) -> Result<(), CgroupError> {
        if path.trim_matches('/').is_empty() {
            return Ok(());
        }
        let mut first_error = None;
        for tree in self.trees() {
            let dir = below(tree, path);
            // The kernel answers EBUSY for a moment after the last process left.
            let mut pause = Duration::from_millis(1);
            let result = loop {
                match remove_tree(&dir) {
                    Err(error)
                        if error.raw_os_error() == Some(libc::EBUSY) && pause < Duration::from_secs(1) =>
                    {
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                    result => break result,
                }
            };
            if let Err(source) = result {
                first_error.get_or_insert(CgroupError::Remove { path: dir, source });
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Removes what runc makes of `path` in the unified tree of a hybrid host, where nobody else looks.
    pub(crate) fn forget_unified(&self, path: &str) {
        if let Hierarchy::V1(trees) = &self.hierarchy
            && let Some(tree) = trees.get(UNIFIED)
            && path.len() > 1
        {
            // One that is still in use, or was never made, is left alone.
            let _ = fs::remove_dir(below(tree, path));
        }
    }

    /// Removes `path` from every tree where nothing is in it.
    pub(crate) fn remove_unused(&self, path: &str) {
        if path.len() > 1 {
            for tree in self.trees() {
                // One that is still in use, or was never made, is left alone.
                let _ = fs::remove_dir(below(tree, path));
            }
        }
    }

    /// Every process in `path` and below. A cgroup that is not there has none.
    pub(crate) fn members(&self, path: &str) -> Vec<u32> {
        self.killing_tree(path).map(|dir| processes(&dir).unwrap_or_default()).unwrap_or_default()
    }

    /// Whether `path` is there in any tree.
    pub(crate) fn exists(&self, path: &str) -> bool {
        self.trees().any(|tree| below(tree, path).exists())
    }

    /// Names of the cgroups directly below `path`.
    pub(crate) fn children(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .trees()
            .filter_map(|tree| fs::read_dir(below(tree, path)).ok())
            .flat_map(|entries| entries.flatten())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The directory of `path` in the tree of a controller; on version 2 in the only one.
    pub(crate) fn directory(&self, controller: &str, path: &str) -> Option<PathBuf> {
        match &self.hierarchy {
            Hierarchy::V2(tree) => Some(below(tree, path)),
            Hierarchy::V1(trees) => trees.get(controller).map(|tree| below(tree, path)),
        }
    }

    fn trees(&self) -> Box<dyn Iterator<Item = &PathBuf> + Send + '_> {
        match &self.hierarchy {
            Hierarchy::V1(trees) => {
                // Controllers that share a mount point are one tree.
                let mut seen: Vec<&PathBuf> = trees.values().collect();
                seen.dedup();
                Box::new(seen.into_iter())
            }
            Hierarchy::V2(tree) => Box::new(std::iter::once(tree)),
        }
    }

    /// The tree in which killing works best: the freezer's of version 1, because it can hold a fork bomb.
    fn killing_tree(&self, path: &str) -> Option<PathBuf> {
        match &self.hierarchy {
            Hierarchy::V2(tree) => Some(below(tree, path)),
            Hierarchy::V1(trees) => ["freezer", "pids", "memory", "cpu", "name=systemd"]
                .iter()
                .filter_map(|controller| trees.get(*controller))
                .map(|tree| below(tree, path))
                .find(|dir| dir.exists()),
        }
    }
}

/// Reads the trees out of a mount table; version 2 only where no version 1 controller is mounted.
fn hierarchy(mountinfo: &str) -> Option<Hierarchy> {
    let mut v1 = BTreeMap::new();
    let mut v2 = None;
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mount_point) = before.split(' ').nth(4) else { continue };
        let mut after = after.split(' ');
        match after.next() {
            Some("cgroup2") => v2 = v2.or(Some(PathBuf::from(mount_point))),
            Some("cgroup") => {
                for option in after.nth(1).unwrap_or_default().split(',') {
                    if CONTROLLERS.contains(&option) || option == "name=systemd" {
                        v1.entry(option.to_owned()).or_insert_with(|| PathBuf::from(mount_point));
                    }
                }
            }
            _ => {}
        }
    }
    // A lone name=systemd tree beside cgroup2 is systemd's hybrid mode without version 1 controllers.
    if v1.keys().any(|controller| CONTROLLERS.contains(&controller.as_str())) {
        v1.extend(v2.map(|tree| (UNIFIED.to_owned(), tree)));
        Some(Hierarchy::V1(v1))
    } else {
        v2.map(Hierarchy::V2)
    }
}

/// The cgroup2 tree of a hybrid host. It limits nothing and we make nothing in it, but runc does.
const UNIFIED: &str = "unified";

/// The controllers of version 1.
pub(crate) const CONTROLLERS: [&str; 13] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "rdma",
];

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_matches('/'))
}

/// The slice of a cgroup parent; kubelets give it as a path or by its name.
fn slice_name(parent: &str) -> &str {
    match parent.trim_end_matches('/').rsplit('/').next() {
        Some(name) if name.ends_with(".slice") => name,
        _ => "system.slice",
    }
}

/// `a-b.slice` lies in `a.slice`: systemd writes the tree into the name.
fn expand_slice(slice: &str) -> String {
    let stem = slice.trim_end_matches(".slice");
    let mut path = String::new();
    if stem == "-" {
        return path;
    }
    for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        path.push('/');
        path.push_str(&stem[..at]);
        path.push_str(".slice");
    }
    path
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_hybrid_host_counts_as_version_1_and_systemds_lone_tree_as_version_2() {
        let hybrid = "30 20 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 20 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let Some(Hierarchy::V1(trees)) = hierarchy(hybrid) else { panic!("not version 1") };
        assert_eq!(trees["cpuacct"], Path::new("/sys/fs/cgroup/cpu"));
        assert_eq!(trees[UNIFIED], Path::new("/sys/fs/cgroup/unified"));
        let lone = "30 20 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                    31 20 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert!(matches!(hierarchy(lone), Some(Hierarchy::V2(_))));
        assert!(hierarchy("").is_none());
    }

    #[test]
    fn container_cgroups_are_named_by_the_driver() {
        let cgroups = |driver| Cgroups { hierarchy: Hierarchy::V2("/sys/fs/cgroup".into()), driver };
        let cgroupfs = cgroups(CgroupDriver::Cgroupfs);
        assert_eq!(cgroupfs.spec_path("/kubepods/pod1", "c"), "/kubepods/pod1/c");
        assert_eq!(cgroupfs.container_path("kubepods/pod1/", "c"), "/kubepods/pod1/c");
        let systemd = cgroups(CgroupDriver::Systemd);
        let parent = "/kubepods.slice/kubepods-pod1.slice";
        assert_eq!(systemd.spec_path(parent, "c"), "kubepods-pod1.slice:coracle:c");
        assert_eq!(
            systemd.container_path(parent, "c"),
            "/kubepods.slice/kubepods-pod1.slice/coracle-c.scope"
        );
    }

    #[tokio::test]
    async fn a_cgroup_is_made_emptied_and_removed() {
        let cgroups = Cgroups::detect(CgroupDriver::Cgroupfs).unwrap();
        let path = format!("/coracle-test-cgroup-{}/inner", std::process::id());
        let parent = path.rsplit_once('/').unwrap().0.to_owned();
        assert!(cgroups.ensure(&path).unwrap());
        assert!(!cgroups.ensure(&path).unwrap());
        let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        for dir in cgroups.trees().map(|tree| below(tree, &path)).filter(|dir| dir.exists()) {
            fs::write(dir.join("cgroup.procs"), child.id().unwrap().to_string()).unwrap();
        }
        assert_eq!(cgroups.members(&parent), [child.id().unwrap()]);
        let killed = cgroups.kill(&parent);
        let (killed, status) = tokio::join!(killed, child.wait());
        killed.unwrap();
        assert!(!status.unwrap().success());
        cgroups.remove(&parent).await.unwrap();
        cgroups.remove(&parent).await.unwrap();
        assert!(cgroups.children("/").iter().all(|name| !parent.ends_with(name)));
    }
}
