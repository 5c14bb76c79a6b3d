//! Requests: decodes them, puts them in order behind a running maker, answers those that need none.
//!
//! Methods of [`Shim`], called by the loop. What concerns one container happens in the order in which it was asked,
//! as far as it changes the container; what only asks or signals does not wait for a maker.

use coracle_shim::protocol::method::{EVENTS_SERVICE, SHIM_SERVICE, TASK_SERVICE, TASK_SERVICE_V3};
use coracle_shim::protocol::{Code, Empty, PROTOCOL_VERSION, Request, Status, shim, task};
use prost::Message;

use crate::connection::{Asked, ReplyTo};
use crate::container::{Container, Phase, Process};
use crate::server::Shim;
use crate::stats;
use crate::sys;

/// Requests that may wait for one container.
const MAX_QUEUED: usize = 256;

/// Streams of those who are attached to one container.
const MAX_ATTACHED: usize = 64;

/// Clients' calls that may wait for the end of one process.
const MAX_WAITERS: usize = 256;

/// A request with what its answer needs.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) reply: ReplyTo,
    /// Milliseconds since boot after which nobody waits for the answer.
    pub(crate) deadline: Option<u64>,
    pub(crate) operation: Operation,
}

/// What is asked of one container.
#[derive(Debug)]
pub(crate) enum Operation {
    State(task::StateRequest),
    Start(task::StartRequest),
    Delete(task::DeleteRequest),
    Pids(task::PidsRequest),
    Stats(task::StatsRequest),
    Pause(task::PauseRequest),
    Resume(task::ResumeRequest),
    Kill(task::KillRequest),
    Exec(task::ExecProcessRequest),
    Resize(task::ResizePtyRequest),
    CloseIo(task::CloseIORequest),
    Update(task::UpdateTaskRequest),
    Wait(task::WaitRequest),
    ReopenLog(shim::ReopenLogRequest),
    Attach(shim::AttachRequest),
}

impl Operation {
    fn container(&self) -> &str {
        match self {
            Self::State(r) => &r.id,
            Self::Start(r) => &r.id,
            Self::Delete(r) => &r.id,
            Self::Pids(r) => &r.id,
            Self::Stats(r) => &r.id,
            Self::Pause(r) => &r.id,
            Self::Resume(r) => &r.id,
            Self::Kill(r) => &r.id,
            Self::Exec(r) => &r.id,
            Self::Resize(r) => &r.id,
            Self::CloseIo(r) => &r.id,
            Self::Update(r) => &r.id,
            Self::Wait(r) => &r.id,
            Self::ReopenLog(r) => &r.id,
            Self::Attach(r) => &r.id,
        }
    }

    /// Whether it has to wait for the maker that works on the container.
    fn is_ordered(&self) -> bool {
        matches!(
            self,
            Self::Start(_)
                | Self::Delete(_)
                | Self::Pause(_)
                | Self::Resume(_)
                | Self::Exec(_)
                | Self::Update(_)
        )
    }

    /// The exec that it ends. Whether there is one shows when the exec's maker has ended.
    fn ends_exec(&self) -> Option<&str> {
        match self {
            Self::Kill(r) => Some(&r.exec_id),
            Self::Delete(r) => Some(&r.exec_id),
            _ => None,
        }
    }
}

impl Shim {
    /// Handles one request of a client.
    pub(crate) fn handle(&mut self, asked: Asked) {
        let Asked { reply, request } = asked;
        if let Err(status) = request.and_then(|request| self.route(reply, &request)) {
            self.reply(reply, Err(status));
        }
    }

