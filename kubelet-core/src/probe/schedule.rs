//! When a probe is due and what its results add up to.
//!
//! Owned by a probe's task; pure. Follows the kubelet's `prober/worker.go` (1.36): ticks of the period from
//! when the pod was first seen, nothing before the initial delay, thresholds, silence after a verdict that
//! ends the container or the startup.

use std::time::Duration;

use super::ProbeKind;
use crate::api::Probe;

/// The schedule of one probe of one container, over all its runs.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    kind: ProbeKind,
    period: Duration,
    initial_delay: Duration,
    failures_needed: u32,
    successes_needed: u32,
    /// A tick; the others lie whole periods from it.
    tick: Duration,
    run: Run,
}

/// What is known of the present run of the container.
#[derive(Clone, Debug, Default)]
struct Run {
    started: Duration,
    /// Asked for out of turn.
    at_once: bool,
    /// The verdict is in; silence until the next run.
    decided: bool,
    last: Option<bool>,
    in_a_row: u32,
}

impl Schedule {
    /// A schedule whose ticks count from `first`.
    pub(super) fn new(kind: ProbeKind, probe: &Probe, first: Duration) -> Self {
        let seconds = |value: i32, least: u32| u32::try_from(value).unwrap_or(0).max(least);
        Self {
            kind,
            period: Duration::from_secs(seconds(probe.period_seconds, 1).into()),
            initial_delay: Duration::from_secs(seconds(probe.initial_delay_seconds, 0).into()),
            failures_needed: seconds(probe.failure_threshold, 1),
            successes_needed: seconds(probe.success_threshold, 1),
            tick: first,
            run: Run::default(),
        }
    }

    /// A new run of the container began at `started`: nothing is known of it.
    pub(super) fn begin(&mut self, started: Duration) {
        self.run = Run { started, ..Run::default() };
    }

    /// The container can be used from now on but for its readiness: check that out of turn.
    pub(super) fn hurry(&mut self) {
        self.run.at_once = self.kind == ProbeKind::Readiness;
    }

    /// When to check next, seen from `now`; never while the verdict stands or the gate is closed.
    pub(super) fn next(&self, container_started: bool, now: Duration) -> Option<Duration> {
        let gate_open = container_started != (self.kind == ProbeKind::Startup);
        if self.run.decided || !gate_open {
            return None;
        }
        let earliest = now.max(self.run.started + self.initial_delay);
        if self.run.at_once {
            return Some(earliest);
        }
        let Some(past) = earliest.checked_sub(self.tick) else { return Some(self.tick) };
        let periods = past.as_nanos().div_ceil(self.period.as_nanos());
        let offset = u128::min(periods * self.period.as_nanos(), u128::from(u64::MAX));
        Some(self.tick + Duration::from_nanos(u64::try_from(offset).unwrap_or(u64::MAX)))
    }

    /// Counts a check made at `now`; the verdict, when a threshold is reached.
    pub(super) fn record(&mut self, success: bool, now: Duration) -> Option<bool> {
        self.passed(now);
        let run = &mut self.run;
        run.in_a_row = if run.last == Some(success) { run.in_a_row.saturating_add(1) } else { 1 };
        run.last = Some(success);
        let needed = if success { self.successes_needed } else { self.failures_needed };
        if run.in_a_row < needed {
            return None;
        }
        let final_verdict = match self.kind {
            ProbeKind::Startup => true,
            ProbeKind::Liveness => !success,
            ProbeKind::Readiness => false,
        };
        if final_verdict {
            // The container is started, or about to be killed: checking on would only disturb it.
            run.decided = true;
        }
        Some(success)
    }

    /// A check at `now` that says nothing.
    pub(super) fn passed(&mut self, now: Duration) {
        if self.run.at_once {
            self.run.at_once = false;
            // The period counts anew from a check out of turn.
            self.tick = now;
        }
        if self.tick <= now {
            let behind = (now - self.tick).as_nanos() / self.period.as_nanos();
            let ticks = u32::try_from(behind + 1).unwrap_or(u32::MAX);
            self.tick += self.period * ticks;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn probe(delay: i32, period: i32, failures: i32, successes: i32) -> Probe {
        Probe {
            initial_delay_seconds: delay,
            period_seconds: period,
            failure_threshold: failures,
            success_threshold: successes,
            ..Probe::default()
        }
    }

    #[test]
    fn ticks_count_from_the_first_sight_and_wait_for_the_delay() {
        let mut schedule = Schedule::new(ProbeKind::Liveness, &probe(12, 5, 3, 1), at(100));
        schedule.begin(at(101));
        assert_eq!(schedule.next(false, at(101)), None);
        assert_eq!(schedule.next(true, at(101)), Some(at(115)));
        assert_eq!(schedule.record(true, at(115)), Some(true));
        assert_eq!(schedule.next(true, at(115)), Some(at(120)));
        // A slow check skips ticks instead of making up for them.
        assert_eq!(schedule.record(false, at(131)), None);
        assert_eq!(schedule.next(true, at(131)), Some(at(135)));
    }

    #[test]
    fn thresholds_count_in_a_row_and_a_failed_liveness_is_final() {
        let mut schedule = Schedule::new(ProbeKind::Liveness, &probe(0, 1, 3, 1), at(0));
        schedule.begin(at(0));
        let verdicts: Vec<_> =
            [false, false, true, false, false].iter().map(|r| schedule.record(*r, at(1))).collect();
        assert_eq!(verdicts, [None, None, Some(true), None, None]);
        assert_eq!(schedule.record(false, at(2)), Some(false));
        assert_eq!(schedule.next(true, at(3)), None);
        schedule.begin(at(4));
        assert_eq!(schedule.next(true, at(4)), Some(at(4)));
    }

    #[test]
    fn startup_closes_the_gate_behind_it_and_readiness_hurries_through() {
        let mut startup = Schedule::new(ProbeKind::Startup, &probe(0, 10, 1, 1), at(0));
        startup.begin(at(3));
        assert_eq!(startup.next(false, at(3)), Some(at(10)));
        assert_eq!(startup.record(true, at(10)), Some(true));
        assert_eq!(startup.next(true, at(10)), None);
        let mut readiness = Schedule::new(ProbeKind::Readiness, &probe(5, 10, 1, 2), at(0));
        readiness.begin(at(3));
        readiness.hurry();
        assert_eq!(readiness.next(true, at(4)), Some(at(8)));
        assert_eq!(readiness.record(true, at(8)), None);
        assert_eq!(readiness.next(true, at(8)), Some(at(18)));
        assert_eq!(readiness.record(true, at(18)), Some(true));
        assert_eq!(readiness.record(false, at(28)), Some(false));
    }
}
