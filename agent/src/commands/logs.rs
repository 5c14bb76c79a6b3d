//! `coracle logs POD`: reads the log files of a container itself; the agent only says where they lie.
//!
//! Files are in the CRI log format: `TIME STREAM TAG TEXT`, where tag `P` marks a line that goes on in the
//! next record. Following waits for inotify on the folder, so it sees growth and rotation alike.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use coracle_kubelet_core::api::{ContainerStatus, Pod};
use inotify::{Inotify, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::args::LogsArgs;
use crate::socket::PodRecord;

/// How long a followed log stays silent before the container is looked at again.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

pub(crate) fn run(args: &LogsArgs) -> Result<ExitCode> {
    let records = super::pod_records(&args.state.state_dir)?;
    let record = super::find_pod(&records, &args.pod)?;
    let container = container_name(&record.pod, args.container.as_deref())?;
    let path = log_path(record, &container, args.previous)?;
    let mut log = Log::open(&path, args.timestamps)?;
    if let Some(lines) = args.tail {
        log.skip_to_last(lines)?;
    }
    if !args.follow {
        log.print_rest()?;
        return Ok(ExitCode::SUCCESS);
    }
    follow(args, &mut log, &container)
}

/// Prints what comes until the container has ended and its log is read.
fn follow(args: &LogsArgs, log: &mut Log, container: &str) -> Result<ExitCode> {
    let folder = log.path.parent().context("a log lies in a folder")?.to_owned();
    let mut inotify = Inotify::init().context("cannot watch the log")?;
    let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO;
    inotify.watches().add(&folder, mask).with_context(|| format!("cannot watch {}", folder.display()))?;
    let mut buffer = [0_u8; 4096];
    loop {
        log.print_rest()?;
        log.reopen_if_rotated()?;
        if wait(&inotify)? {
            // What happened does not matter: the file is read from where it was left.
            match inotify.read_events(&mut buffer) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    return Err(error).context("cannot watch the log");
                }
                _ => {}
            }
        } else if !still_running(args, container)? {
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

fn still_running(args: &LogsArgs, container: &str) -> Result<bool> {
    let records = super::pod_records(&args.state.state_dir)?;
    let Ok(record) = super::find_pod(&records, &args.pod) else { return Ok(false) };
    Ok(status_of(&record.pod, container).is_none_or(|status| status.state.terminated.is_none()))
}

fn container_name(pod: &Pod, wanted: Option<&str>) -> Result<String> {
    let names: Vec<&str> = pod.all_containers().map(|container| container.name.as_str()).collect();
    match wanted {
        Some(wanted) if names.contains(&wanted) => Ok(wanted.to_owned()),
        Some(wanted) => {
            bail!("pod {} has no container {wanted:?}, only {}", pod.full_name(), names.join(", "))
        }
        None => match pod.spec.containers.as_slice() {
            [container] => Ok(container.name.clone()),
            _ => bail!(
                "pod {} has several containers, say which with -c: {}",
                pod.full_name(),
                names.join(", ")
            ),
        },
    }
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

/// A log file, read once from front to back.
struct Log {
    path: PathBuf,
    reader: BufReader<File>,
    timestamps: bool,
    /// A line whose end is not written yet.
    torn: Vec<u8>,
}

impl Log {
    fn open(path: &Path, timestamps: bool) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), timestamps, torn: Vec::new() })
    }

    /// Prints every whole record from here to the end of the file.
    fn print_rest(&mut self) -> Result<()> {
        let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
        loop {
            let length = self.reader.read_until(b'\n', &mut self.torn).context("cannot read the log")?;
            if length == 0 || self.torn.last() != Some(&b'\n') {
                out.flush().context("cannot print the log")?;
                return Ok(());
            }
            if let Some(record) = Record::parse(&self.torn) {
                let out: &mut dyn std::io::Write =
                    if record.stream == b"stderr" { &mut err } else { &mut out };
                record.print(out, self.timestamps).context("cannot print the log")?;
            }
            self.torn.clear();
        }
    }

    /// Moves to the start of the last `lines` whole lines.
    fn skip_to_last(&mut self, lines: usize) -> Result<()> {
        let mut starts = std::collections::VecDeque::with_capacity(lines.min(1024) + 1);
        let (mut position, mut at_start, mut line) = (0, true, Vec::new());
        loop {
            line.clear();
            let length = self.reader.read_until(b'\n', &mut line).context("cannot read the log")? as u64;
            if length == 0 {
                break;
            }
            if at_start {
                starts.push_back(position);
                if starts.len() > lines {
                    starts.pop_front();
                }
            }
            at_start = Record::parse(&line).is_none_or(|record| !record.is_partial);
            position += length;
        }
        let start = starts.front().copied().unwrap_or(position);
        self.reader.seek(SeekFrom::Start(start)).context("cannot read the log")?;
        Ok(())
    }

    /// After a rotation the path names a new file; what was left of the old one has been printed.
    fn reopen_if_rotated(&mut self) -> Result<()> {
        use std::os::unix::fs::MetadataExt as _;
        let current = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        };
        let held = self.reader.get_ref().metadata().context("cannot read the log")?;
        if (current.dev(), current.ino()) != (held.dev(), held.ino()) {
            self.print_rest()?;
            *self = Self::open(&self.path, self.timestamps)?;
            self.print_rest()?;
        }
        Ok(())
    }
}

/// One record of a CRI log.
struct Record<'a> {
    time: &'a [u8],
    stream: &'a [u8],
    is_partial: bool,
    text: &'a [u8],
}

impl<'a> Record<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut words = line.strip_suffix(b"\n").unwrap_or(line).splitn(4, |byte| *byte == b' ');
        let (time, stream, tag, text) = (words.next()?, words.next()?, words.next()?, words.next()?);
        Some(Self { time, stream, is_partial: tag.starts_with(b"P"), text })
    }

    fn print(&self, out: &mut dyn std::io::Write, timestamps: bool) -> std::io::Result<()> {
        if timestamps {
            out.write_all(self.time)?;
            out.write_all(b" ")?;
        }
        out.write_all(self.text)?;
        if self.is_partial { Ok(()) } else { out.write_all(b"\n") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_and_partial_lines_joined() {
        let text = b"2026-01-01T00:00:00.1Z stdout P ab\n2026-01-01T00:00:00.2Z stdout F cd ef\n";
        let mut printed = Vec::new();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            Record::parse(line).unwrap().print(&mut printed, false).unwrap();
        }
        assert_eq!(printed, b"abcd ef\n");
        assert!(Record::parse(b"no record\n").is_none());
    }

    #[test]
    fn the_last_lines_start_at_a_whole_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "t stdout F 1\nt stdout P 2\nt stdout F 2\nt stdout F 3\n").unwrap();
        let mut log = Log::open(file.path(), false).unwrap();
        log.skip_to_last(2).unwrap();
        assert_eq!(log.reader.stream_position().unwrap(), 13);
        log.skip_to_last(0).unwrap();
    }
}