    fn route(&mut self, reply: ReplyTo, request: &Request) -> Result<(), Status> {
        let deadline = u64::try_from(request.timeout_nano)
            .ok()
            .filter(|timeout| *timeout > 0)
            .map(|timeout| sys::boot_ms() + timeout.div_ceil(1_000_000));
        let service = match request.service.as_str() {
            TASK_SERVICE_V3 => TASK_SERVICE,
            service => service,
        };
        let operation = match (service, request.method.as_str()) {
            (TASK_SERVICE, "Create") => {
                self.create(reply, deadline, decode(request)?);
                return Ok(());
            }
            (TASK_SERVICE, "Connect") => return self.connect(reply, &decode(request)?),
            (TASK_SERVICE, "Shutdown") => return self.shutdown(reply, &decode(request)?),
            (SHIM_SERVICE, "Info") => return self.info(reply),
            (SHIM_SERVICE, "WatchLogs") => return self.watch_logs(reply, decode(request)?),
            (SHIM_SERVICE, "KeepLog") => return self.keep_log(reply, decode(request)?),
            (SHIM_SERVICE, "ForgetLog") => return self.forget_log(reply, &decode(request)?),
            (EVENTS_SERVICE, "Forward") => {
                self.hear(reply, decode(request)?);
                return Ok(());
            }
            (TASK_SERVICE, "State") => Operation::State(decode(request)?),
            (TASK_SERVICE, "Start") => Operation::Start(decode(request)?),
            (TASK_SERVICE, "Delete") => Operation::Delete(decode(request)?),
            (TASK_SERVICE, "Pids") => Operation::Pids(decode(request)?),
            (TASK_SERVICE, "Stats") => Operation::Stats(decode(request)?),
            (TASK_SERVICE, "Pause") => Operation::Pause(decode(request)?),
            (TASK_SERVICE, "Resume") => Operation::Resume(decode(request)?),
            (TASK_SERVICE, "Kill") => Operation::Kill(decode(request)?),
            (TASK_SERVICE, "Exec") => Operation::Exec(decode(request)?),
            (TASK_SERVICE, "ResizePty") => Operation::Resize(decode(request)?),
            (TASK_SERVICE, "CloseIO") => Operation::CloseIo(decode(request)?),
            (TASK_SERVICE, "Update") => Operation::Update(decode(request)?),
            (TASK_SERVICE, "Wait") => Operation::Wait(decode(request)?),
            (SHIM_SERVICE, "ReopenLog") => Operation::ReopenLog(decode(request)?),
            (SHIM_SERVICE, "Attach") => Operation::Attach(decode(request)?),
            (service, method) => {
                let message = format!("{service}/{method} is not served by coracle-shim");
                return Err(Status::new(Code::Unimplemented, message));
            }
        };
        self.submit(Call { reply, deadline, operation });
        Ok(())
    }

    /// Carries a request out, or queues it behind the maker that works on its container or exec.
    pub(crate) fn submit(&mut self, call: Call) {
        let id = call.operation.container();
        let Some(container) = self.containers.iter_mut().find(|container| container.id == id) else {
            let message = format!("container {id} does not exist");
            return self.refuse(call.reply, Code::NotFound, message);
        };
        let waits = container.busy && (call.operation.is_ordered() || container.init.phase == Phase::Making);
        let queue = match call.operation.ends_exec() {
            _ if waits => Some(&mut container.queue),
            Some(exec_id) => container.held_for(exec_id),
            None => None,
        };
        let Some(queue) = queue else { return self.perform(call) };
        if queue.len() < MAX_QUEUED {
            queue.push_back(call);
        } else {
            let message = format!("{MAX_QUEUED} requests wait for container {id}");
            self.refuse(call.reply, Code::ResourceExhausted, message);
        }
    }

    /// After a maker has ended, carries out what waited for it.
    pub(crate) fn go_on(&mut self, id: &str) {
        while let Some(container) = self.containers.iter_mut().find(|container| container.id == id) {
            if container.busy {
                return;
            }
            let Some(call) = container.queue.pop_front() else { return };
            self.go_on_with(call);
        }
    }

    /// Carries out what waited for a maker.
    pub(crate) fn go_on_with(&mut self, call: Call) {
        if call.deadline.is_some_and(|deadline| deadline < sys::boot_ms()) {
            self.refuse(call.reply, Code::DeadlineExceeded, "waited too long for the container's maker");
        } else {
            self.submit(call);
        }
    }

    fn perform(&mut self, call: Call) {
        let reply = call.reply;
        let result = match &call.operation {
            Operation::State(request) => self.state(reply, request),
            Operation::Pids(request) => self.pids(reply, request),
            Operation::Stats(request) => self.stats(reply, request),
            Operation::Kill(request) => self.kill(reply, request),
            Operation::Resize(request) => self.resize(reply, request),
            Operation::CloseIo(request) => self.close_io(reply, request),
            Operation::Wait(request) => self.wait(reply, request),
            Operation::ReopenLog(request) => self.reopen_log(reply, request),
            Operation::Attach(request) => self.attach(reply, request),
            Operation::Exec(request) => self.announce_exec(reply, request),
            Operation::Start(request) if !request.exec_id.is_empty() => {
                self.start_exec(reply, call.deadline, request)
            }
            Operation::Delete(request) if !request.exec_id.is_empty() => self.delete_exec(reply, request),
            Operation::Delete(_) => self.delete(call),
            Operation::Start(request) => self.start(reply, call.deadline, request),
            Operation::Pause(request) => self.pause(reply, call.deadline, &request.id),
            Operation::Resume(request) => self.resume(reply, call.deadline, &request.id),
            Operation::Update(request) => self.update(reply, call.deadline, request),
        };
        if let Err(status) = result {
            self.reply(reply, Err(status));
        }
    }

