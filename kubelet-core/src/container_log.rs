//! Reads the log of a container: records in the CRI format, the last lines, filters, rotation.
//!
//! Shared by the kubelet API's `/containerLogs` and the command `coracle logs`. A [`LogReader`] is plain blocking
//! file reading without a task of its own: it reads forward from where it is, and whoever follows a log calls it
//! again when something was written.
//!
//! A record is `TIME STREAM TAG TEXT`, where tag `P` marks a line that goes on in the next record.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The first stretch from the end that is searched for the last lines.
const TAIL_WINDOW: u64 = 64 * 1024;
/// A record longer than this is not one that a runtime writes; it is read in pieces that parse as nothing.
const RECORD_LIMIT: u64 = 1 << 20;

/// A log could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} log {}", path.display())]
pub struct LogError {
    /// What was tried.
    pub operation: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// Where a container wrote a text to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// One record of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRecord<'a> {
    /// RFC 3339, as the runtime wrote it.
    pub time: &'a [u8],
    /// Where the text went.
    pub stream: LogStream,
    /// The line goes on in the next record.
    pub is_partial: bool,
    /// Without a newline.
    pub text: &'a [u8],
}

impl<'a> LogRecord<'a> {
    /// Reads a line; `None` if it is no record.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut words = line.strip_suffix(b"\n").unwrap_or(line).splitn(4, |byte| *byte == b' ');
        let (time, stream, tag, text) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let stream = match stream {
            b"stdout" => LogStream::Stdout,
            b"stderr" => LogStream::Stderr,
            _ => return None,
        };
        // Tags of the future follow after a colon.
        let is_partial = tag.split(|byte| *byte == b':').next() == Some(b"P");
        Some(Self { time, stream, is_partial, text })
    }

    /// Nanoseconds since the Unix epoch; `None` if the time is none.
    pub fn unix_nanos(&self) -> Option<i128> {
        let time: jiff::Timestamp = std::str::from_utf8(self.time).ok()?.parse().ok()?;
        Some(time.as_nanosecond())
    }
}

/// Reads one log file from front to back, and goes on in the file that takes its place.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    reader: BufReader<File>,
    /// The record read last, or one whose end is not written yet.
    line: Vec<u8>,
    is_whole: bool,
}

impl LogReader {
    /// Opens a log at its start, or at the start of its last `tail` lines.
    ///
    /// ```no_run
    /// use coracle_kubelet_core::container_log::LogReader;
    ///
    /// # fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut log = LogReader::open("/var/log/pods/default_web_uid/web/0.log".as_ref(), Some(10))?;
    /// while let Some(record) = log.next_record()? {
    ///     println!("{}", String::from_utf8_lossy(record.text));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(path: &Path, tail: Option<u64>) -> Result<Self, LogError> {
        let failed = |operation| move |source| LogError { operation, path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed("open"))?;
        if let Some(lines) = tail {
            let start = tail_start(&mut file, lines).map_err(failed("read"))?;
            file.seek(SeekFrom::Start(start)).map_err(failed("read"))?;
        }
        let reader = BufReader::new(file);
        Ok(Self { path: path.to_owned(), reader, line: Vec::new(), is_whole: true })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next record; `None` at the present end, where a record that is not whole yet is kept for later. Lines
    /// that are no records are passed over.
    pub fn next_record(&mut self) -> Result<Option<LogRecord<'_>>, LogError> {
        loop {
            if std::mem::take(&mut self.is_whole) {
                self.line.clear();
            }
            let left = RECORD_LIMIT.saturating_sub(self.line.len() as u64);
            let read = (&mut self.reader).take(left).read_until(b'\n', &mut self.line);
            read.map_err(|source| self.failed("read", source))?;
            self.is_whole = self.line.last() == Some(&b'\n') || self.line.len() as u64 >= RECORD_LIMIT;
            if !self.is_whole {
                return Ok(None);
            }
            if LogRecord::parse(&self.line).is_some() {
                return Ok(LogRecord::parse(&self.line));
            }
        }
    }

    /// After a rotation the path names a new file: goes over to it and says so. To be called at the end of the old
    /// one, and the old one read once more before, for what was written until the rotation.
    pub fn reopen_if_rotated(&mut self) -> Result<bool, LogError> {
        if !self.is_rotated()? {
            return Ok(false);
        }
        match File::open(&self.path) {
            Ok(file) => {
                self.reader = BufReader::new(file);
                self.line.clear();
                self.is_whole = true;
                Ok(true)
            }
            // Between the rename and the reopening there is none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failed("open", error)),
        }
    }

    /// Whether the path names another file than the one that is read.
    pub fn is_rotated(&self) -> Result<bool, LogError> {
        let current = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(self.failed("look at", error)),
        };
        let held = self.reader.get_ref().metadata().map_err(|error| self.failed("look at", error))?;
        Ok((current.dev(), current.ino()) != (held.dev(), held.ino()))
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> LogError {
        LogError { operation, path: self.path.clone(), source }
    }
}

