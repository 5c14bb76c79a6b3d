//! `coracle`: a Kubernetes node in one process, and the commands that ask it.
//!
//! The only place where the crates meet. `run` is the agent; every other command asks it over its socket.
//! The same executable is also the maker of containers and the image worker: see [`coracle_runtime::run_helper`].
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "commands print for a person at a terminal")]

mod args;
mod check;
mod commands;
mod config_file;
mod descriptors;
mod events_file;
mod join_args;
mod logging;
mod node_args;
mod notify;
mod pod_files;
mod replace;
mod run;
mod runtime_args;
mod shim_file;
mod socket;
mod sys;
mod table;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    // First of all: as maker or image worker this process must do nothing else before.
    coracle_runtime::run_helper();
    coracle_runtime::memory::keep_heap_small();
    let arguments = match config_file::expand(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return fail(&error),
    };
    let cli = Cli::parse_from(arguments);
    match execute(cli) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Run(run) => run::run(*run).map(|()| ExitCode::SUCCESS),
        Command::Join(join) => commands::join::run(&join),
        Command::Pods(pods) => commands::pods::run(&pods),
        Command::Logs(logs) => commands::logs::run(&logs),
        Command::Exec(exec) => commands::exec::exec(&exec),
        Command::Attach(attach) => commands::exec::attach(&attach),
        Command::PortForward(forward) => commands::port_forward::run(&forward),
        Command::Events(events) => commands::events::run(&events),
        Command::Images(images) => commands::images::run(&images),
        Command::Check(check) => check::run(&check),
        Command::Cri(cri) => commands::cri::run(*cri).map(|()| ExitCode::SUCCESS),
        Command::StopPods(stop) => commands::stop_pods::run(&stop),
        Command::Version => {
            println!(
                "coracle {} ({} {})",
                env!("CARGO_PKG_VERSION"),
                std::env::consts::OS,
                std::env::consts::ARCH
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "coracle", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// One line with the whole chain of causes, as every command reports.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("coracle: {error:#}");
    ExitCode::FAILURE
}
