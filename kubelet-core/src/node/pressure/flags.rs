//! Thresholds as the kubelet's flags give them, with its errors.
//!
//! Called by the agent once, at its start; pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Limit, Signal, Threshold};
use crate::api::{ParseQuantityError, Quantity};

/// Why a flag gives no thresholds.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvictionFlagError {
    /// Not a list of signals and values.
    #[error("{0:?} is a malformed pair, expect {1}")]
    Pair(String, &'static str),
    /// A signal that there is not.
    #[error("unsupported eviction signal {0}")]
    Signal(String),
    /// A limit that is no percentage.
    #[error("{value:?} of {signal} is no percentage")]
    Percentage {
        /// Of which signal.
        signal: &'static str,
        /// What was given.
        value: String,
    },
    /// A limit that is no quantity.
    #[error(transparent)]
    Quantity(#[from] ParseQuantityError),
    /// No limit at all.
    #[error("eviction threshold {signal} must be positive: {value}")]
    NotPositive {
        /// Of which signal.
        signal: &'static str,
        /// What was given.
        value: String,
    },
    /// Less than nothing.
    #[error("eviction percentage threshold {signal} must be >= 0%: {value}")]
    BelowNothing {
        /// Of which signal.
        signal: &'static str,
        /// What was given.
        value: String,
    },
    /// More than there is.
    #[error("eviction percentage threshold {signal} must be <= 100%: {value}")]
    AboveAll {
        /// Of which signal.
        signal: &'static str,
        /// What was given.
        value: String,
    },
    /// A soft threshold of which nobody says how long it may be met.
    #[error("grace period must be specified for the soft eviction threshold {0}")]
    NoGracePeriod(&'static str),
    /// Not a time.
    #[error("time: invalid duration {0:?}")]
    Duration(String),
    /// A time that was over before it began.
    #[error("invalid eviction grace period specified: {0}, must be a positive value")]
    NegativeGracePeriod(String),
    /// A part to reclaim that is none.
    #[error("eviction percentage minimum reclaim {signal} must be positive: {value}")]
    ReclaimNotPositive {
        /// Of which signal.
        signal: &'static str,
        /// What was given.
        value: String,
    },
    /// An amount to reclaim that is less than nothing.
    #[error("negative eviction minimum reclaim specified for {0}")]
    NegativeReclaim(&'static str),
}

/// Reads what `--eviction-hard` (`memory.available<100Mi,nodefs.available<10%`), `--eviction-soft` (the same),
/// `--eviction-soft-grace-period` (`memory.available=1m30s`) and `--eviction-minimum-reclaim`
/// (`imagefs.available=2Gi`) say. A limit of 0% or 100% turns its signal off, as for a kubelet.
///
/// ```
/// use coracle_kubelet_core::node::pressure::parse_thresholds;
///
/// let soft = parse_thresholds("", "memory.available<300Mi", "memory.available=1m30s", "").expect("well formed");
/// assert_eq!((soft[0].limit.amount(0), soft[0].grace_period.as_secs()), (300 << 20, 90));
/// ```
pub fn parse_thresholds(
    hard: &str,
    soft: &str,
    soft_grace_periods: &str,
    minimum_reclaims: &str,
) -> Result<Vec<Threshold>, EvictionFlagError> {
    let (hard, soft) = (limits(hard)?, limits(soft)?);
    let grace_periods = values(soft_grace_periods, '=', grace_period)?;
    let reclaims = values(minimum_reclaims, '=', minimum_reclaim)?;
    let mut thresholds: Vec<Threshold> =
        hard.into_iter().map(|(signal, limit)| Threshold::hard(signal, limit)).collect();
    for (signal, limit) in soft {
        let grace_period = grace_periods.get(&signal);
        let grace_period = *grace_period.ok_or(EvictionFlagError::NoGracePeriod(signal.as_str()))?;
        thresholds.push(Threshold { grace_period, ..Threshold::hard(signal, limit) });
    }
    for threshold in &mut thresholds {
        threshold.minimum_reclaim = reclaims.get(&threshold.signal).cloned();
    }
    Ok(thresholds)
}

fn limits(text: &str) -> Result<BTreeMap<Signal, Limit>, EvictionFlagError> {
    let limits = values(text, '<', limit)?;
    Ok(limits.into_iter().filter_map(|(signal, limit)| Some((signal, limit?))).collect())
}

/// Reads pairs of a signal and what is said of it; the last word on a signal counts.
fn values<T>(
    text: &str,
    separator: char,
    read: fn(&'static str, &str) -> Result<T, EvictionFlagError>,
) -> Result<BTreeMap<Signal, T>, EvictionFlagError> {
    let mut values = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let expected = if separator == '<' { "string<string" } else { "string=string" };
        let split = pair.split_once(separator);
        let (name, value) = split.ok_or_else(|| EvictionFlagError::Pair(pair.to_owned(), expected))?;
        let (name, value) = (name.trim(), value.trim());
        let known = Signal::ALL.iter().find(|(_, known)| *known == name);
        let (signal, name) = *known.ok_or_else(|| EvictionFlagError::Signal(name.to_owned()))?;
        values.insert(signal, read(name, value)?);
    }
    Ok(values)
}

/// None for a limit that turns its signal off.
fn limit(signal: &'static str, value: &str) -> Result<Option<Limit>, EvictionFlagError> {
    let text = || value.to_owned();
    if matches!(value, "0%" | "100%") {
        return Ok(None);
    }
    if let Some(part) = part(signal, value)? {
        return match part {
            part if part < 0.0 => Err(EvictionFlagError::BelowNothing { signal, value: text() }),
            part if part > 1.0 => Err(EvictionFlagError::AboveAll { signal, value: text() }),
            part => Ok(Some(Limit::Part(part))),
        };
    }
    let amount = value.parse::<Quantity>()?.value();
    if amount <= 0 {
        return Err(EvictionFlagError::NotPositive { signal, value: text() });
    }
    Ok(Some(Limit::Amount(amount)))
}

fn minimum_reclaim(signal: &'static str, value: &str) -> Result<Limit, EvictionFlagError> {
    if let Some(part) = part(signal, value)? {
        let is_positive = part > 0.0;
        let wrong = || EvictionFlagError::ReclaimNotPositive { signal, value: value.to_owned() };
        return is_positive.then_some(Limit::Part(part)).ok_or_else(wrong);
    }
    let amount = value.parse::<Quantity>()?.value();
    (amount >= 0).then_some(Limit::Amount(amount)).ok_or(EvictionFlagError::NegativeReclaim(signal))
}

/// A percentage as a part of one; none if the value is no percentage.
fn part(signal: &'static str, value: &str) -> Result<Option<f32>, EvictionFlagError> {
    let Some(number) = value.strip_suffix('%') else { return Ok(None) };
    let percent: f32 =
        number.parse().map_err(|_| EvictionFlagError::Percentage { signal, value: value.to_owned() })?;
    Ok(Some(percent / 100.0))
}

fn grace_period(_: &'static str, value: &str) -> Result<Duration, EvictionFlagError> {
    let parsed: Result<jiff::SignedDuration, _> = value.parse();
    let period = parsed.map_err(|_| EvictionFlagError::Duration(value.to_owned()))?;
    Duration::try_from(period).map_err(|_| EvictionFlagError::NegativeGracePeriod(value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_as_the_kubelet_reads_them() {
        let hard = "memory.available<1Gi, imagefs.available<0%,pid.available<10%";
        let reclaim = "memory.available=64Mi,pid.available=5%";
        let soft = "memory.available<2Gi";
        let thresholds = parse_thresholds(hard, soft, "memory.available=1m30s", reclaim).unwrap();
        let hard_memory = Threshold::hard(Signal::MemoryAvailable, Limit::Amount(1 << 30));
        let hard_memory = Threshold { minimum_reclaim: Some(Limit::Amount(64 << 20)), ..hard_memory };
        assert_eq!(thresholds[0], hard_memory);
        assert_eq!(thresholds[1].minimum_reclaim, Some(Limit::Part(0.05)));
        assert_eq!(thresholds[1].limit.amount(1000), 100);
        let soft = Threshold {
            limit: Limit::Amount(2 << 30),
            grace_period: Duration::from_secs(90),
            ..hard_memory.clone()
        };
        assert_eq!(thresholds[2..], [soft]);
    }

    #[test]
    fn what_is_wrong_is_told_in_the_kubelets_words() {
        for (flags, told) in [
            (
                ["memory.available", "", "", ""],
                "\"memory.available\" is a malformed pair, expect string<string",
            ),
            (["memory<1Gi", "", "", ""], "unsupported eviction signal memory"),
            (["memory.available<-1", "", "", ""], "eviction threshold memory.available must be positive: -1"),
            (
                ["nodefs.available<101%", "", "", ""],
                "eviction percentage threshold nodefs.available must be <= 100%: 101%",
            ),
            (
                ["nodefs.available<-5%", "", "", ""],
                "eviction percentage threshold nodefs.available must be >= 0%: -5%",
            ),
            (
                ["", "pid.available<5%", "", ""],
                "grace period must be specified for the soft eviction threshold pid.available",
            ),
            (["", "", "pid.available=soon", ""], "time: invalid duration \"soon\""),
            (
                ["", "", "pid.available=-5s", ""],
                "invalid eviction grace period specified: -5s, must be a positive value",
            ),
            (
                ["", "", "", "imagefs.available=0%"],
                "eviction percentage minimum reclaim imagefs.available must be positive: 0%",
            ),
            (
                ["", "", "", "imagefs.available=-1Gi"],
                "negative eviction minimum reclaim specified for imagefs.available",
            ),
        ] {
            let [hard, soft, periods, reclaims] = flags;
            let error = parse_thresholds(hard, soft, periods, reclaims).unwrap_err();
            assert_eq!(error.to_string(), told);
        }
        assert_eq!(Signal::NodefsInodesFree.as_str(), "nodefs.inodesFree");
    }
}
