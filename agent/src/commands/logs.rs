//! `coracle logs POD`: reads the log files of a container itself; the agent only says where they lie.
//!
//! Following waits for inotify on the folder, so it sees growth and rotation alike.

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use coracle_kubelet_core::api::{ContainerStatus, Pod};
use coracle_kubelet_core::container_log::{LogFilter, LogReader, LogStream};
use inotify::{Inotify, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::args::LogsArgs;
use crate::socket::PodRecord;

/// How long a followed log stays silent before the container is looked at again.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

pub(crate) fn run(args: &LogsArgs) -> Result<ExitCode> {
    let mut told = false;
    let records = super::pod_records_again(&args.state.state_dir, &mut told)?;
    let record = super::find_pod(&records, &args.pod)?;
    let container = super::container_name(&record.pod, args.container.as_deref())?;
    let path = log_path(record, &container, args.previous)?;
    let reader = LogReader::open(&path, args.tail.map(|lines| lines as u64))?;
    let filter = LogFilter { timestamps: args.timestamps, ..LogFilter::default() };
    let mut log = Log { reader, filter, shown: Vec::new() };
    if !args.follow {
        log.print_rest()?;
        return Ok(ExitCode::SUCCESS);
    }
    follow(args, &mut log, &container, told)
}

/// Prints what comes until the container has ended and its log is read.
fn follow(args: &LogsArgs, log: &mut Log, container: &str, mut told: bool) -> Result<ExitCode> {
    let folder = log.reader.path().parent().context("a log lies in a folder")?.to_owned();
    let mut inotify = Inotify::init().context("cannot watch the log")?;
    let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO;
    inotify.watches().add(&folder, mask).with_context(|| format!("cannot watch {}", folder.display()))?;
    let mut buffer = [0_u8; 4096];
    loop {
        log.print_rest()?;
        if log.reader.is_rotated()? {
            // What was written to the old file until the rotation.
            log.print_rest()?;
            log.reader.reopen_if_rotated()?;
            log.print_rest()?;
        }
        if wait(&inotify)? {
            // What happened does not matter: the file is read from where it was left.
            match inotify.read_events(&mut buffer) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    return Err(error).context("cannot watch the log");
                }
                _ => {}
            }
        } else if !still_running(args, container, &mut told)? {
            log.print_rest()?;
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Waits for a change; false if none came in time.
fn wait(inotify: &Inotify) -> Result<bool> {
    let mut polled = [PollFd::new(inotify, PollFlags::IN)];
    match rustix::event::poll(&mut polled, Some(&LOOK_AGAIN)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error).context("cannot wait for the log"),
    }
}

fn still_running(args: &LogsArgs, container: &str, told: &mut bool) -> Result<bool> {
    let records = super::pod_records_again(&args.state.state_dir, told)?;
    let Ok(record) = super::find_pod(&records, &args.pod) else { return Ok(false) };
    Ok(status_of(&record.pod, container).is_none_or(|status| status.state.terminated.is_none()))
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = &pod.status;
    let mut all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .chain(&status.ephemeral_container_statuses);
    all.find(|status| status.name == container)
}

/// The file of the wanted instance; instances are numbered by restarts.
fn log_path(record: &PodRecord, container: &str, previous: bool) -> Result<PathBuf> {
    let folder = record.log_directory.join(container);
    let mut instances: Vec<u32> = match std::fs::read_dir(&folder) {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
            .collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    instances.sort_unstable();
    let instance = instances.len().checked_sub(if previous { 2 } else { 1 }).map(|index| instances[index]);
    let what = if previous { "previous instance" } else { "log yet" };
    let instance = instance.with_context(|| {
        let waiting = status_of(&record.pod, container).and_then(|status| status.state.waiting.as_ref());
        let why = waiting.map(|waiting| format!(" ({})", waiting.reason)).unwrap_or_default();
        format!("container {container:?} of pod {} has no {what}{why}", record.pod.full_name())
    })?;
    Ok(folder.join(format!("{instance}.log")))
}

/// A log on its way to the terminal.
struct Log {
    reader: LogReader,
    filter: LogFilter,
    shown: Vec<u8>,
}

impl Log {
    /// Prints every whole record from here to the end of the file.
    fn print_rest(&mut self) -> Result<()> {
        let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
        while let Some(record) = self.reader.next_record()? {
            self.shown.clear();
            self.filter.show(&record, &mut self.shown);
            let out: &mut dyn std::io::Write =
                if record.stream == LogStream::Stderr { &mut err } else { &mut out };
            out.write_all(&self.shown).context("cannot print the log")?;
        }
        out.flush().context("cannot print the log")
    }
}
