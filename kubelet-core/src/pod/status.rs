//! The status of a pod as the API shows it: phase, conditions, containers, addresses.
//!
//! Called by the worker after each observation; pure. Follows the kubelet's `generateAPIPodStatus`,
//! `getPhase` and the final marking of `TerminatePod` (1.36).

mod conditions;
mod containers;
mod resources;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::api::{
    ContainerState, ContainerStateTerminated, ContainerStatus, HostIP, Pod, PodIP, PodStatus, Time,
};
use crate::clock::Now;
use crate::pod::observation::Observation;
use crate::pod::resize::{Resizing, Sizes};
use crate::pod::restart::restarts_after;
use crate::probe::ProbeResults;
use crate::qos::{qos_class, status_resources};

/// All containers of a pod may bring so many bytes of termination messages (`MaxPodTerminationMessageLogLength`).
const MESSAGE_BYTES_OF_POD: usize = 12 * 1024;
const STATUS_UNKNOWN: &str = "ContainerStatusUnknown";
const NOT_LOCATED: &str = "The container could not be located when the pod was terminated";
const RESTARTING_ALL: &str = "RestartingAllContainers";

/// Why a container that should run does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartFailure {
    /// The waiting reason: `CrashLoopBackOff`, `ErrImagePull`, `CreateContainerError` and so on.
    pub(crate) reason: String,
    /// What a person reads.
    pub(crate) message: String,
}

/// Why this node ended a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Eviction {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// What a condition tells the controllers of a pod that is a victim of the node's need.
    pub(crate) disruption: Option<String>,
}

/// What the status says about the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeFacts {
    /// Prefix of container ids: `containerd` of `containerd://4f2a…`.
    pub(crate) runtime_name: String,
    /// Addresses of the node, primary first; pods on the host's network have them too.
    pub(crate) host_ips: Vec<String>,
}

/// Everything a status is made from.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) observed: &'a Observation,
    pub(crate) old: Option<&'a PodStatus>,
    pub(crate) failures: &'a BTreeMap<String, StartFailure>,
    pub(crate) probes: &'a ProbeResults,
    pub(crate) eviction: Option<&'a Eviction>,
    /// Nothing of the pod will start again.
    pub(crate) terminal: bool,
    /// All containers are being removed after an exit whose rule says so.
    pub(crate) restarting_all: bool,
    /// What was set last of the containers.
    pub(crate) sizes: &'a Sizes,
    /// The resize that was allocated and is not done yet.
    pub(crate) resizing: Option<&'a Resizing>,
    pub(crate) start_time: Time,
    pub(crate) node: &'a NodeFacts,
    pub(crate) now: Now,
}

/// The status of now.
pub(crate) fn status(inputs: &Inputs<'_>) -> PodStatus {
    let Inputs { pod, observed, old, .. } = *inputs;
    let mut status = PodStatus {
        observed_generation: pod.metadata.generation,
        qos_class: qos_class(pod).as_str().to_owned(),
        start_time: old.and_then(|o| o.start_time).or(pod.status.start_time).or(Some(inputs.start_time)),
        container_statuses: containers::regular(inputs),
        init_container_statuses: containers::init(inputs),
        ephemeral_container_statuses: containers::ephemeral(inputs),
        ..PodStatus::default()
    };
    let runs = old.is_some_and(|old| old.phase == "Running");
    let (allocated, resources) = status_resources(pod, runs);
    status.allocated_resources = allocated;
    status.resources = Some(Box::new(resources));
    status.phase = next_phase(inputs, &status).to_owned();
    if old.is_some_and(|o| o.phase == status.phase) {
        // Reason and message belong to the phase and last as long as it.
        status.reason = old.map(|o| o.reason.clone()).unwrap_or_default();
        status.message = old.map(|o| o.message.clone()).unwrap_or_default();
    }
    if let Some(eviction) = inputs.eviction {
        status.phase = "Failed".to_owned();
        status.reason = eviction.reason.clone();
        status.message = eviction.message.clone();
    }
    set_addresses(&mut status, pod, observed.ips(), inputs.node);
    if let Some(old) = old.filter(|_| status.pod_ips.is_empty() && observed.ready_sandbox().is_none()) {
        // A pod that has ended, or gets a new sandbox, shows the addresses that it had.
        status.pod_ip.clone_from(&old.pod_ip);
        status.pod_ips.clone_from(&old.pod_ips);
    }
    status.conditions = conditions::conditions(inputs, &status);
    status
}

