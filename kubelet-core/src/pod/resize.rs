//! Resizing a pod in place: what of its CPU and memory is not yet as it was allocated, and what to do about it.
//!
//! Called by `plan`, `status` and the worker; pure. Follows the kubelet's `computePodResizeAction` and
//! `IsPodResizeInProgress` (1.36). What was set last is known by the node that set it; a new agent takes it from the
//! pod's own status.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::allocation::is_settled;
use crate::api::{Container, Pod, PodStatus, Quantity, ResourceRequirements};
use crate::pod::observation::{ContainerPhase, Instance, Observation};
use crate::qos::{PodCgroupLimits, amount};

/// The condition of a pod whose resize is not allocated.
pub(crate) const PENDING: &str = "PodResizePending";
/// The condition of a pod whose resize is allocated and not yet done.
pub(crate) const IN_PROGRESS: &str = "PodResizeInProgress";

/// CPU in thousandths of a core and memory in bytes; 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) cpu_request: i64,
    pub(crate) cpu_limit: i64,
    pub(crate) memory_request: i64,
    pub(crate) memory_limit: i64,
}

impl Amounts {
    /// What a container is allocated.
    pub(crate) fn of(pod: &Pod, container: &Container) -> Self {
        Self::with(pod, &container.resources)
    }

    /// A container without a limit of its own has its pod's.
    fn with(pod: &Pod, own: &ResourceRequirements) -> Self {
        let of = |list: &BTreeMap<String, Quantity>, name: &str| {
            list.get(name).map(|quantity| amount(name, quantity)).filter(|value| *value != 0)
        };
        let limit = |name: &str| {
            let of_pod = || pod.spec.resources.as_ref().and_then(|resources| of(&resources.limits, name));
            of(&own.limits, name).or_else(of_pod).unwrap_or(0)
        };
        Self {
            cpu_request: of(&own.requests, "cpu").unwrap_or(0),
            cpu_limit: limit("cpu"),
            memory_request: of(&own.requests, "memory").unwrap_or(0),
            memory_limit: limit("memory"),
        }
    }

    /// Whether a limit comes, or becomes less than it was.
    pub(crate) fn lowers_memory(&self, from: &Self) -> bool {
        self.memory_limit != 0 && (from.memory_limit == 0 || self.memory_limit < from.memory_limit)
    }

    fn grows(&self, from: &Self) -> bool {
        self.memory_limit > from.memory_limit || self.cpu_limit > from.cpu_limit
    }
}

/// What was set last of a pod, and what its cgroup is to be set to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sizes {
    /// By id of the container; one that is not known is as it should be.
    pub(crate) containers: BTreeMap<Arc<str>, Amounts>,
    pub(crate) pod: PodCgroupLimits,
    pub(crate) wanted: PodCgroupLimits,
}

impl Sizes {
    /// Takes up containers that were made before this node knew of them, as the status of then tells.
    pub(crate) fn take_up(&mut self, pod: &Pod, observed: &Observation, told: Option<&PodStatus>) {
        self.containers.retain(|id, _| observed.containers.iter().any(|instance| instance.id == *id));
        let told = told.filter(|told| !is_settled(pod, told));
        for instance in observed.containers.iter().filter(|instance| is_running(instance)) {
            let Some(container) = pod.container(&instance.name) else { continue };
            self.containers.entry(instance.id.clone()).or_insert_with(|| {
                let mut statuses = told
                    .into_iter()
                    .flat_map(|told| told.init_container_statuses.iter().chain(&told.container_statuses));
                let status = statuses.find(|status| status.bare_id() == &*instance.id);
                let resources = status.and_then(|status| status.resources.as_deref());
                Amounts::with(pod, resources.unwrap_or(&container.resources))
            });
        }
    }
}

/// A container that goes on with other resources.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerResize {
    pub(crate) id: Arc<str>,
    pub(crate) name: String,
    pub(crate) from: Amounts,
    pub(crate) to: Amounts,
}

