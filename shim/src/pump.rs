//! Passes bytes between a process and what its streams are connected to.
//!
//! ```text
//! process ── pipe or terminal ──► Output ──► CRI log (synchronous) or named pipe (waits when full)
//!                                      └───► Attached, any number (wait when full, but not for ever)
//! named pipe ──► Input ──► pipe or terminal ── process
//! ```
//!
//! Owned by `stdio`, driven by the loop. Each side is non-blocking and in the epoll set only while the pump waits for
//! it, so a full pipe stops the reading before it and nothing is buffered beyond one read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::attached::Attached;
use crate::cri_log::{Framer, LogFile, StreamName};
use crate::sys::{self, Epoll, Interest};

/// Bytes of one read. The pages are given back after each wake-up.
const READ_SIZE: usize = 32 * 1024;

/// Reads of one stream in one wake-up, so that a fast writer does not starve the others.
const READS_PER_WAKE: usize = 4;

/// What a pipe can hold and some more: enough to take what a process left behind when it ended.
const READS_AT_END: usize = 64;

/// How much of its source a pump takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// A fair share.
    Wake,
    /// All that the process left when it ended.
    End,
    /// The same, and the log gets it however slow the attached are.
    Last,
}

/// How a pump left off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// All there was is passed on.
    Idle,
    /// There is more than one wake-up passes on.
    More,
    /// The other side is full.
    Blocked,
    Ended,
}

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) id: u64,
    pub(crate) stream: StreamName,
    pub(crate) source: Option<File>,
    pub(crate) target: Target,
    /// Who gets a copy.
    pub(crate) attached: Vec<Attached>,
    /// Nothing more comes from the source.
    pub(crate) ended: bool,
}

#[derive(Debug)]
pub(crate) enum Target {
    Log(Framer),
    Pipe {
        pipe: File,
        /// What the pipe did not take; while there is any, the source is not read.
        backlog: Vec<u8>,
    },
    /// A terminal whose output nobody wants must still be read.
    Nowhere,
}

impl Output {
    pub(crate) fn pump(&mut self, epoll: &Epoll, mut log: Option<&mut LogFile>, reach: Reach) -> Flow {
        if !self.flush_backlog(epoll) || (reach != Reach::Last && self.waits_for_attached()) {
            return Flow::Blocked;
        }
        if self.source.is_none() {
            return if self.is_blocked() { Flow::Blocked } else { Flow::Ended };
        }
        let Self { id, stream, source: Some(source), target, attached, .. } = self else {
            return Flow::Ended;
        };
        let mut buffer = vec![0; READ_SIZE];
        if let Some(log) = log.as_deref_mut() {
            log.set_time(sys::unix_ns());
        }
        let mut flow = Flow::More;
        for _ in 0..if reach == Reach::Wake { READS_PER_WAKE } else { READS_AT_END } {
            match source.read(&mut buffer) {
                Ok(n) if n > 0 => {
                    let taken = target.take(&buffer[..n], *stream, log.as_deref_mut());
                    attached.retain_mut(|attached| attached.take(epoll, &buffer[..n]));
                    let waits = reach != Reach::Last && attached.iter().any(Attached::is_blocked);
                    if !taken || waits {
                        // Out of the set entirely: a hang-up is told even to who does not ask for it.
                        epoll.remove(source);
                        if let (false, Target::Pipe { pipe, .. }) = (taken, &*target) {
                            drop(epoll.add(pipe, *id, Interest::WRITE));
                        }
                        flow = Flow::Blocked;
                        break;
                    }
                    if n < buffer.len() / 8 && reach == Reach::Wake {
                        // A slow writer: another read would most likely find nothing.
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    flow = Flow::Idle;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal ends with EIO, a pipe with nothing.
                _ => {
                    flow = Flow::Ended;
                    break;
                }
            }
        }
        if let Some(log) = log.as_deref_mut() {
            log.flush();
        }
        if flow == Flow::Ended {
            self.finish(log);
            self.end_source();
            if self.is_blocked() {
                return Flow::Blocked;
            }
        }
        flow
    }

    /// Whether something read has yet to be taken.
    pub(crate) fn is_blocked(&self) -> bool {
        self.target.is_blocked() || self.waits_for_attached()
    }

    /// Nothing more is to be read; what was read may still have to be taken.
    pub(crate) fn end_source(&mut self) {
        self.source = None;
        self.ended = true;
    }

    /// Whether there will be nothing more to do.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && !self.is_blocked()
    }

    fn waits_for_attached(&self) -> bool {
        self.attached.iter().any(Attached::is_blocked)
    }

    /// Handles a wake-up of one who is attached.
    pub(crate) fn on_attached_ready(&mut self, epoll: &Epoll, id: u64) {
        self.attached.retain_mut(|attached| attached.id != id || attached.on_ready(epoll));
        self.resume(epoll);
    }

    /// Lets those go who have taken nothing for too long.
    pub(crate) fn drop_stalled(&mut self, epoll: &Epoll, now: u64) {
        self.attached.retain(|attached| attached.deadline().is_none_or(|deadline| deadline > now));
        self.resume(epoll);
    }

    /// Reads on when nothing waits any more.
    fn resume(&self, epoll: &Epoll) {
        if let (false, Some(source)) = (self.is_blocked(), &self.source) {
            // One that is watched already stays so.
            drop(epoll.add(source, self.id, Interest::READ));
        }
    }

    /// True when nothing waits for the named pipe any more.
    fn flush_backlog(&mut self, epoll: &Epoll) -> bool {
        let Target::Pipe { pipe, backlog } = &mut self.target else { return true };
        if backlog.is_empty() {
            return true;
        }
        if !write_backlog(pipe, backlog) {
            return false;
        }
        epoll.remove(pipe);
        self.resume(epoll);
        true
    }

    pub(crate) fn finish(&mut self, log: Option<&mut LogFile>) {
        if let (Target::Log(framer), Some(log)) = (&mut self.target, log) {
            log.set_time(sys::unix_ns());
            framer.finish(|tag, first, second| log.line(self.stream, tag, first, second));
            log.flush();
        }
    }
}

impl Target {
    /// Passes output on; false when part of it has to wait.
    fn take(&mut self, bytes: &[u8], stream: StreamName, log: Option<&mut LogFile>) -> bool {
        match self {
            Self::Log(framer) => {
                if let Some(log) = log {
                    framer.push(bytes, |tag, first, second| log.line(stream, tag, first, second));
                }
                true
            }
            Self::Pipe { pipe, backlog } => {
                let taken = write_some(pipe, bytes);
                backlog.extend_from_slice(&bytes[taken..]);
                backlog.is_empty()
            }
            Self::Nowhere => true,
        }
    }

