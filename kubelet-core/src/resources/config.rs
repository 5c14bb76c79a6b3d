//! Settings of [`super::PodResources`], and what it reads of the machine when the agent starts.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::Allocatable;
use crate::api::Quantity;
use crate::container_config::HostFacts;
use crate::node::EnforcedShare;
use crate::node_ips::NodeIps;
use crate::pod_cgroup::{CgroupDriver, PodCgroupConfig};
use crate::sys;

/// Where pods' resources lie and what bounds them. Names follow the kubelet's flags.
#[derive(Clone, Debug)]
pub struct PodResourcesConfig {
    /// Pods' folders lie in `pods/` here, local seccomp profiles in `seccomp/` (`--root-dir`).
    pub root_dir: PathBuf,
    /// Pods' logs, `/var/log/pods` by default (`--pod-logs-dir`).
    pub log_root: PathBuf,
    /// The node's addresses.
    pub node_ips: NodeIps,
    /// The cgroup under which `kubepods` lies (`--cgroup-root`).
    pub cgroup_root: String,
    /// How cgroups are named (`--cgroup-driver`).
    pub cgroup_driver: CgroupDriver,
    /// Addresses of the cluster's DNS service (`--cluster-dns`).
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain, or empty (`--cluster-domain`).
    pub cluster_domain: String,
    /// The node's resolver settings, `None` for none at all (`--resolv-conf`).
    pub resolv_conf: Option<PathBuf>,
    /// The node's hosts file, for pods on its network.
    pub hosts_file: PathBuf,
    /// Processes that a pod may have; `None` for no limit (`--pod-max-pids`).
    pub pod_pids_limit: Option<i64>,
    /// Whether containers without a seccomp profile get the runtime's default one (`--seccomp-default`).
    pub seccomp_default: bool,
    /// Whether CPU limits become quotas (`--cpu-cfs-quota`).
    pub cpu_cfs_quota: bool,
    /// The quota's period in microseconds (`--cpu-cfs-quota-period`).
    pub cpu_cfs_quota_period_us: u64,
    /// What the node can give to pods; the default of limits that are not set. What is left out here is what the
    /// machine has.
    pub allocatable: Allocatable,
    /// What all pods together are held to; the machine itself if none.
    pub enforced: Option<EnforcedShare>,
    /// Whether the runtime can make mounts below a mount read-only too, as its Status says.
    pub recursive_read_only: bool,
    /// Handlers of the runtime that give a pod users of its own; the default one is the empty name.
    pub user_namespace_handlers: BTreeSet<String>,
}

impl PodResourcesConfig {
    /// The kubelet's defaults, with pods under `root_dir`.
    pub fn new(root_dir: impl Into<PathBuf>) -> Self {
        Self {
            root_dir: root_dir.into(),
            log_root: PathBuf::from("/var/log/pods"),
            node_ips: NodeIps::given([]),
            cgroup_root: "/".to_owned(),
            cgroup_driver: CgroupDriver::default(),
            cluster_dns: Vec::new(),
            cluster_domain: String::new(),
            resolv_conf: Some(PathBuf::from("/etc/resolv.conf")),
            hosts_file: PathBuf::from("/etc/hosts"),
            pod_pids_limit: None,
            seccomp_default: false,
            cpu_cfs_quota: true,
            cpu_cfs_quota_period_us: 100_000,
            allocatable: Allocatable::new(),
            enforced: None,
            recursive_read_only: false,
            user_namespace_handlers: BTreeSet::new(),
        }
    }

    pub(super) fn pods_dir(&self) -> PathBuf {
        self.root_dir.join("pods")
    }

    pub(super) fn cgroup(&self) -> PodCgroupConfig {
        PodCgroupConfig {
            root: self.cgroup_root.clone(),
            driver: self.cgroup_driver,
            pids_limit: self.pod_pids_limit,
            enforce_cpu_limits: self.cpu_cfs_quota,
            cpu_period_us: self.cpu_cfs_quota_period_us,
            enforced: self.enforced,
        }
    }
}

/// What the settings leave open is what the machine has.
pub(super) fn fill_allocatable(allocatable: &mut Allocatable, facts: &HostFacts, root_dir: &Path) {
    let mut fill = |name: &str, value: i64| {
        allocatable.entry(name.to_owned()).or_insert_with(|| Quantity::from_value(value));
    };
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    fill("cpu", i64::try_from(cpus).unwrap_or(1));
    fill("memory", facts.memory_capacity);
    // The folder itself may not be made yet.
    let existing = root_dir.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok());
    if let Some(disk) = existing {
        fill(
            "ephemeral-storage",
            i64::try_from(disk.f_blocks.saturating_mul(disk.f_frsize)).unwrap_or(i64::MAX),
        );
    }
}

/// Addresses of the family of the node's first one come first, in their order.
pub(super) fn prefer_family_of_node(ips: &mut [IpAddr], node_ips: &[IpAddr]) {
    if let Some(first) = node_ips.first() {
        let is_ipv6 = first.is_ipv6();
        ips.sort_by_key(|ip| ip.is_ipv6() != is_ipv6);
    }
}

/// Reads what configs need to know of the machine. What is missing there counts as absent.
pub(super) fn host_facts() -> io::Result<HostFacts> {
    let cgroup_v2 = sys::is_cgroup2(Path::new("/sys/fs/cgroup")).unwrap_or(false);
    Ok(HostFacts {
        cgroup_v2,
        swap_accounting: has_swap_accounting(cgroup_v2)?,
        memory_capacity: memory_capacity()?,
        hugepage_sizes: hugepage_sizes(),
        thermal_paths: thermal_paths(),
    })
}

fn has_swap_accounting(cgroup_v2: bool) -> io::Result<bool> {
    if !cgroup_v2 {
        let memory = sys::cgroup_v1_mounts()?.into_iter().find(|(name, _)| name == "memory");
        return Ok(memory.is_some_and(|(_, point)| point.join("memory.memsw.limit_in_bytes").exists()));
    }
    // The root group has no swap file, any other has one if swap is counted.
    let own = std::fs::read_to_string("/proc/self/cgroup")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let dir = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    if path != "/" {
        return Ok(dir.join("memory.swap.max").exists());
    }
    let children = std::fs::read_dir("/sys/fs/cgroup")?.filter_map(Result::ok);
    Ok(children.map(|child| child.path().join("memory.swap.max")).any(|file| file.exists()))
}

fn memory_capacity() -> io::Result<i64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<i64>().ok());
    kib.map(|kib| kib.saturating_mul(1024)).ok_or_else(|| io::Error::other("no MemTotal in /proc/meminfo"))
}

fn hugepage_sizes() -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let size = |name: &str| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok();
    let names = entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok());
    let mut sizes: Vec<u64> = names.filter_map(|name| size(&name)).map(|kib| kib * 1024).collect();
    sizes.sort_unstable();
    sizes
}

fn thermal_paths() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/devices/system/cpu") else {
        return Vec::new();
    };
    let is_cpu = |name: &str| name.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok());
    let cpus = entries.filter_map(Result::ok).filter(|entry| entry.file_name().to_str().is_some_and(is_cpu));
    let throttles = cpus.map(|entry| entry.path().join("thermal_throttle")).filter(|path| path.exists());
    let mut paths: Vec<String> = throttles.filter_map(|path| path.to_str().map(str::to_owned)).collect();
    paths.sort();
    paths
}
