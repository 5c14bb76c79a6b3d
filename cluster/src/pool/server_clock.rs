//! What API servers' clocks say, and whether this machine's agrees. One lock over plain data.

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use http::{HeaderMap, header};

/// Seconds by which clocks may be apart before it is told.
const SKEW: u64 = 120;

/// The clock of the servers, by the one that answered last.
#[derive(Default)]
pub(super) struct ServerClock(Mutex<Told>);

#[derive(Default)]
struct Told {
    said: Option<(SystemTime, Instant)>,
    off: bool,
}

impl ServerClock {
    /// Servers say their time in every answer. A clock that is off is told once, and once when it is right again.
    pub(super) fn read(&self, headers: &HeaderMap) {
        let Some(date) = headers.get(header::DATE).and_then(|date| date.to_str().ok()) else { return };
        let parser = jiff::fmt::rfc2822::DateTimeParser::new();
        let Ok(date) = parser.parse_timestamp(date) else { return };
        let now = jiff::Timestamp::now();
        let ahead = now.as_second() - date.as_second();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.said = Some((date.into(), Instant::now()));
        let off = ahead.unsigned_abs() > if told.off { SKEW / 2 } else { SKEW };
        if off != std::mem::replace(&mut told.off, off) {
            if off {
                tracing::error!(
                    "this machine's clock says {now:.0}, the API server's {date}: set the clock (NTP), or leases and certificates go wrong"
                );
            } else {
                tracing::info!("this machine's clock and the API server's agree again");
            }
        }
    }

    /// The time of the server that answered last.
    pub(super) fn now(&self) -> Option<SystemTime> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.said.map(|(date, at)| date + at.elapsed())
    }
}
