//! What a pod asks for and how well it is protected: totals, QoS class, OOM scores, CPU shares and quotas.
//!
//! Pure arithmetic with the kubelet's rules and constants; called by container and sandbox configs, the pod
//! cgroup and volumes. CPU is counted in thousandths of a core, everything else in whole units.

use std::collections::BTreeMap;

use crate::api::{Container, Pod, Quantity, ResourceRequirements};

/// The least CPU shares the kernel knows.
pub const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const SHARES_PER_CPU: i64 = 1024;
const MILLI: i64 = 1000;
/// A quota below one millisecond is refused by the kernel.
const MIN_QUOTA_US: i64 = 1000;
const GUARANTEED_OOM_SCORE: i64 = -997;
const BEST_EFFORT_OOM_SCORE: i64 = 1000;
/// Pods at or above this priority are never the first to go (`system-node-critical`).
const NODE_CRITICAL_PRIORITY: i32 = 2_000_001_000;

/// Amounts by resource name: CPU in thousandths, the rest in units.
pub type Amounts<'a> = BTreeMap<&'a str, i64>;

/// How a pod's requests relate to its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QosClass {
    /// Every container has equal CPU and memory requests and limits.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl QosClass {
    /// As `status.qosClass` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

impl std::fmt::Display for QosClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The QoS class of a pod: what its status says, or else computed from its resources.
pub fn qos_class(pod: &Pod) -> QosClass {
    match pod.status.qos_class.as_str() {
        "Guaranteed" => QosClass::Guaranteed,
        "Burstable" => QosClass::Burstable,
        "BestEffort" => QosClass::BestEffort,
        _ => compute_qos_class(pod),
    }
}

fn compute_qos_class(pod: &Pod) -> QosClass {
    let mut requests = Amounts::new();
    let mut limits = Amounts::new();
    let mut is_each_limited = true;
    let of_containers = || {
        let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
        containers.map(|container| &container.resources).collect()
    };
    let all = pod.spec.resources.as_deref().map_or_else(of_containers, |of_pod| vec![of_pod]);
    for resources in all {
        let (request, limit) = compute_parts(resources);
        is_each_limited &= limit.len() == 2;
        add(&mut requests, &request);
        add(&mut limits, &limit);
    }
    if requests.is_empty() && limits.is_empty() {
        QosClass::BestEffort
    } else if is_each_limited && requests == limits {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

/// The CPU and memory parts above zero of requests and limits.
fn compute_parts(resources: &crate::api::ResourceRequirements) -> (Amounts<'_>, Amounts<'_>) {
    let part = |list| {
        let mut amounts = amounts(list);
        amounts.retain(|name, value| matches!(*name, "cpu" | "memory") && *value > 0);
        amounts
    };
    (part(&resources.requests), part(&resources.limits))
}

/// The amount of one quantity: thousandths for CPU, units for everything else.
pub fn amount(name: &str, quantity: &Quantity) -> i64 {
    if name == "cpu" { quantity.milli_value() } else { quantity.value() }
}

fn amounts(list: &BTreeMap<String, Quantity>) -> Amounts<'_> {
    list.iter().map(|(name, quantity)| (name.as_str(), amount(name, quantity))).collect()
}

fn add<'a>(into: &mut Amounts<'a>, more: &Amounts<'a>) {
    for (name, value) in more {
        let entry = into.entry(name).or_insert(0);
        *entry = entry.saturating_add(*value);
    }
}

fn raise<'a>(into: &mut Amounts<'a>, floor: &Amounts<'a>) {
    for (name, value) in floor {
        let entry = into.entry(name).or_insert(*value);
        *entry = (*entry).max(*value);
    }
}

/// Which list of a container's resources to add up.
#[derive(Clone, Copy)]
enum Kind {
    Requests,
    Limits,
}

/// The sum over containers, or what init containers need at their peak if that is more; `each` sees what
/// every container, or every init container together with the sidecars before it, adds.
fn aggregate<'a>(pod: &'a Pod, kind: Kind, mut each: impl FnMut(&Amounts<'a>)) -> Amounts<'a> {
    let of = |container: &'a Container| match kind {
        Kind::Requests => amounts(&container.resources.requests),
        Kind::Limits => amounts(&container.resources.limits),
    };
    let mut total = Amounts::new();
    for container in &pod.spec.containers {
        let own = of(container);
        each(&own);
        add(&mut total, &own);
    }
    let mut sidecars = Amounts::new();
    let mut init_peak = Amounts::new();
    for container in &pod.spec.init_containers {
        let mut own = of(container);
        if container.is_restartable_init() {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        each(&own);
        raise(&mut init_peak, &own);
    }
    raise(&mut total, &init_peak);
    total
}

fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// What the pod requests in all, with its overhead unless that is excluded.
pub fn pod_requests(pod: &Pod, with_overhead: bool) -> Amounts<'_> {
    let mut total = aggregate(pod, Kind::Requests, |_| {});
    if let Some(resources) = &pod.spec.resources {
        total.extend(amounts(&resources.requests).into_iter().filter(|(name, _)| is_pod_level(name)));
    }
    if with_overhead {
        add(&mut total, &amounts(&pod.spec.overhead));
    }
    total
}

