//! How long somebody waits before asking again: watches, joins, renewals, events. No clock of its own.

use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

/// Doubling delays, jittered so that nodes that lost a server together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl Backoff {
    /// The bound of the first delay, and the one that no later one passes.
    pub fn new((first, last): (Duration, Duration)) -> Self {
        Self { next: first, first, last }
    }

    /// The delay after one more failure: between a half and the whole of a doubling bound. What the server asked
    /// for is obeyed, and jittered upwards.
    pub fn fail(&mut self, asked: Option<Duration>) -> Duration {
        let bound = self.next;
        self.next = (bound * 2).min(self.last);
        let random = f64::from(random_u32()) / f64::from(u32::MAX);
        match asked {
            Some(asked) => asked + bound.mul_f64(random * 0.5),
            None => bound.mul_f64(0.5 + random * 0.5),
        }
    }

    /// Something worked: the next failure starts afresh.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Randomness for jitter. Every `RandomState` has keys of its own, which is random enough to spread load.
pub(crate) fn random_u32() -> u32 {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u8(0);
    (hasher.finish() >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

    #[test]
    fn delays_double_to_their_bound_and_start_afresh() {
        let mut backoff = Backoff::new(BOUNDS);
        let mut bound = BOUNDS.0;
        for _ in 0..10 {
            let delay = backoff.fail(None);
            assert!(delay >= bound / 2 && delay <= bound, "{delay:?} for {bound:?}");
            bound = (bound * 2).min(BOUNDS.1);
        }
        backoff.reset();
        assert!(backoff.fail(None) <= BOUNDS.0);
    }

    #[test]
    fn what_the_server_asked_for_is_a_lower_bound() {
        let mut backoff = Backoff::new(BOUNDS);
        let asked = Duration::from_secs(7);
        let delay = backoff.fail(Some(asked));
        assert!(delay >= asked && delay <= asked + BOUNDS.0);
    }
}
