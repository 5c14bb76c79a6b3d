//! A maker that runs: what its end continues, and the socket on which it sends a terminal.
//!
//! Held by the loop, made and finished by `lifecycle` and `execs`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use coracle_shim::protocol::{Code, Status};

use crate::cgroup::Fresh;
use crate::connection::ReplyTo;
use crate::maker::Running;
use crate::sys;

/// A maker that runs, and what its end continues.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) running: Running,
    pub(crate) container: String,
    pub(crate) step: Step,
    pub(crate) reply: Option<ReplyTo>,
    /// When the caller stops waiting: the maker is killed then.
    pub(crate) deadline: Option<u64>,
    pub(crate) killed: bool,
    /// The call's own files, removed at its end.
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug)]
pub(crate) enum Step {
    Create {
        pid_file: PathBuf,
        console: Option<ConsoleSocket>,
    },
    /// Removes what a failed creation left; then the caller hears of the failure.
    Undo {
        failure: Status,
    },
    Start,
    StartExec {
        exec_id: String,
        pid_file: PathBuf,
        console: Option<ConsoleSocket>,
    },
    Delete,
    Pause,
    Resume,
    Update,
}

impl Job {
    pub(crate) fn pid(&self) -> i32 {
        self.running.pid
    }

    /// Whether its end will name a process that may have ended before.
    pub(crate) fn makes_process(&self) -> bool {
        matches!(self.step, Step::Create { .. } | Step::StartExec { .. })
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.deadline.filter(|_| !self.killed)
    }

    /// Kills the maker when nobody waits for it any more; its end is handled as usual.
    pub(crate) fn kill_if_late(&mut self, now: u64) {
        if self.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.killed = true;
            drop(sys::kill(self.running.pid, libc::SIGKILL));
        }
    }
}

/// A failed creation of which nothing is left but a cgroup whose processes are ending.
#[derive(Debug)]
pub(crate) struct Undoing {
    pub(crate) container: String,
    pub(crate) cgroup: Option<Fresh>,
    /// Milliseconds since boot after which the caller hears of the failure all the same.
    pub(crate) until: u64,
    pub(crate) reply: Option<ReplyTo>,
    pub(crate) failure: Status,
}

impl Undoing {
    /// Whether all of it is gone; ends what is not.
    pub(crate) fn is_done(&self) -> bool {
        self.cgroup.as_ref().is_none_or(|cgroup| {
            cgroup.kill();
            cgroup.remove()
        })
    }
}

/// Where the maker sends a terminal to.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    /// Its folder, held open: a path through this descriptor is short however long the folder's own is.
    folder: File,
    name: String,
    path: PathBuf,
}

impl ConsoleSocket {
    pub(crate) fn bind(path: PathBuf) -> io::Result<Self> {
        let (folder, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
        let (folder, name) = (File::open(folder)?, name.to_string_lossy().into_owned());
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, folder, name, path })
    }

    /// A path that the maker, another process, reaches it by.
    pub(crate) fn argument(&self) -> OsString {
        format!("/proc/{}/fd/{}/{}", std::process::id(), self.folder.as_raw_fd(), self.name).into()
    }

    pub(crate) fn receive(&self) -> io::Result<File> {
        let (stream, _) = self.listener.accept()?;
        sys::receive_descriptor(&stream)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

/// Arguments of a maker.
pub(crate) fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.into_iter().map(OsString::from).collect()
}

/// A failure of the shim's own, with its causes.
pub(crate) fn failed(code: Code, what: &str, error: &dyn std::error::Error) -> Status {
    Status::new(code, format!("{what}: {}", crate::Chain(error)))
}

/// Writes a file that only root may read: environments hold secrets.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
}
