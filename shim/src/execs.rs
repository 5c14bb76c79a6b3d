//! Further processes of a container: announced by Exec, run by Start, removed by Delete. Methods of [`Shim`], called by
//! the loop.
//!
//! An exec's maker does not make its container busy: execs run side by side, and a slow one delays nobody. What would
//! end an exec waits for its maker, so that it ends the process which that leaves.

use std::fs;
use std::path::Path;

use coracle_shim::protocol::{Code, Empty, Status, events, task};

use crate::connection::ReplyTo;
use crate::container::{Phase, Process};
use crate::job::{ConsoleSocket, Step, failed, words, write_private};
use crate::maker;
use crate::requests::no_exec;
use crate::server::Shim;
use crate::stdio::{Addresses, Streams, ends_with_its_process};
use crate::sys;

impl Shim {
    /// Notes an exec down.
    pub(crate) fn announce_exec(
        &mut self,
        reply: ReplyTo,
        request: &task::ExecProcessRequest,
    ) -> Result<(), Status> {
        let container = self.container(&request.id)?;
        if !maker::is_plain_name(&request.exec_id) {
            return Err(Status::new(Code::InvalidArgument, format!("{:?} is no name", request.exec_id)));
        }
        if container.process(&request.exec_id).is_some() {
            return Err(Status::new(Code::AlreadyExists, format!("exec {} exists", request.exec_id)));
        }
        if !matches!(container.init.phase, Phase::Created | Phase::Running) {
            return Err(Status::new(
                Code::FailedPrecondition,
                format!("container {} is {:?}", request.id, container.init.state()),
            ));
        }
        let spec = request.spec.as_ref().map(|any| any.value.clone()).unwrap_or_default();
        if spec.is_empty() {
            return Err(Status::new(Code::InvalidArgument, "an exec needs an OCI process"));
        }
        let addresses = Addresses {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let mut process = Process::new(request.exec_id.clone(), Phase::Announced, addresses);
        process.spec = spec;
        let addresses = [&request.stdin, &request.stdout, &request.stderr];
        if addresses.into_iter().any(|address| ends_with_its_process(address)) {
            process.owner = Some(reply.connection);
        }
        container.execs.push(process);
        self.announce(&events::TaskExecAdded {
            container_id: request.id.clone(),
            exec_id: request.exec_id.clone(),
        });
        self.reply_message(reply, &Empty {});
        Ok(())
    }

    /// Removes an exec that does not run.
    pub(crate) fn delete_exec(
        &mut self,
        reply: ReplyTo,
        request: &task::DeleteRequest,
    ) -> Result<(), Status> {
        let container = self.container(&request.id)?;
        let at = container.execs.iter().position(|exec| exec.exec_id == request.exec_id);
        let at = at.ok_or_else(|| no_exec(&request.id, &request.exec_id))?;
        let exec = &mut container.execs[at];
        if !matches!(exec.phase, Phase::Announced | Phase::Stopped(_)) {
            let message = format!("exec {} is running", request.exec_id);
            return Err(Status::new(Code::FailedPrecondition, message));
        }
        let exec = container.execs.remove(at);
        let exit = exec.exit();
        let response = task::DeleteResponse {
            pid: exec.pid.unsigned_abs(),
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| exit.timestamp()),
        };
        self.wind_up(exec.streams);
        self.reply_message(reply, &response);
        Ok(())
    }

    /// Starts an exec that was announced.
    pub(crate) fn start_exec(
        &mut self,
        reply: ReplyTo,
        deadline: Option<u64>,
        request: &task::StartRequest,
    ) -> Result<(), Status> {
        let task::StartRequest { id, exec_id } = request;
        let process_file = {
            let container = self.container(id)?;
            let bundle = container.bundle.clone();
            let phase = container.init.phase;
            let exec = container.process(exec_id).ok_or_else(|| no_exec(id, exec_id))?;
            if exec.phase != Phase::Announced || phase != Phase::Running {
                let message = format!("exec {exec_id} is {:?}, its container {phase:?}", exec.state());
                return Err(Status::new(Code::FailedPrecondition, message));
            }
            self.maker.fresh_path(&bundle, "json")
        };
        let bundle = self.container(id)?.bundle.clone();
        let exec = self.container(id)?.process_mut(exec_id).ok_or_else(|| no_exec(id, exec_id))?;
        let (streams, ends) = Streams::open(&exec.addresses)
            .map_err(|error| failed(Code::InvalidArgument, "cannot open the exec's streams", &error))?;
        let terminal = exec.addresses.terminal;
        write_private(&process_file, &exec.spec)
            .map_err(|error| failed(Code::Internal, "cannot write the exec's process", &error))?;
        exec.streams = streams;
        exec.phase = Phase::Making;
        let pid_file = process_file.with_extension("pid");
        let mut arguments = words(["exec", "--process"]);
        arguments.extend([process_file.clone().into(), "--pid-file".into(), pid_file.clone().into()]);
        arguments.push("--detach".into());
        let started = self.bind_console(terminal, &bundle, &mut arguments).and_then(|console| {
            arguments.push(id.into());
            let step = Step::StartExec { exec_id: exec_id.clone(), pid_file: pid_file.clone(), console };
            self.start_job(id, step, arguments, ends, (Some(reply), deadline))
        });
        match started {
            Ok(()) => {
                if let Some(job) = self.jobs.last_mut() {
                    job.files.extend([process_file, pid_file]);
                }
                Ok(())
            }
            Err(status) => {
                drop(fs::remove_file(process_file));
                self.exec_failed(id, exec_id);
                Err(status)
            }
        }
    }

