//! `exec`: another process in a running container.
//!
//! Done by hand rather than by libcontainer, whose exec leaves out seccomp and the user namespace: a child joins the
//! cgroups and namespaces of the container's first process, then finishes as every container process does
//! (`finish.rs`), so that nothing that confines the container is missing for what is executed in it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::syscall::syscall::create_syscall;
use oci_spec::runtime::{Process, Spec};
use rustix::io::FdFlags;

use super::args::{Exec, Globals};
use super::cgroup;
use super::finish::Finish;
use super::lifecycle::find;
use super::record::Status;
use super::{Fault, create, error_chain, prepare, sys};

/// Namespaces in the order of joining: the user namespace gives the rights for the others, the mount namespace
/// takes away the way back.
const NAMESPACES: [(&str, i32); 7] = [
    ("user", libc::CLONE_NEWUSER),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("net", libc::CLONE_NEWNET),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("pid", libc::CLONE_NEWPID),
    ("mnt", libc::CLONE_NEWNS),
];

/// Everything that the child needs, gathered while the host is still in view.
struct Plan {
    namespaces: Vec<(&'static str, i32, OwnedFd)>,
    cgroups: Vec<PathBuf>,
    console: Option<OwnedFd>,
    finish: Finish,
    preserve_fds: i32,
}

/// Runs the process; without `detach` waits for it. Returns the exit code for the maker.
pub(super) fn exec(globals: &Globals, options: &Exec, warn: &mut dyn FnMut(&str)) -> Result<i32, Fault> {
    let found = find(&globals.root, &options.id)?;
    if found.status != Status::Running {
        return Err(Fault::State { id: options.id.clone(), verb: "exec in", status: found.status.name() });
    }
    let config = found.record.bundle.join("config.json");
    let text =
        fs::read(&config).map_err(|source| Fault::Io { what: "read", path: config.clone(), source })?;
    let spec: Spec = serde_json::from_slice(&text).map_err(|source| Fault::Json { path: config, source })?;
    create::give_stdio(&spec);
    let node = create::node()?;
    let mut process = process_of(options, &spec)?;
    let mut warnings = Vec::new();
    prepare::adjust_process(&mut process, &node, &mut warnings);
    warnings.iter().for_each(|warning| warn(warning));

    let cgroups = node
        .mounts
        .of_process(found.record.pid)
        .map_err(|source| Fault::Os { what: "read cgroups", source })?;
    let namespaces = open_namespaces(found.record.pid)?;
    // The descriptors are the container's only if its process was still there after they were opened.
    if !found.record.alive() {
        return Err(Fault::NotRunning);
    }
    let terminal = process.terminal().unwrap_or(false);
    let console = match (&options.console_socket, terminal) {
        (Some(socket), true) => Some(connect_console(&globals.root.join(&options.id), socket)?),
        (None, true) => return Err(Fault::Spec("a terminal needs --console-socket".to_owned())),
        (_, false) => None,
    };
    let finish = Finish {
        seccomp: create::filter(globals, spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()))?,
        keyring: Some(format!("_ses.{}", options.id)),
        init: None,
        process,
    };
    launch(Plan { namespaces, cgroups, console, finish, preserve_fds: options.preserve_fds }, options)
}

/// The process of a file, or the container's own with another command.
fn process_of(options: &Exec, spec: &Spec) -> Result<Process, Fault> {
    if let Some(path) = &options.process {
        let text = fs::read(path).map_err(|source| Fault::Io { what: "read", path: path.clone(), source })?;
        return serde_json::from_slice(&text).map_err(|source| Fault::Json { path: path.clone(), source });
    }
    let mut process =
        spec.process().clone().ok_or_else(|| Fault::Spec("the spec has no process".to_owned()))?;
    process.set_args(Some(options.command.clone()));
    process.set_terminal(Some(options.tty));
    Ok(process)
}

fn open_namespaces(pid: i32) -> Result<Vec<(&'static str, i32, OwnedFd)>, Fault> {
    let mut open = Vec::new();
    for (name, kind) in NAMESPACES {
        let theirs = PathBuf::from(format!("/proc/{pid}/ns/{name}"));
        let ours = fs::read_link(format!("/proc/self/ns/{name}"));
        match fs::read_link(&theirs) {
            // The same one: joining would be refused for a user namespace, and is needless for others.
            Ok(link) if ours.is_ok_and(|ours| ours == link) => continue,
            Ok(_) => {}
            // A kernel without this kind of namespace.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Fault::Io { what: "read namespace", path: theirs, source }),
        }
        let file = fs::File::open(&theirs).map_err(|source| Fault::Io {
            what: "open namespace",
            path: theirs,
            source,
        })?;
        open.push((name, kind, file.into()));
    }
    Ok(open)
}

fn connect_console(dir: &Path, socket: &Path) -> Result<OwnedFd, Fault> {
    let name = format!("tty-{}.sock", std::process::id());
    let connected = libcontainer::tty::setup_console_socket(dir, socket, &name);
    // It links the socket under a short name for the length of the connect.
    let _ = fs::remove_file(dir.join(&name));
    connected.map_err(|error| Fault::Library(error_chain(&error)))
}

