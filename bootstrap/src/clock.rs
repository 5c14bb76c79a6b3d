//! Wall time: what certificates are compared with. Machines without a clock battery begin in 1970.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::UnixTime;

/// Where wall time comes from; tests set their own.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl WallClock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Arc::new(SystemTime::now))
    }

    /// A clock of one's own.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time now.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WallClock({})", show(self.now()))
    }
}

impl rustls::time_provider::TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        self.now().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// A moment as people read it, in whole seconds.
pub(crate) fn show(at: SystemTime) -> String {
    let Ok(stamp) = jiff::Timestamp::try_from(at) else { return "a time out of range".to_owned() };
    stamp.round(jiff::Unit::Second).unwrap_or(stamp).to_string()
}
