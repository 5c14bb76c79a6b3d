//! The raw system calls of the maker: fork and exec, identity and capabilities, keyring, BPF, and probes for the
//! mount API. The maker is single-threaded, so per-thread and per-process calls are the same thing here.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::spec::capabilities::CapSet;

/// Takes over a descriptor that was handed down by number from the process that opened it.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller names a descriptor that its process inherited and that nothing else in it owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Lends a descriptor that is only known by number.
pub(crate) fn with_fd<T>(fd: RawFd, use_it: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
    // SAFETY: the borrow ends with the call; a number that is not open makes the calls on it fail, nothing else.
    use_it(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// The parent, with the child's pid as this process sees it.
    Parent(i32),
    /// The child.
    Child,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks. Only for a process of one thread: the child goes on allocating.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the maker has one thread, so no lock of the allocator can be held by a thread that the child lacks.
    match check(unsafe { libc::fork() }.into())? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// Ends the process at once, without running destructors or exit handlers of the parent's state.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Replaces the process image; returns only the error.
pub(crate) fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|item| item.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and the strings they point to outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Executes this process anew from a clone of its executable's mount that nobody can write through, unless it runs
/// from such a one. Returns only when there is nothing to do, or on failure.
///
/// A process that is about to enter a container can be reached from inside as `/proc/PID/exe`; root of the container
/// could reopen that for writing and own the host's binary (CVE-2019-5736). A read-only mount of it refuses, and
/// being detached it is in no mount namespace where anybody could change it.
pub(crate) fn seal_own_executable() -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    const MOUNT_ATTR_RDONLY: u64 = 1;
    const OPEN_TREE_CLONE: libc::c_int = 1;

    let exe = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatvfs(&exe)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH;
    // SAFETY: the path is a valid empty string, the descriptor is open.
    let tree = check(unsafe { libc::syscall(libc::SYS_open_tree, exe.as_raw_fd(), c"".as_ptr(), flags) })?;
    let tree = own(tree as RawFd);
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, userns: 0 };
    // SAFETY: the attribute outlives the call and its size is its own.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attr,
            std::mem::size_of::<MountAttr>(),
        )
    })?;
    let args: Vec<CString> = std::env::args_os()
        .map(|arg| CString::new(arg.as_encoded_bytes()).map_err(io::Error::other))
        .collect::<Result<_, _>>()?;
    let argv: Vec<_> = args.iter().map(|arg| arg.as_ptr()).chain([std::ptr::null()]).collect();
    // SAFETY: the array ends with a null pointer and its strings outlive the call; `environ` is the process's own.
    unsafe {
        let env: *const *const libc::c_char = environ.cast();
        libc::syscall(
            libc::SYS_execveat,
            tree.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env,
            libc::AT_EMPTY_PATH,
        );
    }
    Err(io::Error::last_os_error())
}

// SAFETY: every libc defines it; it is only read, by a process of one thread.
unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

/// Waits for a child and returns its exit code, 128 + N for a death by signal N.
pub(crate) fn wait(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for the result.
        match check(unsafe { libc::waitpid(pid, &mut status, 0) }.into()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) if libc::WIFEXITED(status) => return Ok(libc::WEXITSTATUS(status)),
            Ok(_) => return Ok(128 + libc::WTERMSIG(status)),
        }
    }
}

/// Sends a signal by number.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill has no memory preconditions; a pid of 0 or below would address groups and is refused.
    if pid <= 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: as above.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Enters the namespace behind a descriptor; `kind` is a `CLONE_NEW*` flag that it must match.
pub(crate) fn setns(namespace: &OwnedFd, kind: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call.
    check(unsafe { libc::setns(namespace.as_raw_fd(), kind) }.into()).map(drop)
}

/// Replaces the supplementary groups.
pub(crate) fn setgroups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length describe the slice.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) }.into()).map(drop)
}

/// Becomes this user and group for good, keeping the permitted capabilities (the caller narrows them next).
pub(crate) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: plain calls without pointers.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        check(libc::setresgid(gid, gid, gid).into())?;
        check(libc::setresuid(uid, uid, uid).into())?;
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0).into())?;
    }
    Ok(())
}

/// Starts a new session.
pub(crate) fn setsid() -> io::Result<()> {
    // SAFETY: no preconditions.
    check(unsafe { libc::setsid() }.into()).map(drop)
}

/// Sets `no_new_privs`.
pub(crate) fn no_new_privs() -> io::Result<()> {
    // SAFETY: no preconditions.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into()).map(drop)
}

/// Forbids or allows that other processes inspect this one (`/proc/PID`, ptrace).
pub(crate) fn set_dumpable(dumpable: bool) -> io::Result<()> {
    // SAFETY: no preconditions.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, i32::from(dumpable), 0, 0, 0) }.into()).map(drop)
}

