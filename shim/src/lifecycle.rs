//! What needs the maker: create, start, exec, delete, pause, resume, update. Methods of [`Shim`], called by the loop.
//!
//! Each is cut in two: the call that starts the maker, and `finish_*`, which the end of the maker continues. Between
//! them the loop serves others; the container is `busy`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use coracle_shim::protocol::{Code, EXIT_RECORD, Empty, Status, events, task};

use crate::bundle;
use crate::cgroup::{self, Cgroup};
use crate::connection::ReplyTo;
use crate::container::{Container, Phase};
use crate::containerd;
use crate::exit_record::Exit;
use crate::job::{ConsoleSocket, Job, Step, Undoing, failed, words, write_private};
use crate::maker::{self, MakerCall};
use crate::requests::{Call, Operation};
use crate::rootfs;
use crate::server::Shim;
use crate::stdio::{Addresses, MakerEnds, Streams};
use crate::sys;

/// How long the maker may take to remove what its failed creation left.
const UNDO_MS: u64 = 30_000;

/// How long its processes may take to end after that.
const UNDO_CGROUP_MS: u64 = 1000;

impl Shim {
    /// Starts a maker for a container that exists, and marks the container busy when `ordered`.
    pub(crate) fn start_job(
        &mut self,
        id: &str,
        step: Step,
        arguments: Vec<OsString>,
        ends: MakerEnds,
        (reply, deadline): (Option<ReplyTo>, Option<u64>),
    ) -> Result<(), Status> {
        let bundle = self.container(id)?.bundle.clone();
        let running = self
            .maker
            .start(MakerCall { bundle: &bundle, arguments, ends })
            .map_err(|error| failed(Code::Internal, "OCI runtime not started", &error))?;
        if !matches!(step, Step::StartExec { .. }) {
            self.container(id)?.busy = true;
        }
        let container = id.to_owned();
        self.jobs.push(Job { running, container, step, reply, deadline, killed: false, files: Vec::new() });
        Ok(())
    }

    /// Makes a container.
    pub(crate) fn create(&mut self, reply: ReplyTo, deadline: Option<u64>, request: task::CreateTaskRequest) {
        let id = request.id.clone();
        if self.containers.iter().any(|container| container.id == id) {
            return self.refuse(reply, Code::AlreadyExists, format!("container {id} exists"));
        }
        if let Err(status) = self.try_create(reply, deadline, request) {
            self.forget(&id, None, status.clone());
            self.reply(reply, Err(status));
        }
    }

    /// Mounts what containerd asks for, and leaves the bundle's record for it.
    fn mount_root(&self, bundle: &Path, mounts: &[task::Mount]) -> Result<(), Status> {
        if let Some(caller) = &self.caller {
            let stored = caller.record.store(bundle);
            stored.map_err(|error| failed(Code::Internal, "cannot write the bundle's record", &error))?;
        }
        rootfs::mount(mounts, &containerd::rootfs(bundle))
            .map_err(|error| failed(Code::Unknown, "cannot mount the container's root", &error))
    }

    fn try_create(
        &mut self,
        reply: ReplyTo,
        deadline: Option<u64>,
        request: task::CreateTaskRequest,
    ) -> Result<(), Status> {
        let invalid = |message: String| Status::new(Code::InvalidArgument, message);
        let unserved = |message: &str| Status::new(Code::Unimplemented, message);
        let task::CreateTaskRequest {
            id, bundle, rootfs, terminal, stdin, stdout, stderr, checkpoint, ..
        } = request;
        let bundle = PathBuf::from(bundle);
        if !maker::is_plain_name(&id) {
            return Err(invalid(format!("{id:?} is no name for a container")));
        }
        if !bundle.is_absolute() {
            return Err(invalid(format!("bundle {} is not an absolute path", bundle.display())));
        }
        if !checkpoint.is_empty() {
            return Err(unserved("restoring a checkpoint is not served"));
        }
        let addresses = Addresses { stdin, stdout, stderr, terminal };
        let (streams, ends) = Streams::open(&addresses)
            .map_err(|error| failed(Code::InvalidArgument, "cannot open the container's streams", &error))?;
        // A record of an earlier container in this bundle must not be taken for this one's.
        drop(fs::remove_file(bundle.join(EXIT_RECORD)));
        self.mount_root(&bundle, &rootfs)?;
        let facts = bundle::read(&bundle);
        let pid_file = bundle.join("init.pid");
        drop(fs::remove_file(&pid_file));
        let mut arguments = words(["create", "--bundle"]);
        arguments.extend([bundle.clone().into(), "--pid-file".into(), pid_file.clone().into()]);
        let flags = self.caller.as_ref().map(|caller| caller.record.options.create_flags());
        arguments.extend(flags.unwrap_or_default().into_iter().map(OsString::from));
        let mut container = Container::new(id.clone(), bundle.clone(), facts, addresses);
        container.init.streams = streams;
        container.mounted = !rootfs.is_empty();
        container.fresh_cgroup = cgroup::Fresh::unless_there(&container.facts.cgroups_path);
        self.containers.push(container);
        let console = self.bind_console(terminal, &bundle, &mut arguments)?;
        arguments.push(id.clone().into());
        self.start_job(&id, Step::Create { pid_file, console }, arguments, ends, (Some(reply), deadline))
    }