/// What limits the pod in all, with its overhead unless that is excluded.
pub fn pod_limits(pod: &Pod, with_overhead: bool) -> Amounts<'_> {
    limits_and(pod, with_overhead, |_| {})
}

fn limits_and<'a>(pod: &'a Pod, with_overhead: bool, each: impl FnMut(&Amounts<'a>)) -> Amounts<'a> {
    let mut total = aggregate(pod, Kind::Limits, each);
    if let Some(resources) = &pod.spec.resources {
        total.extend(amounts(&resources.limits).into_iter().filter(|(name, _)| is_pod_level(name)));
    }
    if with_overhead {
        let mut overhead = amounts(&pod.spec.overhead);
        overhead.retain(|name, _| total.contains_key(name));
        add(&mut total, &overhead);
    }
    total
}

/// Sums of a pod as quantities, in the form of the first container's.
fn quantities(pod: &Pod, amounts: &Amounts<'_>, kind: Kind) -> BTreeMap<String, Quantity> {
    let quantity = |name: &str, value: i64| {
        let lists = pod.spec.containers.iter().chain(&pod.spec.init_containers).map(|c| match kind {
            Kind::Requests => &c.resources.requests,
            Kind::Limits => &c.resources.limits,
        });
        let binary =
            lists.filter_map(|list| list.get(name)).find(|q| !q.is_zero()).is_some_and(Quantity::is_binary);
        let milli = if name == "cpu" { i128::from(value) } else { i128::from(value) * MILLI as i128 };
        Quantity::canonical(milli, binary)
    };
    amounts.iter().map(|(name, value)| ((*name).to_owned(), quantity(name, *value))).collect()
}

/// What `status.allocatedResources` and `status.resources` of a pod say: all that it was given, and of a pod that
/// runs what its cgroup bounds.
pub fn status_resources(pod: &Pod, runs: bool) -> (BTreeMap<String, Quantity>, ResourceRequirements) {
    let allocated = quantities(pod, &pod_requests(pod, true), Kind::Requests);
    let mut limits = quantities(pod, &pod_limits(pod, true), Kind::Limits);
    let mut requests = allocated.clone();
    if runs {
        let in_cgroup = |name: &String, _: &mut Quantity| matches!(name.as_str(), "cpu" | "memory");
        requests.retain(in_cgroup);
        limits.retain(in_cgroup);
    }
    (allocated, ResourceRequirements { limits, requests, ..ResourceRequirements::default() })
}

/// The limits of a pod's cgroup; `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodCgroupLimits {
    /// CPU shares on the scale of cgroup v1 (2 to 262144).
    pub cpu_shares: u64,
    /// Microseconds of CPU per period; -1 for no limit.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds.
    pub cpu_period: u64,
    /// Bytes of memory.
    pub memory: Option<i64>,
    /// Limit in bytes by page size in bytes.
    pub hugepages: BTreeMap<u64, i64>,
}

impl PodCgroupLimits {
    /// These, or those of `other` where they are more.
    pub(crate) fn at_least(&self, other: &Self) -> Self {
        // No number, or none above zero, means no limit.
        let more = |a: Option<i64>, b: Option<i64>| match (a.filter(|v| *v > 0), b.filter(|v| *v > 0)) {
            (Some(a), Some(b)) => Some(a.max(b)),
            _ => None,
        };
        Self {
            cpu_shares: self.cpu_shares.max(other.cpu_shares),
            cpu_quota: more(self.cpu_quota, other.cpu_quota),
            memory: more(self.memory, other.memory),
            ..self.clone()
        }
    }
}

