//! Ends of workers: pods that are gone, and workers that failed.
//!
//! Part of the dispatcher's task.

use std::time::Duration;

use tokio::task::{Id, JoinError};

use super::Dispatcher;
use crate::events::EventType;

impl Dispatcher {
    pub(super) fn exited(&mut self, exit: Result<(Id, ()), JoinError>) {
        let task = match &exit {
            Ok((task, ())) => *task,
            Err(error) => error.id(),
        };
        let Some(uid) = self.by_task.remove(&task) else { return };
        let Err(error) = exit else {
            self.entries.remove(&uid);
            self.panics.reset(&uid);
            return;
        };
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        let pod = entry.desired.borrow().pod.clone();
        let text = match error.try_into_panic() {
            Ok(panic) => panic_text(&*panic),
            Err(_) => "its task was cancelled".to_owned(),
        };
        tracing::error!(pod = %pod.full_name(), panic = %text, "pod worker failed");
        let message = format!("pod worker failed: {text}");
        self.node.events.pod(&pod, None, EventType::Warning, "FailedSync", message);
        let now = self.node.clock.now().boot;
        entry.task = Err(self.panics.fail(uid, now, 0));
    }

    /// When the first of the failed workers is begun again.
    pub(super) fn next_restart(&self) -> Option<Duration> {
        self.entries.values().filter_map(|entry| entry.task.as_ref().err()).min().copied()
    }

    /// Begins the failed workers again whose time has come: they rebuild what they know from the runtime.
    pub(super) fn restart_failed(&mut self) {
        let now = self.node.clock.now().boot;
        let due = self.entries.iter().filter(|(_, entry)| entry.task.is_err_and(|at| at <= now));
        let due: Vec<_> = due.map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            let Some(entry) = self.entries.get(&uid) else { continue };
            let (desired, bell) = (entry.desired.subscribe(), entry.bell.clone());
            let task = self.start(&uid, desired, bell, false, None);
            if let Some(entry) = self.entries.get_mut(&uid) {
                entry.task = Ok(task);
            }
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned())
}
