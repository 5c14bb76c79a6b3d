//! Calls the maker, an OCI runtime's command line, and reads what it has to say about a failure.
//!
//! The loop starts a call, goes on, and finishes the call when the child is reaped; nothing here waits. Each call has
//! files of its own, so that calls for one container may run side by side.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::stdio::MakerEnds;
use crate::sys;

/// The OCI runtime and the options that every call has.
#[derive(Debug)]
pub(crate) struct Maker {
    program: Vec<OsString>,
    root: PathBuf,
    systemd_cgroup: bool,
    /// What the shim was started with: its own protection from the OOM killer must not pass to containers.
    oom_score_adj: String,
    calls: u64,
}

/// A maker that could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakerError {
    #[error("an argument of the maker contains a zero byte")]
    Argument,
    #[error("cannot open /dev/null")]
    Null(#[source] io::Error),
    #[error("cannot start the maker {program:?}")]
    Spawn {
        program: OsString,
        #[source]
        source: io::Error,
    },
}

/// A call that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: i32,
    log: PathBuf,
}

/// What differs between calls.
#[derive(Debug)]
pub(crate) struct MakerCall<'a> {
    /// Where the call's own files go.
    pub(crate) bundle: &'a Path,
    /// The command and its options and operands.
    pub(crate) arguments: Vec<OsString>,
    pub(crate) ends: MakerEnds,
}

impl Maker {
    pub(crate) fn new(
        program: Vec<OsString>,
        root: PathBuf,
        systemd_cgroup: bool,
        oom_score_adj: String,
    ) -> Self {
        Self { program, root, systemd_cgroup, oom_score_adj, calls: 0 }
    }

    /// A path in the bundle that no other call uses.
    pub(crate) fn fresh_path(&mut self, bundle: &Path, suffix: &str) -> PathBuf {
        self.calls += 1;
        bundle.join(format!("maker-{}.{suffix}", self.calls))
    }

    /// Starts a call.
    pub(crate) fn start(&mut self, call: MakerCall<'_>) -> Result<Running, MakerError> {
        let log = self.fresh_path(call.bundle, "log");
        let mut arguments = self.program.clone();
        arguments.extend([OsString::from("--root"), self.root.clone().into()]);
        if self.systemd_cgroup {
            arguments.push("--systemd-cgroup".into());
        }
        arguments.extend([
            "--log".into(),
            log.clone().into_os_string(),
            "--log-format".into(),
            "json".into(),
        ]);
        arguments.extend(call.arguments);
        let arguments: Vec<CString> = arguments
            .into_iter()
            .map(|argument| CString::new(argument.into_vec()))
            .collect::<Result<_, _>>()
            .map_err(|_| MakerError::Argument)?;
        let null = File::options().read(true).write(true).open("/dev/null").map_err(MakerError::Null)?;
        let MakerEnds { stdin, stdout, stderr } = &call.ends;
        let stdio = [stdin, stdout, stderr].map(|end| end.as_ref().unwrap_or(&null));
        let pid = sys::spawn(&arguments, stdio)
            .map_err(|source| MakerError::Spawn { program: self.program[0].clone(), source })?;
        // Long before the maker makes a child; a maker that is gone already needs nothing.
        drop(fs::write(format!("/proc/{pid}/oom_score_adj"), &self.oom_score_adj));
        Ok(Running { pid, log })
    }
}

impl Running {
    /// After the child's end: nothing when it went well, else why it failed.
    pub(crate) fn finish(&self, status: u32) -> Result<(), String> {
        let result = if status == 0 { Ok(()) } else { Err(complaint(&self.log, status)) };
        drop(fs::remove_file(&self.log));
        result
    }
}

#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

fn complaint(log: &Path, status: u32) -> String {
    let text = fs::read(log).unwrap_or_default();
    last_error(&text).unwrap_or_else(|| match status.checked_sub(128) {
        Some(signal) if signal > 0 => format!("the maker was killed by signal {signal}"),
        _ => format!("the maker ended with status {status} and said nothing"),
    })
}

/// The last error of a JSON log, else its last line.
fn last_error(text: &[u8]) -> Option<String> {
    let mut last = None;
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice::<LogLine>(line) {
            Ok(LogLine { level, msg }) if matches!(level.to_lowercase().as_str(), "error" | "fatal") => {
                last = Some(msg.trim().to_owned());
            }
            Ok(_) => {}
            Err(_) => last = Some(String::from_utf8_lossy(line).trim().to_owned()),
        }
    }
    last.filter(|message| !message.is_empty())
}

/// Reads the pid that the maker wrote.
pub(crate) fn read_pid(file: &Path) -> io::Result<i32> {
    let text = fs::read_to_string(file)?;
    text.trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is not a pid")))
}

/// Whether a process is a child of this one, as those that a maker leaves are; else its number may be another's by now.
pub(crate) fn is_child(pid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may hold anything, parentheses too.
    let parent = text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
    parent.and_then(|parent| parent.parse().ok()) == Some(std::process::id())
}

/// A word of a path as the name of something: not empty, no slash, no dots alone, no option.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with(['.', '-'])
        && !name.bytes().any(|byte| byte == b'/' || byte < b' ')
        && Path::new(name).as_os_str().as_bytes().len() == name.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_speaks() {
        for (log, expected) in [
            ("", None),
            ("{\"level\":\"warning\",\"msg\":\"w\"}\n", None),
            (
                "{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b \",\"time\":\"t\"}\n",
                Some("b"),
            ),
            ("{\"level\":\"ERROR\",\"msg\":\"a\"}\n{\"level\":\"info\",\"msg\":\"i\"}\n", Some("a")),
            ("thread 'main' panicked\n", Some("thread 'main' panicked")),
        ] {
            assert_eq!(last_error(log.as_bytes()).as_deref(), expected);
        }
    }

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        assert!(is_plain_name("3f2a-x_1.y"));
        for name in ["", "a/b", "..", ".", "-x", "a\nb"] {
            assert!(!is_plain_name(name), "{name:?}");
        }
    }
}
