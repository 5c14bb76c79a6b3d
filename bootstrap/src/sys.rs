//! The kernel's timer of wall time. Called by `timer.rs`; owns nothing beyond one wait.
#![allow(unsafe_code, reason = "tokio takes file descriptors only from those who vouch for them")]

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Waits until the clock reaches this time, in seconds and nanoseconds since 1970, or is set.
pub(crate) async fn wait_for_clock(seconds: i64, nanoseconds: i64) -> io::Result<()> {
    let timer: OwnedFd =
        timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    let at = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    timerfd_settime(
        &timer,
        TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET,
        &Itimerspec { it_interval: never, it_value: at },
    )?;
    // SAFETY: the `OwnedFd` is a valid descriptor, and the `AsyncFd` owns it until both are dropped here.
    let timer = unsafe { AsyncFd::register(timer) }.map_err(|error| io::Error::other(error.to_string()))?;
    // Readable on expiry, and with ECANCELED when the clock was set.
    timer.readable().await.map(drop)
}
