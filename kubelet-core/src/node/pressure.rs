//! When memory, disk or process ids run short: thresholds, and the conditions and the need to end pods that follow from
//! observations.
//!
//! Pure: the node's reporter hands in observations and the time since boot. Follows the kubelet's eviction
//! package (1.36): a soft threshold counts once it was met for its grace period, one that led to an eviction until its
//! minimum is reclaimed, and a condition lasts for the transition period after its threshold was met last.

mod flags;

use std::collections::BTreeMap;
use std::time::Duration;

pub use flags::{EvictionFlagError, parse_thresholds};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Memory that pods could still take.
    MemoryAvailable,
    /// Bytes of the file system with the pods' folders.
    NodefsAvailable,
    /// Inodes there.
    NodefsInodesFree,
    /// Bytes of the file system with the images.
    ImagefsAvailable,
    /// Inodes there.
    ImagefsInodesFree,
    /// Process ids.
    PidAvailable,
}

impl Signal {
    const ALL: [(Self, &'static str); 6] = [
        (Self::MemoryAvailable, "memory.available"),
        (Self::NodefsAvailable, "nodefs.available"),
        (Self::NodefsInodesFree, "nodefs.inodesFree"),
        (Self::ImagefsAvailable, "imagefs.available"),
        (Self::ImagefsInodesFree, "imagefs.inodesFree"),
        (Self::PidAvailable, "pid.available"),
    ];

    /// The kubelet's name for it.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(signal, _)| *signal == self).map_or("", |(_, name)| name)
    }
}

/// Below this much a signal means pressure.
#[derive(Clone, Debug, PartialEq)]
pub enum Limit {
    /// An amount.
    Amount(i64),
    /// A part of the capacity, 0 to 1, in the kubelet's precision.
    Part(f32),
}

impl Limit {
    /// The amount that it means with a capacity.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "as the kubelet rounds")]
    pub fn amount(&self, capacity: i64) -> i64 {
        match self {
            Self::Amount(amount) => *amount,
            Self::Part(part) => (capacity as f64 * f64::from(*part)) as i64,
        }
    }
}

/// When a signal means pressure.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// What is measured.
    pub signal: Signal,
    /// Below this much.
    pub limit: Limit,
    /// For so long before pods are ended because of it; zero for a hard threshold.
    pub grace_period: Duration,
    /// So much more than the limit has to be there before pods are spared again.
    pub minimum_reclaim: Option<Limit>,
}

impl Threshold {
    /// A threshold at which pods are ended at once.
    pub fn hard(signal: Signal, limit: Limit) -> Self {
        Self { signal, limit, grace_period: Duration::ZERO, minimum_reclaim: None }
    }

    /// Whether pods are ended as soon as it is met.
    pub fn is_hard(&self) -> bool {
        self.grace_period.is_zero()
    }

    /// Whether less is left than should be; and, if pods were ended because of it already, than is to be reclaimed.
    fn is_met(&self, observations: &Observations, is_acted_on: bool) -> bool {
        let Some(seen) = observations.get(&self.signal) else { return false };
        let more = self.minimum_reclaim.as_ref().filter(|_| is_acted_on);
        let wanted = more.map_or(0, |more| more.amount(seen.capacity));
        self.limit.amount(seen.capacity).saturating_add(wanted) > seen.available
    }
}

/// When pods are ended for the node's sake: the kubelet's `--eviction-…` flags.
#[derive(Clone, Debug, PartialEq)]
pub struct EvictionPolicy {
    /// `--eviction-hard`, then `--eviction-soft`.
    pub thresholds: Vec<Threshold>,
    /// A condition lasts so long after the pressure has gone (`--eviction-pressure-transition-period`).
    pub transition_period: Duration,
    /// Seconds that a pod may take at most to end because of a soft threshold (`--eviction-max-pod-grace-period`); its
    /// own grace period if negative.
    pub max_pod_grace_seconds: i64,
}

impl Default for EvictionPolicy {
    /// The kubelet's defaults on Linux.
    fn default() -> Self {
        let thresholds = vec![
            Threshold::hard(Signal::MemoryAvailable, Limit::Amount(100 << 20)),
            Threshold::hard(Signal::NodefsAvailable, Limit::Part(10.0 / 100.0)),
            Threshold::hard(Signal::NodefsInodesFree, Limit::Part(5.0 / 100.0)),
            Threshold::hard(Signal::ImagefsAvailable, Limit::Part(15.0 / 100.0)),
            Threshold::hard(Signal::ImagefsInodesFree, Limit::Part(5.0 / 100.0)),
        ];
        Self { thresholds, transition_period: Duration::from_secs(300), max_pod_grace_seconds: 0 }
    }
}

impl EvictionPolicy {
    /// How much of a resource is kept from pods by its hard threshold.
    pub fn kept_back(&self, signal: Signal, capacity: i64) -> i64 {
        let mut hard = self.thresholds.iter().filter(|threshold| threshold.is_hard());
        hard.find(|threshold| threshold.signal == signal).map_or(0, |found| found.limit.amount(capacity))
    }
}

/// What was measured of one signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What is left.
    pub available: i64,
    /// Of how much.
    pub capacity: i64,
}

/// Observations by signal; a signal that could not be measured is absent.
pub type Observations = BTreeMap<Signal, Observation>;

/// What a look at the machine came to, for whoever ends pods because of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pressing {
    /// Thresholds to act on, hard ones first; mostly none.
    pub met: Vec<Threshold>,
    /// What was measured.
    pub observations: Observations,
}

