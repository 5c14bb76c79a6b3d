//! The CRI log: cuts a container's output into lines, stamps them, writes them to a file that may refuse them.
//!
//! Called by the pumps of `stdio`. One [`LogFile`] belongs to one process of a container and is shared by its two
//! streams; a [`Framer`] belongs to one stream. Writes are synchronous: a container that writes faster than the disk
//! waits for it, since the pump reads no more until the write is done.
//!
//! The format is kubelet's: `TIME stdout|stderr F|P CONTENT`, where P marks a part whose line goes on.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest content of one log line; containerd's `max_container_log_line_size`.
pub(crate) const MAX_LINE: usize = 16 * 1024;

/// Finished lines are handed to the kernel in pieces of about this size.
const WRITE_SIZE: usize = 32 * 1024;

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamName {
    Stdout,
    Stderr,
}

/// Whether a line is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Full,
    Partial,
}

/// Cuts one stream into lines. Holds at most [`MAX_LINE`] bytes, and none between whole lines.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    rest: Vec<u8>,
}

impl Framer {
    /// Takes output in and gives out what is finished: `emit(tag, first part, second part)`.
    pub(crate) fn push(&mut self, mut input: &[u8], mut emit: impl FnMut(Tag, &[u8], &[u8])) {
        while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            let (mut line, after) = (&input[..end], &input[end + 1..]);
            // A carriage return before the newline belongs to the line's end, wherever a read cut between the two.
            if let Some((b'\r', shorter)) = line.split_last() {
                line = shorter;
            } else if line.is_empty() && self.rest.last() == Some(&b'\r') {
                self.rest.pop();
            }
            let line = self.cut(line, &mut emit);
            emit(Tag::Full, &self.rest, line);
            self.rest = Vec::new();
            input = after;
        }
        let input = self.cut(input, &mut emit);
        self.rest.extend_from_slice(input);
    }

    /// Emits parts while what is held and `input` together are longer than a line may be.
    fn cut<'a>(&mut self, mut input: &'a [u8], emit: &mut impl FnMut(Tag, &[u8], &[u8])) -> &'a [u8] {
        while self.rest.len() + input.len() > MAX_LINE {
            let (part, after) = input.split_at(MAX_LINE - self.rest.len());
            emit(Tag::Partial, &self.rest, part);
            self.rest = Vec::new();
            input = after;
        }
        input
    }

    /// The stream has ended: what is left is a part, as containerd marks it.
    pub(crate) fn finish(&mut self, mut emit: impl FnMut(Tag, &[u8], &[u8])) {
        if !self.rest.is_empty() {
            emit(Tag::Partial, &self.rest, &[]);
            self.rest = Vec::new();
        }
    }
}

/// A log file, and what it refused.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    /// Finished lines that are not written yet.
    batch: Vec<u8>,
    stamp: Stamp,
    refusal: Option<Refusal>,
    dropped: u64,
    /// A cut line could not be taken back; the next write must begin a new one.
    torn: bool,
}

/// Output is being dropped.
#[derive(Debug)]
struct Refusal {
    error: io::Error,
    /// Bytes of output that the log lacks since it began.
    bytes: u64,
}

impl LogFile {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            file: open_append(path)?,
            batch: Vec::new(),
            stamp: Stamp::default(),
            refusal: None,
            dropped: 0,
            torn: false,
        })
    }

    /// Opens the path anew, after its file was renamed; on failure output goes on to the renamed file.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = open_append(&self.path)?;
        self.torn = false;
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of output dropped since the container was created.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Why output is being dropped, while it is.
    pub(crate) fn refusal(&self) -> Option<&io::Error> {
        self.refusal.as_ref().map(|refusal| &refusal.error)
    }

    /// Sets the time of the lines that follow.
    pub(crate) fn set_time(&mut self, unix_ns: i64) {
        self.stamp.set(unix_ns);
    }

    /// Adds a line of two parts; it is written by [`LogFile::flush`] at the latest.
    pub(crate) fn line(&mut self, stream: StreamName, tag: Tag, first: &[u8], second: &[u8]) {
        if self.batch.capacity() == 0 {
            self.batch.reserve_exact(WRITE_SIZE);
        }
        if self.batch.len() + first.len() + second.len() + AROUND > WRITE_SIZE {
            self.write_batch();
        }
        format_line(&mut self.batch, &self.stamp, stream, tag, first, second);
    }

    /// Writes what was added, and gives its memory back.
    pub(crate) fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.write_batch();
        }
        self.batch = Vec::new();
    }

    fn write_batch(&mut self) {
        let result = match self.recover() {
            Ok(()) => write_lines(&self.file, &self.batch, &mut self.torn),
            Err(error) => Err(Cut { kept: 0, error }),
        };
        if let Err(Cut { kept, error }) = result {
            let bytes = content_of(&self.batch[kept..]);
            self.dropped += bytes;
            match &mut self.refusal {
                Some(refusal) => refusal.bytes += bytes,
                None => {
                    crate::tell(format_args!("log {}: output is dropped: {error}", self.path.display()));
                    self.refusal = Some(Refusal { error, bytes });
                }
            }
        }
        self.batch.clear();
    }

    /// Before the first line after a refusal, tells in the log what it lacks.
    fn recover(&mut self) -> io::Result<()> {
        let Some(refusal) = &self.refusal else { return Ok(()) };
        let note = format!("[coracle-shim: {} bytes of output dropped: {}]", refusal.bytes, refusal.error);
        let mut line = Vec::with_capacity(note.len() + AROUND);
        format_line(&mut line, &self.stamp, StreamName::Stderr, Tag::Full, note.as_bytes(), &[]);
        write_lines(&self.file, &line, &mut self.torn).map_err(|cut| cut.error)?;
        crate::tell(format_args!("log {}: takes output again after {note}", self.path.display()));
        self.refusal = None;
        Ok(())
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    // Non-blocking concerns the open alone: a pipe in the log's place must fail, not stop the loop.
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK).open(path)
}

