//! The last steps of a container process, in the container, before its program runs: keyring, working directory,
//! read-only root, labels, user, capabilities, seccomp, environment, and finding the program.
//!
//! Both `create` (inside libcontainer's init process) and `exec` end here, so that both apply the same rules; what
//! libcontainer would do of this it is not asked to do (`prepare.rs` says why, step by step). Runs in a
//! single-threaded process, once.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capabilities, Process};
use rustix::fs::{Access, AtFlags, CWD, StatVfsMountFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::seccomp::{Filter, SeccompError};
use super::sys;
use crate::spec::capabilities::CapSet;
use crate::spec::user;

/// What a process is told to become.
#[derive(Clone)]
pub(super) struct Finish {
    /// The process as the spec has it.
    pub process: Process,
    /// The container's system call filter.
    pub seccomp: Option<Filter>,
    /// Name of the session keyring to join.
    pub keyring: Option<String>,
    /// What only the first process of a container does.
    pub init: Option<Init>,
}

/// The parts that concern the container, not the process.
#[derive(Clone, Default)]
pub(super) struct Init {
    /// The root becomes read-only once the working directory exists.
    pub readonly_root: bool,
    /// Mounts with the propagation that the spec names.
    pub propagation: Vec<(PathBuf, MountPropagationFlags)>,
    /// Mounts that become read-only once their contents are in place.
    pub readonly_after: Vec<PathBuf>,
    /// A clone of the host's tree for `/dev`, taken outside, attached here.
    pub dev_tree: Option<RawFd>,
    /// Bind mounts, cloned outside, attached here: the clone, where it goes, and whether it is a folder.
    pub binds: Vec<(RawFd, PathBuf, bool)>,
}

/// Why a process cannot run.
#[derive(Debug, thiserror::Error)]
pub(super) enum FinishError {
    #[error("{step}")]
    Step { step: &'static str, source: io::Error },
    #[error("{step} {}", path.display())]
    Path { step: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error("current working directory is outside of the container's root")]
    CwdOutside,
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    #[error("exec: {name:?}: {reason}")]
    NotExecutable { name: String, reason: String },
    #[error("no command given")]
    NoArgs,
    #[error("argument or environment holds a NUL byte")]
    Nul,
}

/// A process that is ready: everything is applied but what must come last.
pub(super) struct Ready {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    late_filter: Option<Filter>,
}

fn step(step: &'static str) -> impl Fn(io::Error) -> FinishError {
    move |source| FinishError::Step { step, source }
}

impl Finish {
    /// Applies everything. The order is that of runc's init, because privileges fall away on the way: what needs
    /// root comes first, seccomp comes before the capabilities go unless `no_new_privs` permits it last.
    pub(super) fn settle(&self) -> Result<Ready, FinishError> {
        let no_new_privs = self.process.no_new_privileges() == Some(true);
        if let Some(name) = &self.keyring {
            // A kernel without keyrings, or a filter that hides them, has nothing to share either.
            let _ = sys::join_session_keyring(name);
        }
        if let Some(init) = &self.init {
            init.apply()?;
        }
        let cwd = self.process.cwd();
        make_cwd(cwd)?;
        if self.init.as_ref().is_some_and(|init| init.readonly_root) {
            remount_readonly(Path::new("/"))?;
        }
        self.own_stdio()?;
        self.label()?;
        if no_new_privs {
            sys::no_new_privs().map_err(step("set no_new_privs"))?;
        }
        if let Some(filter) = self.seccomp.as_ref().filter(|_| !no_new_privs) {
            filter.load()?;
        }
        let late_filter = self.seccomp.clone().filter(|_| no_new_privs);
        self.become_user(cwd)?;
        let env = self.environment();
        let path = self.find_program(&env)?;
        let args = self.process.args().as_ref().ok_or(FinishError::NoArgs)?;
        let strings = |list: &[String]| -> Result<Vec<CString>, FinishError> {
            list.iter().map(|item| CString::new(item.as_str()).map_err(|_| FinishError::Nul)).collect()
        };
        Ok(Ready {
            path: CString::new(path.as_os_str().as_bytes()).map_err(|_| FinishError::Nul)?,
            args: strings(args)?,
            env: strings(&env)?,
            late_filter,
        })
    }

    /// Lets the user of the process reopen its own standard streams (`/dev/stderr`), as runc does.
    fn own_stdio(&self) -> Result<(), FinishError> {
        let uid = self.process.user().uid();
        let null = rustix::fs::stat("/dev/null").map(|stat| stat.st_rdev).unwrap_or(0);
        let streams = (io::stdin(), io::stdout(), io::stderr());
        for stream in [streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()] {
            let Ok(stat) = rustix::fs::fstat(stream) else { continue };
            if stat.st_uid == uid || stat.st_rdev == null {
                continue;
            }
            match rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None) {
                // A read-only file system, a user outside of the mapping, or a stream without an inode of its
                // own: the process still has the open stream.
                Ok(())
                | Err(rustix::io::Errno::ROFS | rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(step("chown the standard streams")(error.into())),
            }
        }
        Ok(())
    }

    fn label(&self) -> Result<(), FinishError> {
        let write = |paths: &[&str], value: &str| -> io::Result<()> {
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for path in paths {
                match std::fs::write(path, value) {
                    Ok(()) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        if let Some(profile) = self.process.apparmor_profile().as_deref().filter(|p| !p.is_empty()) {
            let paths = ["/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"];
            write(&paths, &format!("exec {profile}")).map_err(step("apply the AppArmor profile"))?;
        }
        if let Some(label) = self.process.selinux_label().as_deref().filter(|l| !l.is_empty()) {
            write(&["/proc/self/attr/exec"], label).map_err(step("apply the SELinux label"))?;
        }
        Ok(())
    }

    fn become_user(&self, cwd: &Path) -> Result<(), FinishError> {
        let user = self.process.user();
        let caps = self.process.capabilities().as_ref();
        let held = sys::permitted().map_err(step("read the capabilities"))?;
        let wanted =
            |list: Option<&Option<Capabilities>>| CapSet::from_oci(list.and_then(Option::as_ref)).and(held);
        let bounding = wanted(caps.map(|c| c.bounding()));
        let effective = wanted(caps.map(|c| c.effective()));
        let permitted = wanted(caps.map(|c| c.permitted()));
        let inheritable = wanted(caps.map(|c| c.inheritable()));
        let ambient = wanted(caps.map(|c| c.ambient()));

        sys::limit_bounding(bounding).map_err(step("limit the bounding capabilities"))?;
        // Entered before the user changes: root may reach what the user may not, as in runc.
        let entered = std::env::set_current_dir(cwd);
        sys::setgroups(user.additional_gids().as_deref().unwrap_or_default())
            .map_err(step("set the supplementary groups"))?;
        sys::become_user(user.uid(), user.gid()).map_err(step("change the user"))?;
        if let Some(mask) = user.umask() {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
        }
        sys::set_capabilities(effective, permitted, inheritable).map_err(step("set the capabilities"))?;
        sys::set_ambient(ambient);
        if entered.is_err() {
            // NFS with root_squash: only the user may enter.
            std::env::set_current_dir(cwd).map_err(|source| FinishError::Path {
                step: "chdir to cwd",
                path: cwd.to_owned(),
                source,
            })?;
        }
        // A working directory that leads out of the root (CVE-2024-21626) shows as "(unreachable)".
        match std::env::current_dir() {
            Ok(dir) if dir.is_absolute() => Ok(()),
            _ => Err(FinishError::CwdOutside),
        }
    }

    /// The environment of the spec, the last of several values winning, and HOME where it is missing.
    fn environment(&self) -> Vec<String> {
        let mut env = last_wins(self.process.env().as_deref().unwrap_or_default());
        if !env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
            let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
            let home = user::home_of(&passwd, self.process.user().uid()).unwrap_or("/");
            env.retain(|entry| !entry.starts_with("HOME="));
            env.push(format!("HOME={home}"));
        }
        env
    }

    fn find_program(&self, env: &[String]) -> Result<PathBuf, FinishError> {
        let name = self.process.args().as_ref().and_then(|args| args.first()).ok_or(FinishError::NoArgs)?;
        if name.contains('/') {
            return match runnable(Path::new(name)) {
                Ok(()) => Ok(PathBuf::from(name)),
                Err(reason) => Err(FinishError::NotExecutable { name: name.clone(), reason }),
            };
        }
        let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
        let mut refused = None;
        for dir in path.split(':') {
            // An empty element of PATH means the working directory.
            let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
            match runnable(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(reason) if candidate.is_file() => refused = Some(reason),
                Err(_) => {}
            }
        }
        match refused {
            Some(reason) => Err(FinishError::NotExecutable { name: name.clone(), reason }),
            None => Err(FinishError::NotInPath(name.clone())),
        }
    }
}

impl Init {
    fn apply(&self) -> Result<(), FinishError> {
        if let Some(tree) = self.dev_tree {
            attach_dev(tree).map_err(step("attach the host's /dev"))?;
        }
        for (tree, target, is_folder) in &self.binds {
            attach(*tree, target, *is_folder).map_err(|source| FinishError::Path {
                step: "mount",
                path: target.clone(),
                source,
            })?;
        }
        for (target, flags) in &self.propagation {
            rustix::mount::mount_change(target, *flags).map_err(|error| FinishError::Path {
                step: "set the propagation of",
                path: target.clone(),
                source: error.into(),
            })?;
        }
        self.readonly_after.iter().try_for_each(|target| remount_readonly(target))
    }
}

/// Puts a mount where it belongs, which is made when the image lacks it. The root is the container's already, so no
/// link leads out of it.
fn attach(tree: RawFd, target: &Path, is_folder: bool) -> io::Result<()> {
    use rustix::mount::{MoveMountFlags, move_mount};
    if is_folder {
        std::fs::create_dir_all(target)?;
    } else if !target.exists() {
        target.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::File::create(target)?;
    }
    let tree = sys::own(tree);
    Ok(move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Puts the host's /dev over the prepared one, and what was mounted below that on top again.
fn attach_dev(tree: RawFd) -> io::Result<()> {
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let mut below = Vec::new();
    for target in mounts_below_dev(&std::fs::read_to_string("/proc/self/mountinfo")?) {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE;
        below.push((open_tree(CWD, target.as_str(), flags)?, target));
    }
    let tree = sys::own(tree);
    move_mount(&tree, "", CWD, "/dev", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    // The clone of a shared mount is its peer: without this, what is mounted below would appear on the host.
    rustix::mount::mount_change("/dev", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    for (mount, target) in below {
        // The host lacks the directory (a pod without /dev/mqueue): then the pod sees what the host has.
        if Path::new(&target).exists() {
            move_mount(&mount, "", CWD, target.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
    }
    Ok(())
}

/// The mount points directly below /dev, from a mountinfo text; what is mounted below those moves along.
fn mounts_below_dev(mountinfo: &str) -> Vec<String> {
    let mut found: Vec<String> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| point.starts_with("/dev/"))
        .map(str::to_owned)
        .collect();
    found.sort();
    found.dedup();
    let all = found.clone();
    found.retain(|point| !all.iter().any(|other| point != other && point.starts_with(&format!("{other}/"))));
    found
}

fn make_cwd(cwd: &Path) -> Result<(), FinishError> {
    if cwd.exists() {
        return Ok(());
    }
    match std::fs::create_dir_all(cwd) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // An unreachable directory may still be the user's: entering it decides.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(source) => Err(FinishError::Path { step: "mkdir", path: cwd.to_owned(), source }),
    }
}

/// Makes one mount read-only, keeping its other restrictions.
fn remount_readonly(target: &Path) -> Result<(), FinishError> {
    let fault = |error: rustix::io::Errno| FinishError::Path {
        step: "make read-only",
        path: target.to_owned(),
        source: error.into(),
    };
    let stat = rustix::fs::statvfs(target).map_err(fault)?;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (set, flag) in [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        flags.set(flag, stat.f_flag.contains(set));
    }
    rustix::mount::mount_remount(target, flags, c"").map_err(fault)
}

/// Drops all but the last entry of each name, keeping the order of those.
fn last_wins(env: &[String]) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<String> = env
        .iter()
        .rev()
        .filter(|entry| seen.insert(entry.split('=').next().unwrap_or_default()))
        .cloned()
        .collect();
    kept.reverse();
    kept
}

/// Whether this process may run the file, with the words of the reason if not.
fn runnable(path: &Path) -> Result<(), String> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("stat {}: no such file or directory", path.display()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(format!("stat {}: not a directory", path.display()));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err("permission denied".to_owned());
        }
        Err(error) => return Err(error.to_string()),
    };
    if metadata.is_dir() {
        return Err("is a directory".to_owned());
    }
    match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        // Kernels before 5.8 have no flags for it, and filters hide the newer call; execve decides.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => Ok(()),
        Err(_) => Err("permission denied".to_owned()),
    }
}

impl Ready {
    /// Runs the program. Returns only when it cannot be run.
    pub(super) fn launch(&self) -> String {
        if let Some(Err(error)) = self.late_filter.as_ref().map(Filter::load) {
            return super::error_chain(&error);
        }
        let error = sys::execve(&self.path, &self.args, &self.env);
        let reason = match error.raw_os_error() {
            Some(libc::ENOEXEC) => "exec format error".to_owned(),
            Some(libc::ENOENT) => "no such file or directory".to_owned(),
            Some(libc::EACCES) => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        format!("exec {}: {reason}", OsStr::from_bytes(self.path.as_bytes()).to_string_lossy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_variable_wins() {
        let env = ["A=1", "B=2", "A=3", "C="].map(str::to_owned);
        assert_eq!(last_wins(&env), ["B=2", "A=3", "C="]);
    }

    #[test]
    fn mounts_below_dev_are_found_without_their_children() {
        let info = "1 2 0:1 / / rw - x x x\n3 1 0:2 / /dev rw - x x x\n4 3 0:3 / /dev/pts rw - x x x\n\
                    5 3 0:3 / /dev/shm rw - x x x\n6 5 0:3 / /dev/shm/a rw - x x x\n7 1 0:1 / /device rw - x x x\n";
        assert_eq!(mounts_below_dev(info), ["/dev/pts", "/dev/shm"]);
    }

    #[test]
    fn what_cannot_run_is_said_in_known_words() {
        assert_eq!(runnable(Path::new("/nope")).unwrap_err(), "stat /nope: no such file or directory");
        assert_eq!(runnable(Path::new("/etc")).unwrap_err(), "is a directory");
        assert_eq!(runnable(Path::new("/etc/passwd")).unwrap_err(), "permission denied");
        assert_eq!(runnable(Path::new("/bin/sh")), Ok(()));
    }
}
