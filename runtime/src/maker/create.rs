//! `create`: makes a container up to the point before its program runs.
//!
//! libcontainer reads its spec from a bundle on disk, so the prepared spec lies in a directory of its own below the
//! root while it works. Errors of the container's own process come back over a pipe, in its own words.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, AsRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxIdMapping, LinuxSeccomp, Spec};
use rustix::fs::FlockOperation;
use rustix::mount::OpenTreeFlags;

use super::args::{Create, Globals};
use super::cgroup::{self, Mounts};
use super::finish::{Finish, Ready};
use super::prepare::{Node, Prepared, prepare};
use super::record::{Record, process_stat};
use super::seccomp::Filter;
use super::{Fault, device_filter, error_chain, sys};
use crate::sys::MountAttributes;

/// Ends libcontainer's init process our way.
#[derive(Clone)]
struct Finisher {
    finish: Finish,
    /// Where the first error goes; owned by the parent process, inherited by the child.
    errors: i32,
    ready: std::sync::Arc<Mutex<Option<Ready>>>,
}

impl Executor for Finisher {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        match self.finish.settle() {
            Ok(ready) => {
                *self.ready.lock().expect("invariant: one thread, which did not panic") = Some(ready);
                Ok(())
            }
            Err(error) => {
                let text = error_chain(&error);
                tell(self.errors, &text);
                Err(ExecutorValidationError::ArgValidationError(text))
            }
        }
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is passed to execve whole and in order.
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let ready = self.ready.lock().expect("invariant: one thread, which did not panic").take();
        let ready = ready.ok_or(ExecutorError::InvalidArg)?;
        let text = ready.launch();
        // `create` and `start` have long ended: the container's own log is where this can be read.
        let _ = writeln!(io::stderr(), "{text}");
        Err(ExecutorError::Other(text))
    }
}

fn tell(pipe: i32, text: &str) {
    let mut pipe = fs::File::from(sys::own(pipe));
    let _ = pipe.write_all(text.as_bytes());
    // The descriptor stays open for this process's other owner; it closes at exec or exit.
    let _ = pipe.into_raw_fd();
}

/// Makes the container.
pub(super) fn create(globals: &Globals, options: &Create, warn: &mut dyn FnMut(&str)) -> Result<(), Fault> {
    let bundle = fs::canonicalize(&options.bundle).map_err(|source| Fault::Io {
        what: "find the bundle",
        path: options.bundle.clone(),
        source,
    })?;
    let config = bundle.join("config.json");
    let text =
        fs::read(&config).map_err(|source| Fault::Io { what: "read", path: config.clone(), source })?;
    let mut spec: Spec =
        serde_json::from_slice(&text).map_err(|source| Fault::Json { path: config, source })?;
    let rootfs = absolute_root(&mut spec, &bundle)?;
    if globals.root.join(&options.id).exists() {
        return Err(Fault::Exists(options.id.clone()));
    }
    let node = node()?;
    let keyring = (!options.no_new_keyring).then(|| format!("_ses.{}", options.id));
    let cgroups_path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    let mut prepared = prepare(spec, keyring, &node).map_err(|error| Fault::Spec(error_chain(&error)))?;
    prepared.warnings.iter().for_each(|warning| warn(warning));
    prepared.finish.seccomp = filter(globals, prepared.seccomp.as_ref())?;
    let tree = clone_dev(&mut prepared)?;
    let binds = clone_binds(&mut prepared)?;
    give_stdio(&prepared.spec);

    // The container's process starts from these groups when its own list is empty; nobody may lend it others.
    sys::setgroups(&[]).map_err(|source| Fault::Os { what: "drop the supplementary groups", source })?;
    let pid = build(globals, options, &prepared)?;
    drop((tree, binds));

    let record = Record {
        version: 1,
        id: options.id.clone(),
        pid,
        start_time: process_stat(pid).map_or(0, |(_, start)| start),
        bundle,
        rootfs,
        cgroups: own_cgroups(&node.mounts, pid),
        cgroups_path,
        systemd_cgroup: globals.systemd_cgroup,
    };
    let made = seal(globals, options, &record, prepared.device_rules.as_deref(), &node.mounts);
    if let Err(fault) = made {
        // What cannot be confined or recorded must not be left behind.
        let _ = cgroup::kill_and_remove(&record.cgroups);
        let _ = fs::remove_dir_all(globals.root.join(&options.id));
        return Err(fault);
    }
    Ok(())
}

