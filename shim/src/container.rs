//! What the shim knows of a container and of each process in it. Plain state; the loop alone changes it.
//!
//! ```text
//! first process:  Making ─► Created ─► Running ⇄ Paused
//!                    │         └──────────┴───────┴──► Stopped ─► (deleted)
//!                    └─► (gone: the maker failed)
//! exec:           Announced ─► Making ─► Running ─► Stopped ─► (deleted)
//!                     ▲───────────┘ the maker failed
//! ```

use std::collections::VecDeque;
use std::path::PathBuf;

use coracle_shim::protocol::task;

use crate::bundle::Facts;
use crate::cgroup::{Cgroup, Fresh};
use crate::connection::ReplyTo;
use crate::exit_record::Exit;
use crate::requests::Call;
use crate::stdio::{Addresses, Streams};

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// An exec that nobody started yet.
    Announced,
    /// Its maker runs.
    Making,
    /// Waits for its start.
    Created,
    Running,
    /// Frozen.
    Paused,
    Stopped(Exit),
}

/// One process: a container's first, or an exec.
#[derive(Debug)]
pub(crate) struct Process {
    /// Empty for the first process.
    pub(crate) exec_id: String,
    pub(crate) phase: Phase,
    /// 0 until the maker told it.
    pub(crate) pid: i32,
    pub(crate) addresses: Addresses,
    pub(crate) streams: Streams,
    /// Who waits for its end.
    pub(crate) waiters: Vec<ReplyTo>,
    /// An exec's OCI process as JSON, until it is started.
    pub(crate) spec: Vec<u8>,
    /// The connection with which an exec ends, because nobody else can read its output.
    pub(crate) owner: Option<u64>,
    /// What waits for an exec's maker.
    pub(crate) held: VecDeque<Call>,
}

impl Process {
    pub(crate) fn new(exec_id: String, phase: Phase, addresses: Addresses) -> Self {
        let (streams, waiters, spec) = (Streams::default(), Vec::new(), Vec::new());
        let held = VecDeque::new();
        Self { exec_id, phase, pid: 0, addresses, streams, waiters, spec, owner: None, held }
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        match self.phase {
            Phase::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// Whether there is a process to signal or to see end.
    pub(crate) fn is_alive(&self) -> bool {
        self.pid > 0 && self.exit().is_none()
    }

    pub(crate) fn state(&self) -> task::State {
        match self.phase {
            Phase::Announced | Phase::Making | Phase::Created => task::State::Created,
            Phase::Running => task::State::Running,
            Phase::Paused => task::State::Paused,
            Phase::Stopped(_) => task::State::Stopped,
        }
    }

    /// The answer to a State request.
    pub(crate) fn describe(&self, id: &str, bundle: &str) -> task::StateResponse {
        let exit = self.exit();
        task::StateResponse {
            id: if self.exec_id.is_empty() { id.into() } else { self.exec_id.clone() },
            bundle: bundle.into(),
            pid: self.pid.unsigned_abs(),
            status: self.state().into(),
            stdin: self.addresses.stdin.clone(),
            stdout: self.addresses.stdout.clone(),
            stderr: self.addresses.stderr.clone(),
            terminal: self.addresses.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| exit.timestamp()),
            exec_id: self.exec_id.clone(),
        }
    }
}

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) init: Process,
    pub(crate) execs: Vec<Process>,
    /// A maker works on it, or a deletion waits for its end: what changes it has to queue.
    pub(crate) busy: bool,
    pub(crate) queue: VecDeque<Call>,
    /// A deletion that waits for the end of the first process.
    pub(crate) after_exit: Option<Call>,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) facts: Facts,
    /// The container's cgroup, if its creation is what makes it.
    pub(crate) fresh_cgroup: Option<Fresh>,
    pub(crate) oom: bool,
    /// Another shim runs it; only its log is kept here.
    pub(crate) kept: bool,
    /// Whether its root was mounted here.
    pub(crate) mounted: bool,
}

impl Container {
    pub(crate) fn new(id: String, bundle: PathBuf, facts: Facts, addresses: Addresses) -> Self {
        Self {
            id,
            bundle,
            init: Process::new(String::new(), Phase::Making, addresses),
            execs: Vec::new(),
            busy: false,
            queue: VecDeque::new(),
            after_exit: None,
            cgroup: None,
            facts,
            fresh_cgroup: None,
            oom: false,
            kept: false,
            mounted: false,
        }
    }

    /// The first process, or the exec of that name.
    pub(crate) fn process(&self, exec_id: &str) -> Option<&Process> {
        if exec_id.is_empty() {
            return Some(&self.init);
        }
        self.execs.iter().find(|exec| exec.exec_id == exec_id)
    }

    /// As [`Container::process`], to change it.
    pub(crate) fn process_mut(&mut self, exec_id: &str) -> Option<&mut Process> {
        if exec_id.is_empty() {
            return Some(&mut self.init);
        }
        self.execs.iter_mut().find(|exec| exec.exec_id == exec_id)
    }

    /// Where calls wait that would end an exec, while its maker runs.
    pub(crate) fn held_for(&mut self, exec_id: &str) -> Option<&mut VecDeque<Call>> {
        let mut making = self.execs.iter_mut().filter(|exec| exec.phase == Phase::Making);
        making.find(|exec| exec.exec_id == exec_id).map(|exec| &mut exec.held)
    }

    pub(crate) fn processes_mut(&mut self) -> impl Iterator<Item = &mut Process> {
        std::iter::once(&mut self.init).chain(&mut self.execs)
    }

    /// Looks whether the kernel killed for want of memory, and keeps the answer.
    pub(crate) fn check_oom(&mut self) -> bool {
        self.oom |= self.cgroup.as_ref().is_some_and(Cgroup::oom_killed);
        self.oom
    }
}
