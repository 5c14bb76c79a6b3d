//! One gate per pod, so that two pieces of disk work for it never overlap.
//!
//! The worker of a pod makes one call at a time, but a call that is dropped at its deadline leaves work running on
//! a blocking thread; the next call waits here for its end. A gate lives while someone holds or awaits it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as Gate, OwnedMutexGuard};

#[derive(Default)]
pub(super) struct Gates(Mutex<HashMap<String, Weak<Gate<()>>>>);

impl Gates {
    /// Waits until no work for that pod runs; the next work may when the guard is dropped.
    pub(super) async fn enter(&self, uid: &str) -> OwnedMutexGuard<()> {
        self.gate(uid).lock_owned().await
    }

    fn gate(&self, uid: &str) -> Arc<Gate<()>> {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(uid).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Gate::new(()));
        gates.insert(uid.to_owned(), Arc::downgrade(&gate));
        gate
    }
}
