//! The plan of one sync: which sandbox, which containers to kill, to remove, to start, and which to let wait.
//!
//! Called by the worker after each observation; pure, with the decisions of the kubelet's
//! `computePodActions` and `doBackOff` (1.36). Phase and end of the pod are `status.rs`'s.

mod init;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::api::{Container, Pod};
use crate::backoff::Backoff;
use crate::clock::Now;
use crate::container_config::container_hash;
use crate::pod::observation::{ContainerPhase, Instance, Observation};
use crate::pod::resize::{self, ContainerResize, Need, Resize, Sizes};
use crate::pod::restart::{self, RESTART_ALL};
use crate::pod::sandbox::sandbox_need;
use crate::probe::{ProbeKind, ProbeResults};

/// What a sync has to do, in the order of its fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Kill everything that runs and stop the sandbox.
    pub(crate) kill_pod: bool,
    /// Make a sandbox of this attempt.
    pub(crate) create_sandbox: bool,
    /// Attempt of the sandbox to make or in use.
    pub(crate) attempt: u32,
    /// Sandbox in use, or the one that is replaced.
    pub(crate) sandbox: Option<Arc<str>>,
    /// Containers to kill before anything starts.
    pub(crate) kill: Vec<Kill>,
    /// Containers to remove before all start afresh.
    pub(crate) reset: Vec<Reset>,
    /// Old instances of init containers that need not be kept.
    pub(crate) prune: Vec<Arc<str>>,
    /// What gets other resources before anything starts.
    pub(crate) resize: Option<Resize>,
    /// Containers to start, in order.
    pub(crate) start: Vec<Start>,
    /// Containers that have to wait before they start again.
    pub(crate) waits: Vec<Wait>,
}

/// A container to kill.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kill {
    pub(crate) id: Arc<str>,
    pub(crate) name: String,
    /// Text of the `Killing` event.
    pub(crate) message: String,
    pub(crate) reason: KillReason,
}

/// Why a container is killed, as far as its grace period depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KillReason {
    #[default]
    Other,
    Startup,
    Liveness,
}

/// A container to remove for a restart of all.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reset {
    pub(crate) id: Arc<str>,
    pub(crate) name: String,
    /// It runs and must be killed first, without grace.
    pub(crate) kill: bool,
}

/// Which list of the pod a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerKind {
    Init,
    Sidecar,
    Regular,
    Ephemeral,
}

/// A container to start now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Start {
    pub(crate) name: String,
    pub(crate) kind: ContainerKind,
    /// End of the last run, by which the next back-off is counted; none at a first start.
    pub(crate) after_end: Option<Duration>,
}

/// A container that waits in `CrashLoopBackOff`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wait {
    pub(crate) name: String,
    /// Since boot.
    pub(crate) until: Duration,
    pub(crate) delay: Duration,
}

/// What restarts of a container are counted by: a change of any of it starts afresh.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BackoffKey {
    pub(crate) container: String,
    pub(crate) image: String,
}

impl BackoffKey {
    pub(crate) fn of(container: &Container) -> Self {
        Self { container: container.name.clone(), image: container.image.clone() }
    }
}

/// Everything a plan is made from.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) observed: &'a Observation,
    pub(crate) probes: &'a ProbeResults,
    pub(crate) backoff: &'a Backoff<BackoffKey>,
    /// All containers are being removed after an exit whose rule says so.
    pub(crate) restarting_all: bool,
    /// What was set last.
    pub(crate) sizes: &'a Sizes,
    pub(crate) now: Now,
}

impl Plan {
    /// Whether there is nothing to do now.
    pub(crate) fn is_idle(&self) -> bool {
        !self.kill_pod
            && !self.create_sandbox
            && self.kill.is_empty()
            && self.reset.is_empty()
            && self.resize.is_none()
            && self.start.is_empty()
    }
}

/// Decides what a pod that should run needs now.
pub(crate) fn plan(inputs: &Inputs<'_>) -> Plan {
    let mut draft = Draft::of(inputs);
    draft.decide(inputs);
    draft.finish(inputs)
}

/// A plan whose starts are still positions in the pod's lists.
#[derive(Default)]
pub(super) struct Draft {
    plan: Plan,
    init: Vec<usize>,
    regular: Vec<usize>,
    ephemeral: Vec<usize>,
    resizes: Vec<ContainerResize>,
}

