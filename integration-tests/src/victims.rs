//! The processes of a node that a test may kill, each found by what it runs and whose it is.

use crate::node::Node;

/// A kind of process that must be dispensable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The agent itself.
    Agent,
    /// The process that stays beside a pod's containers.
    Shim,
    /// Makes or deletes one container; also its copy that is about to become the container.
    Maker,
    /// Loads an image, or unpacks a layer of it.
    Worker,
}

impl Victim {
    /// Those that live now.
    pub fn find(self, node: &Node) -> Vec<u32> {
        let state = node.state.to_string_lossy().into_owned();
        match self {
            Self::Agent => vec![node.agent_pid()],
            Self::Shim => {
                let mut own = node.own_processes().unwrap_or_default();
                own.retain(|pid| *pid != node.agent_pid());
                own
            }
            Self::Maker => pids(|pid| {
                // Whichever maker it is; a shim has the same folder behind --maker-root.
                command_line(pid).contains(&format!(" --root {state}"))
            }),
            Self::Worker => pids(|pid| {
                let is_worker = command_line(pid).contains(" image-worker");
                is_worker && ancestors(pid).contains(&node.agent_pid())
            }),
        }
    }
}

/// The command line with blanks between its words; empty for a process that is gone or a zombie.
pub fn command_line(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// The processes that this one has started.
pub fn children(pid: u32) -> Vec<u32> {
    pids(|child| parent(child) == Some(pid))
}

fn ancestors(pid: u32) -> Vec<u32> {
    // A worker's unpacker is its grandchild; deeper the trees of a node are not.
    std::iter::successors(parent(pid), |pid| parent(*pid)).take(4).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

fn pids(is_meant: impl Fn(u32) -> bool) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_meant(*pid))
        .collect()
}