pub(crate) use conditions::{is_owned as is_owned_condition, is_shared as is_shared_condition};

/// Whether a pod of this phase starts nothing any more.
pub(crate) fn is_terminal_phase(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// Marks what is left open when a pod has ended for good: a container that should have ended and left no
/// trace counts as failed, and a pod without a terminal phase as failed.
pub(crate) fn finish(pod: &Pod, status: &mut PodStatus) {
    let lost = || ContainerState {
        terminated: Some(Box::new(ContainerStateTerminated {
            reason: STATUS_UNKNOWN.to_owned(),
            message: NOT_LOCATED.to_owned(),
            exit_code: 137,
            ..ContainerStateTerminated::default()
        })),
        ..ContainerState::default()
    };
    if has_initialized(pod, status) {
        for container in status.container_statuses.iter_mut().filter(|c| c.state.terminated.is_none()) {
            container.state = lost();
        }
    }
    let traced = status
        .init_container_statuses
        .iter()
        .rposition(|c| c.state.waiting.is_none() || c.last_state.terminated.is_some())
        .unwrap_or(0);
    for container in status.init_container_statuses.iter_mut().take(traced + 1) {
        if container.state.terminated.is_none() {
            container.state = lost();
        }
    }
    if !is_static(pod) && !is_terminal_phase(&status.phase) {
        status.phase = "Failed".to_owned();
    }
}

/// Whether a pod comes from this node alone: such pods keep their phase when they are taken away.
fn is_static(pod: &Pod) -> bool {
    pod.metadata.annotations.get("kubernetes.io/config.source").is_some_and(|source| source != "api")
}

fn has_initialized(pod: &Pod, status: &PodStatus) -> bool {
    if pod.spec.init_containers.is_empty() {
        return true;
    }
    let moved = |c: &ContainerStatus| c.last_state.terminated.is_some() || c.state.waiting.is_none();
    if status.container_statuses.iter().any(moved) {
        return true;
    }
    let Some((container, last)) = pod.spec.init_containers.last().zip(status.init_container_statuses.last())
    else {
        return false;
    };
    if container.is_restartable_init() {
        return last.state.running.is_some() && last.started == Some(true);
    }
    let succeeded = |s: &ContainerState| s.terminated.as_ref().is_some_and(|t| t.exit_code == 0);
    succeeded(&last.state) || succeeded(&last.last_state)
}

/// Terminal phases are never left again.
fn next_phase<'a>(inputs: &Inputs<'a>, status: &PodStatus) -> &'a str {
    let phase = phase(inputs, status);
    if is_terminal_phase(phase) {
        return phase;
    }
    let known = [inputs.old.map_or("", |o| &o.phase), &inputs.pod.status.phase];
    known.into_iter().find(|p| is_terminal_phase(p)).unwrap_or(phase)
}

/// How many containers are in which state, as the phase counts them.
#[derive(Default)]
struct Counts {
    pending_init: u32,
    pending_sidecars: u32,
    failed_init_for_good: u32,
    unknown: u32,
    running: u32,
    waiting: u32,
    stopped: u32,
    stopped_for_good: u32,
    succeeded: u32,
}