/// Joins a session keyring of its own, so that a container never possesses the keys of who made it.
pub(crate) fn join_session_keyring(name: &str) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: the name outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) }).map(drop)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAP_VERSION_3: u32 = 0x2008_0522;

/// The permitted capabilities of this process.
pub(crate) fn permitted() -> io::Result<CapSet> {
    let header = CapHeader { version: CAP_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads a header and writes two records.
    check(unsafe { libc::syscall(libc::SYS_capget, &header, data.as_mut_ptr()) })?;
    Ok(CapSet(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32))
}

/// Sets the three sets of this process.
pub(crate) fn set_capabilities(effective: CapSet, permitted: CapSet, inheritable: CapSet) -> io::Result<()> {
    let header = CapHeader { version: CAP_VERSION_3, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (effective.0 >> shift) as u32,
        permitted: (permitted.0 >> shift) as u32,
        inheritable: (inheritable.0 >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads a header and two records.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) }).map(drop)
}

/// Drops from the bounding set what `keep` lacks.
pub(crate) fn limit_bounding(keep: CapSet) -> io::Result<()> {
    for number in 0..64 {
        // SAFETY: no preconditions; a number that the kernel does not know gives EINVAL.
        let present = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) };
        if present < 0 {
            break;
        }
        if present == 1 && !keep.has(number) {
            // SAFETY: as above.
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }.into())?;
        }
    }
    Ok(())
}

/// Replaces the ambient set; a capability that cannot be raised is left out, as runc does it.
pub(crate) fn set_ambient(set: CapSet) {
    // SAFETY: no preconditions; kernels before 4.3 answer EINVAL, and have no ambient set to clear.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    for number in (0..64).filter(|number| set.has(*number)) {
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) };
    }
}

/// A resource limit as prlimit64 has it on every architecture.
#[repr(C)]
struct Limit {
    soft: u64,
    hard: u64,
}

/// The hard limit of a resource, by its `RLIMIT_*` number.
pub(crate) fn hard_limit(resource: u32) -> io::Result<u64> {
    let mut limit = Limit { soft: 0, hard: 0 };
    // SAFETY: pid 0 is this process, the new limit is absent, `limit` is a valid place for the old one.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<Limit>(), &mut limit) })?;
    Ok(limit.hard)
}

/// Sets a resource limit, by its `RLIMIT_*` number.
pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = Limit { soft, hard };
    // SAFETY: pid 0 is this process, `limit` outlives the call, the old limit is not asked for.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &limit, std::ptr::null_mut::<Limit>()) })
        .map(drop)
}

/// Loads a cgroup device program, which lives as long as its descriptor or what it is attached to.
pub(crate) fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;

    #[repr(C)]
    #[derive(Default)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    let license = c"Apache-2.0";
    let load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the attribute describes a live instruction array and a live string, its size is its own.
    let program = check(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &load, std::mem::size_of::<Load>() as libc::c_long)
    })?;
    // SAFETY: bpf returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(program as RawFd) })
}

/// A cgroup device program: loaded, and attached so that it is asked beside those of the ancestors.
pub(crate) fn attach_device_program(cgroup: &OwnedFd, instructions: &[u64]) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_long = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;

    #[repr(C)]
    #[derive(Default)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    let program = load_device_program(instructions)?;
    let attach = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attribute names two open descriptors, its size is its own.
    check(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &attach, std::mem::size_of::<Attach>() as libc::c_long)
    })
    .map(drop)
}

/// Applies a classic BPF filter to this process's system calls; each instruction is one word.
pub(crate) fn load_seccomp(instructions: &[u64], flags: u32) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: instructions.len() as u16,
        // A word is as large as an instruction and stricter in its alignment.
        filter: instructions.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the program describes a live array of that many instructions, which the kernel copies and checks.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && flags == 0 => {
            // SAFETY: as above; kernels before 3.17 have only this way.
            check(
                unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program, 0, 0) }
                    .into(),
            )
            .map(drop)
        }
        other => other.map(drop),
    }
}

/// Whether the kernel has a system call of the mount API: called with a bad descriptor, it answers anything but
/// ENOSYS. Filters that hide a call answer ENOSYS too, or EPERM, which counts as missing for our own maker.
pub(crate) fn has_call(number: libc::c_long) -> bool {
    // SAFETY: a descriptor of -1 and null pointers make each of the probed calls fail before it does anything.
    let result = unsafe { libc::syscall(number, -1_i64, std::ptr::null::<u8>(), 0_i64, 0_i64, 0_i64, 0_i64) };
    let error = io::Error::last_os_error().raw_os_error();
    result != -1 || !matches!(error, Some(libc::ENOSYS | libc::EPERM))
}