/// The cgroups that the container has to itself. Where it was not moved it shares its caller's, the shim's: whoever
/// kills what is in these must not meet anybody else.
fn own_cgroups(mounts: &cgroup::Mounts, pid: i32) -> Vec<PathBuf> {
    let ours = mounts.of_process(std::process::id().cast_signed()).unwrap_or_default();
    let mut cgroups = mounts.of_process(pid).unwrap_or_default();
    cgroups.retain(|dir| !ours.contains(dir));
    cgroups
}

fn seal(
    globals: &Globals,
    options: &Create,
    record: &Record,
    rules: Option<&[LinuxDeviceCgroup]>,
    mounts: &Mounts,
) -> Result<(), Fault> {
    if let Some(rules) = rules {
        confine_devices(record, rules, mounts)?;
    }
    record
        .save(&globals.root)
        .map_err(|source| Fault::Os { what: "write the container's record", source })?;
    write_pid(options.pid_file.as_deref(), record.pid)
}

/// The compiled filter of a spec's seccomp section.
pub(super) fn filter(globals: &Globals, profile: Option<&LinuxSeccomp>) -> Result<Option<Filter>, Fault> {
    let kept = globals.root.join(".seccomp");
    profile
        .map(|profile| Filter::of(profile, &kept))
        .transpose()
        .map_err(|error| Fault::Spec(error_chain(&error)))
}

/// What this node allows, read once.
pub(super) fn node() -> Result<Node, Fault> {
    let os = |what| move |source| Fault::Os { what, source };
    let score = fs::read_to_string("/proc/self/oom_score_adj").map_err(os("read oom_score_adj"))?;
    let held = sys::permitted().map_err(os("read the capabilities"))?;
    let sys_resource =
        crate::spec::capabilities::number("CAP_SYS_RESOURCE").is_some_and(|number| held.has(number));
    Ok(Node {
        mounts: Mounts::read().map_err(os("read the mounts"))?,
        sys_resource,
        oom_score_adj: score.trim().parse().unwrap_or(0),
        hard_limit: |number| sys::hard_limit(number).ok(),
    })
}

/// Makes the spec's root absolute: the prepared bundle lies elsewhere.
fn absolute_root(spec: &mut Spec, bundle: &Path) -> Result<PathBuf, Fault> {
    let root = spec.root_mut().as_mut().ok_or_else(|| Fault::Spec("the spec has no root".to_owned()))?;
    let path = bundle.join(root.path());
    let path =
        fs::canonicalize(&path).map_err(|source| Fault::Io { what: "find the rootfs", path, source })?;
    root.set_path(path.clone());
    Ok(path)
}

fn clone_dev(prepared: &mut Prepared) -> Result<Option<OwnedFd>, Fault> {
    let Some(source) = &prepared.dev_source else { return Ok(None) };
    let flags =
        OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, source, flags).map_err(|error| Fault::Io {
        what: "clone",
        path: source.clone(),
        source: error.into(),
    })?;
    if let Some(init) = &mut prepared.finish.init {
        init.dev_tree = Some(tree.as_raw_fd());
    }
    Ok(Some(tree))
}

/// Clones the bind mounts of a container whose root may not reach them, with all that only the host's root may set.
fn clone_binds(prepared: &mut Prepared) -> Result<Vec<OwnedFd>, Fault> {
    let mut trees = Vec::new();
    let Some(init) = &mut prepared.finish.init else { return Ok(trees) };
    let mut userns = None;
    for bind in &prepared.binds {
        let fault = |source: io::Error| Fault::Io { what: "clone", path: bind.source.clone(), source };
        let mut flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
        flags.set(OpenTreeFlags::AT_RECURSIVE, bind.recursive);
        let tree = rustix::mount::open_tree(rustix::fs::CWD, &bind.source, flags)
            .map_err(|error| fault(error.into()))?;
        bind.attributes.apply(tree.as_fd(), bind.recursive).map_err(fault)?;
        if bind.mapped {
            let path = prepared.user_namespace.as_deref().ok_or_else(|| {
                Fault::Spec("mounts can map ids by a user namespace alone that has a path".to_owned())
            })?;
            if userns.is_none() {
                userns = Some(fs::File::open(path).map_err(fault)?);
            }
            if let Some(userns) = &userns {
                MountAttributes::map_ids(tree.as_fd(), userns.as_fd()).map_err(fault)?;
            }
        }
        let is_folder = fs::metadata(&bind.source).map_err(fault)?.is_dir();
        init.binds.push((tree.as_raw_fd(), bind.destination.clone(), is_folder));
        trees.push(tree);
    }
    Ok(trees)
}

