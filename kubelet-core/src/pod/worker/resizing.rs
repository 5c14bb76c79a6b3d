//! What a worker knows of the CPU and memory of its pod, and what it tells of a resize.
//!
//! Part of the worker, which alone sets them: what was set last is in its memory, and for an agent that comes after it
//! in the pod's status.

use super::Worker;
use crate::allocation::{given_by_status, is_resized, is_settled};
use crate::api::{Pod, PodCondition, PodStatus};
use crate::events::EventType;
use crate::pod::resize::{self, PENDING, Resizing, Sizes, event_text};
use crate::qos::PodCgroupLimits;

/// Holds back a resize that failed; no container has this name.
pub(super) const RESIZE: &str = "resize of";

impl Sizes {
    /// Of a pod as the agent finds it, with the status that the one before it left.
    pub(super) fn found(
        pod: &Pod,
        told: Option<&PodStatus>,
        limits: impl Fn(&Pod) -> PodCgroupLimits,
    ) -> Self {
        let given = told.filter(|told| !is_settled(pod, told)).and_then(|told| {
            let status = told.clone();
            given_by_status(&Pod { status, ..pod.clone() })
        });
        Self { pod: limits(given.as_ref().unwrap_or(pod)), wanted: limits(pod), ..Self::default() }
    }
}

impl Worker {
    /// The pod is described anew: what it is allocated may have changed.
    pub(super) fn note_allocation(&mut self, before: &Pod) {
        if !is_resized(before, &self.pod) {
            return;
        }
        self.sizes.wanted = self.node.resources.limits(&self.pod);
        let generation = self.pod.metadata.generation;
        self.resizing = Some(Resizing { generation, error: None });
        let text = event_text("started", &self.pod, generation, "");
        self.node.events.pod(&self.pod, None, EventType::Normal, "ResizeStarted", text);
    }

    /// Compares what was observed with what is allocated.
    pub(super) fn follow_resize(&mut self) {
        let told = self.status.as_deref().or(self.last.as_deref());
        self.sizes.take_up(&self.pod, &self.observed, told);
        let generation = self.pod.metadata.generation;
        match (resize::in_progress(&self.pod, &self.observed, &self.sizes), &self.resizing) {
            (true, None) => self.resizing = Some(Resizing { generation, error: None }),
            (false, Some(done)) => {
                let text = event_text("completed", &self.pod, done.generation, "");
                self.node.events.pod(&self.pod, None, EventType::Normal, "ResizeCompleted", text);
                self.resizing = None;
                self.retries.reset(&RESIZE.to_owned());
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    pub(super) fn resize_failed(&mut self, message: String) {
        self.hold(RESIZE);
        let generation = self.pod.metadata.generation;
        let resizing = self.resizing.get_or_insert(Resizing { generation, error: None });
        if resizing.error.as_ref() == Some(&message) {
            return;
        }
        let text = event_text("error", &self.pod, resizing.generation, &message);
        resizing.error = Some(message);
        self.node.events.pod(&self.pod, None, EventType::Warning, "ResizeError", text);
    }

    /// Tells of a resize that has to wait, when the status tells so for the first time.
    pub(super) fn tell_of_waiting(&self, old: Option<&PodStatus>, new: &PodStatus) {
        let find = |status: &'_ PodStatus| -> Option<PodCondition> {
            status.conditions.iter().find(|condition| condition.r#type == PENDING).cloned()
        };
        let (Some(now), Some(pending)) = (find(new), self.pod.pending_resize.as_deref()) else { return };
        let before = old.and_then(find);
        if before.is_some_and(|before| before.observed_generation == now.observed_generation) {
            return;
        }
        let text = event_text(&now.reason, &pending.wanted, now.observed_generation, &now.message);
        self.node.events.pod(&self.pod, None, EventType::Warning, "ResizeDeferred", text);
    }
}
