//! When to look at a log, what its rotated files are called, and which of them go.
//!
//! Called by the rotation; pure.

use std::time::Duration;

/// Shortest time between two looks at a log that is written.
pub(super) const MIN_WAIT: Duration = Duration::from_secs(1);
/// Longest time between two looks at a log that is written.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(60);

/// How large and how many the logs of a container may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPolicy {
    /// Size in bytes from which a log is rotated (`--container-log-max-size`); `None` for never.
    pub max_size: Option<u64>,
    /// How many files a container's log may have, the current one among them; at least two
    /// (`--container-log-max-files`).
    pub max_files: usize,
}

impl Default for LogPolicy {
    /// The kubelet's defaults: 10 MiB, 5 files.
    fn default() -> Self {
        Self { max_size: Some(10 << 20), max_files: 5 }
    }
}

impl LogPolicy {
    /// Whether a log of this size is rotated.
    pub(super) fn is_full(&self, size: u64) -> bool {
        self.max_size.is_some_and(|max| size >= max)
    }
}

/// When to look at a log again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    After(Duration),
    WhenWritten,
}

/// From the size now, and the size and age of the look before.
pub(super) fn next_look(size: u64, last: Option<(u64, Duration)>, policy: &LogPolicy) -> Look {
    let Some(max) = policy.max_size else { return Look::WhenWritten };
    let Some((before, elapsed)) = last else { return Look::WhenWritten };
    let grown = size.saturating_sub(before);
    if grown == 0 {
        return Look::WhenWritten;
    }
    // Half of the time that what is left would last: a rate that doubles is still caught in time.
    let left = max.saturating_sub(size) as f64;
    let seconds = left / grown as f64 * elapsed.as_secs_f64() / 2.0;
    let wait = Duration::try_from_secs_f64(seconds).unwrap_or(MAX_WAIT);
    Look::After(wait.clamp(MIN_WAIT, MAX_WAIT))
}

/// The suffix of a log rotated at this time of the wall clock: `20060102-150405`, UTC. Never before the
/// `newest` there is, so that names stay in the order of rotation when the clock is set back.
pub(super) fn suffix(unix_seconds: i64, newest: Option<&str>) -> String {
    let now = timestamp(unix_seconds);
    match newest {
        Some(newest) if now.as_str() <= newest => {
            timestamp(parse_timestamp(newest).map_or(unix_seconds, |seconds| seconds + 1))
        }
        _ => now,
    }
}

fn timestamp(unix_seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(unix_seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    jiff::fmt::strtime::format("%Y%m%d-%H%M%S", time).unwrap_or_default()
}

fn parse_timestamp(text: &str) -> Option<i64> {
    let time = jiff::fmt::strtime::parse("%Y%m%d-%H%M%S", text).ok()?;
    Some(time.to_datetime().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

/// What becomes of the rotated files before the next rotation.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tidying {
    /// Left over from a compression that was cut, or beyond the count.
    pub(super) remove: Vec<String>,
    /// Kept, not compressed yet.
    pub(super) compress: Vec<String>,
    /// Time of the newest rotated file.
    pub(super) newest: Option<String>,
}

/// From the names of all rotated files of `log` (`0.log.…`).
pub(super) fn tidying(log: &str, names: &[String], policy: &LogPolicy) -> Tidying {
    let mut used = in_use(names);
    used.sort_unstable();
    let mut remove: Vec<String> = names.iter().filter(|name| !used.contains(name)).cloned().collect();
    let newest = used.last().and_then(|name| time_of(log, name)).map(ToOwned::to_owned);
    // The present log and the one that it becomes count as well.
    let kept = policy.max_files.saturating_sub(2);
    let (old, rest) = used.split_at(used.len().saturating_sub(kept));
    remove.extend(old.iter().map(|name| (*name).clone()));
    let compress = rest.iter().filter(|name| !name.ends_with(".gz")).map(|name| (*name).clone()).collect();
    Tidying { remove, compress, newest }
}

/// Rotated files that hold something: no temporary ones, and none whose compressed form is there already.
pub(super) fn in_use(names: &[String]) -> Vec<&String> {
    let is_used = |name: &&String| {
        !name.ends_with(".tmp")
            && (name.ends_with(".gz") || !names.iter().any(|other| *other == format!("{name}.gz")))
    };
    names.iter().filter(is_used).collect()
}

fn time_of<'n>(log: &str, name: &'n str) -> Option<&'n str> {
    let suffix = name.strip_prefix(log)?.strip_prefix('.')?;
    Some(suffix.strip_suffix(".gz").unwrap_or(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_look_follows_the_growth() {
        let policy = LogPolicy { max_size: Some(1000), max_files: 5 };
        let second = Duration::from_secs(1);
        for (size, last, expected) in [
            (0, None, Look::WhenWritten),
            (500, Some((500, second)), Look::WhenWritten),
            (500, Some((490, second)), Look::After(Duration::from_secs(25))),
            (500, Some((400, second)), Look::After(Duration::from_millis(2500))),
            (500, Some((0, second)), Look::After(MIN_WAIT)),
            (500, Some((499, second)), Look::After(MAX_WAIT)),
            (10, Some((900, second)), Look::WhenWritten),
        ] {
            assert_eq!(next_look(size, last, &policy), expected, "{size} {last:?}");
        }
        let never = LogPolicy { max_size: None, ..policy };
        assert_eq!(next_look(500, Some((0, second)), &never), Look::WhenWritten);
        assert!(policy.is_full(1000) && !policy.is_full(999) && !never.is_full(u64::MAX));
    }

    #[test]
    fn names_stay_in_order_when_the_clock_is_set_back() {
        let time = 1_136_214_245;
        assert_eq!(suffix(time, None), "20060102-150405");
        assert_eq!(suffix(time, Some("20060102-150404")), "20060102-150405");
        assert_eq!(suffix(time, Some("20060102-150405")), "20060102-150406");
        assert_eq!(suffix(0, Some("20261231-235959")), "20270101-000000");
        assert_eq!(suffix(time, Some("strange")), "20060102-150405");
    }

    #[test]
    fn as_many_files_stay_as_the_policy_says() {
        let policy = LogPolicy { max_size: Some(1), max_files: 4 };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let tidy = |seen: &[&str]| {
            let plan = tidying("0.log", &names(seen), &policy);
            (plan.remove, plan.compress, plan.newest)
        };
        assert_eq!(tidy(&[]), (vec![], vec![], None));
        let seen = ["0.log.20260101-000002", "0.log.20260101-000001.gz"];
        let newest = Some("20260101-000002".to_owned());
        assert_eq!(tidy(&seen), (vec![], names(&seen[..1]), newest));
        let seen = [
            "0.log.20260101-000001.gz",
            "0.log.20260101-000002.gz",
            "0.log.20260101-000002",
            "0.log.20260101-000003",
            "0.log.20260101-000003.tmp",
        ];
        assert_eq!(
            tidy(&seen),
            (
                names(&["0.log.20260101-000002", "0.log.20260101-000003.tmp", "0.log.20260101-000001.gz"]),
                names(&["0.log.20260101-000003"]),
                Some("20260101-000003".to_owned())
            )
        );
        let two = LogPolicy { max_files: 2, ..policy };
        assert_eq!(tidying("0.log", &names(&seen[..1]), &two).remove, seen[..1]);
    }
}