/// Which pressures a node is under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    /// Memory runs short.
    pub memory: bool,
    /// Disk space or inodes run short.
    pub disk: bool,
    /// Process ids run short.
    pub pid: bool,
}

/// Remembers what was met, and since and until when.
#[derive(Clone, Debug)]
pub struct PressureHistory {
    thresholds: Vec<Track>,
    transition_period: Duration,
    memory: Option<Duration>,
    disk: Option<Duration>,
    pid: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Track {
    threshold: Threshold,
    /// Since when it is met without a break.
    since: Option<Duration>,
    is_acted_on: bool,
}

impl PressureHistory {
    /// Nothing was met yet.
    pub fn new(policy: &EvictionPolicy) -> Self {
        let track =
            |threshold: &Threshold| Track { threshold: threshold.clone(), since: None, is_acted_on: false };
        Self {
            thresholds: policy.thresholds.iter().map(track).collect(),
            transition_period: policy.transition_period,
            memory: None,
            disk: None,
            pid: None,
        }
    }

    /// Takes in a look at the machine, and tells the conditions, and the thresholds to act on. `now` is since boot.
    pub fn update(&mut self, observations: &Observations, now: Duration) -> (Pressures, Vec<Threshold>) {
        let mut met = Vec::new();
        for Track { threshold, since, is_acted_on } in &mut self.thresholds {
            if !threshold.is_met(observations, *is_acted_on) {
                (*since, *is_acted_on) = (None, false);
                continue;
            }
            let last_seen = match threshold.signal {
                Signal::MemoryAvailable => &mut self.memory,
                Signal::PidAvailable => &mut self.pid,
                _ => &mut self.disk,
            };
            *last_seen = Some(now);
            *is_acted_on = now.saturating_sub(*since.get_or_insert(now)) >= threshold.grace_period;
            if *is_acted_on {
                met.push(threshold.clone());
            }
        }
        let lasts = |seen: Option<Duration>| {
            seen.is_some_and(|at| at == now || now.saturating_sub(at) < self.transition_period)
        };
        let pressures =
            Pressures { memory: lasts(self.memory), disk: lasts(self.disk), pid: lasts(self.pid) };
        (pressures, met)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: i64 = 100;

    fn seen(signal: Signal, available: i64) -> Observations {
        Observations::from([(signal, Observation { available, capacity: CAPACITY })])
    }

    fn policy(thresholds: Vec<Threshold>) -> EvictionPolicy {
        EvictionPolicy { thresholds, ..EvictionPolicy::default() }
    }

    #[test]
    fn percentages_are_rounded_as_the_kubelet_rounds_them() {
        // 10 % of this disk as kubelet 1.36 subtracts it: 0.1 has the precision of a Go float32.
        let kept = EvictionPolicy::default().kept_back(Signal::NodefsAvailable, 105_089_261_568);
        assert_eq!(kept, 10_508_926_313);
    }

    #[test]
    fn a_pressure_lasts_for_the_transition_period() {
        let (low, fine) = (seen(Signal::ImagefsAvailable, 14), seen(Signal::ImagefsAvailable, 15));
        let mut history = PressureHistory::new(&EvictionPolicy::default());
        let mut pressures = |seen, at| history.update(seen, Duration::from_secs(at)).0;
        let disk = Pressures { disk: true, ..Pressures::default() };
        assert_eq!(pressures(&fine, 5), Pressures::default());
        assert_eq!(pressures(&low, 10), disk);
        assert_eq!(pressures(&fine, 309), disk);
        assert_eq!(pressures(&fine, 310), Pressures::default());
    }

    #[test]
    fn a_soft_threshold_is_told_at_once_and_acted_on_after_its_grace_period() {
        let soft = Threshold {
            grace_period: Duration::from_secs(60),
            ..Threshold::hard(Signal::MemoryAvailable, Limit::Amount(50))
        };
        let hard = Threshold::hard(Signal::MemoryAvailable, Limit::Amount(20));
        let mut history = PressureHistory::new(&policy(vec![hard.clone(), soft.clone()]));
        let mut look = |available, at| {
            let observations = seen(Signal::MemoryAvailable, available);
            let (pressures, met) = history.update(&observations, Duration::from_secs(at));
            assert!(pressures.memory);
            met
        };
        assert_eq!(look(40, 10), []);
        assert_eq!(look(40, 69), []);
        let due = std::slice::from_ref(&soft);
        assert_eq!(look(40, 70), due);
        assert_eq!(look(10, 80), [hard, soft.clone()]);
        // One look at which it is not met, and the time begins anew.
        assert_eq!(look(60, 90), []);
        assert_eq!(look(40, 100), []);
        assert_eq!(look(40, 160), due);
    }

    #[test]
    fn what_was_acted_on_counts_until_its_minimum_is_reclaimed() {
        let threshold = Threshold {
            minimum_reclaim: Some(Limit::Part(0.1)),
            ..Threshold::hard(Signal::NodefsAvailable, Limit::Amount(20))
        };
        let mut history = PressureHistory::new(&policy(vec![threshold.clone()]));
        let mut is_met = |available| {
            !history.update(&seen(Signal::NodefsAvailable, available), Duration::from_secs(1)).1.is_empty()
        };
        let all = [25, 19, 25, 29, 30, 25].map(&mut is_met);
        assert_eq!(all, [false, true, true, true, false, false]);
    }
}
