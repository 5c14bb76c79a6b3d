//! Back-off by key: when something that failed may be tried again.
//!
//! Used by each pod's worker, for its containers' restarts and for its own retries; plain data without a
//! clock. Restarts follow the kubelet to the letter (10 s doubling to 5 min, forgotten after 10 min without
//! an end, no jitter); retries are jittered so that pods that failed together do not come back together.

use std::collections::BTreeMap;
use std::time::Duration;

/// Bounds of a back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// The first delay.
    pub initial: Duration,
    /// The longest delay.
    pub max: Duration,
    /// A key whose last try is older than this, counted to the next failure, starts afresh.
    pub reset_after: Duration,
    /// Up to this many percent are added to a delay.
    pub jitter_percent: u32,
}

impl BackoffPolicy {
    /// The kubelet's for containers that keep ending (`CrashLoopBackOff`).
    pub const CRASH_LOOP: Self = Self {
        initial: Duration::from_secs(10),
        max: Duration::from_secs(300),
        reset_after: Duration::from_secs(600),
        jitter_percent: 0,
    };

    /// For steps of a sync that failed: a runtime that does not answer, a network that is not there yet.
    pub const RETRY: Self = Self {
        initial: Duration::from_secs(1),
        max: Duration::from_secs(30),
        reset_after: Duration::from_secs(600),
        jitter_percent: 50,
    };
}

/// Delays by key.
#[derive(Clone, Debug)]
pub struct Backoff<K> {
    policy: BackoffPolicy,
    entries: BTreeMap<K, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    updated: Duration,
}

impl<K: Ord> Backoff<K> {
    /// Nothing has failed yet.
    pub fn new(policy: BackoffPolicy) -> Self {
        Self { policy, entries: BTreeMap::new() }
    }

    /// The present delay of a key; zero when it has none.
    pub fn delay(&self, key: &K) -> Duration {
        self.entries.get(key).map_or(Duration::ZERO, |entry| entry.delay)
    }

    /// Until when (since boot) a key that failed at `event` has to wait, or `None` when it may go on.
    pub fn wait_until(&self, key: &K, event: Duration, now: Duration) -> Option<Duration> {
        let entry = self.entries.get(key).filter(|entry| !self.expired(entry, event))?;
        let until = event + entry.delay;
        (now < until).then_some(until)
    }

    /// Counts a new try after the failure at `event`: the next one will have to wait longer.
    pub fn advance(&mut self, key: K, event: Duration, now: Duration) -> Duration {
        let delay = match self.entries.get(&key) {
            Some(entry) if !self.expired(entry, event) => self.policy.max.min(entry.delay * 2),
            _ => self.policy.initial,
        };
        self.entries.insert(key, Entry { delay, updated: now });
        delay
    }

    /// Counts a failure now and says until when to wait. `random` picks the jitter.
    pub fn fail(&mut self, key: K, now: Duration, random: u32) -> Duration {
        let delay = self.advance(key, now, now);
        let percent =
            if self.policy.jitter_percent == 0 { 0 } else { random % (self.policy.jitter_percent + 1) };
        now + delay + delay * percent / 100
    }

    /// Forgets a key: it succeeded.
    pub fn reset(&mut self, key: &K) {
        self.entries.remove(key);
    }

    /// Keeps only the keys that `keep` wants.
    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.entries.retain(|key, _| keep(key));
    }

    fn expired(&self, entry: &Entry, event: Duration) -> bool {
        event.saturating_sub(entry.updated) > self.policy.reset_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn crash_loop_doubles_to_five_minutes_and_forgets_after_ten() {
        let mut backoff = Backoff::new(BackoffPolicy::CRASH_LOOP);
        assert_eq!(backoff.wait_until(&"web", at(100), at(100)), None);
        let mut ended = at(100);
        let mut delays = Vec::new();
        for _ in 0..7 {
            let now = backoff.wait_until(&"web", ended, ended).unwrap_or(ended);
            delays.push(backoff.advance("web", ended, now).as_secs());
            ended = now + at(1);
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.wait_until(&"web", ended, ended), Some(ended + at(300)));
        let late = ended + at(601);
        assert_eq!(backoff.wait_until(&"web", late, late), None);
        assert_eq!(backoff.advance("web", late, late), at(10));
    }

    #[test]
    fn retries_are_jittered_within_their_bound_and_reset_on_success() {
        let mut backoff = Backoff::new(BackoffPolicy::RETRY);
        assert_eq!(backoff.fail((), at(5), 0), at(6));
        assert_eq!(backoff.fail((), at(5), 50), at(5) + Duration::from_millis(3000));
        backoff.reset(&());
        assert_eq!(backoff.fail((), at(5), 0), at(6));
    }
}
