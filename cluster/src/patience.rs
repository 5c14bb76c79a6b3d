//! How long is waited for what. One value for a whole client; shorter in tests.

use std::time::Duration;

/// Every bound on waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// TCP and TLS with one server.
    pub(crate) connect: Duration,
    /// After this long without a frame a connection is asked for a sign of life. What Go's clients do.
    pub(crate) read_idle: Duration,
    /// How long that sign may take.
    pub(crate) ping_answer: Duration,
    /// Data that nobody acknowledges for this long ends the connection.
    pub(crate) unacknowledged: Duration,
    /// One request, its answer read and asked-for pauses included.
    pub(crate) request: Duration,
    /// A request given up after this long without an answer takes its connection with it: it has stalled.
    pub(crate) stall: Duration,
    /// Bookmarks come every minute: a watch that was silent for longer than this has stalled.
    pub(crate) silence: Duration,
    /// The initial events of a watch may not pause for longer.
    pub(crate) list_silence: Duration,
    /// The first and the longest delay after failures.
    pub(crate) back_off: (Duration, Duration),
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            connect: seconds(10),
            read_idle: seconds(30),
            ping_answer: seconds(15),
            unacknowledged: seconds(30),
            request: seconds(30),
            stall: seconds(9),
            silence: seconds(150),
            list_silence: seconds(30),
            back_off: (Duration::from_millis(500), seconds(30)),
        }
    }
}
