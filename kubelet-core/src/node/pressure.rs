//! When memory, disk or process ids run short: thresholds as `--eviction-hard` gives them, and the conditions
//! that follow from observations.
//!
//! Pure: the node's reporter hands in observations and the time since boot. Follows the kubelet's eviction
//! package (1.36): a condition lasts for the transition period after its threshold was met last.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::Quantity;

/// A condition lasts so long after the pressure has gone (`--eviction-pressure-transition-period`).
pub const TRANSITION_PERIOD: Duration = Duration::from_secs(300);

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

/// Limits by signal.
pub type Thresholds = BTreeMap<Signal, Limit>;

/// Why a text is no threshold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// Not of the form SIGNAL<AMOUNT.
    #[error("{0:?} is not of the form memory.available<100Mi")]
    Form(String),
    /// A signal that there is not.
    #[error(
        "{0:?} is not a signal; there are memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree and pid.available"
    )]
    Signal(String),
    /// Neither an amount nor a percentage.
    #[error("{signal} is compared with {value:?}, which is neither a positive quantity nor a percentage")]
    Value {
        /// Of which signal.
        signal: String,
        /// What was given.
        value: String,
    },
}

/// The kubelet's defaults on Linux.
pub fn default_thresholds() -> Thresholds {
    Thresholds::from([
        (Signal::MemoryAvailable, Limit::Amount(100 << 20)),
        (Signal::NodefsAvailable, Limit::Part(10.0 / 100.0)),
        (Signal::NodefsInodesFree, Limit::Part(5.0 / 100.0)),
        (Signal::ImagefsAvailable, Limit::Part(15.0 / 100.0)),
        (Signal::ImagefsInodesFree, Limit::Part(5.0 / 100.0)),
    ])
}

/// Reads `memory.available<100Mi,nodefs.available<10%`. A limit of 0% or 100% turns its signal off, as for a
/// kubelet.
///
/// ```
/// use coracle_kubelet_core::node::pressure::{Signal, parse_thresholds};
///
/// let thresholds = parse_thresholds("memory.available<200Mi,nodefs.available<5%").expect("well formed");
/// assert_eq!(thresholds[&Signal::MemoryAvailable].amount(0), 200 << 20);
/// ```
pub fn parse_thresholds(text: &str) -> Result<Thresholds, ThresholdError> {
    let mut thresholds = Thresholds::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('<').ok_or_else(|| ThresholdError::Form(part.to_owned()))?;
        let found = Signal::ALL.iter().find(|(_, known)| *known == name);
        let (signal, _) = found.ok_or_else(|| ThresholdError::Signal(name.to_owned()))?;
        let wrong = || ThresholdError::Value { signal: name.to_owned(), value: value.to_owned() };
        let limit = match value.strip_suffix('%') {
            Some(_) if value == "0%" || value == "100%" => continue,
            Some(number) => {
                let percent: f32 = number.parse().map_err(|_| wrong())?;
                let part = percent / 100.0;
                (0.0..=1.0).contains(&part).then_some(Limit::Part(part)).ok_or_else(wrong)?
            }
            None => {
                let amount = value.parse::<Quantity>().map_err(|_| wrong())?.value();
                (amount > 0).then_some(Limit::Amount(amount)).ok_or_else(wrong)?
            }
        };
        thresholds.insert(*signal, limit);
    }
    Ok(thresholds)
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
    /// Signals below their limit; mostly none.
    pub met: Vec<Signal>,
    /// The limits.
    pub thresholds: Thresholds,
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

/// Signals below their limit, the most urgent first: memory before disk before process ids.
pub fn met(thresholds: &Thresholds, observations: &Observations) -> Vec<Signal> {
    let is_met = |(signal, limit): &(&Signal, &Limit)| {
        let observed = observations.get(*signal);
        observed.is_some_and(|seen| limit.amount(seen.capacity) > seen.available)
    };
    thresholds.iter().filter(is_met).map(|(signal, _)| *signal).collect()
}

/// Remembers when each pressure was last seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct PressureHistory {
    memory: Option<Duration>,
    disk: Option<Duration>,
    pid: Option<Duration>,
}

impl PressureHistory {
    /// Takes in the signals that are below their limits now, and tells the conditions. `now` is since boot.
    pub fn update(&mut self, met: &[Signal], now: Duration) -> Pressures {
        for signal in met {
            let seen = match signal {
                Signal::MemoryAvailable => &mut self.memory,
                Signal::PidAvailable => &mut self.pid,
                _ => &mut self.disk,
            };
            *seen = Some(now);
        }
        let lasts =
            |seen: Option<Duration>| seen.is_some_and(|at| now.saturating_sub(at) < TRANSITION_PERIOD);
        Pressures { memory: lasts(self.memory), disk: lasts(self.disk), pid: lasts(self.pid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_as_the_kubelet_reads_them() {
        let thresholds =
            parse_thresholds("memory.available<1Gi, imagefs.available<0%,pid.available<10%").unwrap();
        assert_eq!(thresholds[&Signal::MemoryAvailable], Limit::Amount(1 << 30));
        assert_eq!(thresholds[&Signal::PidAvailable].amount(1000), 100);
        assert_eq!(thresholds.len(), 2);
        for wrong in ["memory.available", "memory<1Gi", "memory.available<-1", "nodefs.available<101%"] {
            assert!(parse_thresholds(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Signal::NodefsInodesFree.as_str(), "nodefs.inodesFree");
    }

    #[test]
    fn percentages_are_rounded_as_the_kubelet_rounds_them() {
        // 10 % of this disk as kubelet 1.36 subtracts it: 0.1 has the precision of a Go float32.
        let limit = &default_thresholds()[&Signal::NodefsAvailable];
        assert_eq!(limit.amount(105_089_261_568), 10_508_926_313);
    }

    #[test]
    fn a_pressure_lasts_for_the_transition_period() {
        let thresholds = default_thresholds();
        let low =
            Observations::from([(Signal::ImagefsAvailable, Observation { available: 14, capacity: 100 })]);
        let fine =
            Observations::from([(Signal::ImagefsAvailable, Observation { available: 15, capacity: 100 })]);
        let mut history = PressureHistory::default();
        let at = Duration::from_secs;
        let disk = Pressures { disk: true, ..Pressures::default() };
        assert_eq!(history.update(&met(&thresholds, &fine), at(5)), Pressures::default());
        assert_eq!(history.update(&met(&thresholds, &low), at(10)), disk);
        assert_eq!(history.update(&met(&thresholds, &fine), at(309)), disk);
        assert_eq!(history.update(&met(&thresholds, &fine), at(310)), Pressures::default());
    }
}
