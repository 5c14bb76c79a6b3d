//! The limits of a container. What the node has no controller for is left out and told by [`notices`]. Pure.

use std::collections::HashMap;

use coracle_cri::v1;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::host::HostFacts;
use super::{SpecInput, devices};

/// How a node without a memory controller gets one. Raspberry Pi OS boots so.
const MEMORY_CURE: &str = "add cgroup_enable=memory cgroup_memory=1 to the kernel command line";

/// The resources section of a container's spec.
pub(super) fn for_container(input: &SpecInput<'_>, privileged: bool) -> LinuxResources {
    let wanted = input.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let mut resources = wanted.map(|wanted| to_oci(wanted, input.host)).unwrap_or_default();
    resources.set_devices(Some(devices::rules(input.observed, privileged)));
    resources
}

/// CRI limits as OCI limits, for a spec or for an update of a running container.
pub fn to_oci(wanted: &v1::LinuxContainerResources, host: &HostFacts) -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    resources.set_cpu(Some(cpu(wanted, host)).filter(|cpu| *cpu != LinuxCpu::default()));
    resources.set_memory(memory(wanted, host));
    if host.has_controller("hugetlb") {
        let limits: Vec<_> = wanted.hugepage_limits.iter().map(hugepages).collect();
        resources.set_hugepage_limits(Some(limits).filter(|limits| !limits.is_empty()));
    }
    if host.cgroup.unified() && !wanted.unified.is_empty() {
        // `memory.oom.group` comes with every container, also where the kernel lacks the memory controller.
        let mut unified: HashMap<_, _> =
            wanted.unified.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        unified.retain(|file, _| match file.split_once('.') {
            Some((controller, _)) => controller == "cgroup" || host.has_controller(controller),
            None => true,
        });
        resources.set_unified(Some(unified).filter(|unified| !unified.is_empty()));
    }
    resources
}

fn cpu(wanted: &v1::LinuxContainerResources, host: &HostFacts) -> LinuxCpu {
    let mut cpu = LinuxCpu::default();
    let text = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
    if host.has_controller("cpu") {
        cpu.set_shares(Some(wanted.cpu_shares as u64).filter(|shares| *shares != 0))
            .set_quota(Some(wanted.cpu_quota).filter(|quota| *quota != 0))
            .set_period(Some(wanted.cpu_period as u64).filter(|period| *period != 0));
    }
    if host.has_controller("cpuset") {
        cpu.set_cpus(text(&wanted.cpuset_cpus)).set_mems(text(&wanted.cpuset_mems));
    }
    cpu
}

fn memory(wanted: &v1::LinuxContainerResources, host: &HostFacts) -> Option<LinuxMemory> {
    let (limit, swap) = (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes);
    if !host.has_controller("memory") || (limit == 0 && swap == 0) {
        return None;
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limit).filter(|limit| *limit != 0));
    if host.swap_controller {
        // Without a word about swap the container must not swap: memory and swap together have the same limit.
        memory.set_swap(Some(if swap != 0 { swap } else { limit }));
    }
    Some(memory)
}

fn hugepages(limit: &v1::HugepageLimit) -> LinuxHugepageLimit {
    let mut entry = LinuxHugepageLimit::default();
    entry.set_page_size(limit.page_size.clone()).set_limit(limit.limit as i64);
    entry
}

/// Limits that were asked for and have no controller here.
pub(super) fn notices(input: &SpecInput<'_>) -> Vec<String> {
    let Some(wanted) = input.config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) else {
        return Vec::new();
    };
    let missing = |name: &str| !input.host.has_controller(name);
    let mut notices = Vec::new();
    if wanted.memory_limit_in_bytes != 0 && missing("memory") {
        notices.push(format!("the memory limit is not applied: no memory cgroup controller; {MEMORY_CURE}"));
    }
    if (wanted.cpu_quota > 0 || wanted.cpu_shares != 0) && missing("cpu") {
        notices.push("the CPU limit is not applied: no cpu cgroup controller in this kernel".to_owned());
    }
    if wanted.hugepage_limits.iter().any(|limit| limit.limit != 0) && missing("hugetlb") {
        notices.push("the huge page limit is not applied: no hugetlb cgroup controller".to_owned());
    }
    notices
}
