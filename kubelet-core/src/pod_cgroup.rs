//! The cgroups of pods: `kubepods`, its QoS tiers and one group per pod, on cgroup v1 and v2.
//!
//! [`crate::resources`] calls this from blocking threads. Every call is idempotent. A controller that the kernel
//! lacks is left out with one warning when the agent starts; pods then run without that limit. The one thing
//! kept in memory is which pods have their limits, and what burstable ones request, which is their tier's share.

mod names;
mod systemd;
mod write;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::Pod;
use crate::container_config::HostFacts;
use crate::node::EnforcedShare;
use crate::qos::{self, PodCgroupLimits, QosClass};
use crate::sys;

pub use names::CgroupDriver;
use names::GroupName;
use systemd::Systemd;

const KUBEPODS: &str = "kubepods";
/// How long leftovers may take to die once they are killed.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
const KILL_STEP: Duration = Duration::from_millis(10);

/// Why a cgroup cannot be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The file system refused.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// systemd refused, or there is none.
    #[error("systemd, which --cgroup-driver=systemd needs, does not set up {unit}: {message}")]
    Systemd {
        /// The slice.
        unit: String,
        /// What busctl said.
        message: String,
    },
    /// Processes that do not die, or that keep coming.
    #[error("processes in cgroup {} still run {} s after they were killed", path.display(), KILL_PATIENCE.as_secs())]
    Alive {
        /// The group.
        path: PathBuf,
    },
}

impl CgroupError {
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// How the machine mounts its cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchy {
    /// One tree with all controllers.
    V2 { root: PathBuf },
    /// A tree per controller, and trees without any, in which runtimes make groups all the same.
    V1 { mounts: Vec<(String, PathBuf)>, all: Vec<PathBuf> },
}

/// How pod cgroups are named and limited.
#[derive(Clone, Debug)]
pub struct PodCgroupConfig {
    /// The group under which `kubepods` lies, `/` by default.
    pub root: String,
    /// How groups are named.
    pub driver: CgroupDriver,
    /// Processes that a pod may have; `None` for no limit.
    pub pids_limit: Option<i64>,
    /// Whether CPU limits become quotas.
    pub enforce_cpu_limits: bool,
    /// The quota's period in microseconds.
    pub cpu_period_us: u64,
    /// What all pods together are held to.
    pub enforced: Option<EnforcedShare>,
}

/// Where the groups of pods lie and how they are named.
#[derive(Clone, Debug, Default)]
pub struct CgroupPlace {
    /// The group under which `kubepods` lies.
    pub root: String,
    /// How groups are named.
    pub driver: CgroupDriver,
}

/// The group of a pod, from the root of a hierarchy.
pub(crate) fn group_of(place: &CgroupPlace, pod: &Pod) -> String {
    let name = GroupName::new(&place.root).child(KUBEPODS).tier(qos::qos_class(pod));
    name.child(&format!("pod{}", pod.metadata.uid)).path(place.driver)
}

/// The folders of a group in every hierarchy that has it. Reads the mount table.
pub(crate) fn folders_of(group: &str) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> =
        sys::cgroup_v1_mounts().unwrap_or_default().into_iter().map(|(_, point)| point).collect();
    if roots.is_empty() {
        roots.push(PathBuf::from("/sys/fs/cgroup"));
    }
    roots.sort_unstable();
    roots.dedup();
    roots
        .into_iter()
        .map(|root| root.join(group.trim_start_matches('/')))
        .filter(|dir| dir.is_dir())
        .collect()
}

/// What a pod's group is known to be set to.
#[derive(Clone, Debug)]
struct Known {
    /// What it adds to its tier's CPU, in thousandths of a core.
    request: i64,
    limits: PodCgroupLimits,
}

/// How far a resize of a pod's group goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What becomes more: before the containers take it.
    Raise,
    /// All: after the containers gave what becomes less.
    All,
}