fn phase(inputs: &Inputs<'_>, status: &PodStatus) -> &'static str {
    let counts = Counts::of(inputs.pod, status);
    let initialized = any_active_regular(inputs.pod, inputs.observed);
    if counts.failed_init_for_good > 0 {
        return "Failed";
    }
    if counts.pending_init > 0 || (counts.pending_sidecars > 0 && !initialized) || counts.waiting > 0 {
        return "Pending";
    }
    if counts.unknown > 0 {
        return "Pending";
    }
    if counts.running > 0 {
        return "Running";
    }
    if counts.stopped == 0 {
        return "Pending";
    }
    let ended = if counts.stopped == counts.succeeded { "Succeeded" } else { "Failed" };
    if inputs.terminal && !is_static(inputs.pod) {
        return ended;
    }
    if counts.stopped != counts.stopped_for_good {
        // Something is about to start again.
        return "Running";
    }
    ended
}

/// Whether a regular container of the sandbox in use has been made.
fn any_active_regular(pod: &Pod, observed: &Observation) -> bool {
    let Some(sandbox) = observed.ready_sandbox() else { return false };
    let regular = |name: &str| pod.spec.containers.iter().any(|c| c.name == name);
    observed.containers.iter().any(|c| c.sandbox_id == sandbox.id && regular(&c.name))
}

impl Counts {
    fn of(pod: &Pod, status: &PodStatus) -> Self {
        let mut counts = Self::default();
        for container in &pod.spec.init_containers {
            let found = status.init_container_statuses.iter().find(|s| s.name == container.name);
            if container.is_restartable_init() {
                counts.add_sidecar(found);
            } else {
                counts.add_init(found, |code| restarts_after(container, &pod.spec, code));
            }
        }
        for container in &pod.spec.containers {
            let found = status.container_statuses.iter().find(|s| s.name == container.name);
            counts.add_regular(found, |code| restarts_after(container, &pod.spec, code));
        }
        counts
    }

    fn add_init(&mut self, status: Option<&ContainerStatus>, restarts: impl Fn(i32) -> bool) {
        let ended = status.and_then(|s| match (&s.state.terminated, &s.state.waiting) {
            (Some(ended), _) => Some(ended),
            (None, Some(_)) => s.last_state.terminated.as_ref(),
            (None, None) => None,
        });
        match ended {
            None => self.pending_init += 1,
            Some(ended) if ended.exit_code == 0 => {}
            Some(ended) if restarts(ended.exit_code) || ended.reason == RESTARTING_ALL => {}
            Some(_) => self.failed_init_for_good += 1,
        }
    }

    fn add_sidecar(&mut self, status: Option<&ContainerStatus>) {
        let Some(status) = status else {
            self.unknown += 1;
            return;
        };
        if status.state.running.is_some() {
            self.pending_sidecars += u32::from(status.started != Some(true));
            self.running += 1;
        } else if status.state.terminated.is_some() {
            // A sidecar that ended says nothing about the pod.
        } else if status.state.waiting.is_some() {
            if status.last_state.terminated.is_none() {
                self.pending_sidecars += 1;
                self.waiting += 1;
            }
        } else {
            self.pending_sidecars += 1;
            self.unknown += 1;
        }
    }

    fn add_regular(&mut self, status: Option<&ContainerStatus>, restarts: impl Fn(i32) -> bool) {
        let Some(status) = status else {
            self.unknown += 1;
            return;
        };
        let for_good = |ended: &ContainerStateTerminated| {
            u32::from(!restarts(ended.exit_code) && ended.reason != RESTARTING_ALL)
        };
        if status.state.running.is_some() {
            self.running += 1;
        } else if let Some(ended) = &status.state.terminated {
            self.stopped += 1;
            self.stopped_for_good += for_good(ended);
            self.succeeded += u32::from(ended.exit_code == 0);
        } else if status.state.waiting.is_some() {
            match &status.last_state.terminated {
                Some(ended) => {
                    self.stopped += 1;
                    self.stopped_for_good += for_good(ended);
                }
                None => self.waiting += 1,
            }
        } else {
            self.unknown += 1;
        }
    }
}

/// Addresses of the node and of the pod: one of each family, the node's primary family first.
fn set_addresses(status: &mut PodStatus, pod: &Pod, ips: &[String], node: &NodeFacts) {
    status.host_ip = node.host_ips.first().cloned().unwrap_or_default();
    status.host_ips = node.host_ips.iter().take(2).map(|ip| HostIP { ip: ip.clone() }).collect();
    let chosen: Vec<String> = if pod.spec.host_network {
        node.host_ips.iter().take(2).cloned().collect()
    } else {
        let is_v6 = |ip: &String| ip.contains(':');
        let v6_first = node.host_ips.first().is_some_and(is_v6);
        let of = |v6: bool| ips.iter().find(move |ip| is_v6(ip) == v6).cloned();
        of(v6_first).into_iter().chain(of(!v6_first)).collect()
    };
    status.pod_ip = chosen.first().cloned().unwrap_or_default();
    status.pod_ips = chosen.into_iter().map(|ip| PodIP { ip }).collect();
}
