//! A client that gets a copy of a container's output, by a pipe.
//!
//! Owned by an `Output` of `pump`. As with every runtime a client that is slow holds the container up, and nothing is
//! buffered beyond one read; but one that takes nothing for [`STALL_MS`] is let go, because a container must not stand
//! still for ever for somebody who is not there. Only pipes of a living process are taken (`/proc/PID/fd/N`), opened
//! for writing alone: so their end shows when that process closes or dies.

use std::fs::File;
use std::io;

use crate::pump::write_now;
use crate::stdio::{StdioError, open_pipe};
use crate::sys::{self, Epoll, Interest};

/// How long a client may take nothing of what waits for it.
const STALL_MS: u64 = 30_000;

#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) id: u64,
    pipe: File,
    /// What the client has not taken; while there is any, the container's output is not read.
    backlog: Vec<u8>,
    /// When a client with a backlog is let go, in milliseconds since boot.
    until: u64,
}

impl Attached {
    pub(crate) fn open(
        name: &'static str,
        address: &str,
        id: u64,
        epoll: &Epoll,
    ) -> Result<Self, StdioError> {
        let pipe = open_pipe(name, address, false)?;
        epoll.add(&pipe, id, Interest::END).map_err(StdioError::Watch)?;
        Ok(Self { id, pipe, backlog: Vec::new(), until: 0 })
    }

    /// Passes output on, or keeps it until it can be; false when the client is gone.
    pub(crate) fn take(&mut self, epoll: &Epoll, bytes: &[u8]) -> bool {
        if self.is_blocked() {
            self.backlog.extend_from_slice(bytes);
            return true;
        }
        let Ok(taken) = write_now(&mut self.pipe, bytes) else { return false };
        if taken == bytes.len() {
            return true;
        }
        self.backlog.extend_from_slice(&bytes[taken..]);
        self.until = sys::boot_ms() + STALL_MS;
        epoll.modify(&self.pipe, self.id, Interest::WRITE).is_ok()
    }

    /// Handles a wake-up; false when the client is gone.
    pub(crate) fn on_ready(&mut self, epoll: &Epoll) -> bool {
        self.flush(epoll).is_ok()
    }

    fn flush(&mut self, epoll: &Epoll) -> io::Result<()> {
        if !self.is_blocked() {
            // Who waits for nothing is woken by the end alone.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = write_now(&mut self.pipe, &self.backlog)?;
        self.backlog.drain(..written);
        if written > 0 {
            self.until = sys::boot_ms() + STALL_MS;
        }
        if self.backlog.is_empty() {
            self.backlog = Vec::new();
            epoll.modify(&self.pipe, self.id, Interest::END)?;
        }
        Ok(())
    }

    pub(crate) fn is_blocked(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// When it is let go unless it takes something.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.is_blocked().then_some(self.until)
    }
}