    fn is_blocked(&self) -> bool {
        matches!(self, Self::Pipe { backlog, .. } if !backlog.is_empty())
    }
}

/// Writes what fits now. What a broken pipe does not take counts as taken: nobody can have it.
fn write_some(pipe: &mut File, bytes: &[u8]) -> usize {
    write_now(pipe, bytes).unwrap_or(bytes.len())
}

/// Writes what fits now; an error means that the other side is gone.
pub(crate) fn write_now(pipe: &mut File, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match pipe.write(&bytes[written..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

/// True when the backlog is written, and its memory given back.
fn write_backlog(pipe: &mut File, backlog: &mut Vec<u8>) -> bool {
    let written = write_some(pipe, backlog);
    backlog.drain(..written);
    if backlog.is_empty() {
        *backlog = Vec::new();
    }
    backlog.is_empty()
}

#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) id: u64,
    pub(crate) path: PathBuf,
    pub(crate) source: File,
    pub(crate) target: Option<File>,
    /// What the process has not taken; while there is any, the source is not read.
    pub(crate) backlog: Vec<u8>,
    /// Whether the loop waits for the process to take the backlog.
    pub(crate) waiting: bool,
}

impl Input {
    pub(crate) fn pump(&mut self, epoll: &Epoll) -> Flow {
        let Some(target) = &mut self.target else { return Flow::Ended };
        if self.waiting {
            if !write_backlog(target, &mut self.backlog) {
                return Flow::Blocked;
            }
            self.waiting = false;
            epoll.remove(target);
            drop(epoll.add(&self.source, self.id, Interest::READ));
        }
        let mut buffer = vec![0; READ_SIZE];
        match self.source.read(&mut buffer) {
            Ok(0) => Flow::Ended,
            Ok(n) => {
                let taken = write_some(target, &buffer[..n]);
                if taken < n {
                    self.backlog.extend_from_slice(&buffer[taken..n]);
                    self.waiting = true;
                    epoll.remove(&self.source);
                    drop(epoll.add(target, self.id, Interest::WRITE));
                }
                Flow::More
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Flow::Idle
            }
            Err(_) => Flow::Ended,
        }
    }

    /// Gives up the shim's own writing end, so that the pipe ends when its last writer has gone.
    pub(crate) fn let_end(&mut self, epoll: &Epoll) -> io::Result<()> {
        let source = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&self.path)?;
        if !self.waiting {
            epoll.remove(&self.source);
            epoll.add(&source, self.id, Interest::READ)?;
        }
        self.source = source;
        Ok(())
    }
}
