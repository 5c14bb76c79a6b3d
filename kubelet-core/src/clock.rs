//! The `now` of pure logic: time since boot for every duration, wall time for what people read.
//!
//! Read at the edges (worker, recorder) and passed into planning, which never reads a clock itself. These
//! machines have no clock battery, so wall time jumps by decades when the network comes up; nothing here
//! or in its callers computes a duration from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::api::Time;

const NANOS: i64 = 1_000_000_000;

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Time since boot, suspend included (`CLOCK_BOOTTIME`). Only moves forward.
    pub boot: Duration,
    /// Nanoseconds since the Unix epoch as the wall clock has it right now.
    pub wall_nanos: i64,
}

impl Now {
    /// The wall time in the API's resolution.
    pub fn wall(&self) -> Time {
        Time(self.wall_nanos.div_euclid(NANOS))
    }

    /// The moment `age` ago on the wall clock as it is set now.
    ///
    /// A start recorded as boot time is told to people this way, so that it is right even when the clock
    /// was set after the start.
    pub fn wall_at(&self, boot: Duration) -> Time {
        let age = i64::try_from(self.boot.saturating_sub(boot).as_nanos()).unwrap_or(i64::MAX);
        Time(self.wall_nanos.saturating_sub(age).div_euclid(NANOS))
    }

    /// Where a wall time of the past lies since boot, for records that carry wall time alone.
    ///
    /// A record from the future (the clock was set back) counts as made just now; one older than the boot
    /// counts as made at boot. So the result never lies ahead, and an age never exceeds the uptime.
    pub fn boot_at(&self, wall_nanos: i64) -> Duration {
        let age = u64::try_from(self.wall_nanos.saturating_sub(wall_nanos)).unwrap_or(0);
        self.boot.saturating_sub(Duration::from_nanos(age))
    }
}

/// Where `Now` comes from.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Tokio { base: tokio::time::Instant, wall_offset: Arc<AtomicI64> },
}

impl Clock {
    /// The kernel's clocks.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that runs with tokio's, so that it stands still in a paused test, and whose wall time the
    /// returned [`WallSetter`] moves. Starts an hour after boot at the given Unix time.
    pub fn following_tokio(unix_seconds: i64) -> (Self, WallSetter) {
        let wall_offset = Arc::new(AtomicI64::new(unix_seconds.saturating_mul(NANOS)));
        let source = Source::Tokio { base: tokio::time::Instant::now(), wall_offset: wall_offset.clone() };
        (Self(source), WallSetter(wall_offset))
    }

    /// Both clocks, now.
    pub fn now(&self) -> Now {
        match &self.0 {
            Source::System => Now {
                boot: since_epoch(rustix::time::clock_gettime(rustix::time::ClockId::Boottime)),
                wall_nanos: i64::try_from(
                    since_epoch(rustix::time::clock_gettime(rustix::time::ClockId::Realtime)).as_nanos(),
                )
                .unwrap_or(i64::MAX),
            },
            Source::Tokio { base, wall_offset } => {
                let elapsed = base.elapsed();
                let nanos = i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX);
                Now {
                    boot: Duration::from_secs(3600) + elapsed,
                    wall_nanos: wall_offset.load(Ordering::Relaxed).saturating_add(nanos),
                }
            }
        }
    }
}

/// Moves the wall time of a [`Clock::following_tokio`].
#[derive(Clone, Debug)]
pub struct WallSetter(Arc<AtomicI64>);

impl WallSetter {
    /// Jumps by that many seconds, forward or back.
    pub fn jump(&self, seconds: i64) {
        self.0.fetch_add(seconds.saturating_mul(NANOS), Ordering::Relaxed);
    }
}

fn since_epoch(time: rustix::time::Timespec) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_from_the_future_are_new_and_ancient_ones_as_old_as_the_boot() {
        let now = Now { boot: Duration::from_secs(100), wall_nanos: 1_000 * NANOS };
        assert_eq!(now.boot_at(990 * NANOS), Duration::from_secs(90));
        assert_eq!(now.boot_at(5_000 * NANOS), Duration::from_secs(100));
        assert_eq!(now.boot_at(0), Duration::ZERO);
        assert_eq!(now.wall_at(Duration::from_secs(40)), Time(940));
    }

    #[tokio::test(start_paused = true)]
    async fn wall_jumps_leave_boot_time_alone() {
        let (clock, wall) = Clock::following_tokio(0);
        let before = clock.now();
        wall.jump(50 * 365 * 86_400);
        tokio::time::advance(Duration::from_secs(1)).await;
        let after = clock.now();
        assert_eq!(after.boot - before.boot, Duration::from_secs(1));
        assert_eq!(after.wall().0, 50 * 365 * 86_400 + 1);
    }

    #[test]
    fn the_system_clock_moves_forward() {
        let clock = Clock::system();
        let (first, second) = (clock.now(), clock.now());
        assert!(second.boot >= first.boot && first.boot > Duration::ZERO && first.wall_nanos > 0);
    }
}