/// What a resize has to do: the pod's cgroup gives first and takes last.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resize {
    pub(crate) from: PodCgroupLimits,
    pub(crate) to: PodCgroupLimits,
    /// Those that give before those that take.
    pub(crate) containers: Vec<ContainerResize>,
}

impl Resize {
    /// None if all is as it should be.
    pub(crate) fn of(sizes: &Sizes, mut containers: Vec<ContainerResize>) -> Option<Self> {
        if containers.is_empty() && sizes.pod == sizes.wanted {
            return None;
        }
        containers.sort_by_key(|container| container.to.grows(&container.from));
        Some(Self { from: sizes.pod.clone(), to: sizes.wanted.clone(), containers })
    }

    /// Whether the pod's memory limit comes, or becomes less than it was.
    pub(crate) fn lowers_memory(&self) -> bool {
        let limit = |limits: &PodCgroupLimits| limits.memory.filter(|bytes| *bytes > 0);
        limit(&self.to).is_some_and(|to| limit(&self.from).is_none_or(|from| to < from))
    }
}

/// What a container needs to have what it was allocated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Need {
    Nothing,
    /// The runtime changes it while it runs.
    Update(ContainerResize),
    /// Its policy wants it to start anew.
    Restart,
}

/// Compares what a container has with what it was allocated.
pub(crate) fn need(pod: &Pod, container: &Container, instance: &Instance, sizes: &Sizes) -> Need {
    let to = Amounts::of(pod, container);
    let Some(from) = sizes.containers.get(&instance.id).copied().filter(|_| is_running(instance)) else {
        return Need::Nothing;
    };
    if from == to {
        return Need::Nothing;
    }
    let restarts = |resource: &str| {
        let mut policies = container.resize_policy.iter();
        policies.any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
    };
    let cpu = (from.cpu_request, from.cpu_limit) != (to.cpu_request, to.cpu_limit);
    let memory = (from.memory_request, from.memory_limit) != (to.memory_request, to.memory_limit);
    if (cpu && restarts("cpu")) || (memory && restarts("memory")) {
        return Need::Restart;
    }
    Need::Update(ContainerResize { id: instance.id.clone(), name: container.name.clone(), from, to })
}

/// Whether something that runs does not have yet what it was allocated.
pub(crate) fn in_progress(pod: &Pod, observed: &Observation, sizes: &Sizes) -> bool {
    if observed.ready_sandbox().is_none() {
        return false;
    }
    let mut containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let differs = |container: &Container| {
        let instance = observed.latest(&container.name);
        instance.is_some_and(|instance| need(pod, container, instance, sizes) != Need::Nothing)
    };
    sizes.pod != sizes.wanted || containers.any(differs)
}

fn is_running(instance: &Instance) -> bool {
    instance.phase == ContainerPhase::Running
}

/// A resize that was allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resizing {
    /// Of the pod when it was.
    pub(crate) generation: Option<i64>,
    /// Why it did not succeed so far.
    pub(crate) error: Option<String>,
}

impl Resizing {
    /// The one that a status tells of.
    pub(crate) fn of_status(status: &PodStatus) -> Option<Self> {
        let condition = status.conditions.iter().find(|condition| condition.r#type == IN_PROGRESS)?;
        let error = (condition.reason == "Error").then(|| condition.message.clone());
        Some(Self { generation: condition.observed_generation, error })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Allocation<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Allocation<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct Allocation<'a> {
    name: &'a str,
    resources: &'a ResourceRequirements,
}

/// The text of an event on a resize: `Pod resize started: {"containers":[…],"generation":2}`.
pub(crate) fn event_text(what: &str, pod: &Pod, generation: Option<i64>, error: &str) -> String {
    let summary = Summary {
        init_containers: allocations(&pod.spec.init_containers),
        containers: allocations(&pod.spec.containers),
        generation: generation.unwrap_or(0),
        error,
    };
    let json = serde_json::to_string(&summary).expect("invariant: resources can be written as JSON");
    format!("Pod resize {what}: {json}")
}

fn allocations(containers: &[Container]) -> Vec<Allocation<'_>> {
    containers.iter().map(|c| Allocation { name: &c.name, resources: &c.resources }).collect()
}