/// Gives the standard streams to the root of a user namespace: nobody within can take what belongs to the host's.
pub(super) fn give_stdio(spec: &Spec) {
    let first = |mappings: &Option<Vec<LinuxIdMapping>>| {
        let mapping = mappings.iter().flatten().find(|mapping| mapping.container_id() == 0)?;
        Some(mapping.host_id())
    };
    let Some(linux) = spec.linux() else { return };
    let (Some(uid), Some(gid)) = (first(linux.uid_mappings()), first(linux.gid_mappings())) else { return };
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    let streams = (io::stdin(), io::stdout(), io::stderr());
    for stream in [streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()] {
        // /dev/null is everybody's; what cannot be given only keeps /dev/stdout from being opened by its name.
        let is_pipe = rustix::fs::fstat(stream).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo
        });
        if is_pipe {
            let _ = rustix::fs::fchown(stream, Some(uid), Some(gid));
        }
    }
}

/// Held by the maker and, by inheritance, by every process that it forked until that one executes a program: who gets
/// it knows that nothing of a killed `create` goes on.
pub(super) const LOCK: &str = "lock";

/// Where the prepared spec of a container lies while it is made.
pub(super) fn prepared_dir(root: &Path, id: &str) -> PathBuf {
    root.join(format!(".prepared-{id}"))
}

/// Lets libcontainer make the container and returns the pid of its process.
fn build(globals: &Globals, options: &Create, prepared: &Prepared) -> Result<i32, Fault> {
    let work = prepared_dir(&globals.root, &options.id);
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |source| Fault::Io { what, path, source }
    };
    fs::create_dir_all(&work).map_err(io("make", &work))?;
    let lock = fs::File::create(work.join(LOCK)).map_err(io("lock", &work))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .map_err(|error| io("lock", &work)(error.into()))?;
    let config = work.join("config.json");
    let text =
        serde_json::to_vec(&prepared.spec).map_err(|source| Fault::Json { path: config.clone(), source })?;
    fs::write(&config, text).map_err(io("write", &config))?;

    let (mut errors, error_end) = io::pipe().map_err(|source| Fault::Os { what: "make a pipe", source })?;
    let finisher = Finisher {
        finish: prepared.finish.clone(),
        errors: error_end.as_raw_fd(),
        ready: std::sync::Arc::default(),
    };
    let built = ContainerBuilder::new(options.id.clone(), SyscallType::default())
        .with_root_path(&globals.root)
        .map(|builder| {
            builder
                .with_console_socket(options.console_socket.as_ref())
                .with_preserved_fds(options.preserve_fds)
                .with_executor(finisher)
        })
        .and_then(|builder| {
            builder
                .as_init(&work)
                .with_systemd(globals.systemd_cgroup)
                .with_detach(true)
                .with_no_pivot(options.no_pivot)
                .build()
        });
    drop(error_end);
    let _ = fs::remove_dir_all(&work);
    drop(lock);
    match built {
        Ok(container) => container
            .pid()
            .map(|pid| pid.as_raw())
            .ok_or_else(|| Fault::Spec("the container has no process".to_owned())),
        Err(error) => {
            let _ = fs::remove_dir_all(globals.root.join(&options.id));
            let mut own_words = String::new();
            // Every writer has ended with the failed process, so this does not block.
            let _ = errors.read_to_string(&mut own_words);
            let reason = if own_words.is_empty() { error_chain(&error) } else { own_words };
            Err(Fault::Init(reason))
        }
    }
}

/// On cgroup v2 the device rules are a BPF program on the container's cgroup.
fn confine_devices(record: &Record, rules: &[LinuxDeviceCgroup], mounts: &Mounts) -> Result<(), Fault> {
    let Some(program) = device_filter::program(rules) else { return Ok(()) };
    let root = mounts.v2.as_deref().ok_or_else(|| Fault::Spec("cgroup v2 is not mounted".to_owned()))?;
    let dir = record
        .cgroups
        .iter()
        .find(|dir| dir.starts_with(root))
        .ok_or_else(|| Fault::Spec("the container is in no cgroup of its own".to_owned()))?;
    let file =
        fs::File::open(dir).map_err(|source| Fault::Io { what: "open cgroup", path: dir.clone(), source })?;
    sys::attach_device_program(&file.into(), &program).map_err(|source| Fault::Io {
        what: "attach the device program to",
        path: dir.clone(),
        source,
    })
}

/// Writes a pid file so that a reader never sees half of it.
pub(super) fn write_pid(path: Option<&Path>, pid: i32) -> Result<(), Fault> {
    let Some(path) = path else { return Ok(()) };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}"));
    fs::write(&temporary, pid.to_string())
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|source| Fault::Io { what: "write the pid file", path: path.to_owned(), source })
}