    pub(crate) fn bind_console(
        &mut self,
        terminal: bool,
        bundle: &Path,
        arguments: &mut Vec<OsString>,
    ) -> Result<Option<ConsoleSocket>, Status> {
        if !terminal {
            return Ok(None);
        }
        let path = self.maker.fresh_path(bundle, "tty");
        let console = ConsoleSocket::bind(path)
            .map_err(|error| failed(Code::Internal, "cannot make a socket for the terminal", &error))?;
        arguments.extend(["--console-socket".into(), console.argument()]);
        Ok(Some(console))
    }

    /// Starts a created container.
    pub(crate) fn start(
        &mut self,
        reply: ReplyTo,
        deadline: Option<u64>,
        request: &task::StartRequest,
    ) -> Result<(), Status> {
        self.expect_phase(&request.id, &[Phase::Created])?;
        let arguments = words(["start", &request.id]);
        self.start_job(&request.id, Step::Start, arguments, MakerEnds::default(), (Some(reply), deadline))
    }

    fn expect_phase(&mut self, id: &str, allowed: &[Phase]) -> Result<(), Status> {
        let init = &self.container(id)?.init;
        if allowed.contains(&init.phase) {
            return Ok(());
        }
        Err(Status::new(Code::FailedPrecondition, format!("container {id} is {:?}", init.state())))
    }

    /// Removes a container that does not run. One that was never started is ended first.
    pub(crate) fn delete(&mut self, call: Call) -> Result<(), Status> {
        let Operation::Delete(task::DeleteRequest { id, .. }) = &call.operation else { return Ok(()) };
        let id = id.clone();
        let container = self.container(&id)?;
        match container.init.phase {
            Phase::Stopped(_) => {
                let arguments = words(["delete", "--force", &id]);
                let waits = (Some(call.reply), call.deadline);
                self.start_job(&id, Step::Delete, arguments, MakerEnds::default(), waits)
            }
            Phase::Created => {
                sys::kill(container.init.pid, libc::SIGKILL)
                    .map_err(|error| failed(Code::Internal, "cannot end the container", &error))?;
                container.busy = true;
                container.after_exit = Some(call);
                Ok(())
            }
            _ => {
                let message = format!("container {id} is {:?}", container.init.state());
                Err(Status::new(Code::FailedPrecondition, message))
            }
        }
    }

    /// Freezes a container.
    pub(crate) fn pause(&mut self, reply: ReplyTo, deadline: Option<u64>, id: &str) -> Result<(), Status> {
        self.expect_phase(id, &[Phase::Running])?;
        self.start_job(id, Step::Pause, words(["pause", id]), MakerEnds::default(), (Some(reply), deadline))
    }

    /// Thaws a container.
    pub(crate) fn resume(&mut self, reply: ReplyTo, deadline: Option<u64>, id: &str) -> Result<(), Status> {
        self.expect_phase(id, &[Phase::Paused])?;
        self.start_job(id, Step::Resume, words(["resume", id]), MakerEnds::default(), (Some(reply), deadline))
    }

    /// Thaws a container that was killed, for nobody in particular.
    pub(crate) fn thaw(&mut self, id: &str) {
        if let Err(status) =
            self.start_job(id, Step::Resume, words(["resume", id]), MakerEnds::default(), (None, None))
        {
            crate::tell(format_args!("container {id} is killed but frozen: {status}"));
        }
    }

    /// Changes resource limits.
    pub(crate) fn update(
        &mut self,
        reply: ReplyTo,
        deadline: Option<u64>,
        request: &task::UpdateTaskRequest,
    ) -> Result<(), Status> {
        let id = &request.id;
        self.expect_phase(id, &[Phase::Created, Phase::Running, Phase::Paused])?;
        let resources = request.resources.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
        let bundle = self.container(id)?.bundle.clone();
        let file = self.maker.fresh_path(&bundle, "json");
        let unwritten = |error: io::Error| failed(Code::Internal, "cannot hand over the resources", &error);
        write_private(&file, resources).map_err(unwritten)?;
        let stdin = File::open(&file).map_err(unwritten);
        drop(fs::remove_file(&file));
        let ends = MakerEnds { stdin: Some(stdin?), ..MakerEnds::default() };
        let arguments = words(["update", "--resources", "-", id]);
        self.start_job(id, Step::Update, arguments, ends, (Some(reply), deadline))
    }

