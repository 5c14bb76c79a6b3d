//! What a runtime's streaming server has shown not to speak, for as long as that is worth remembering.
//!
//! Read and written by the sessions of the kubelet API, in whatever order they come: the latest refusal counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// So long a refusal counts: a runtime may be replaced by one that knows more, and a refusal may have had another cause.
const REMEMBERED: Duration = Duration::from_secs(600);

/// A protocol and when it was refused last.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    /// Whole seconds since boot until which it counts; zero if there was none.
    until: AtomicU64,
}

impl Refusal {
    /// Whether the protocol need not be tried at this time since boot.
    pub(super) fn counts(&self, now: Duration) -> bool {
        now.as_secs() < self.until.load(Ordering::Relaxed)
    }

    /// The protocol was refused.
    pub(super) fn note(&self, now: Duration) {
        self.until.store((now + REMEMBERED).as_secs(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_counts_for_a_while() {
        let (refusal, at) = (Refusal::default(), Duration::from_secs);
        assert!(!refusal.counts(at(0)) && !refusal.counts(at(5)));
        refusal.note(at(5));
        assert!(refusal.counts(at(5)) && refusal.counts(at(604)));
        assert!(!refusal.counts(at(605)));
        refusal.note(at(700));
        assert!(refusal.counts(at(1299)));
    }
}