impl Draft {
    fn of(inputs: &Inputs<'_>) -> Self {
        let need = sandbox_need(inputs.pod, inputs.observed);
        let plan = Plan {
            kill_pod: need.create,
            create_sandbox: need.create,
            attempt: need.attempt,
            sandbox: need.current,
            ..Plan::default()
        };
        Self { plan, ..Self::default() }
    }

    fn decide(&mut self, inputs: &Inputs<'_>) {
        let Inputs { pod, observed, .. } = *inputs;
        if inputs.restarting_all {
            self.plan.kill_pod = false;
            self.plan.create_sandbox = false;
            self.plan.reset = resets(pod, observed);
            return;
        }
        if self.plan.create_sandbox {
            return self.decide_with_new_sandbox(pod, observed);
        }
        for (at, container) in pod.spec.ephemeral_containers.iter().enumerate() {
            // An ephemeral container runs once, whatever became of it.
            if observed.latest(&container.name).is_none() {
                self.ephemeral.push(at);
            }
        }
        let initialized = self.decide_init(inputs);
        if self.plan.kill_pod || !initialized {
            return;
        }
        let mut kept = 0;
        for at in 0..pod.spec.containers.len() {
            kept += usize::from(self.decide_regular(inputs, at));
        }
        if kept == 0 && self.regular.is_empty() {
            self.plan.kill_pod = true;
            // Sidecars must not keep a pod alive whose work is done.
            self.init.clear();
        }
    }

    /// A new sandbox starts the pod from its first container, unless its work is done already.
    ///
    /// Each container's own policy counts here. The kubelet asks the pod's alone, and leaves a pod with policy
    /// `Never` and a container with policy `Always` dead but not ended.
    fn decide_with_new_sandbox(&mut self, pod: &Pod, observed: &Observation) {
        let wanted = |container: &Container| match observed.latest(&container.name) {
            None => true,
            Some(last) => match last.phase {
                ContainerPhase::Created => true,
                ContainerPhase::Exited => restart::restarts_after(container, &pod.spec, last.exit_code),
                ContainerPhase::Running | ContainerPhase::Unknown => {
                    restart::restarts_after_kill(container, &pod.spec)
                }
            },
        };
        let starts: Vec<usize> =
            (0..pod.spec.containers.len()).filter(|at| wanted(&pod.spec.containers[*at])).collect();
        if starts.is_empty() {
            self.plan.create_sandbox = false;
        } else if pod.spec.init_containers.is_empty() {
            self.regular = starts;
        } else {
            self.init = vec![0];
        }
    }

    /// Decides on one regular container; true when it runs and is kept.
    fn decide_regular(&mut self, inputs: &Inputs<'_>, at: usize) -> bool {
        let Inputs { pod, observed, probes, .. } = *inputs;
        let container = &pod.spec.containers[at];
        let Some(last) = observed.latest(&container.name).filter(|l| l.phase == ContainerPhase::Running)
        else {
            if restart::should_start(container, pod, observed) {
                self.regular.push(at);
                let unknown = observed.latest(&container.name).filter(|l| l.phase == ContainerPhase::Unknown);
                if let Some(last) = unknown {
                    // It may run after all: two instances of one container must never.
                    let message =
                        format!("Container is in {:?} state, try killing it before restart", "unknown");
                    self.kill(last, message, KillReason::Other);
                }
            }
            return false;
        };
        let changed = hash_differs(container, last);
        let (message, reason) = if changed {
            (format!("Container {} definition changed", container.name), KillReason::Other)
        } else if probes.get(&last.id, ProbeKind::Liveness) == Some(false) {
            (format!("Container {} failed liveness probe", container.name), KillReason::Liveness)
        } else if probes.get(&last.id, ProbeKind::Startup) == Some(false) {
            (format!("Container {} failed startup probe", container.name), KillReason::Startup)
        } else {
            let restarts = self.decide_resize(inputs, container, last);
            if restarts {
                self.regular.push(at);
            }
            return !restarts;
        };
        if changed || restart::restarts_after_kill(container, &pod.spec) {
            self.regular.push(at);
            self.kill(last, format!("{message}, will be restarted"), reason);
        } else {
            self.kill(last, message, reason);
        }
        false
    }