    /// Continues what a maker's end makes possible.
    pub(crate) fn finish_job(&mut self, job: Job, status: u32) {
        let Job { running, container: id, step, reply, killed, files, .. } = job;
        let mut result = running.finish(status);
        if killed && result.is_err() {
            result = Err("the maker ran past the caller's deadline and was killed".into());
        }
        let code = if killed { Code::DeadlineExceeded } else { Code::Unknown };
        let result = result.map_err(|message| (code, message));
        let exec = matches!(step, Step::StartExec { .. });
        if let (false, Ok(container)) = (exec, self.container(&id)) {
            container.busy = false;
        }
        match step {
            Step::Create { pid_file, console } => self.finish_create(&id, reply, result, &pid_file, console),
            Step::Undo { failure } => {
                let mut cgroup = None;
                if let Ok(container) = self.container(&id) {
                    // Until it is forgotten nobody may do anything with it.
                    container.busy = true;
                    cgroup = container.fresh_cgroup.take();
                }
                let until = sys::boot_ms() + UNDO_CGROUP_MS;
                self.undoing.push(Undoing { container: id.clone(), cgroup, until, reply, failure });
                return self.go_on_undoing();
            }
            Step::StartExec { exec_id, pid_file, console } => {
                self.finish_exec(&id, &exec_id, reply, result, &pid_file, console);
            }
            Step::Delete => self.finish_delete(&id, reply, result),
            Step::Start => {
                let pid = self.container(&id).map_or(0, |container| container.init.pid.unsigned_abs());
                let result = result.map(|()| task::StartResponse { pid });
                if self.advance(&id, &result, Phase::Created, Phase::Running) {
                    self.announce(&events::TaskStart { container_id: id.clone(), pid });
                }
                self.conclude(reply, "start", result);
            }
            Step::Pause => {
                let result = result.map(|()| Empty {});
                if self.advance(&id, &result, Phase::Running, Phase::Paused) {
                    self.announce(&events::TaskPaused { container_id: id.clone() });
                }
                self.conclude(reply, "pause", result);
            }
            Step::Resume => {
                let result = result.map(|()| Empty {});
                if self.advance(&id, &result, Phase::Paused, Phase::Running) {
                    self.announce(&events::TaskResumed { container_id: id.clone() });
                }
                self.conclude(reply, "resume", result);
            }
            Step::Update => self.conclude(reply, "update", result.map(|()| Empty {})),
        }
        for file in files {
            drop(fs::remove_file(file));
        }
        self.go_on(&id);
    }

