//! Whether a pod needs a new sandbox, as `PodSandboxChanged` of the kubelet decides it.
//!
//! Called by planning and by status; pure.

use std::sync::Arc;

use crate::api::Pod;
use crate::pod::observation::Observation;

/// What the sandboxes of a pod call for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SandboxNeed {
    /// Whether one must be made.
    pub(crate) create: bool,
    /// Attempt of the one to be made, or of the one that serves.
    pub(crate) attempt: u32,
    /// The one that serves, or the one to be replaced.
    pub(crate) current: Option<Arc<str>>,
}

/// Compares the sandboxes with what the pod wants.
pub(crate) fn sandbox_need(pod: &Pod, observation: &Observation) -> SandboxNeed {
    let Some(newest) = observation.sandboxes.first() else {
        return SandboxNeed { create: true, attempt: 0, current: None };
    };
    let replace = |current| SandboxNeed { create: true, attempt: newest.attempt.saturating_add(1), current };
    let ready = observation.sandboxes.iter().filter(|sandbox| sandbox.ready).count();
    if ready > 1 || !newest.ready {
        return replace(Some(newest.id.clone()));
    }
    if newest.host_network != pod.spec.host_network {
        return replace(None);
    }
    if !pod.spec.host_network && newest.reports_network && newest.ips.is_empty() {
        return replace(Some(newest.id.clone()));
    }
    SandboxNeed { create: false, attempt: newest.attempt, current: Some(newest.id.clone()) }
}