/// A write that the disk ended early.
struct Cut {
    /// Bytes that are in the file: whole lines.
    kept: usize,
    error: io::Error,
}

/// Writes all lines or, as far as the disk lets it, no part of an unfinished one.
fn write_lines(mut file: &File, lines: &[u8], torn: &mut bool) -> Result<(), Cut> {
    if *torn {
        file.write_all(b"\n").map_err(|error| Cut { kept: 0, error })?;
        *torn = false;
    }
    let mut written = 0;
    while written < lines.len() {
        match file.write(&lines[written..]) {
            Ok(n) if n > 0 => written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            refused => {
                let kept = lines[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                *torn = written > kept && take_back(file, (written - kept) as u64).is_err();
                let error = refused.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                return Err(Cut { kept, error });
            }
        }
    }
    Ok(())
}

/// Bytes of containers' output in whole lines.
fn content_of(lines: &[u8]) -> u64 {
    (lines.len() - AROUND * lines.iter().filter(|byte| **byte == b'\n').count()) as u64
}

fn take_back(file: &File, excess: u64) -> io::Result<()> {
    let metadata = file.metadata()?;
    match metadata.size().checked_sub(excess) {
        Some(shorter) if metadata.is_file() => file.set_len(shorter),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Bytes of a line around its content: time, stream, tag and newline.
const AROUND: usize = 30 + 8 + 2 + 1;

fn format_line(out: &mut Vec<u8>, stamp: &Stamp, stream: StreamName, tag: Tag, first: &[u8], second: &[u8]) {
    out.extend_from_slice(&stamp.text);
    out.extend_from_slice(match stream {
        StreamName::Stdout => b" stdout ",
        StreamName::Stderr => b" stderr ",
    });
    out.extend_from_slice(match tag {
        Tag::Full => b"F ",
        Tag::Partial => b"P ",
    });
    out.extend_from_slice(first);
    out.extend_from_slice(second);
    out.push(b'\n');
}

/// A time as RFC 3339 with nine digits of a second, in UTC.
#[derive(Debug)]
pub(crate) struct Stamp {
    text: [u8; 30],
}

impl Default for Stamp {
    fn default() -> Self {
        Self { text: *b"1970-01-01T00:00:00.000000000Z" }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text).unwrap_or_default())
    }
}

impl Stamp {
    /// This moment.
    pub(crate) fn now() -> Self {
        let mut stamp = Self::default();
        stamp.set(crate::sys::unix_ns());
        stamp
    }

    fn set(&mut self, unix_ns: i64) {
        let unix_ns = unix_ns.max(0);
        let (seconds, nanos) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        for (at, width, value) in [
            (0, 4, year),
            (5, 2, month),
            (8, 2, day),
            (11, 2, of_day / 3600),
            (14, 2, of_day / 60 % 60),
            (17, 2, of_day % 60),
            (20, 9, nanos),
        ] {
            digits(&mut self.text[at..at + width], value);
        }
    }
}

fn digits(out: &mut [u8], mut value: i64) {
    for place in out.iter_mut().rev() {
        *place = b'0' + u8::try_from(value % 10).expect("a digit fits");
        value /= 10;
    }
}

/// Year, month and day of a day since 1970, by counting from 1 March of year 0 so that a leap day ends a year.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests;
