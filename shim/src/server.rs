//! The loop: one thread, one epoll set, everything the shim holds.
//!
//! It wakes for a client, for output, for the end of a child and for the deadline of a running maker, and for nothing
//! else. `requests` and `lifecycle` are further methods of [`Shim`]; nothing in any of them waits.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use coracle_shim::protocol::events::{self, Event};
use coracle_shim::protocol::{Code, Status, shim};
use prost::Message;

use crate::connection::{Connection, ReplyTo};
use crate::container::{Container, Phase};
use crate::containerd::Caller;
use crate::exit_record::{self, Exit};
use crate::job::{Job, Step, Undoing};
use crate::log_watch::LogWatcher;
use crate::maker::Maker;
use crate::stdio::{StdioError, Streams};
use crate::sys::{self, EVENTS, Epoll, Interest};

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
const PUBLISHER: u64 = 2;
const LAST_FIXED: u64 = PUBLISHER;

/// Clients at a time; our runtime has one, containerd one for each container.
const MAX_CONNECTIONS: usize = 256;

/// How long an ending shim waits for its last answers to be taken.
const FAREWELL_MS: u64 = 1000;

/// How long a reader may take over the output of a process that is deleted already; containerd's shim waits as long.
const LINGER_MS: u64 = 10_000;

/// How often a cgroup is looked at whose processes are ending.
const UNDO_LOOK_MS: u64 = 5;

/// Everything one shim holds.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) sandbox_id: String,
    pub(crate) maker: Maker,
    pub(crate) epoll: Epoll,
    pub(crate) containers: Vec<Container>,
    pub(crate) jobs: Vec<Job>,
    /// Failed creations that are not cleaned up yet.
    pub(crate) undoing: Vec<Undoing>,
    /// The containerd that started it, if one did.
    pub(crate) caller: Option<Caller>,
    /// Set once the shim is to end: when at the latest.
    pub(crate) farewell: Option<u64>,
    /// Ends of processes that no pid file has named yet: pid, how it ended.
    pub(crate) early_exits: Vec<(i32, Exit)>,
    /// Output of deleted processes that a slow reader has yet to take, and until when it is kept.
    lingering: Vec<(u64, Streams)>,
    pub(crate) log_watchers: Vec<LogWatcher>,
    connections: Vec<Connection>,
    listener: UnixListener,
    /// Off while descriptors are short, so that a waiting client does not keep the loop busy.
    accepting: bool,
    signals: File,
    socket: PathBuf,
    last_id: u64,
}

