//! How a process ended, and the record of it that outlives the shim.
//!
//! The loop writes the record when a container's first process has ended. The runtime reads it when the shim is gone
//! or when it was not there to hear of the end.

use std::fs;
use std::io;
use std::path::Path;

use coracle_shim::protocol::{EXIT_RECORD, Timestamp, task};

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or 128 and the signal.
    pub(crate) status: u32,
    /// Nanoseconds since 1970.
    pub(crate) at_unix_ns: i64,
}

impl Exit {
    pub(crate) fn timestamp(&self) -> Timestamp {
        Timestamp::from_unix_ns(self.at_unix_ns)
    }

    pub(crate) fn as_wait(&self) -> task::WaitResponse {
        task::WaitResponse { exit_status: self.status, exited_at: Some(self.timestamp()) }
    }
}

/// Writes the record into a bundle: beside its place first, so that no reader finds half of it.
pub(crate) fn write(bundle: &Path, exit: &Exit, oom: bool) -> io::Result<()> {
    let text = format!(
        "{{\"version\":1,\"exit_status\":{},\"exited_at_unix_ns\":{},\"oom\":{oom}}}\n",
        exit.status, exit.at_unix_ns
    );
    let beside = bundle.join(format!("{EXIT_RECORD}.new"));
    fs::write(&beside, text)?;
    fs::rename(&beside, bundle.join(EXIT_RECORD))
}
