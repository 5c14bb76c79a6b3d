//! How often probes succeeded and failed, for `/metrics/probes`.
//!
//! Each probe's task owns its numbers, the list here knows them as long as the task lives: reading takes one short
//! lock, counting none.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::ProbeKind;

/// The numbers of one probe of one container.
#[derive(Debug)]
pub(crate) struct ProbeCount {
    pub(crate) namespace: Box<str>,
    pub(crate) pod: Box<str>,
    pub(crate) uid: Arc<str>,
    pub(crate) container: Box<str>,
    pub(crate) kind: ProbeKind,
    successful: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
}

impl ProbeCount {
    /// Counts one result; none is one that could not be told.
    pub(crate) fn add(&self, result: Option<bool>) {
        let number = match result {
            Some(true) => &self.successful,
            Some(false) => &self.failed,
            None => &self.unknown,
        };
        number.fetch_add(1, Ordering::Relaxed);
    }

    /// Results by the kubelet's name of them.
    pub(crate) fn results(&self) -> [(&'static str, u64); 3] {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        [("failed", of(&self.failed)), ("successful", of(&self.successful)), ("unknown", of(&self.unknown))]
    }
}

/// The numbers of all probes of a node. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ProbeCounts(Arc<Mutex<Vec<Weak<ProbeCount>>>>);

impl ProbeCounts {
    /// The numbers of a new probe.
    pub(crate) fn begin(&self, pod: &crate::api::Pod, container: &str, kind: ProbeKind) -> Arc<ProbeCount> {
        let count = Arc::new(ProbeCount {
            namespace: pod.metadata.namespace.as_str().into(),
            pod: pod.metadata.name.as_str().into(),
            uid: pod.metadata.uid.clone(),
            container: container.into(),
            kind,
            successful: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        all.push(Arc::downgrade(&count));
        count
    }

    /// The probes that there are.
    pub(crate) fn all(&self) -> Vec<Arc<ProbeCount>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_last_as_long_as_their_probe() {
        let counts = ProbeCounts::default();
        let count = counts.begin(&crate::api::Pod::default(), "app", ProbeKind::Liveness);
        count.add(Some(true));
        count.add(Some(true));
        count.add(None);
        assert_eq!(counts.all()[0].results(), [("failed", 0), ("successful", 2), ("unknown", 1)]);
        drop(count);
        assert!(counts.all().is_empty());
    }
}