    pub(crate) fn container(&mut self, id: &str) -> Result<&mut Container, Status> {
        let container = self.containers.iter_mut().find(|container| container.id == id);
        container.ok_or_else(|| Status::new(Code::NotFound, format!("container {id} does not exist")))
    }

    fn process(&mut self, id: &str, exec_id: &str) -> Result<&mut Process, Status> {
        self.container(id)?.process_mut(exec_id).ok_or_else(|| no_exec(id, exec_id))
    }

    fn state(&mut self, reply: ReplyTo, request: &task::StateRequest) -> Result<(), Status> {
        let container = self.container(&request.id)?;
        let process =
            container.process(&request.exec_id).ok_or_else(|| no_exec(&request.id, &request.exec_id))?;
        let response = process.describe(&container.id, &container.bundle.to_string_lossy());
        self.reply_message(reply, &response);
        Ok(())
    }

    fn pids(&mut self, reply: ReplyTo, request: &task::PidsRequest) -> Result<(), Status> {
        let container = self.container(&request.id)?;
        let mut pids = container.cgroup.as_ref().map(crate::cgroup::Cgroup::pids).unwrap_or_default();
        if container.init.is_alive() && !pids.contains(&container.init.pid) {
            pids.push(container.init.pid);
        }
        let describe = |pid: i32| task::ProcessInfo { pid: pid.unsigned_abs(), info: None };
        let response = task::PidsResponse { processes: pids.into_iter().map(describe).collect() };
        self.reply_message(reply, &response);
        Ok(())
    }

    fn stats(&mut self, reply: ReplyTo, request: &task::StatsRequest) -> Result<(), Status> {
        let init = &self.container(&request.id)?.init;
        let stats = init.is_alive().then(|| stats::read(init.pid)).flatten();
        let gone = || Status::new(Code::NotFound, format!("container {} has no cgroup any more", request.id));
        let response = task::StatsResponse { stats: Some(stats.ok_or_else(gone)?) };
        self.reply_message(reply, &response);
        Ok(())
    }

    /// Signals without the maker: the process is this one's unreaped child, so its pid cannot mean another.
    fn kill(&mut self, reply: ReplyTo, request: &task::KillRequest) -> Result<(), Status> {
        let signal = i32::try_from(request.signal).ok().filter(|signal| (0..=64).contains(signal));
        let signal = signal
            .ok_or_else(|| Status::new(Code::InvalidArgument, format!("no signal {}", request.signal)))?;
        let container = self.container(&request.id)?;
        let process =
            container.process(&request.exec_id).ok_or_else(|| no_exec(&request.id, &request.exec_id))?;
        let whole = request.all && request.exec_id.is_empty();
        if !process.is_alive() && !whole {
            let (code, message) = if process.exit().is_some() {
                (Code::NotFound, "process already finished")
            } else {
                (Code::FailedPrecondition, "process is not created")
            };
            return Err(Status::new(code, message));
        }
        let frozen = container.init.phase == Phase::Paused && signal == libc::SIGKILL;
        if process.is_alive() {
            sys::kill(process.pid, signal)
                .map_err(|error| Status::new(Code::Internal, format!("cannot signal: {error}")))?;
        }
        if whole && let Some(cgroup) = &container.cgroup {
            cgroup.signal_all(signal);
        }
        self.reply_message(reply, &Empty {});
        if frozen {
            // On cgroup version 1 a frozen process dies only when it is thawed.
            self.thaw(&request.id);
        }
        Ok(())
    }

    fn resize(&mut self, reply: ReplyTo, request: &task::ResizePtyRequest) -> Result<(), Status> {
        let clamp = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
        self.process(&request.id, &request.exec_id)?
            .streams
            .resize(clamp(request.width), clamp(request.height))
            .map_err(|error| Status::new(Code::Internal, format!("cannot resize the terminal: {error}")))?;
        self.reply_message(reply, &Empty {});
        Ok(())
    }

