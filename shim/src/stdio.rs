//! The standard streams of one process: opens what the addresses name and holds the pumps between both sides.
//!
//! Owned by a process of `container`, driven by the loop; nothing here waits.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use coracle_shim::protocol::CRI_LOG_SCHEME;
use coracle_shim::protocol::shim::KeepLogRequest;

use crate::attached::Attached;
use crate::cri_log::{Framer, LogFile, StreamName};
use crate::pump::{Flow, Input, Output, Reach, Target};
use crate::sys::{self, Epoll, Interest};

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
    /// The terminal's master; of a container that another shim runs, its input, held open.
    console: Option<File>,
    log: Option<LogFile>,
    /// What the log refused, once it is closed because nothing more can come.
    ended_log: Option<LogSummary>,
    terminal: bool,
}

/// What a log refused.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogSummary {
    /// Bytes of output.
    pub(crate) dropped: u64,
    /// Why it refuses now; empty while it does not.
    pub(crate) error: String,
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

    /// Opens the pipes of a container that another shim runs, and its log.
    pub(crate) fn keep(request: &KeepLogRequest) -> Result<Self, StdioError> {
        let mut streams = Self { terminal: request.terminal, ..Self::default() };
        for (name, stream, address) in
            [("stdout", StreamName::Stdout, &request.stdout), ("stderr", StreamName::Stderr, &request.stderr)]
        {
            if address.is_empty() {
                continue;
            }
            let target = if request.log.is_empty() {
                Target::Nowhere
            } else {
                streams.open_log(name, Path::new(&request.log))?;
                Target::Log(Framer::default())
            };
            // Open for reading alone, so that the output ends when the other shim closes its side.
            let source = open_fifo(name, address, false)?;
            let attached = Vec::new();
            streams.outputs.push(Output {
                id: 0,
                stream,
                source: Some(source),
                target,
                attached,
                ended: false,
            });
        }
        if !request.stdin.is_empty() {
            // Somebody must have it open, or the input would end with the first client that leaves.
            streams.console = Some(open_fifo("stdin", &request.stdin, true)?);
        }
        Ok(streams)
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
            Target::Log(Framer::default())
        } else {
            Target::Pipe { pipe: open_pipe(name, address, false)?, backlog: Vec::new() }
        };
        let mut output = Output { id: 0, stream, source: None, target, attached: Vec::new(), ended: false };
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
        let source = open_pipe("stdin", address, true)?;
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
            if self.outputs[at].pump(epoll, self.log.as_mut(), Reach::Wake) == Flow::Ended {
                self.outputs.remove(at);
                self.close_ended_log();
            }
            return true;
        }
        if let Some(at) = self.outputs.iter().position(|output| has_attached(output, id)) {
            self.outputs[at].on_attached_ready(epoll, id);
            if self.outputs[at].is_over() {
                self.outputs.remove(at);
                self.close_ended_log();
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
        self.pump_all(epoll, Reach::End);
    }

    fn pump_all(&mut self, epoll: &Epoll, reach: Reach) {
        let log = &mut self.log;
        self.outputs.retain_mut(|output| output.pump(epoll, log.as_mut(), reach) != Flow::Ended);
        self.close_ended_log();
    }

    /// Gives somebody a copy of the output from now on. An address that is empty, or of a stream that has ended, gets
    /// nothing. `next_id` gives ids that no other watched descriptor has.
    pub(crate) fn attach(
        &mut self,
        epoll: &Epoll,
        (stdout, stderr): (&str, &str),
        mut next_id: impl FnMut() -> u64,
    ) -> Result<(), StdioError> {
        for (name, stream, address) in
            [("stdout", StreamName::Stdout, stdout), ("stderr", StreamName::Stderr, stderr)]
        {
            let output = self.outputs.iter_mut().find(|output| output.stream == stream);
            if let (false, Some(output)) = (address.is_empty(), output) {
                output.attached.push(Attached::open(name, address, next_id(), epoll)?);
            }
        }
        Ok(())
    }

    /// How many are attached.
    pub(crate) fn attached(&self) -> usize {
        self.outputs.iter().map(|output| output.attached.len()).sum()
    }

    /// When the first of those who are attached is let go.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.outputs.iter().flat_map(|output| &output.attached).filter_map(Attached::deadline).min()
    }

    /// Lets those go who have taken nothing for too long.
    pub(crate) fn drop_stalled(&mut self, epoll: &Epoll, now: u64) {
        self.outputs.iter_mut().for_each(|output| output.drop_stalled(epoll, now));
        self.outputs.retain(|output| !output.is_over());
        self.close_ended_log();
    }

    /// The process is gone and deleted: ends its log, and returns what a slow reader has yet to take, if anything.
    pub(crate) fn wind_up(mut self, epoll: &Epoll) -> Option<Self> {
        self.input = None;
        self.pump_all(epoll, Reach::Last);
        self.console = None;
        for output in &mut self.outputs {
            output.finish(self.log.as_mut());
            if matches!(output.target, Target::Log(_)) {
                // There is no log any more: what comes now must not be told to the attached alone.
                output.end_source();
            }
        }
        self.log = None;
        self.outputs.retain(Output::is_blocked);
        (!self.outputs.is_empty()).then_some(self)
    }

    /// Handles a wake-up of what [`Streams::wind_up`] returned.
    pub(crate) fn pass_rest(&mut self, epoll: &Epoll, id: u64) {
        self.outputs.retain_mut(|output| {
            if has_attached(output, id) {
                output.on_attached_ready(epoll, id);
                return output.is_blocked();
            }
            output.id != id || output.pump(epoll, None, Reach::Wake) == Flow::Blocked
        });
    }

    /// Whether nothing is left to pass on.
    pub(crate) fn is_empty(&self) -> bool {
        self.outputs.is_empty()
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

    /// What the log refused so far.
    pub(crate) fn log_summary(&self) -> LogSummary {
        match (&self.log, &self.ended_log) {
            (Some(log), _) => LogSummary {
                dropped: log.dropped(),
                error: log.refusal().map(ToString::to_string).unwrap_or_default(),
            },
            (None, ended) => ended.clone().unwrap_or_default(),
        }
    }

    /// Whether the log refuses output now, or did when its last output came.
    pub(crate) fn log_refuses(&self) -> bool {
        match (&self.log, &self.ended_log) {
            (Some(log), _) => log.refusal().is_some(),
            (None, ended) => ended.as_ref().is_some_and(|summary| !summary.error.is_empty()),
        }
    }

    /// Opens the log anew after its file was renamed; `None` when there never was one.
    pub(crate) fn reopen_log(&mut self) -> Option<Result<(), StdioError>> {
        match &mut self.log {
            Some(log) => Some(log.reopen().map_err(|source| StdioError::Open {
                name: "the log",
                path: log.path().to_path_buf(),
                source,
            })),
            // Nothing more comes, so nothing is to be opened.
            None => self.ended_log.as_ref().map(|_| Ok(())),
        }
    }

    /// Closes the log when no output is left: a file that was removed must not keep its disk space.
    fn close_ended_log(&mut self) {
        if self.outputs.is_empty() && self.log.is_some() {
            self.ended_log = Some(self.log_summary());
            self.log = None;
        }
    }
}