/// Which records are shown, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Only records from then on, in nanoseconds since the Unix epoch.
    pub since: Option<i128>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Only this stream.
    pub stream: Option<LogStream>,
    /// So many bytes may still be shown.
    pub limit: Option<u64>,
    /// The record shown before was partial: what comes goes on with its line. Kept by [`LogFilter::show`].
    pub is_within_line: bool,
}

impl LogFilter {
    /// Appends what is shown of a record; false once nothing more may be shown.
    pub fn show(&mut self, record: &LogRecord<'_>, out: &mut Vec<u8>) -> bool {
        let is_within_line = std::mem::replace(&mut self.is_within_line, record.is_partial);
        let is_old = self.since.is_some_and(|since| record.unix_nanos().is_some_and(|at| at < since));
        if is_old || self.stream.is_some_and(|stream| stream != record.stream) {
            return true;
        }
        let start = out.len();
        if self.timestamps && !is_within_line {
            out.extend_from_slice(record.time);
            out.push(b' ');
        }
        out.extend_from_slice(record.text);
        if !record.is_partial {
            out.push(b'\n');
        }
        let Some(limit) = &mut self.limit else { return true };
        let shown = (out.len() - start) as u64;
        out.truncate(start + usize::try_from(shown.min(*limit)).unwrap_or(usize::MAX));
        *limit = limit.saturating_sub(shown);
        *limit > 0
    }
}

/// Where the last `lines` lines start. Reads from the end in growing stretches, so that a long log costs little.
fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut window = TAIL_WINDOW;
    loop {
        let from = length.saturating_sub(window);
        file.seek(SeekFrom::Start(from))?;
        let (starts, end) = line_starts(file, from, lines)?;
        // The first start may be in the middle of a line that began before the stretch.
        if from == 0 || starts.len() as u64 > lines {
            let skip = starts.len().saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX));
            return Ok(starts.get(skip).copied().unwrap_or(end));
        }
        window = window.saturating_mul(4);
    }
}

/// Starts of the last `lines` lines and of one more, and the end of the last whole record.
fn line_starts(file: &File, from: u64, lines: u64) -> io::Result<(VecDeque<u64>, u64)> {
    let mut reader = BufReader::with_capacity(64 * 1024, file);
    let mut line = Vec::new();
    let mut position = from;
    if from > 0 {
        position += reader.read_until(b'\n', &mut line)? as u64;
    }
    let (mut starts, mut at_start) = (VecDeque::new(), true);
    loop {
        line.clear();
        let length = (&mut reader).take(RECORD_LIMIT).read_until(b'\n', &mut line)? as u64;
        if length == 0 || line.last() != Some(&b'\n') {
            return Ok((starts, position));
        }
        if at_start {
            starts.push_back(position);
            if starts.len() as u64 > lines.saturating_add(1) {
                starts.pop_front();
            }
        }
        at_start = LogRecord::parse(&line).is_none_or(|record| !record.is_partial);
        position += length;
    }
}

#[cfg(test)]
mod tests;