    /// After success: from one phase to the next, unless the container ended meanwhile.
    fn advance<T, E>(&mut self, id: &str, result: &Result<T, E>, from: Phase, to: Phase) -> bool {
        match (result, self.container(id)) {
            (Ok(_), Ok(container)) if container.init.phase == from => {
                container.init.phase = to;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn conclude(
        &mut self,
        reply: Option<ReplyTo>,
        command: &str,
        result: Result<impl prost::Message, (Code, String)>,
    ) {
        let Some(reply) = reply else { return };
        match result {
            Ok(message) => self.reply_message(reply, &message),
            Err((code, message)) => {
                self.refuse(reply, code, format!("OCI runtime {command} failed: {message}"))
            }
        }
    }

    fn finish_create(
        &mut self,
        id: &str,
        reply: Option<ReplyTo>,
        result: Result<(), (Code, String)>,
        pid_file: &Path,
        console: Option<ConsoleSocket>,
    ) {
        let pid = result.and_then(|()| {
            self.take_console(id, "", console)?;
            maker::read_pid(pid_file)
                .map_err(|error| (Code::Unknown, format!("no pid from the maker: {error}")))
        });
        match pid {
            Ok(pid) => {
                let is_told = self.caller.is_some();
                let Ok(container) = self.container(id) else { return };
                container.init.pid = pid;
                container.init.phase = Phase::Created;
                container.cgroup = Some(Cgroup::of(pid));
                let created = is_told.then(|| created(container));
                self.start_streams(id, "");
                if let Some(created) = created {
                    self.announce(&created);
                }
                self.take_early_exit(id, "", pid);
                if let Some(reply) = reply {
                    self.reply_message(reply, &task::CreateTaskResponse { pid: pid.unsigned_abs() });
                }
            }
            Err((code, message)) => self.undo_create(id, reply, code, &message),
        }
    }

    /// Takes over the terminal that the maker sent, if there is one.
    pub(crate) fn take_console(
        &mut self,
        id: &str,
        exec_id: &str,
        console: Option<ConsoleSocket>,
    ) -> Result<(), (Code, String)> {
        let Some(console) = console else { return Ok(()) };
        let broken = |error: &dyn std::error::Error| {
            (Code::Unknown, format!("no terminal from the maker: {}", crate::Chain(error)))
        };
        let master = console.receive().map_err(|error| broken(&error))?;
        let process = self.container(id).ok().and_then(|container| container.process_mut(exec_id));
        process
            .map_or(Ok(()), |process| process.streams.attach_console(master).map_err(|error| broken(&error)))
    }

    /// A process may have ended before its maker told its pid.
    pub(crate) fn take_early_exit(&mut self, id: &str, exec_id: &str, pid: i32) {
        if let Some(at) = self.early_exits.iter().position(|(early, _)| *early == pid) {
            let (_, exit): (i32, Exit) = self.early_exits.swap_remove(at);
            self.process_ended(id, exec_id, exit);
        }
    }

    /// Has the maker remove what its failed creation left, and then tells the caller.
    fn undo_create(&mut self, id: &str, reply: Option<ReplyTo>, code: Code, message: &str) {
        let Ok(container) = self.container(id) else { return };
        if let Some(cgroup) = &container.fresh_cgroup {
            // A maker that was killed has told nobody what it made.
            cgroup.kill();
        }
        let complaint = container.init.streams.take_complaint();
        let message = match message {
            _ if complaint.is_empty() || complaint.contains(message) || !message.contains("said nothing") => {
                message.to_owned()
            }
            _ => format!("{message}: {complaint}"),
        };
        let failure = Status::new(code, format!("OCI runtime create failed: {message}"));
        let arguments = words(["delete", "--force", id]);
        let step = Step::Undo { failure: failure.clone() };
        if self
            .start_job(id, step, arguments, MakerEnds::default(), (reply, Some(sys::boot_ms() + UNDO_MS)))
            .is_err()
        {
            self.forget(id, reply, failure);
        }
    }

    /// Looks whether what failed creations left has ended; who asked for them hears of it then.
    pub(crate) fn go_on_undoing(&mut self) {
        for undoing in std::mem::take(&mut self.undoing) {
            if undoing.is_done() || undoing.until <= sys::boot_ms() {
                self.forget(&undoing.container, undoing.reply, undoing.failure);
            } else {
                self.undoing.push(undoing);
            }
        }
    }

    fn finish_delete(&mut self, id: &str, reply: Option<ReplyTo>, result: Result<(), (Code, String)>) {
        match result {
            // What the maker does not know is as good as deleted.
            Err((code, message)) if !message.contains("does not exist") => {
                self.conclude(reply, "delete", Err::<Empty, _>((code, message)));
            }
            _ => {
                let Ok(container) = self.container(id) else { return };
                let (pid, exit) = (container.init.pid.unsigned_abs(), container.init.exit());
                let response = task::DeleteResponse {
                    pid,
                    exit_status: exit.map_or(0, |exit| exit.status),
                    exited_at: exit.map(|exit| exit.timestamp()),
                };
                let gone = Status::new(Code::NotFound, format!("container {id} was deleted"));
                self.forget(id, None, gone);
                self.announce(&events::TaskDelete {
                    container_id: id.to_owned(),
                    pid: response.pid,
                    exit_status: response.exit_status,
                    exited_at: response.exited_at,
                    id: String::new(),
                });
                self.conclude(reply, "delete", Ok(response));
            }
        }
    }

    /// Drops a container; who still asks for it gets `status`.
    pub(crate) fn forget(&mut self, id: &str, reply: Option<ReplyTo>, status: Status) {
        let Some(at) = self.containers.iter().position(|container| container.id == id) else { return };
        let mut container = self.containers.remove(at);
        if container.mounted {
            rootfs::unmount(&containerd::rootfs(&container.bundle));
        }
        let held = container.execs.iter_mut().flat_map(|exec| std::mem::take(&mut exec.held));
        let queued: Vec<ReplyTo> = container.queue.drain(..).chain(held).map(|call| call.reply).collect();
        let waiters = container.processes_mut().flat_map(|process| std::mem::take(&mut process.waiters));
        let everyone: Vec<ReplyTo> = waiters.chain(queued).chain(reply).collect();
        for process in container.processes_mut() {
            self.wind_up(std::mem::take(&mut process.streams));
        }
        for to in everyone {
            self.reply(to, Err(status.clone()));
        }
    }
}

fn created(container: &Container) -> events::TaskCreate {
    let addresses = &container.init.addresses;
    events::TaskCreate {
        container_id: container.id.clone(),
        bundle: container.bundle.to_string_lossy().into_owned(),
        io: Some(events::TaskIO {
            stdin: addresses.stdin.clone(),
            stdout: addresses.stdout.clone(),
            stderr: addresses.stderr.clone(),
            terminal: addresses.terminal,
        }),
        pid: container.init.pid.unsigned_abs(),
        ..Default::default()
    }
}