/// The cgroups of this node's pods.
pub(crate) struct PodCgroups {
    config: PodCgroupConfig,
    hierarchy: Hierarchy,
    hugepage_sizes: Vec<u64>,
    systemd: Option<Systemd>,
    /// Pods whose groups are known to have their limits. A group that was made by an agent that was killed may lack them, so each agent sets them once.
    known: Mutex<HashMap<String, Known>>,
    /// Whether this agent has limited the group of all pods.
    is_top_limited: AtomicBool,
    /// Whether it was told that this failed.
    is_failure_told: AtomicBool,
}

impl PodCgroups {
    /// Finds out what the machine has, and warns once of what it lacks.
    pub(crate) fn new(config: PodCgroupConfig, facts: &HostFacts) -> io::Result<Self> {
        let systemd = (config.driver == CgroupDriver::Systemd).then(|| Systemd::new("busctl"));
        let root = PathBuf::from("/sys/fs/cgroup");
        let hierarchy = if facts.cgroup_v2 {
            Hierarchy::V2 { root }
        } else {
            Hierarchy::V1 { mounts: sys::cgroup_v1_mounts()?, all: sys::cgroup_mount_points()? }
        };
        let cgroups = Self {
            config,
            hierarchy,
            hugepage_sizes: facts.hugepage_sizes.clone(),
            systemd,
            known: Mutex::default(),
            is_top_limited: AtomicBool::new(false),
            is_failure_told: AtomicBool::new(false),
        };
        cgroups.warn_of_missing_controllers();
        Ok(cgroups)
    }

    fn warn_of_missing_controllers(&self) {
        let present: Vec<String> = match &self.hierarchy {
            Hierarchy::V1 { mounts, .. } => mounts.iter().map(|(name, _)| name.clone()).collect(),
            Hierarchy::V2 { root } => {
                let list = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
                list.split_whitespace().map(str::to_owned).collect()
            }
        };
        for (controller, cure) in [
            ("memory", "add cgroup_enable=memory cgroup_memory=1 to the kernel command line and reboot"),
            ("cpu", "use a kernel with CONFIG_CGROUP_SCHED and CONFIG_FAIR_GROUP_SCHED"),
            ("pids", "use a kernel with CONFIG_CGROUP_PIDS"),
        ] {
            if !present.iter().any(|name| name == controller) {
                tracing::warn!(controller, cure, "cgroup controller missing; pods run without its limits");
            }
        }
    }

    fn name(&self, class: QosClass, uid: &str) -> GroupName {
        GroupName::new(&self.config.root).child(KUBEPODS).tier(class).child(&format!("pod{uid}"))
    }

    /// The pod's group as the runtime is told (`cgroup_parent`).
    pub(crate) fn parent(&self, pod: &Pod) -> String {
        self.name(qos::qos_class(pod), &pod.metadata.uid).path(self.config.driver)
    }

    /// The pod's group and those of its containers, in the hierarchy that counts processes.
    pub(crate) fn pids_groups(&self, pod: &Pod) -> Vec<PathBuf> {
        let path = self.name(qos::qos_class(pod), &pod.metadata.uid).path(self.config.driver);
        let root = match &self.hierarchy {
            Hierarchy::V2 { root } => Some(root),
            Hierarchy::V1 { mounts, .. } => {
                mounts.iter().find(|(name, _)| name == "pids").map(|(_, dir)| dir)
            }
        };
        let mut groups = Vec::new();
        if let Some(root) = root {
            // A group that goes while it is listed is one less.
            let _ = collect_groups(&root.join(path.trim_start_matches('/')), &mut groups);
        }
        groups
    }