impl Shim {
    /// Takes over a bound socket and the signals of this process.
    pub(crate) fn new(
        sandbox_id: String,
        maker: Maker,
        listener: UnixListener,
        socket: PathBuf,
    ) -> io::Result<Self> {
        sys::become_subreaper()?;
        let signals = sys::signal_descriptor(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT])?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        epoll.add(&listener, LISTENER, Interest::READ)?;
        epoll.add(&signals, SIGNALS, Interest::READ)?;
        Ok(Self {
            sandbox_id,
            maker,
            epoll,
            containers: Vec::new(),
            jobs: Vec::new(),
            undoing: Vec::new(),
            caller: None,
            farewell: None,
            early_exits: Vec::new(),
            lingering: Vec::new(),
            log_watchers: Vec::new(),
            connections: Vec::new(),
            listener,
            accepting: true,
            signals,
            socket,
            last_id: LAST_FIXED,
        })
    }

    /// Serves until shut down, then removes the socket.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut ids = [0; EVENTS];
        while !self.may_end() {
            let n = self.epoll.wait(&mut ids, self.timeout_ms())?;
            for id in &ids[..n] {
                self.on_ready(*id);
            }
            self.on_deadlines();
            self.tell_of_logs();
            self.drop_dead_connections();
        }
        std::fs::remove_file(&self.socket)
    }

    fn may_end(&self) -> bool {
        let Some(latest) = self.farewell else { return false };
        let published = self.caller.as_ref().is_none_or(|caller| caller.publisher.is_idle());
        let told =
            published && self.lingering.is_empty() && self.connections.iter().all(Connection::is_flushed);
        told || sys::boot_ms() >= latest
    }

    fn timeout_ms(&self) -> i32 {
        let makers = self.jobs.iter().filter_map(Job::next_deadline);
        let lingering = self.lingering.iter().map(|(until, _)| *until);
        let undoing = self.undoing.first().map(|_| sys::boot_ms() + UNDO_LOOK_MS);
        let attached = self.containers.iter().filter_map(|container| container.init.streams.next_deadline());
        let publisher = self.caller.as_ref().and_then(|caller| caller.publisher.next_deadline());
        let others = self.farewell.into_iter().chain(undoing).chain(attached).chain(publisher);
        let Some(next) = makers.chain(lingering).chain(others).min() else { return -1 };
        i32::try_from(next.saturating_sub(sys::boot_ms())).unwrap_or(i32::MAX)
    }

    fn on_ready(&mut self, id: u64) {
        match id {
            LISTENER => self.accept(),
            SIGNALS => self.on_signals(),
            PUBLISHER => {
                if let Some(caller) = &mut self.caller {
                    caller.publisher.on_ready(&self.epoll, PUBLISHER);
                }
            }
            _ => {
                if let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) {
                    let asked = connection.on_ready(&self.epoll);
                    let any = !asked.is_empty();
                    for asked in asked {
                        self.handle(asked);
                    }
                    if any {
                        sys::trim_allocator();
                    }
                    return;
                }
                // An id that nobody has is a stale wake-up of something that an earlier one closed.
                let epoll = &self.epoll;
                let mut processes = self.containers.iter_mut().flat_map(Container::processes_mut);
                if !processes.any(|process| process.streams.on_ready(epoll, id)) {
                    self.lingering.iter_mut().for_each(|(_, streams)| streams.pass_rest(epoll, id));
                    self.lingering.retain(|(_, streams)| !streams.is_empty());
                }
            }
        }
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((socket, _)) if self.connections.len() < MAX_CONNECTIONS => {
                let id = fresh_id(&mut self.last_id);
                match Connection::new(id, socket, &self.epoll) {
                    Ok(connection) => self.connections.push(connection),
                    Err(error) => crate::tell(format_args!("cannot take a connection: {error}")),
                }
            }
            Ok(_) => crate::tell(format_args!("connection closed: {MAX_CONNECTIONS} are open")),
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) =>
            {
                crate::tell(format_args!("no connection is taken until something is closed: {error}"));
                self.epoll.remove(&self.listener);
                self.accepting = false;
            }
            // The client is gone already, or another wake-up took it.
            Err(_) => {}
        }
    }

    /// After descriptors were closed, new clients may come again.
    pub(crate) fn accept_again(&mut self) {
        if !self.accepting {
            self.accepting = self.epoll.add(&self.listener, LISTENER, Interest::READ).is_ok();
        }
    }

    fn drop_dead_connections(&mut self) {
        if !self.connections.iter().any(Connection::is_dead) {
            return;
        }
        self.connections.retain(|connection| !connection.is_dead());
        let connections = &self.connections;
        let alive = |reply: &ReplyTo| connections.iter().any(|connection| connection.id == reply.connection);
        for process in self.containers.iter_mut().flat_map(Container::processes_mut) {
            process.waiters.retain(alive);
        }
        self.log_watchers.retain(|watcher| alive(&watcher.reply));
        self.end_abandoned();
        self.accept_again();
    }

    /// Sends an answer; a client that is gone does not get it.
    pub(crate) fn reply(&mut self, to: ReplyTo, result: Result<Vec<u8>, Status>) {
        let connection = self.connections.iter_mut().find(|connection| connection.id == to.connection);
        if let Some(connection) = connection {
            connection.answer(&self.epoll, to.stream, result);
        }
    }

    /// Sends a message as an answer.
    pub(crate) fn reply_message(&mut self, to: ReplyTo, message: &impl Message) {
        self.reply(to, Ok(message.encode_to_vec()));
    }

    /// Sends a failure as an answer.
    pub(crate) fn refuse(&mut self, to: ReplyTo, code: Code, message: impl Into<String>) {
        self.reply(to, Err(Status::new(code, message)));
    }

    /// Tells containerd, if one started this shim, what happened.
    pub(crate) fn announce(&mut self, event: &impl Event) {
        if let Some(caller) = &mut self.caller {
            caller.publisher.publish(&self.epoll, PUBLISHER, event);
        }
    }

    fn on_signals(&mut self) {
        while let Some(signal) = sys::take_signal(&self.signals) {
            // A shim that holds containers outlives every request to end that does not come by its API.
            if signal != libc::SIGCHLD && self.containers.is_empty() && self.jobs.is_empty() {
                self.end();
            }
        }
        // One signal may stand for several children.
        while let Some((pid, status)) = sys::reap() {
            self.on_exit(pid, Exit { status, at_unix_ns: sys::unix_ns() });
        }
        sys::trim_allocator();
    }

    /// Ends the loop once the answers are sent.
    pub(crate) fn end(&mut self) {
        self.farewell.get_or_insert(sys::boot_ms() + FAREWELL_MS);
    }

    fn on_exit(&mut self, pid: i32, exit: Exit) {
        if let Some(at) = self.jobs.iter().position(|job| job.pid() == pid) {
            let job = self.jobs.swap_remove(at);
            self.finish_job(job, exit.status);
            if !self.jobs.iter().any(Job::makes_process) {
                self.early_exits.clear();
            }
            return;
        }
        let owner = self.containers.iter_mut().find_map(|container| {
            let process =
                container.processes_mut().find(|process| process.pid == pid && process.is_alive())?;
            Some((process.exec_id.clone(), container.id.clone()))
        });
        match owner {
            Some((exec_id, id)) => self.process_ended(&id, &exec_id, exit),
            None if self.jobs.iter().any(Job::makes_process) => self.early_exits.push((pid, exit)),
            // Something that a container orphaned.
            None => {}
        }
    }

    /// Records the end of a process, takes its last output, and answers who waits.
    pub(crate) fn process_ended(&mut self, id: &str, exec_id: &str, exit: Exit) {
        let epoll = &self.epoll;
        let Some(container) = self.containers.iter_mut().find(|container| container.id == id) else { return };
        if exec_id.is_empty() {
            container.check_oom();
            if !container.facts.own_pid_namespace {
                kill_rest(container);
            }
        }
        let Some(process) = container.process_mut(exec_id) else { return };
        process.streams.drain(epoll);
        process.phase = Phase::Stopped(exit);
        let (pid, waiters) = (process.pid.unsigned_abs(), std::mem::take(&mut process.waiters));
        let (mut after_exit, oom) = (None, exec_id.is_empty() && container.oom);
        if exec_id.is_empty() {
            if let Err(error) = exit_record::write(&container.bundle, &exit, container.oom) {
                let bundle = container.bundle.display();
                crate::tell(format_args!("cannot write the exit record of {id} into {bundle}: {error}"));
            }
            after_exit = container.after_exit.take();
            container.busy &= after_exit.is_none();
        }
        let response = exit.as_wait();
        for waiter in waiters {
            self.reply_message(waiter, &response);
        }
        self.announce_end(id, exec_id, pid, &exit, oom);
        if let Some(call) = after_exit {
            self.submit(call);
        }
        if !exec_id.is_empty() {
            self.end_abandoned();
        }
        self.accept_again();
    }

    fn announce_end(&mut self, id: &str, exec_id: &str, pid: u32, exit: &Exit, oom: bool) {
        if self.caller.is_none() {
            return;
        }
        let container_id = id.to_owned();
        let starting = |job: &Job| job.container == id && matches!(job.step, Step::Start);
        if exec_id.is_empty() && self.jobs.iter().any(starting) {
            // The maker that started it has yet to end, and no end comes before its beginning.
            self.announce(&events::TaskStart { container_id: container_id.clone(), pid });
        }
        if oom {
            self.announce(&events::TaskOOM { container_id: container_id.clone() });
        }
        let id = if exec_id.is_empty() { id } else { exec_id }.to_owned();
        let exited_at = Some(exit.timestamp());
        self.announce(&events::TaskExit { container_id, id, pid, exit_status: exit.status, exited_at });
    }

    /// Starts the pumps of a process whose maker went well.
    pub(crate) fn start_streams(&mut self, id: &str, exec_id: &str) {
        let last_id = &mut self.last_id;
        let container = self.containers.iter_mut().find(|container| container.id == id);
        let Some(process) = container.and_then(|container| container.process_mut(exec_id)) else { return };
        if let Err(error) = process.streams.start(&self.epoll, || fresh_id(last_id)) {
            crate::tell(format_args!("streams of {id} {exec_id}: {}", crate::Chain(&error)));
        }
    }

    /// Copies a container's output to somebody.
    pub(crate) fn attach_streams(&mut self, request: &shim::AttachRequest) -> Result<(), StdioError> {
        let (last_id, epoll) = (&mut self.last_id, &self.epoll);
        let container = self.containers.iter_mut().find(|container| container.id == request.id);
        container.map_or(Ok(()), |container| {
            let addresses = (request.stdout.as_str(), request.stderr.as_str());
            container.init.streams.attach(epoll, addresses, || fresh_id(last_id))
        })
    }

    /// Whether a connection is open.
    pub(crate) fn is_connected(&self, connection: u64) -> bool {
        self.connections.iter().any(|open| open.id == connection && !open.is_dead())
    }

    /// Closes the streams of a deleted process once its reader has taken what is left, but not much later.
    pub(crate) fn wind_up(&mut self, streams: Streams) {
        if let Some(rest) = streams.wind_up(&self.epoll) {
            self.lingering.push((sys::boot_ms() + LINGER_MS, rest));
        }
        self.accept_again();
    }

    fn on_deadlines(&mut self) {
        self.go_on_undoing();
        if let Some(caller) = &mut self.caller {
            caller.publisher.on_deadline(&self.epoll, PUBLISHER, sys::boot_ms());
        }
        let attached = |container: &Container| container.init.streams.next_deadline().is_some();
        if self.jobs.is_empty() && self.lingering.is_empty() && !self.containers.iter().any(attached) {
            return;
        }
        let now = sys::boot_ms();
        for container in self.containers.iter_mut().filter(|container| attached(container)) {
            container.init.streams.drop_stalled(&self.epoll, now);
        }
        self.lingering.retain(|(until, _)| *until > now);
        for job in &mut self.jobs {
            job.kill_if_late(now);
        }
    }
}

/// An id for a watched descriptor that no other has or had.
fn fresh_id(last: &mut u64) -> u64 {
    *last += 1;
    *last
}

/// Without a PID namespace of its own, what a container's first process leaves behind must be ended by hand.
fn kill_rest(container: &Container) {
    /// A process that forks meanwhile is met in the next round; the deletion ends what is left after all.
    const ROUNDS: usize = 4;
    let Some(cgroup) = &container.cgroup else { return };
    for _ in 0..ROUNDS {
        if cgroup.signal_all(libc::SIGKILL) == 0 {
            break;
        }
    }
}
