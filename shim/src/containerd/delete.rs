//! `delete`: ends what a shim that is gone left of a container, and prints how that ended. Called in a process of its
//! own; containerd also calls it after an orderly end, when there is nothing left.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command as Program, Stdio};

use coracle_shim::protocol::{EXIT_RECORD, Timestamp, task};
use prost::Message;
use serde::Deserialize;

use super::options::Record;
use super::{Command, rootfs};
use crate::maker;
use crate::rootfs as root;
use crate::sys;

/// How a process ends that is killed, as shells count.
const KILLED: u32 = 128 + 9;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DeleteError {
    #[error("cannot find the bundle")]
    Bundle(#[source] io::Error),
    #[error("{0:?} is no name for a container")]
    Name(String),
    #[error("cannot answer")]
    Answer(#[source] io::Error),
}

#[derive(Deserialize)]
struct ExitRecord {
    exit_status: u32,
    exited_at_unix_ns: i64,
}

pub(crate) fn delete(command: &Command) -> Result<(), DeleteError> {
    if !maker::is_plain_name(&command.id) {
        return Err(DeleteError::Name(command.id.clone()));
    }
    let bundle = match &command.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(DeleteError::Bundle)?,
    };
    let record = Record::load(&bundle);
    remove_container(command, &record);
    root::unmount(&rootfs(&bundle));
    if !record.socket.as_os_str().is_empty() && UnixStream::connect(&record.socket).is_err() {
        // A shim that was killed could not.
        drop(fs::remove_file(&record.socket));
    }
    let response = ending(&bundle);
    io::stdout().write_all(&response.encode_to_vec()).map_err(DeleteError::Answer)
}

fn remove_container(command: &Command, record: &Record) {
    let options = &record.options;
    let mut maker = Program::new(options.program());
    maker.arg("--root").arg(options.maker_root(&command.namespace)).args(["delete", "--force", &command.id]);
    // What it says is a warning in containerd's log, where the reader finds why something is left.
    if let Err(error) = maker.stdin(Stdio::null()).stdout(Stdio::null()).status() {
        crate::tell(format_args!("container {} is not removed: {error}", command.id));
    }
}

fn ending(bundle: &Path) -> task::DeleteResponse {
    let pid = maker::read_pid(&bundle.join("init.pid")).map_or(0, i32::unsigned_abs);
    let text = fs::read(bundle.join(EXIT_RECORD)).unwrap_or_default();
    let record = serde_json::from_slice(&text)
        .unwrap_or_else(|_| ExitRecord { exit_status: KILLED, exited_at_unix_ns: sys::unix_ns() });
    let exited_at = Some(Timestamp::from_unix_ns(record.exited_at_unix_ns));
    task::DeleteResponse { pid, exit_status: record.exit_status, exited_at }
}
