//! The virtual machine: QEMU with an emulated processor, its console on this terminal, its verdict read from there.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::root::Root;

/// What the guest's script prints before its verdict.
const VERDICT: &str = "guest: verdict ";

/// Boots and waits for the end; an error unless the guest said that all has passed.
pub(super) fn run(root: &Root, payload: &Path, arguments: &[String], limit: Duration) -> Result<()> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]);
    command.args(["-nographic", "-no-reboot", "-nic", "none", "-snapshot"]);
    command.arg("-kernel").arg(&root.kernel).arg("-initrd").arg(&root.initrd);
    command.arg("-append").arg(format!(
        "console=ttyS0 root=/dev/vda rw init=/coracle-init panic=-1 quiet loglevel=4 {}",
        arguments.join(" ")
    ));
    // What the guest writes goes with it (-snapshot): both disks stay as they were made.
    for disk in [&root.disk, payload] {
        command.arg("-drive").arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    eprintln!("+ {command:?}");
    let mut machine = command.spawn().context("cannot start qemu-system-x86_64")?;
    let verdict = follow(&mut machine, limit);
    // Killed also when it has ended by itself: then there is nothing to kill.
    let _ = machine.kill();
    machine.wait().context("cannot wait for QEMU")?;
    match verdict?.as_deref() {
        Some(words) if words.starts_with("passed") => Ok(()),
        Some(words) => bail!("the guest's verdict: {words}"),
        None => bail!("the guest ended without a verdict; its console is above"),
    }
}

/// Shows the console until it ends, and returns the verdict if there was one.
fn follow(machine: &mut Child, limit: Duration) -> Result<Option<String>> {
    let lines = console(machine)?;
    let deadline = Instant::now() + limit;
    let mut verdict = None;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{line}");
                if let Some((_, words)) = line.split_once(VERDICT) {
                    verdict = Some(words.trim().to_owned());
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(verdict),
            Err(RecvTimeoutError::Timeout) => bail!("the guest has not ended within {limit:?}"),
        }
    }
}

/// The lines of the console, read by a thread of their own, which ends with the machine.
fn console(machine: &mut Child) -> Result<Receiver<String>> {
    let output = machine.stdout.take().context("QEMU has no output")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
