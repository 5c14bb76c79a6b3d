//! The maker: `coracle oci`, an OCI runtime with runc's command line, as shims call it.
//!
//! It is executed anew for every command and has one thread, because libcontainer forks without exec: a lock of the
//! allocator held by another thread would hang the child. It makes a container and ends; nothing of it stays.
//!
//! | file | owns |
//! |---|---|
//! | `args` | the command line |
//! | `prepare` | what libcontainer does, what we do |
//! | `create`, `exec` | new containers, new processes in them |
//! | `finish` | the last steps of either, in the container |
//! | `seccomp`, `device_filter` | filters for system calls and devices |
//! | `cgroup`, `record`, `lifecycle` | what is there, and its end |

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program speaks on its streams")]

mod args;
mod cgroup;
mod create;
mod device_filter;
mod exec;
mod finish;
mod lifecycle;
mod prepare;
mod record;
mod seccomp;
mod support;
mod sys;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

pub use support::{Missing, kernel_filters_devices, kernel_supports_own_maker};

use args::{Command, Globals};

/// Why a command failed. The words that users of runc know are kept.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{what}")]
    Os { what: &'static str, source: io::Error },
    #[error("{} is not valid", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{0}")]
    Spec(String),
    #[error("container with given ID already exists: {0}")]
    Exists(String),
    #[error("container {0} does not exist")]
    NotFound(String),
    #[error("container not running")]
    NotRunning,
    #[error("cannot {verb} container {id} that is {status}")]
    State { id: String, verb: &'static str, status: &'static str },
    #[error("unknown signal {0:?}")]
    Signal(String),
    #[error("unable to start container process: error during container init: {0}")]
    Init(String),
    #[error("exec failed: unable to start container process: {0}")]
    Exec(String),
    #[error("{0}")]
    Library(String),
}

/// Runs one command and returns the exit code. To be called from a process of one thread, before anything else.
pub fn main(args: Vec<OsString>) -> i32 {
    let (globals, command) = match args::parse(args) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("coracle oci: {error}");
            return 1;
        }
    };
    match run(&globals, &command) {
        Ok(code) => code,
        Err(fault) => {
            let text = error_chain(&fault);
            log(&globals, "error", &text);
            eprintln!("coracle oci {} failed: {text}", name(&command));
            // runc's exec ends so, and callers tell by it that the process never ran.
            if matches!(command, Command::Exec(_)) { 255 } else { 1 }
        }
    }
}

fn run(globals: &Globals, command: &Command) -> Result<i32, Fault> {
    if matches!(command, Command::Create(_) | Command::Exec(_)) {
        sys::seal_own_executable()
            .map_err(|source| Fault::Os { what: "protect the maker's executable", source })?;
    }
    let mut warn = |text: &str| log(globals, "warning", text);
    match command {
        Command::Create(options) => create::create(globals, options, &mut warn).map(|()| 0),
        Command::Start(id) => lifecycle::start(globals, id).map(|()| 0),
        Command::Kill { id, signal, all } => lifecycle::kill(globals, id, signal, *all).map(|()| 0),
        Command::Delete { id, force } => lifecycle::delete(globals, id, *force).map(|()| 0),
        Command::State(id) => lifecycle::state(globals, id).map(|text| print(&text)),
        Command::Exec(options) => exec::exec(globals, options, &mut warn),
        Command::Update { id, resources } => lifecycle::update(globals, id, resources, &mut warn).map(|()| 0),
        Command::Ps { id, json } => lifecycle::ps(globals, id, *json).map(|text| print(&text)),
        Command::Pause(id) => lifecycle::freeze(globals, id, true).map(|()| 0),
        Command::Resume(id) => lifecycle::freeze(globals, id, false).map(|()| 0),
        Command::Features => Ok(print(&support::features())),
        Command::Version => Ok(print(&format!(
            "coracle oci version {}\nspec: {}",
            env!("CARGO_PKG_VERSION"),
            oci_spec::runtime::VERSION
        ))),
    }
}

fn print(text: &str) -> i32 {
    println!("{text}");
    0
}

fn name(command: &Command) -> &'static str {
    match command {
        Command::Create(_) => "create",
        Command::Start(_) => "start",
        Command::Kill { .. } => "kill",
        Command::Delete { .. } => "delete",
        Command::State(_) => "state",
        Command::Exec(_) => "exec",
        Command::Update { .. } => "update",
        Command::Ps { .. } => "ps",
        Command::Pause(_) => "pause",
        Command::Resume(_) => "resume",
        Command::Features => "features",
        Command::Version => "version",
    }
}

/// Writes to the log file in the form that was asked for; containerd's shim reads the last error from it. Without
/// a log file only errors are said, and `main` says those.
fn log(globals: &Globals, level: &str, text: &str) {
    let Some(path) = &globals.log else {
        if level != "error" {
            eprintln!("coracle oci: {level}: {text}");
        }
        return;
    };
    let line = if globals.log_json {
        serde_json::json!({ "level": level, "msg": text }).to_string()
    } else {
        format!("level={level} msg={text:?}")
    };
    // A log that cannot be written must not fail the container; the caller has the exit code and standard error.
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
        let _ = writeln!(file, "{line}");
    }
}

/// An error and what caused it, joined by colons, each part once: libraries repeat the source in their own words.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        next = source.source();
    }
    text
}