    /// Makes the group of all pods. What it may not have of the machine's processes is left to start and end pods.
    fn ensure_top(&self, top: &GroupName) -> Result<(), CgroupError> {
        self.make(top)?;
        if self.is_top_limited.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.apply(top, &write::settings_of_all_pods(self.config.enforced)) {
            Ok(()) => self.is_top_limited.store(true, Ordering::Relaxed),
            // Such as pods that have more than they may from now on: tried again with the next pod.
            Err(error) => {
                if !self.is_failure_told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "pods together are not held to what is left to them; reserve less, or end pods"
                    );
                }
            }
        }
        Ok(())
    }

    /// Makes the pod's group with its limits, and the groups above it.
    pub(crate) fn ensure(&self, pod: &Pod) -> Result<(), CgroupError> {
        let class = qos::qos_class(pod);
        let uid = pod.metadata.uid.to_string();
        let top = GroupName::new(&self.config.root).child(KUBEPODS);
        let tier = top.clone().tier(class);
        let name = self.name(class, &uid);
        self.ensure_top(&top)?;
        self.make(&tier)?;
        let is_new = self.make(&name)?;
        let known = self.known().get(&uid).filter(|_| !is_new).map(|known| known.limits.clone());
        if let Some(known) = known {
            // What becomes less is a resize, once the containers have given it.
            return self.resize(pod, &known, Extent::Raise);
        }
        let limits = self.limits(pod);
        let settings = write::settings(&limits, self.config.pids_limit, &self.hugepage_sizes);
        self.apply(&name, &settings)?;
        self.note(pod, limits)
    }

    /// The limits that the pod's group is to have.
    pub(crate) fn limits(&self, pod: &Pod) -> PodCgroupLimits {
        qos::pod_cgroup_limits(pod, self.config.enforce_cpu_limits, self.config.cpu_period_us)
    }

    /// Changes CPU and memory of the pod's group, which has been set to `from`.
    pub(crate) fn resize(
        &self,
        pod: &Pod,
        from: &PodCgroupLimits,
        extent: Extent,
    ) -> Result<(), CgroupError> {
        let wanted = self.limits(pod);
        let limits = match extent {
            Extent::Raise => wanted.at_least(from),
            Extent::All => wanted,
        };
        if limits == *from {
            return Ok(());
        }
        let name = self.name(qos::qos_class(pod), &pod.metadata.uid);
        self.apply(&name, &write::settings(&limits, None, &[]))?;
        self.note(pod, limits)
    }

    /// Bytes of memory that the pod uses; none where nobody counts it.
    pub(crate) fn memory_use(&self, pod: &Pod) -> Option<u64> {
        let name = self.name(qos::qos_class(pod), &pod.metadata.uid);
        let path = name.path(self.config.driver);
        let (root, file) = match &self.hierarchy {
            Hierarchy::V2 { root } => (root, "memory.current"),
            Hierarchy::V1 { mounts, .. } => {
                let (_, memory) = mounts.iter().find(|(name, _)| name == "memory")?;
                (memory, "memory.usage_in_bytes")
            }
        };
        let text = std::fs::read_to_string(root.join(path.trim_start_matches('/')).join(file)).ok()?;
        text.trim().parse().ok()
    }

    /// Notes what the pod's group is set to, and weighs its tier anew.
    fn note(&self, pod: &Pod, limits: PodCgroupLimits) -> Result<(), CgroupError> {
        let class = qos::qos_class(pod);
        let uid = pod.metadata.uid.to_string();
        let tier = GroupName::new(&self.config.root).child(KUBEPODS).tier(class);
        let request = match class {
            QosClass::Burstable => qos::pod_requests(pod, true).get("cpu").copied().unwrap_or(0),
            QosClass::Guaranteed | QosClass::BestEffort => 0,
        };
        self.known().insert(uid.clone(), Known { request, limits });
        let tier_set = match class {
            QosClass::Guaranteed => Ok(()),
            QosClass::Burstable => self.set_burstable_shares(&tier),
            QosClass::BestEffort => self.apply(&tier, &[write::Setting::CpuShares(qos::MIN_SHARES)]),
        };
        if tier_set.is_err() {
            self.known().remove(&uid);
        }
        tier_set
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        // Each change is one statement, so a panic elsewhere leaves the table whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tier of burstable pods weighs what they request together.
    fn set_burstable_shares(&self, tier: &GroupName) -> Result<(), CgroupError> {
        let total = self.known().values().fold(0, |sum: i64, known| sum.saturating_add(known.request));
        self.apply(tier, &[write::Setting::CpuShares(qos::milli_cpu_to_shares(total))])
    }

    /// The folders of a group, one per hierarchy.
    fn dirs(&self, name: &GroupName) -> Vec<PathBuf> {
        let path = name.path(self.config.driver);
        let relative = path.trim_start_matches('/');
        match &self.hierarchy {
            Hierarchy::V2 { root } => vec![root.join(relative)],
            Hierarchy::V1 { all, .. } => all.iter().map(|point| point.join(relative)).collect(),
        }
    }

    /// Makes a group; true if a part of it was not there yet.
    fn make(&self, name: &GroupName) -> Result<bool, CgroupError> {
        if let Some(systemd) =
            self.systemd.as_ref().filter(|_| !self.dirs(name).iter().any(|dir| dir.is_dir()))
        {
            systemd.start(&name.unit())?;
        }
        let path = name.path(self.config.driver);
        let relative = Path::new(path.trim_start_matches('/'));
        match &self.hierarchy {
            Hierarchy::V2 { root } => write::make_v2(root, relative),
            Hierarchy::V1 { mounts, .. } => write::make_v1(mounts, relative),
        }
    }

    fn apply(&self, name: &GroupName, settings: &[write::Setting]) -> Result<(), CgroupError> {
        if let Some(systemd) = &self.systemd {
            let is_v2 = matches!(self.hierarchy, Hierarchy::V2 { .. });
            systemd.set(&name.unit(), &systemd::properties(settings, is_v2))?;
        }
        let path = name.path(self.config.driver);
        let relative = Path::new(path.trim_start_matches('/'));
        for setting in settings {
            match &self.hierarchy {
                Hierarchy::V2 { root } => setting.write_v2(&root.join(relative))?,
                Hierarchy::V1 { mounts, .. } => setting.write_v1(mounts, relative)?,
            }
        }
        Ok(())
    }

    /// Kills what is left in the pod's groups and removes them, whatever class the pod had.
    pub(crate) fn remove(&self, uid: &str) -> Vec<CgroupError> {
        let classes = [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort];
        let mut dirs = Vec::new();
        for name in classes.map(|class| self.name(class, uid)) {
            let mut present = self.dirs(&name);
            present.retain(|dir| dir.is_dir());
            if let Some(systemd) = self.systemd.as_ref().filter(|_| !present.is_empty()) {
                systemd.stop(&name.unit());
            }
            dirs.extend(present);
        }
        let deadline = Instant::now() + KILL_PATIENCE;
        let mut errors: Vec<CgroupError> =
            dirs.iter().filter_map(|dir| remove_tree(dir, deadline).err()).collect();
        let freed = self.known().remove(uid).map_or(0, |known| known.request);
        if freed != 0 {
            let tier = GroupName::new(&self.config.root).child(KUBEPODS).tier(QosClass::Burstable);
            errors.extend(self.set_burstable_shares(&tier).err());
        }
        errors
    }
}

