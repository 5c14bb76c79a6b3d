//! Planning of init containers and sidecars: the order in which a pod is initialized.
//!
//! Called by `plan`; pure, with the decisions of the kubelet's `computeInitContainerActions`. The list is
//! walked from its end, because ended init containers may have been cleaned up: the last one that left a
//! trace tells how far initialization came.

use super::{Draft, Inputs, KillReason, hash_differs};
use crate::api::{Container, Pod};
use crate::pod::observation::{ContainerPhase, Instance, Observation};
use crate::pod::restart;
use crate::probe::ProbeKind;

/// What one init container means for the rest.
enum Step {
    /// Nothing more to decide on it.
    Next,
    /// It was the last one and is done: the pod is initialized.
    Initialized,
    /// It failed for good.
    PodFailed,
}

impl Draft {
    /// Decides on the init containers; true when the regular ones may start.
    pub(super) fn decide_init(&mut self, inputs: &Inputs<'_>) -> bool {
        let Inputs { pod, observed, .. } = *inputs;
        let count = pod.spec.init_containers.len();
        if count == 0 {
            return true;
        }
        let mut initialized = any_regular_active(pod, observed);
        // Whether a later container already shows that this one came to its end.
        let mut previously = initialized;
        for at in (0..count).rev() {
            let container = &pod.spec.init_containers[at];
            let sidecar = container.is_restartable_init();
            let Some(last) = observed.latest(&container.name) else {
                if previously && sidecar {
                    self.init.push(at);
                }
                continue;
            };
            if previously && !sidecar {
                continue;
            }
            match self.decide_one(inputs, at, last, previously) {
                Step::Next => {}
                Step::Initialized => initialized = true,
                Step::PodFailed => {
                    self.plan.kill_pod = true;
                    self.init.clear();
                    return false;
                }
            }
            previously = true;
        }
        if !previously {
            self.init.push(0);
        }
        self.init.reverse();
        self.init.dedup();
        initialized
    }

    fn decide_one(&mut self, inputs: &Inputs<'_>, at: usize, last: &Instance, previously: bool) -> Step {
        let container = &inputs.pod.spec.init_containers[at];
        let sidecar = container.is_restartable_init();
        match (last.phase, sidecar) {
            // A start that failed may leave it created: start it again.
            (ContainerPhase::Created, _) | (ContainerPhase::Exited, true) => self.init.push(at),
            (ContainerPhase::Running, false) => {
                // The API lets none of these ask for a restart.
                let _ = self.decide_resize(inputs, container, last);
            }
            (ContainerPhase::Running, true) => return self.decide_sidecar(inputs, at, last, previously),
            (ContainerPhase::Exited, false) => return self.decide_ended(inputs, at, last),
            (ContainerPhase::Unknown, _) => {
                if !sidecar && !restart::restarts_after_kill(container, &inputs.pod.spec) {
                    return Step::PodFailed;
                }
                let message =
                    format!("Init container is in {:?} state, try killing it before restart", "unknown");
                self.kill(last, message, KillReason::Other);
                self.init.push(at);
            }
        }
        Step::Next
    }

    /// A running sidecar lets the next container start once its startup probe succeeded.
    fn decide_sidecar(&mut self, inputs: &Inputs<'_>, at: usize, last: &Instance, previously: bool) -> Step {
        let Inputs { pod, probes, .. } = *inputs;
        let container = &pod.spec.init_containers[at];
        let name = &container.name;
        if container.startup_probe.is_some() {
            match probes.get(&last.id, ProbeKind::Startup) {
                None => return Step::Next,
                Some(false) => {
                    let message = format!("Init container {name} failed startup probe");
                    self.kill(last, message, KillReason::Startup);
                    self.init.push(at);
                    return Step::Next;
                }
                Some(true) => {}
            }
        }
        let is_last = at + 1 == pod.spec.init_containers.len();
        if !is_last && !previously {
            self.init.push(at + 1);
        }
        if hash_differs(container, last) {
            self.kill(last, format!("Init container {name} definition changed"), KillReason::Other);
            self.init.push(at);
        } else if probes.get(&last.id, ProbeKind::Liveness) == Some(false) {
            self.kill(last, format!("Init container {name} failed liveness probe"), KillReason::Liveness);
            self.init.push(at);
        } else if self.decide_resize(inputs, container, last) {
            self.init.push(at);
        }
        if is_last { Step::Initialized } else { Step::Next }
    }

    /// An ended init container lets the next one start, starts again, or fails the pod.
    fn decide_ended(&mut self, inputs: &Inputs<'_>, at: usize, last: &Instance) -> Step {
        let container = &inputs.pod.spec.init_containers[at];
        if init_failed(last) {
            if !restart_failed(container, inputs.pod, last) {
                return Step::PodFailed;
            }
            self.init.push(at);
            return Step::Next;
        }
        if at + 1 == inputs.pod.spec.init_containers.len() {
            return Step::Initialized;
        }
        self.init.push(at + 1);
        Step::Next
    }
}

/// A regular container that is made or runs proves the init containers done. An ended one does not: it may
/// be of a sandbox before.
fn any_regular_active(pod: &Pod, observed: &Observation) -> bool {
    pod.spec.containers.iter().any(|c| {
        observed
            .latest(&c.name)
            .is_some_and(|last| matches!(last.phase, ContainerPhase::Created | ContainerPhase::Running))
    })
}

fn init_failed(last: &Instance) -> bool {
    last.reason == "OOMKilled" || last.exit_code != 0
}

/// An init container that the OOM killer ended with code 0 counts as failed, and its policy as `OnFailure`
/// would have it.
fn restart_failed(container: &Container, pod: &Pod, last: &Instance) -> bool {
    pod.metadata.deletion_timestamp.is_none() && restart::restarts_after(container, &pod.spec, last.exit_code)
}
