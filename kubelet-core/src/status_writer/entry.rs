//! One pod between this node and the API: what the API has, what the node observed, and what to do next.
//!
//! Owned by the writer's task; pure.

use std::sync::Arc;

use serde_json::Value;

use super::patch;
use crate::api::{Pod, PodStatus};
use crate::pod::status::is_terminal_phase;
use crate::source::is_mirror;

/// What the API has of a pod, as far as this node knows.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: Arc<str>,
    pub(super) status: Arc<PodStatus>,
    /// Version of the object that `status` is from.
    pub(super) version: u64,
    pub(super) deleting: bool,
    pub(super) is_mirror: bool,
    /// The last thing was asked for: its end.
    pub(super) delete_sent: bool,
}

impl Served {
    /// Takes what matters from a served pod.
    pub(super) fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            status: Arc::new(pod.status.clone()),
            version: version(&pod.metadata.resource_version),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            is_mirror: is_mirror(pod),
            delete_sent: false,
        }
    }
}

/// Versions of one kind of object are numbers that rise; whatever is none counts as the oldest.
pub(super) fn version(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

/// What the node observed.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) status: Arc<PodStatus>,
    pub(super) ended: bool,
}

/// What to ask the API for.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Change the status; afterwards the API has `result`.
    Patch { status: Value, result: Arc<PodStatus> },
    /// Remove the object: nothing of the pod is left here.
    Delete,
}

/// One pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub(super) served: Option<Served>,
    pub(super) own: Option<Own>,
    /// A request is under way.
    pub(super) busy: bool,
    /// There was nothing to ask for when it was looked at, and nothing changed since.
    settled: bool,
}

impl Entry {
    /// Takes over what the API serves. What is older than the answer to the last write says nothing new.
    pub(super) fn see(&mut self, pod: &Pod) {
        let mut seen = Served::of(pod);
        if let Some(known) = &self.served {
            seen.delete_sent = known.delete_sent;
            seen.deleting |= known.deleting;
            let is_old = seen.version != 0 && seen.version <= known.version;
            if is_old || *seen.status == *known.status {
                seen.status = known.status.clone();
                seen.version = seen.version.max(known.version);
            }
        }
        self.served = Some(seen);
        self.settled = false;
    }

    /// Takes over what the node observed.
    pub(super) fn observe(&mut self, status: &Arc<PodStatus>, ended: bool) {
        let same = |own: &Own| Arc::ptr_eq(&own.status, status) && own.ended == ended;
        if !self.own.as_ref().is_some_and(same) {
            self.own = Some(Own { status: status.clone(), ended });
            self.settled = false;
        }
    }

    /// A request has ended; `served` is what the API has now.
    pub(super) fn answered(&mut self, served: Option<Served>) {
        self.served = served;
        self.busy = false;
        self.settled = false;
    }

    /// The next request, if something changed that may lead to one. Looking is not free: it compares statuses.
    pub(super) fn due(&mut self) -> Option<Step> {
        if self.settled || self.busy {
            return None;
        }
        let step = self.next();
        self.settled = step.is_none();
        step
    }

    /// The next request, if there is something to ask for.
    fn next(&self) -> Option<Step> {
        if self.busy {
            return None;
        }
        let (served, own) = (self.served.as_ref()?, self.own.as_ref()?);
        // Without one it waits for the pod before it under its name: nothing was observed yet.
        own.status.start_time?;
        let wanted = patch::merged(&served.status, &own.status, own.ended);
        if let Some(status) = patch::patch(&served.status, &wanted) {
            // Mostly the same, and then held once.
            let result = if wanted == *own.status { own.status.clone() } else { Arc::new(wanted) };
            return Some(Step::Patch { status, result });
        }
        let may_go = served.deleting && own.ended && is_terminal_phase(&served.status.phase);
        (may_go && !served.is_mirror && !served.delete_sent).then_some(Step::Delete)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(version: &str, status: Value, deleting: bool) -> Pod {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u", "resourceVersion": version},
            "status": status
        }))
        .unwrap();
        pod.metadata.deletion_timestamp = deleting.then_some(crate::api::Time(1));
        pod
    }

    fn own(status: Value, ended: bool) -> Option<Own> {
        Some(Own { status: Arc::new(serde_json::from_value(status).unwrap()), ended })
    }

    fn written(entry: &mut Entry) -> Value {
        let Some(Step::Patch { status, result }) = entry.next() else {
            panic!("nothing to write: {entry:?}")
        };
        let served = entry.served.as_mut().unwrap();
        served.status = result;
        served.version += 1;
        status
    }

    const START: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn a_pod_is_written_then_ended_then_deleted() {
        let mut entry = Entry::default();
        entry.see(&pod("5", json!({"phase": "Pending"}), false));
        entry.own = own(json!({"phase": "Pending"}), false);
        assert!(entry.next().is_none(), "nothing was observed yet");
        entry.own = own(json!({"phase": "Running", "startTime": START}), false);
        assert_eq!(written(&mut entry), json!({"phase": "Running", "startTime": START}));
        assert!(entry.next().is_none());
        entry.see(&pod("5", json!({"phase": "Pending"}), true));
        assert!(entry.next().is_none(), "what is older than the write does not count, but the deletion does");
        entry.own = own(json!({"phase": "Failed", "startTime": START}), true);
        assert!(entry.next().is_some());
        written(&mut entry);
        assert!(matches!(entry.next(), Some(Step::Delete)));
        entry.served.as_mut().unwrap().delete_sent = true;
        assert!(entry.next().is_none());
    }

    #[test]
    fn what_others_write_into_the_status_is_set_right() {
        let mut entry = Entry::default();
        entry.see(&pod("5", json!({"phase": "Running", "startTime": START}), false));
        entry.own = own(json!({"phase": "Running", "startTime": START}), false);
        assert!(entry.next().is_none());
        entry.see(&pod("6", json!({"phase": "Running", "message": "mine", "startTime": START}), false));
        assert_eq!(written(&mut entry), json!({"message": null}));
        entry.busy = true;
        entry.own = own(json!({"phase": "Failed", "startTime": START}), true);
        assert!(entry.next().is_none(), "one request at a time");
    }
}