/// The writing ends of the two pipes to the maker.
struct Reports {
    /// The pid of the process, as the host sees it.
    pid: io::PipeWriter,
    /// Why it cannot run; closes without a word when it does.
    errors: io::PipeWriter,
}

fn launch(plan: Plan, options: &Exec) -> Result<i32, Fault> {
    let os = |what| move |source| Fault::Os { what, source };
    let (mut errors, error_end) = io::pipe().map_err(os("make a pipe"))?;
    let (mut pids, pid_end) = io::pipe().map_err(os("make a pipe"))?;
    let reports = Reports { pid: pid_end, errors: error_end };
    // Nothing in the container may look into this process once it is among them.
    sys::set_dumpable(false).map_err(os("hide from the container"))?;
    let child = match sys::fork().map_err(os("fork"))? {
        sys::Fork::Child => become_process(&plan, reports, options.detach),
        sys::Fork::Parent(pid) => pid,
    };
    drop(reports);
    let mut reason = String::new();
    let mut pid = [0; 4];
    errors.read_to_string(&mut reason).map_err(os("read from the new process"))?;
    if !reason.is_empty() {
        let _ = sys::wait(child);
        return Err(Fault::Exec(reason));
    }
    pids.read_exact(&mut pid).map_err(os("read the pid of the new process"))?;
    create::write_pid(options.pid_file.as_deref(), i32::from_ne_bytes(pid))?;
    if options.detach {
        return Ok(0);
    }
    sys::wait(child).map_err(os("wait for the process"))
}

/// The first child: joins everything; the process itself is its child, because a PID namespace takes only those.
/// When no PID namespace is joined, it becomes the process.
fn become_process(plan: &Plan, mut reports: Reports, detach: bool) -> ! {
    let forked = join(plan).and_then(|joined_pid| match joined_pid {
        true => sys::fork().map(Some).map_err(|error| format!("fork: {error}")),
        false => Ok(None),
    });
    match forked {
        Ok(Some(sys::Fork::Parent(pid))) => {
            let _ = reports.pid.write_all(&pid.to_ne_bytes());
            drop(reports);
            // Detached, the process goes to whoever reaps for the maker; in the foreground its exit code is ours.
            sys::exit_now(if detach { 0 } else { sys::wait(pid).unwrap_or(255) })
        }
        Ok(Some(sys::Fork::Child)) => run(plan, reports.errors),
        Ok(None) => {
            let _ = reports.pid.write_all(&(std::process::id() as i32).to_ne_bytes());
            run(plan, reports.errors)
        }
        Err(reason) => {
            let _ = reports.errors.write_all(reason.as_bytes());
            sys::exit_now(255)
        }
    }
}

/// Enters cgroups, limits and namespaces. Returns whether a PID namespace was among them.
fn join(plan: &Plan) -> Result<bool, String> {
    let fault = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    cgroup::join(&plan.cgroups, 0).map_err(fault("cgroup"))?;
    if let Some(score) = plan.finish.process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(fault("set oom_score_adj"))?;
    }
    for limit in plan.finish.process.rlimits().iter().flatten() {
        sys::set_limit(limit.typ() as u32, limit.soft(), limit.hard())
            .map_err(fault("set a resource limit"))?;
    }
    close_on_exec(3 + plan.preserve_fds).map_err(fault("close descriptors"))?;
    let mut joined_pid = false;
    for (name, kind, namespace) in &plan.namespaces {
        sys::setns(namespace, *kind).map_err(|error| format!("join the {name} namespace: {error}"))?;
        joined_pid |= *kind == libc::CLONE_NEWPID;
        if *kind == libc::CLONE_NEWUSER {
            // Root of the new namespace: the id that came along means nothing there.
            sys::become_user(0, 0).map_err(fault("become root of the user namespace"))?;
            let all = sys::permitted().map_err(fault("read the capabilities"))?;
            sys::set_capabilities(all, all, Default::default()).map_err(fault("raise the capabilities"))?;
        }
    }
    Ok(joined_pid)
}

/// What is not handed to the process closes when its program starts.
fn close_on_exec(from: i32) -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if fd >= from {
            sys::with_fd(fd, |fd| rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)).ok();
        }
    }
    Ok(())
}

fn run(plan: &Plan, mut errors: io::PipeWriter) -> ! {
    let mut fail = |reason: &str| -> ! {
        let _ = errors.write_all(reason.as_bytes());
        sys::exit_now(255)
    };
    if let Err(error) = sys::setsid() {
        fail(&format!("setsid: {error}"));
    }
    if let Some(console) = &plan.console {
        let syscall = create_syscall();
        if let Err(error) = libcontainer::tty::setup_console(syscall.as_ref(), console.as_raw_fd(), false) {
            fail(&format!("set up the terminal: {}", error_chain(&error)));
        }
    }
    match plan.finish.settle() {
        Ok(ready) => fail(&ready.launch()),
        Err(error) => fail(&error_chain(&error)),
    }
}
