//! Requests and limits as cgroup values.
//!
//! Pure; what the machine is like comes in as [`HostFacts`], read once when the agent starts.

use std::collections::HashMap;

use coracle_cri::v1::{HugepageLimit, LinuxContainerResources};

use crate::api::{Container, Pod, Quantity};
use crate::qos;

/// How CPU limits are enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuPolicy {
    /// Whether limits become quotas at all (the kubelet's `--cpu-cfs-quota`).
    pub enforce_quota: bool,
    /// The quota's period in microseconds (the kubelet's `--cpu-cfs-quota-period`).
    pub period_us: u64,
}

impl Default for CpuPolicy {
    fn default() -> Self {
        Self { enforce_quota: true, period_us: 100_000 }
    }
}

/// What a config needs to know of the machine. Constant while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Whether cgroup v2 alone is mounted.
    pub cgroup_v2: bool,
    /// Whether the memory controller counts swap.
    pub swap_accounting: bool,
    /// Bytes of memory.
    pub memory_capacity: i64,
    /// Sizes of huge pages in bytes, ascending.
    pub hugepage_sizes: Vec<u64>,
    /// `thermal_throttle` folders of the CPUs, which a container must not read.
    pub thermal_paths: Vec<String>,
}

/// CPU and memory of a container or sandbox; amounts in thousandths of a core and in bytes, 0 for no limit.
pub fn linux_resources(
    cpu_request: Option<i64>,
    cpu_limit: i64,
    memory_limit: i64,
    cpu: CpuPolicy,
) -> LinuxContainerResources {
    let shares = qos::milli_cpu_to_shares(cpu_request.unwrap_or(cpu_limit));
    let mut resources = LinuxContainerResources {
        cpu_shares: i64::try_from(shares).expect("shares end at 262144"),
        memory_limit_in_bytes: memory_limit,
        ..LinuxContainerResources::default()
    };
    if cpu.enforce_quota {
        resources.cpu_period = i64::try_from(cpu.period_us).unwrap_or(i64::MAX);
        resources.cpu_quota = qos::milli_cpu_to_quota(cpu_limit, cpu.period_us);
    }
    resources
}

pub(super) fn container_resources(
    pod: &Pod,
    container: &Container,
    facts: &HostFacts,
    cpu: CpuPolicy,
) -> LinuxContainerResources {
    let request = container.resources.requests.get("cpu").map(Quantity::milli_value);
    let cpu_limit = limit(pod, container, "cpu");
    let mut resources = linux_resources(request, cpu_limit, limit(pod, container, "memory"), cpu);
    resources.oom_score_adj = qos::oom_score_adj(pod, container, facts.memory_capacity);
    resources.hugepage_limits = hugepage_limits(pod, container, &facts.hugepage_sizes);
    if facts.swap_accounting {
        // No container swaps unless it is told to; on v1 the limit counts memory and swap together.
        if facts.cgroup_v2 {
            resources.unified = HashMap::from([("memory.swap.max".to_owned(), "0".to_owned())]);
        } else {
            resources.memory_swap_limit_in_bytes = resources.memory_limit_in_bytes;
        }
    }
    if facts.cgroup_v2 {
        // One process of a container killed for memory leaves a broken rest, so all go at once.
        resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    resources
}

/// The container's own limit, or else its pod's.
fn limit(pod: &Pod, container: &Container, name: &str) -> i64 {
    let own = container.resources.limits.get(name).filter(|quantity| !quantity.is_zero());
    let of_pod = || pod.spec.resources.as_ref().and_then(|resources| resources.limits.get(name));
    own.or_else(of_pod).map_or(0, |quantity| qos::amount(name, quantity))
}

/// Every page size of the machine, 0 unless the container or its pod has a limit.
fn hugepage_limits(pod: &Pod, container: &Container, sizes: &[u64]) -> Vec<HugepageLimit> {
    let mut wanted: HashMap<u64, u64> = HashMap::new();
    let of_pod = pod.spec.resources.iter().flat_map(|resources| &resources.limits);
    for (name, quantity) in of_pod.chain(&container.resources.limits) {
        if let Some(size) = qos::hugepage_size(name) {
            wanted.insert(size, u64::try_from(quantity.value()).unwrap_or(0));
        }
    }
    let limit = |size: &u64| HugepageLimit {
        page_size: page_size_name(*size),
        limit: wanted.get(size).copied().unwrap_or(0),
    };
    sizes.iter().map(limit).collect()
}

/// As the hugetlb controller names its files: `64KB`, `2MB`, `1GB`.
pub(crate) fn page_size_name(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes >> 10, "KB");
    for larger in ["MB", "GB"] {
        if value >= 1024 {
            (value, unit) = (value >> 10, larger);
        }
    }
    format!("{value}{unit}")
}