fn has_attached(output: &Output, id: u64) -> bool {
    output.attached.iter().any(|attached| attached.id == id)
}

/// Where the pipes of a living process are, as opposed to named ones.
const PROCESS_PIPES: &str = "/proc/";

/// Whether the stream belongs to a living process and ends with it.
pub(crate) fn ends_with_its_process(address: &str) -> bool {
    address.starts_with(PROCESS_PIPES)
}

/// Opens a named pipe to read, or to hold it open.
fn open_fifo(name: &'static str, address: &str, hold: bool) -> Result<File, StdioError> {
    let path = Path::new(address);
    if !path.is_absolute() {
        return Err(StdioError::Relative { name, address: address.into() });
    }
    let open = OpenOptions::new().read(true).write(hold).custom_flags(libc::O_NONBLOCK).open(path);
    open.map_err(|source| StdioError::Open { name, path: path.to_path_buf(), source })
}

/// Opens a pipe. A named one is opened for both directions, so that it neither waits for the other side nor breaks when
/// that restarts; that of a process ends with it.
pub(crate) fn open_pipe(name: &'static str, address: &str, read: bool) -> Result<File, StdioError> {
    if address.contains("://") {
        return Err(StdioError::Scheme { name, address: address.into() });
    }
    let path = Path::new(address);
    if !path.is_absolute() {
        return Err(StdioError::Relative { name, address: address.into() });
    }
    let both = !ends_with_its_process(address);
    OpenOptions::new()
        .read(both || read)
        .write(both || !read)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| StdioError::Open { name, path: path.to_path_buf(), source })
}
