//! The standard streams of one process: opens what the addresses name, pumps between them and the process.
//!
//! ```text
//! process ── pipe or terminal ──► Output ──► CRI log (synchronous) or named pipe (waits when full)
//! named pipe ──► Input ──► pipe or terminal ── process
//! ```
//!
//! Owned by a process of `container`, driven by the loop. Each side is non-blocking and in the epoll set only while
//! the pump waits for it, so a full pipe stops the reading before it and nothing is buffered beyond one read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use coracle_shim::protocol::CRI_LOG_SCHEME;

use crate::cri_log::{Framer, LogFile, StreamName};
use crate::sys::{self, Epoll, Interest};

/// Bytes of one read. The pages are given back after each wake-up.
const READ_SIZE: usize = 32 * 1024;

/// Reads of one stream in one wake-up, so that a fast writer does not starve the others.
const READS_PER_WAKE: usize = 4;

/// What a pipe can hold and some more: enough to take what a process left behind when it ended.
const READS_AT_END: usize = 64;

/// Addresses of the standard streams, as the client gave them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// A stream that cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    #[error("cannot open {path} for {name}")]
    Open {
        name: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("address {address:?} of {name} has a scheme that this shim does not serve")]
    Scheme { name: &'static str, address: String },
    #[error("path {address:?} of {name} is not absolute")]
    Relative { name: &'static str, address: String },
    #[error("stdout and stderr are written to one CRI log, not to {0:?} and {1:?}")]
    TwoLogs(PathBuf, PathBuf),
    #[error("cannot make a pipe for {name}")]
    Pipe {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot receive the terminal from the maker")]
    Terminal(#[source] io::Error),
    #[error("cannot watch the streams")]
    Watch(#[source] io::Error),
}

/// The ends that the process inherits through its maker; `None` is /dev/null.
#[derive(Debug, Default)]
pub(crate) struct MakerEnds {
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
}

/// The shim's side of one process's streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    outputs: Vec<Output>,
    input: Option<Input>,
    console: Option<File>,
    log: Option<LogFile>,
    terminal: bool,
}

impl Streams {
    /// Opens what the addresses name. Nothing is pumped before [`Streams::start`].
    pub(crate) fn open(addresses: &Addresses) -> Result<(Self, MakerEnds), StdioError> {
        let mut streams = Self { terminal: addresses.terminal, ..Self::default() };
        let stdout = streams.open_output("stdout", StreamName::Stdout, &addresses.stdout)?;
        let mut ends = MakerEnds { stdout, ..MakerEnds::default() };
        if !addresses.terminal {
            ends.stderr = streams.open_output("stderr", StreamName::Stderr, &addresses.stderr)?;
        }
        if !addresses.stdin.is_empty() {
            ends.stdin = streams.open_input(&addresses.stdin)?;
        }
        Ok((streams, ends))
    }

    fn open_output(
        &mut self,
        name: &'static str,
        stream: StreamName,
        address: &str,
    ) -> Result<Option<File>, StdioError> {
        if address.is_empty() && !self.terminal {
            return Ok(None);
        }
        let target = if address.is_empty() {
            Target::Nowhere
        } else if let Some(path) = address.strip_prefix(CRI_LOG_SCHEME) {
            self.open_log(name, Path::new(path))?;
            Target::Log { stream, framer: Framer::default() }
        } else {
            Target::Pipe { pipe: open_named_pipe(name, address)?, backlog: Vec::new() }
        };
        let mut output = Output { id: 0, source: None, target };
        let mut end = None;
        if !self.terminal {
            let (read, write) = sys::pipe().map_err(|source| StdioError::Pipe { name, source })?;
            sys::set_nonblocking(&read).map_err(|source| StdioError::Pipe { name, source })?;
            output.source = Some(read);
            end = Some(write);
        }
        self.outputs.push(output);
        Ok(end)
    }

    fn open_log(&mut self, name: &'static str, path: &Path) -> Result<(), StdioError> {
        match &self.log {
            Some(log) if log.path() != path => {
                Err(StdioError::TwoLogs(log.path().to_path_buf(), path.to_path_buf()))
            }
            Some(_) => Ok(()),
            None => {
                let open = LogFile::open(path);
                self.log = Some(open.map_err(|source| StdioError::Open {
                    name,
                    path: path.to_path_buf(),
                    source,
                })?);
                Ok(())
            }
        }
    }

    fn open_input(&mut self, address: &str) -> Result<Option<File>, StdioError> {
        let source = open_named_pipe("stdin", address)?;
        let mut input = Input {
            id: 0,
            path: PathBuf::from(address),
            source,
            target: None,
            backlog: Vec::new(),
            waiting: false,
        };
        let mut end = None;
        if !self.terminal {
            let broken = |source| StdioError::Pipe { name: "stdin", source };
            let (read, write) = sys::pipe().map_err(broken)?;
            sys::set_nonblocking(&write).map_err(broken)?;
            input.target = Some(write);
            end = Some(read);
        }
        self.input = Some(input);
        Ok(end)
    }

    /// Takes the master of the terminal that the maker sent.
    pub(crate) fn attach_console(&mut self, master: File) -> Result<(), StdioError> {
        sys::set_nonblocking(&master).map_err(StdioError::Terminal)?;
        if let Some(output) = self.outputs.first_mut() {
            output.source = Some(master.try_clone().map_err(StdioError::Terminal)?);
        }
        if let Some(input) = &mut self.input {
            input.target = Some(master.try_clone().map_err(StdioError::Terminal)?);
        }
        self.console = Some(master);
        Ok(())
    }

    /// Starts to pump. `next_id` gives ids that no other watched descriptor has.
    pub(crate) fn start(
        &mut self,
        epoll: &Epoll,
        mut next_id: impl FnMut() -> u64,
    ) -> Result<(), StdioError> {
        for output in &mut self.outputs {
            output.id = next_id();
            if let Some(source) = &output.source {
                epoll.add(source, output.id, Interest::READ).map_err(StdioError::Watch)?;
            }
        }
        if let Some(input) = &mut self.input {
            input.id = next_id();
            epoll.add(&input.source, input.id, Interest::READ).map_err(StdioError::Watch)?;
        }
        Ok(())
    }

    /// Handles a wake-up; false when the id is not one of these streams.
    pub(crate) fn on_ready(&mut self, epoll: &Epoll, id: u64) -> bool {
        if let Some(at) = self.outputs.iter().position(|output| output.id == id) {
            if self.outputs[at].pump(epoll, self.log.as_mut(), READS_PER_WAKE) == Flow::Ended {
                self.outputs.remove(at);
            }
            return true;
        }
        if self.input.as_ref().is_some_and(|input| input.id == id) {
            if self.input.as_mut().is_some_and(|input| input.pump(epoll) == Flow::Ended) {
                self.input = None;
            }
            return true;
        }
        false
    }

    /// Takes over what the process left in its pipes when it ended, as far as that needs no waiting. Pumping goes on
    /// afterwards for whoever else holds them.
    pub(crate) fn drain(&mut self, epoll: &Epoll) {
        self.input = None;
        let log = &mut self.log;
        self.outputs.retain_mut(|output| output.pump(epoll, log.as_mut(), READS_AT_END) != Flow::Ended);
    }

    /// The last of a line without an end, once nothing more can come.
    pub(crate) fn finish(&mut self) {
        for output in &mut self.outputs {
            output.finish(self.log.as_mut());
        }
        self.outputs.clear();
        self.input = None;
        self.console = None;
    }

    /// What a failed maker said on its standard error, which is the container's.
    pub(crate) fn take_complaint(&mut self) -> String {
        let mut text = vec![0; 4096];
        let source = self.outputs.last_mut().and_then(|output| output.source.as_mut());
        let n = source.and_then(|source| source.read(&mut text).ok()).unwrap_or(0);
        String::from_utf8_lossy(&text[..n]).trim().to_owned()
    }

    /// Ends the standard input once what was written to it is passed on.
    pub(crate) fn close_input(&mut self, epoll: &Epoll) -> io::Result<()> {
        match &mut self.input {
            Some(input) => input.let_end(epoll),
            None => Ok(()),
        }
    }

    /// Sets the terminal's size; without a terminal nothing happens, as with containerd.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        self.console.as_ref().map_or(Ok(()), |console| sys::set_window_size(console, columns, rows))
    }

    pub(crate) fn log(&self) -> Option<&LogFile> {
        self.log.as_ref()
    }

    pub(crate) fn log_mut(&mut self) -> Option<&mut LogFile> {
        self.log.as_mut()
    }
}

/// Opens a named pipe for both directions, so that it neither waits for the other side nor breaks when that restarts.
fn open_named_pipe(name: &'static str, address: &str) -> Result<File, StdioError> {
    if address.contains("://") {
        return Err(StdioError::Scheme { name, address: address.into() });
    }
    let path = Path::new(address);
    if !path.is_absolute() {
        return Err(StdioError::Relative { name, address: address.into() });
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| StdioError::Open { name, path: path.to_path_buf(), source })
}

/// Whether a pump has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    Ended,
}

#[derive(Debug)]
struct Output {
    id: u64,
    source: Option<File>,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Log {
        stream: StreamName,
        framer: Framer,
    },
    Pipe {
        pipe: File,
        /// What the pipe did not take; while there is any, the source is not read.
        backlog: Vec<u8>,
    },
    /// A terminal whose output nobody wants must still be read.
    Nowhere,
}

impl Output {
    fn pump(&mut self, epoll: &Epoll, mut log: Option<&mut LogFile>, reads: usize) -> Flow {
        if !self.flush_backlog(epoll) {
            return Flow::Open;
        }
        let Some(source) = &mut self.source else { return Flow::Ended };
        let mut buffer = vec![0; READ_SIZE];
        if let Some(log) = log.as_deref_mut() {
            log.set_time(sys::unix_ns());
        }
        let mut flow = Flow::Open;
        for _ in 0..reads {
            match source.read(&mut buffer) {
                Ok(n) if n > 0 => {
                    if !self.target.take(&buffer[..n], log.as_deref_mut()) {
                        wait_for_pipe(epoll, self.id, source, &self.target);
                        return Flow::Open;
                    }
                    if n < buffer.len() / 8 && reads == READS_PER_WAKE {
                        // A slow writer: another read would most likely find nothing.
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
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
        }
        flow
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
        if let Some(source) = &self.source {
            drop(epoll.add(source, self.id, Interest::READ));
        }
        true
    }

    fn finish(&mut self, log: Option<&mut LogFile>) {
        if let (Target::Log { stream, framer }, Some(log)) = (&mut self.target, log) {
            log.set_time(sys::unix_ns());
            framer.finish(|tag, first, second| log.line(*stream, tag, first, second));
            log.flush();
        }
    }
}

fn wait_for_pipe(epoll: &Epoll, id: u64, source: &File, target: &Target) {
    // Out of the set entirely: a hang-up is told even to who does not ask for it.
    epoll.remove(source);
    if let Target::Pipe { pipe, .. } = target {
        drop(epoll.add(pipe, id, Interest::WRITE));
    }
}

impl Target {
    /// Passes output on; false when part of it has to wait.
    fn take(&mut self, bytes: &[u8], log: Option<&mut LogFile>) -> bool {
        match self {
            Self::Log { stream, framer } => {
                if let Some(log) = log {
                    framer.push(bytes, |tag, first, second| log.line(*stream, tag, first, second));
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
}

/// Writes what fits now. What a broken pipe does not take counts as taken: nobody can have it.
fn write_some(pipe: &mut File, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match pipe.write(&bytes[written..]) {
            Ok(n) if n > 0 => written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            _ => return bytes.len(),
        }
    }
    written
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
struct Input {
    id: u64,
    path: PathBuf,
    source: File,
    target: Option<File>,
    /// What the process has not taken; while there is any, the source is not read.
    backlog: Vec<u8>,
    /// Whether the loop waits for the process to take the backlog.
    waiting: bool,
}

impl Input {
    fn pump(&mut self, epoll: &Epoll) -> Flow {
        let Some(target) = &mut self.target else { return Flow::Ended };
        if self.waiting {
            if !write_backlog(target, &mut self.backlog) {
                return Flow::Open;
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
                Flow::Open
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Flow::Open
            }
            Err(_) => Flow::Ended,
        }
    }

    /// Gives up the shim's own writing end, so that the pipe ends when its last writer has gone.
    fn let_end(&mut self, epoll: &Epoll) -> io::Result<()> {
        let source = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&self.path)?;
        if !self.waiting {
            epoll.remove(&self.source);
            epoll.add(&source, self.id, Interest::READ)?;
        }
        self.source = source;
        Ok(())
    }
}
