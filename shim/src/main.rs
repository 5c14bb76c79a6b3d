//! `coracle-shim`: watches the containers of one pod.
//!
//! `serve` is started by the runtime, once per sandbox, and outlives it; `hold` is the first process of a shared PID
//! namespace; `containerd` is how a containerd calls it. One thread, one loop, see `server`. Memory is its measure: it is
//! there once per pod.

mod args;
mod attached;
mod bundle;
mod cgroup;
mod connection;
mod container;
mod containerd;
mod cri_log;
mod execs;
mod exit_record;
mod hold;
mod job;
mod keeper;
mod lifecycle;
mod log_watch;
mod maker;
mod pump;
mod requests;
mod rootfs;
mod serve;
mod server;
mod stats;
mod stdio;
mod sys;

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use args::Role;

fn main() -> ExitCode {
    sys::tune_allocator();
    let result: Result<(), Box<dyn Error>> = match args::parse(std::env::args_os().skip(1)) {
        Ok(Role::Serve(options)) => serve::serve(options).map_err(Into::into),
        Ok(Role::Hold) => hold::hold().map_err(Into::into),
        Ok(Role::Containerd(command)) => containerd::run(&command),
        Ok(Role::Version) => {
            writeln!(io::stdout(), "coracle-shim {}", env!("CARGO_PKG_VERSION")).map_err(Into::into)
        }
        Err(error) => {
            drop(write!(io::stderr(), "coracle-shim: {error}\n{}", args::USAGE));
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "coracle-shim: {}", Chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

/// The sandbox, which several shims that share a log are told apart by.
static SANDBOX: OnceLock<String> = OnceLock::new();

/// Writes a line to standard error, which is the shim's log; nobody is told when that is gone too.
fn tell(line: fmt::Arguments<'_>) {
    let id = SANDBOX.get().map_or("", String::as_str);
    // One write, so that lines of several shims do not mix.
    let text = format!("{} coracle-shim[{id}]: {line}\n", cri_log::Stamp::now());
    drop(io::stderr().write_all(text.as_bytes()));
}

/// An error with everything that caused it, on one line.
struct Chain<'a>(&'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