    /// Notes what a container that runs needs to have what it was allocated; true if it has to start anew.
    fn decide_resize(&mut self, inputs: &Inputs<'_>, container: &Container, last: &Instance) -> bool {
        match resize::need(inputs.pod, container, last, inputs.sizes) {
            Need::Nothing => false,
            Need::Update(resize) => {
                self.resizes.push(resize);
                false
            }
            Need::Restart => {
                let message = format!("Container {} resize requires restart", container.name);
                self.kill(last, message, KillReason::Other);
                true
            }
        }
    }

    fn kill(&mut self, instance: &Instance, message: String, reason: KillReason) {
        let (id, name) = (instance.id.clone(), instance.name.clone());
        self.plan.kill.push(Kill { id, name, message, reason });
    }

    /// Turns positions into starts, holding back those whose back-off lasts.
    fn finish(self, inputs: &Inputs<'_>) -> Plan {
        let Self { mut plan, init, regular, ephemeral, resizes } = self;
        if !plan.kill_pod && !plan.create_sandbox && plan.reset.is_empty() && plan.sandbox.is_some() {
            plan.resize = Resize::of(inputs.sizes, resizes);
        }
        let spec = &inputs.pod.spec;
        let listed = ephemeral
            .iter()
            .map(|at| (&spec.ephemeral_containers[*at], ContainerKind::Ephemeral))
            .chain(init.iter().map(|at| {
                let container = &spec.init_containers[*at];
                let sidecar = container.is_restartable_init();
                (container, if sidecar { ContainerKind::Sidecar } else { ContainerKind::Init })
            }))
            .chain(regular.iter().map(|at| (&spec.containers[*at], ContainerKind::Regular)));
        for (container, kind) in listed {
            let ended = inputs
                .observed
                .containers
                .iter()
                .find(|c| c.name == container.name && c.phase == ContainerPhase::Exited)
                .map(|c| c.finished);
            let key = BackoffKey::of(container);
            let until = ended.and_then(|end| inputs.backoff.wait_until(&key, end, inputs.now.boot));
            let name = container.name.clone();
            match until {
                Some(until) => plan.waits.push(Wait { name, until, delay: inputs.backoff.delay(&key) }),
                None => plan.start.push(Start { name, kind, after_end: ended }),
            }
            if until.is_some() && kind == ContainerKind::Init {
                // The pod is initialized in order: nothing behind a waiting init container may start.
                break;
            }
        }
        plan.prune = prunable(inputs.pod, inputs.observed, plan.create_sandbox);
        plan
    }
}

/// Whether the specification that an instance was made from is no longer the container's.
pub(super) fn hash_differs(container: &Container, instance: &Instance) -> bool {
    instance.hash.is_some_and(|hash| hash != container_hash(container))
}

/// Whether any regular container has ever been made, which init containers precede.
pub(crate) fn any_regular_created(pod: &Pod, observed: &Observation) -> bool {
    pod.spec
        .containers
        .iter()
        .any(|c| observed.latest(&c.name).is_some_and(|last| last.phase != ContainerPhase::Unknown))
}

/// Instances of init containers that history does not need: all but the last ended one of each, or all of
/// them when a new sandbox starts the pod over.
fn prunable(pod: &Pod, observed: &Observation, all: bool) -> Vec<Arc<str>> {
    let mut prunable = Vec::new();
    for container in &pod.spec.init_containers {
        let ended = observed.containers.iter().filter(|c| {
            c.name == container.name
                && (all || matches!(c.phase, ContainerPhase::Exited | ContainerPhase::Unknown))
        });
        prunable.extend(ended.skip(usize::from(!all)).map(|c| c.id.clone()));
    }
    prunable
}

/// All instances, those whose exit asked for the restart last, regular ones before init ones.
fn resets(pod: &Pod, observed: &Observation) -> Vec<Reset> {
    let split = |containers: &[Container]| {
        let (mut sources, mut targets) = (Vec::new(), Vec::new());
        for container in containers {
            for instance in observed.containers.iter().filter(|c| c.name == container.name) {
                let exited = instance.phase == ContainerPhase::Exited;
                let source =
                    exited && restart::matching_rule(container, instance.exit_code) == Some(RESTART_ALL);
                let reset = Reset { id: instance.id.clone(), name: instance.name.clone(), kill: !exited };
                if source { sources.push(reset) } else { targets.push(reset) }
            }
        }
        (sources, targets)
    };
    let (init_sources, init_targets) = split(&pod.spec.init_containers);
    let (sources, mut resets) = split(&pod.spec.containers);
    resets.extend(init_targets);
    resets.extend(sources);
    resets.extend(init_sources);
    resets
}
