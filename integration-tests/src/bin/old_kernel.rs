//! Runs a program as if the kernel were Linux 4.9: every system call that came later answers ENOSYS.
//!
//! `old_kernel PROGRAM [ARGUMENT...]`. The filter is inherited by everything the program starts, pods too,
//! so that what runs in it meets what it would meet on a Jetson Nano. No-new-privileges stays off, since
//! root may install filters without it and pods must see it as they asked for it.
#![allow(clippy::print_stderr, reason = "it is a command")]

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use coracle_integration_tests::sys::deny_system_calls_from;

/// `statx` of Linux 4.11 is the first that 4.9 lacks; the tables of these architectures are in the order of
/// their kernels from there on.
#[cfg(target_arch = "x86_64")]
const FIRST_NEW: u32 = 332;
#[cfg(target_arch = "aarch64")]
const FIRST_NEW: u32 = 291;
#[cfg(target_arch = "arm")]
const FIRST_NEW: u32 = 397;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: old_kernel PROGRAM [ARGUMENT...]");
        return ExitCode::from(2);
    };
    if let Err(error) = deny_system_calls_from(FIRST_NEW) {
        eprintln!("old_kernel: the filter cannot be installed: {error}");
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(words).exec();
    eprintln!("old_kernel: {}: {error}", program.display());
    ExitCode::FAILURE
}