    /// The exec is as if nobody had started it; who waited for its end hears so.
    fn exec_failed(&mut self, id: &str, exec_id: &str) {
        let Ok(container) = self.container(id) else { return };
        let Some(exec) = container.process_mut(exec_id) else { return };
        exec.phase = Phase::Announced;
        exec.streams = Streams::default();
        for waiter in std::mem::take(&mut exec.waiters) {
            self.refuse(waiter, Code::FailedPrecondition, format!("exec {exec_id} did not start"));
        }
    }

    /// Continues when an exec's maker has ended.
    pub(crate) fn finish_exec(
        &mut self,
        id: &str,
        exec_id: &str,
        reply: Option<ReplyTo>,
        result: Result<(), (Code, String)>,
        pid_file: &Path,
        console: Option<ConsoleSocket>,
    ) {
        let pid = result.and_then(|()| {
            self.take_console(id, exec_id, console)?;
            maker::read_pid(pid_file)
                .map_err(|error| (Code::Unknown, format!("no pid from the maker: {error}")))
        });
        let mut exec = self.container(id).ok().and_then(|container| container.process_mut(exec_id));
        let held = exec.as_mut().map(|exec| std::mem::take(&mut exec.held)).unwrap_or_default();
        match (pid, exec) {
            (Ok(pid), Some(exec)) => {
                exec.pid = pid;
                exec.phase = Phase::Running;
                exec.spec = Vec::new();
                self.start_streams(id, exec_id);
                self.announce(&events::TaskExecStarted {
                    container_id: id.to_owned(),
                    exec_id: exec_id.to_owned(),
                    pid: pid.unsigned_abs(),
                });
                // The answer comes before that of a Wait, should the process have ended already.
                self.conclude(reply, "exec", Ok(task::StartResponse { pid: pid.unsigned_abs() }));
                self.take_early_exit(id, exec_id, pid);
            }
            (Ok(pid), None) => {
                // The container was deleted meanwhile; nobody can reach this process any more.
                drop(sys::kill(pid, libc::SIGKILL));
                self.conclude(
                    reply,
                    "exec",
                    Err::<Empty, _>((Code::NotFound, format!("container {id} is gone"))),
                );
            }
            (Err(error), _) => {
                // A maker that was killed at its end has started the process, which nobody would ever end.
                if let Ok(pid) = maker::read_pid(pid_file)
                    && maker::is_child(pid)
                {
                    drop(sys::kill(pid, libc::SIGKILL));
                }
                self.exec_failed(id, exec_id);
                self.conclude(reply, "exec", Err::<Empty, _>(error));
            }
        }
        held.into_iter().for_each(|call| self.go_on_with(call));
        self.end_abandoned();
    }

    /// Ends execs whose owner is gone: nobody can read their output or ask for their end.
    pub(crate) fn end_abandoned(&mut self) {
        let mut removed = Vec::new();
        for mut container in std::mem::take(&mut self.containers) {
            let owned = |exec: &Process| exec.owner.is_some_and(|owner| !self.is_connected(owner));
            let abandoned = container.execs.extract_if(.., |exec| {
                owned(exec) && matches!(exec.phase, Phase::Announced | Phase::Stopped(_))
            });
            removed.extend(abandoned.map(|exec| exec.streams));
            for exec in container.execs.iter().filter(|exec| owned(exec) && exec.is_alive()) {
                // One that ended meanwhile is what we want.
                drop(sys::kill(exec.pid, libc::SIGKILL));
            }
            self.containers.push(container);
        }
        removed.into_iter().for_each(|streams| self.wind_up(streams));
    }
}