    fn close_io(&mut self, reply: ReplyTo, request: &task::CloseIORequest) -> Result<(), Status> {
        let container = self.containers.iter_mut().find(|container| container.id == request.id);
        let process = container.and_then(|container| container.process_mut(&request.exec_id));
        let process = process.ok_or_else(|| no_exec(&request.id, &request.exec_id))?;
        if request.stdin {
            process
                .streams
                .close_input(&self.epoll)
                .map_err(|error| Status::new(Code::Internal, format!("cannot close stdin: {error}")))?;
        }
        self.reply_message(reply, &Empty {});
        Ok(())
    }

    fn wait(&mut self, reply: ReplyTo, request: &task::WaitRequest) -> Result<(), Status> {
        let process = self.process(&request.id, &request.exec_id)?;
        if let Some(exit) = process.exit() {
            let response = exit.as_wait();
            self.reply_message(reply, &response);
            return Ok(());
        }
        if process.waiters.len() >= MAX_WAITERS {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!("{MAX_WAITERS} calls wait for it already"),
            ));
        }
        process.waiters.push(reply);
        Ok(())
    }

    fn reopen_log(&mut self, reply: ReplyTo, request: &shim::ReopenLogRequest) -> Result<(), Status> {
        let reopened = self.container(&request.id)?.init.streams.reopen_log();
        let reopened = reopened.ok_or_else(|| {
            Status::new(Code::FailedPrecondition, format!("container {} has no CRI log", request.id))
        })?;
        reopened.map_err(|error| Status::new(Code::Internal, crate::Chain(&error).to_string()))?;
        self.reply_message(reply, &Empty {});
        Ok(())
    }

    fn attach(&mut self, reply: ReplyTo, request: &shim::AttachRequest) -> Result<(), Status> {
        let init = &self.container(&request.id)?.init;
        if !matches!(init.phase, Phase::Created | Phase::Running | Phase::Paused) {
            let message = format!("container {} is {:?}", request.id, init.state());
            return Err(Status::new(Code::FailedPrecondition, message));
        }
        if init.streams.attached() >= MAX_ATTACHED {
            let message = format!("{MAX_ATTACHED} streams are attached to container {} already", request.id);
            return Err(Status::new(Code::ResourceExhausted, message));
        }
        self.attach_streams(request).map_err(|error| {
            Status::new(Code::InvalidArgument, format!("cannot attach: {}", crate::Chain(&error)))
        })?;
        self.reply_message(reply, &Empty {});
        Ok(())
    }

    fn connect(&mut self, reply: ReplyTo, request: &task::ConnectRequest) -> Result<(), Status> {
        let task_pid = self.container(&request.id).map_or(0, |container| container.init.pid.unsigned_abs());
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.reply_message(reply, &task::ConnectResponse { shim_pid: std::process::id(), task_pid, version });
        Ok(())
    }

    fn shutdown(&mut self, reply: ReplyTo, request: &task::ShutdownRequest) -> Result<(), Status> {
        if request.now || (self.containers.is_empty() && self.jobs.is_empty()) {
            self.end();
        }
        self.reply_message(reply, &Empty {});
        Ok(())
    }

    fn info(&mut self, reply: ReplyTo) -> Result<(), Status> {
        let describe = |container: &mut Container| {
            let oom = container.check_oom();
            let log = container.init.streams.log_summary();
            shim::ContainerInfo {
                id: container.id.clone(),
                pid: container.init.pid.unsigned_abs(),
                state: container.init.state().into(),
                log_bytes_dropped: log.dropped,
                log_error: log.error,
                oom,
            }
        };
        let response = shim::InfoResponse {
            protocol_version: PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            sandbox_id: self.sandbox_id.clone(),
            containers: self.containers.iter_mut().map(describe).collect(),
        };
        self.reply_message(reply, &response);
        Ok(())
    }
}

fn decode<M: Message + Default>(request: &Request) -> Result<M, Status> {
    M::decode(request.payload.as_slice())
        .map_err(|error| Status::new(Code::InvalidArgument, format!("{}: {error}", request.method)))
}

/// No process of that name in the container.
pub(crate) fn no_exec(id: &str, exec_id: &str) -> Status {
    let what = if exec_id.is_empty() { format!("container {id}") } else { format!("exec {exec_id} of {id}") };
    Status::new(Code::NotFound, format!("{what} does not exist"))
}