/// The limits that a pod's cgroup gets (the kubelet's `ResourceConfigForPod`).
pub fn pod_cgroup_limits(pod: &Pod, enforce_cpu_limits: bool, cpu_period: u64) -> PodCgroupLimits {
    let requests = pod_requests(pod, true);
    let (mut cpu_declared, mut memory_declared) = (true, true);
    let limits = limits_and(pod, true, |own| {
        cpu_declared &= own.get("cpu").is_some_and(|v| *v != 0);
        memory_declared &= own.get("memory").is_some_and(|v| *v != 0);
    });
    if let Some(resources) = &pod.spec.resources {
        cpu_declared |= resources.limits.get("cpu").is_some_and(|q| !q.is_zero());
        memory_declared |= resources.limits.get("memory").is_some_and(|q| !q.is_zero());
    }
    let hugepages =
        requests.iter().filter_map(|(name, value)| Some((hugepage_size(name)?, *value))).collect();
    let mut quota = milli_cpu_to_quota(limits.get("cpu").copied().unwrap_or(0), cpu_period);
    if !enforce_cpu_limits {
        quota = -1;
    }
    let memory = limits.get("memory").copied().unwrap_or(0);
    let shares = milli_cpu_to_shares(requests.get("cpu").copied().unwrap_or(0));
    let base = PodCgroupLimits { cpu_shares: shares, cpu_period, hugepages, ..PodCgroupLimits::default() };
    match qos_class(pod) {
        QosClass::Guaranteed => PodCgroupLimits { cpu_quota: Some(quota), memory: Some(memory), ..base },
        QosClass::Burstable => PodCgroupLimits {
            cpu_quota: cpu_declared.then_some(quota),
            memory: memory_declared.then_some(memory),
            ..base
        },
        QosClass::BestEffort => PodCgroupLimits { cpu_shares: MIN_SHARES, ..base },
    }
}

/// The page size in bytes of a resource named `hugepages-2Mi` and its like.
pub fn hugepage_size(resource: &str) -> Option<u64> {
    let size: Quantity = resource.strip_prefix("hugepages-")?.parse().ok()?;
    u64::try_from(size.value()).ok()
}

/// CPU shares for thousandths of a core.
pub fn milli_cpu_to_shares(milli: i64) -> u64 {
    let shares = milli.saturating_mul(SHARES_PER_CPU) / MILLI;
    u64::try_from(shares).unwrap_or(0).clamp(MIN_SHARES, MAX_SHARES)
}

/// Thousandths of a core for CPU shares; of what was asked for, [`milli_cpu_to_shares`] loses less than one.
pub fn shares_to_milli_cpu(shares: i64) -> i64 {
    let milli = shares.saturating_mul(MILLI);
    milli / SHARES_PER_CPU + i64::from(milli % SHARES_PER_CPU > 0)
}

/// CPU quota in microseconds per `period` for thousandths of a core; 0 means none is set.
pub fn milli_cpu_to_quota(milli: i64, period: u64) -> i64 {
    if milli == 0 {
        return 0;
    }
    let period = i64::try_from(period).unwrap_or(i64::MAX);
    (milli.saturating_mul(period) / MILLI).max(MIN_QUOTA_US)
}

/// How soon the kernel's OOM killer takes a process of that container (-1000 to 1000).
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if pod.spec.priority.is_some_and(|priority| priority >= NODE_CRITICAL_PRIORITY) {
        return GUARANTEED_OOM_SCORE;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => GUARANTEED_OOM_SCORE,
        QosClass::BestEffort => BEST_EFFORT_OOM_SCORE,
        QosClass::Burstable => burstable_oom_score(pod, container, memory_capacity.max(1)),
    }
}

fn burstable_oom_score(pod: &Pod, container: &Container, capacity: i64) -> i64 {
    let share = unclaimed_pod_memory_per_container(pod);
    let score = |request: i64| {
        let part = i128::from(request.saturating_add(share)) * 1000 / i128::from(capacity);
        1000 - i64::try_from(part).unwrap_or(i64::MAX)
    };
    let mut adjust = score(memory_request(container));
    let is_sidecar = container.is_restartable_init()
        && pod.spec.init_containers.iter().any(|init| init.name == container.name);
    if is_sidecar {
        // A sidecar must not be killed before the containers that it serves.
        let least = pod.spec.containers.iter().map(memory_request).min().unwrap_or(0);
        adjust = adjust.min(score(least));
    }
    adjust.clamp(BEST_EFFORT_OOM_SCORE + GUARANTEED_OOM_SCORE, BEST_EFFORT_OOM_SCORE - 1)
}

fn memory_request(container: &Container) -> i64 {
    container.resources.requests.get("memory").map_or(0, Quantity::value)
}

/// What a pod-level memory request leaves beyond its containers' own, per container.
fn unclaimed_pod_memory_per_container(pod: &Pod) -> i64 {
    let Some(request) = pod.spec.resources.as_ref().and_then(|r| r.requests.get("memory")) else {
        return 0;
    };
    let own = aggregate(pod, Kind::Requests, |_| {}).get("memory").copied().unwrap_or(0);
    let containers = (pod.spec.containers.len() + pod.spec.init_containers.len()).max(1);
    request.value().saturating_sub(own) / i64::try_from(containers).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
