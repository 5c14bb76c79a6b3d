//! What the maker itself keeps of a container between its commands, beside libcontainer's state: which process it
//! is (with its start time, so that a reused pid is never mistaken for it), its bundle and its cgroups.
//!
//! Written once by `create`, read by every other command.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the record in a container's directory below the root.
const FILE: &str = "coracle.json";

/// The record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub version: u32,
    pub id: String,
    pub pid: i32,
    /// Clock ticks since boot at which the process started, field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// Every cgroup that `create` put the process in, as absolute directories.
    pub cgroups: Vec<PathBuf>,
    /// The path of the spec, for libcgroups.
    pub cgroups_path: Option<PathBuf>,
    pub systemd_cgroup: bool,
}

/// How a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl Record {
    pub(super) fn save(&self, root: &Path) -> io::Result<()> {
        let dir = root.join(&self.id);
        let temporary = dir.join(".coracle.json");
        fs::write(&temporary, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        fs::rename(temporary, dir.join(FILE))
    }

    /// `None` where no such container is.
    pub(super) fn load(root: &Path, id: &str) -> io::Result<Option<Self>> {
        match fs::read(root.join(id).join(FILE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the container's first process still runs: the pid is there, it is the same process, no zombie.
    pub(super) fn alive(&self) -> bool {
        process_stat(self.pid).is_some_and(|(state, start)| start == self.start_time && !"ZX".contains(state))
    }
}

/// State letter and start time of a process.
pub(super) fn process_stat(pid: i32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold anything, blanks and parentheses too; fields count from its last parenthesis.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_start_time_is_read() {
        let (state, start) = process_stat(std::process::id() as i32).unwrap();
        assert!("RSD".contains(state) && start > 0);
        assert_eq!(process_stat(-1), None);
    }
}