/// Kills the processes of a tree of groups and removes it, children first.
fn remove_tree(dir: &Path, deadline: Instant) -> Result<(), CgroupError> {
    loop {
        let mut groups = Vec::new();
        collect_groups(dir, &mut groups).map_err(CgroupError::io("list", dir))?;
        kill_all(&groups)?;
        let busy = groups.iter().find_map(|group| match std::fs::remove_dir(group) {
            Ok(()) => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some((group, error)),
        });
        match busy {
            None => return Ok(()),
            Some((group, error)) if error.kind() != io::ErrorKind::ResourceBusy => {
                return Err(CgroupError::io("remove", group)(error));
            }
            Some((group, _)) if Instant::now() >= deadline => {
                return Err(CgroupError::Alive { path: group.clone() });
            }
            // Dying takes the kernel a moment, and nothing tells of its end on every kernel.
            Some(_) => std::thread::sleep(KILL_STEP),
        }
    }
}

/// All groups at and below `dir`, children before parents.
fn collect_groups(dir: &Path, groups: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_groups(&entry.path(), groups)?;
        }
    }
    groups.push(dir.to_owned());
    Ok(())
}

fn kill_all(groups: &[PathBuf]) -> Result<(), CgroupError> {
    for group in groups {
        let list = group.join("cgroup.procs");
        let text = match std::fs::read_to_string(&list) {
            Ok(text) => text,
            // Gone, or (v2) a threaded group whose processes are listed above it.
            Err(_) => continue,
        };
        for pid in text.lines().filter_map(|line| line.parse().ok()) {
            sys::kill(pid).map_err(CgroupError::io("kill a process of", group))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
