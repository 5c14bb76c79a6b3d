//! Making cgroups and writing their limits, on v1 and v2.
//!
//! Blocking. A limit whose controller or file is not there is left out: the agent warned of it when it started.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::CgroupError;
use crate::container_config::page_size_name;
use crate::node::EnforcedShare;
use crate::qos::{PodCgroupLimits, milli_cpu_to_shares};

/// Controllers that pods are limited by; others are left to the runtime.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "hugetlb"];

/// One limit of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// On the scale of v1.
    CpuShares(u64),
    /// Microseconds per period; -1 for no limit.
    CpuQuota { quota: i64, period: u64 },
    /// Bytes.
    Memory(i64),
    /// Processes.
    Pids(i64),
    /// Bytes of pages of that size, in use and, where the kernel counts them, reserved: who maps too many is refused
    /// then, instead of killed at the first touch.
    HugePages { page_size: u64, limit: i64 },
}

/// What a pod's group is set to.
pub(super) fn settings(
    limits: &PodCgroupLimits,
    pids_limit: Option<i64>,
    hugepage_sizes: &[u64],
) -> Vec<Setting> {
    let mut settings = vec![Setting::CpuShares(limits.cpu_shares)];
    if let Some(quota) = limits.cpu_quota.filter(|quota| *quota != 0) {
        settings.push(Setting::CpuQuota { quota, period: limits.cpu_period });
    }
    settings.extend(limits.memory.filter(|bytes| *bytes > 0).map(Setting::Memory));
    settings.extend(pids_limit.filter(|limit| *limit > 0).map(Setting::Pids));
    for &page_size in hugepage_sizes {
        // A pod that requests no huge pages gets none.
        let limit = limits.hugepages.get(&page_size).copied().unwrap_or(0);
        settings.push(Setting::HugePages { page_size, limit });
    }
    settings
}

/// What the group of all pods is set to: nine tenths of the processes that the kernel allows, or less if more is
/// reserved, and the memory and the weight that are not reserved.
pub(super) fn settings_of_all_pods(enforced: Option<EnforcedShare>) -> Vec<Setting> {
    let read = |file: &str| std::fs::read_to_string(file).ok()?.trim().parse::<i64>().ok();
    let limits = [read("/proc/sys/kernel/pid_max"), read("/proc/sys/kernel/threads-max")];
    let most = limits.into_iter().flatten().min();
    let reserved = enforced.map_or(0, |share| share.pids_reserved);
    let pids = most.map(|most| (most - reserved.max(most / 10)).max(1));
    let mut settings: Vec<Setting> = pids.map(Setting::Pids).into_iter().collect();
    if let Some(share) = enforced {
        settings.push(Setting::CpuShares(milli_cpu_to_shares(share.cpu_milli)));
        settings.extend(Some(share.memory).filter(|bytes| *bytes > 0).map(Setting::Memory));
    }
    settings
}

impl Setting {
    pub(super) fn write_v1(&self, mounts: &[(String, PathBuf)], group: &Path) -> Result<(), CgroupError> {
        let dir = |controller: &str| {
            let mount = mounts.iter().find(|(name, _)| name == controller);
            mount.map(|(_, point)| point.join(group))
        };
        match self {
            Self::CpuShares(shares) => put(dir("cpu"), "cpu.shares", shares),
            Self::CpuQuota { quota, period } => {
                put(dir("cpu"), "cpu.cfs_period_us", period)?;
                put(dir("cpu"), "cpu.cfs_quota_us", quota)
            }
            Self::Memory(bytes) => put(dir("memory"), "memory.limit_in_bytes", bytes),
            Self::Pids(limit) => put(dir("pids"), "pids.max", limit),
            Self::HugePages { page_size, limit } => {
                let size = page_size_name(*page_size);
                put(dir("hugetlb"), &format!("hugetlb.{size}.limit_in_bytes"), limit)?;
                put(dir("hugetlb"), &format!("hugetlb.{size}.rsvd.limit_in_bytes"), limit)
            }
        }
    }

