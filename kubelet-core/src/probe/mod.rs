//! Probes: startup, liveness and readiness checks of containers by exec, HTTP, TCP and gRPC.
//!
//! Owned by a pod's worker: [`prober::Prober`] holds one task for each probe of each container (a task, no
//! thread and no process), which sleeps unless its container runs and is due. Results come back to the
//! worker by channel and are kept by container id, so that a new run starts without any.

pub(crate) mod check;
pub(crate) mod counts;
pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod prober;
pub(crate) mod schedule;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::PodStatus;

/// Which probe of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ProbeKind {
    /// Whether it has started; the others wait for it.
    Startup,
    /// Whether it must be restarted.
    Liveness,
    /// Whether it may be used.
    Readiness,
}

impl std::fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        })
    }
}

/// Results that reached their threshold, by container id.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ProbeResults(BTreeMap<(Arc<str>, ProbeKind), bool>);

impl ProbeResults {
    /// What the probes had found when this status was written; failures are left to be found again.
    pub(crate) fn of_status(status: &PodStatus) -> Self {
        let mut results = Self::default();
        for container in status.init_container_statuses.iter().chain(&status.container_statuses) {
            let id: Arc<str> = Arc::from(container.bare_id());
            if container.started == Some(true) {
                results.set(id.clone(), ProbeKind::Startup, true);
            }
            if container.ready {
                results.set(id, ProbeKind::Readiness, true);
            }
        }
        results
    }

    /// Success or failure; none while it has not been decided.
    pub(crate) fn get(&self, id: &str, kind: ProbeKind) -> Option<bool> {
        // Few containers have probes, and a pod has few containers.
        self.0.iter().find(|((known, k), _)| **known == *id && *k == kind).map(|(_, result)| *result)
    }

    /// Records a result; true when it is news.
    pub(crate) fn set(&mut self, id: Arc<str>, kind: ProbeKind, success: bool) -> bool {
        self.0.insert((id, kind), success) != Some(success)
    }

    /// Forgets the containers that are gone.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.0.retain(|(id, _), _| keep(id));
    }
}