    pub(super) fn write_v2(&self, dir: &Path) -> Result<(), CgroupError> {
        let dir = Some(dir.to_owned());
        match self {
            Self::CpuShares(shares) => put(dir, "cpu.weight", &shares_to_weight(*shares)),
            Self::CpuQuota { quota: -1, period } => put(dir, "cpu.max", &format!("max {period}")),
            Self::CpuQuota { quota, period } => put(dir, "cpu.max", &format!("{quota} {period}")),
            Self::Memory(bytes) => put(dir, "memory.max", bytes),
            Self::Pids(limit) => put(dir, "pids.max", limit),
            Self::HugePages { page_size, limit } => {
                let size = page_size_name(*page_size);
                put(dir.clone(), &format!("hugetlb.{size}.max"), limit)?;
                put(dir, &format!("hugetlb.{size}.rsvd.max"), limit)
            }
        }
    }
}

/// CPU shares (2 to 262144) as a weight (1 to 10000), such that 1024 shares are the default weight of 100:
/// log2 of the weight is a quadratic of log2 of the shares, as opencontainers/cgroups has it.
pub(super) fn shares_to_weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    // Exact for 32 bits and far above what shares can be.
    let log = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Between 1 and 10000.
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight
}

fn put(dir: Option<PathBuf>, file: &str, value: &dyn std::fmt::Display) -> Result<(), CgroupError> {
    let Some(path) = dir.map(|dir| dir.join(file)) else {
        return Ok(());
    };
    // Not fs::write: creating a file that a missing controller would have is refused as forbidden.
    let opened = std::fs::OpenOptions::new().write(true).open(&path);
    match opened.and_then(|mut file| file.write_all(value.to_string().as_bytes())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CgroupError::io("write", &path)(error)),
        _ => Ok(()),
    }
}

/// Makes a group in the hierarchy of each controller that limits pods.
pub(super) fn make_v1(mounts: &[(String, PathBuf)], group: &Path) -> Result<bool, CgroupError> {
    let mut made = false;
    for (controller, point) in mounts.iter().filter(|(name, _)| CONTROLLERS.contains(&name.as_str())) {
        let mut dir = point.clone();
        for part in group {
            let parent = dir.clone();
            dir.push(part);
            made |= make_dir(&dir)?;
            if controller == "cpuset" {
                inherit_cpuset(&parent, &dir)?;
            }
        }
    }
    Ok(made)
}

fn make_dir(dir: &Path) -> Result<bool, CgroupError> {
    match std::fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(CgroupError::io("create", dir)(error)),
    }
}

/// A v1 cpuset is born without CPUs and memory nodes, and takes no process until it has some.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), dir.join(file));
        let own = std::fs::read_to_string(&to).map_err(CgroupError::io("read", &to))?;
        if own.trim().is_empty() {
            let inherited = std::fs::read_to_string(&from).map_err(CgroupError::io("read", &from))?;
            std::fs::write(&to, inherited.trim()).map_err(CgroupError::io("write", &to))?;
        }
    }
    Ok(())
}

/// Makes a group of the unified hierarchy, with the controllers handed down to it.
pub(super) fn make_v2(root: &Path, group: &Path) -> Result<bool, CgroupError> {
    let mut made = false;
    let mut dir = root.to_owned();
    for part in group {
        hand_down(&dir)?;
        dir.push(part);
        made |= make_dir(&dir)?;
    }
    // Containers lie below the pod's group, so it hands down too.
    hand_down(&dir)?;
    Ok(made)
}

/// Enables for a group's children what the group itself has, of what pods are limited by.
fn hand_down(dir: &Path) -> Result<(), CgroupError> {
    let read = |file: &str| {
        let path = dir.join(file);
        std::fs::read_to_string(&path).map_err(CgroupError::io("read", &path))
    };
    let (available, enabled) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
    let has = |list: &str, name: &str| list.split_whitespace().any(|known| known == name);
    for controller in CONTROLLERS.iter().chain(&["io"]) {
        if has(&available, controller) && !has(&enabled, controller) {
            let path = dir.join("cgroup.subtree_control");
            std::fs::write(&path, format!("+{controller}")).map_err(CgroupError::io("write", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_runtimes_convert_them() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000)] {
            assert_eq!(shares_to_weight(shares), weight, "{shares}");
        }
    }
}
