//! The raw system calls of the sandbox and container half that have no safe wrapper. Called from
//! dedicated threads (namespaces) and at start (probes); nothing here keeps state.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Kinds of namespaces a sandbox can own, as flags of `unshare(2)` and `setns(2)`.
pub(crate) mod ns {
    pub(crate) const NET: i32 = libc::CLONE_NEWNET;
    pub(crate) const IPC: i32 = libc::CLONE_NEWIPC;
    pub(crate) const UTS: i32 = libc::CLONE_NEWUTS;
    pub(crate) const USER: i32 = libc::CLONE_NEWUSER;
    pub(crate) const FS: i32 = libc::CLONE_FS;
}

/// Moves the calling thread, and nothing else of the process, into fresh namespaces.
pub(crate) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: unshare takes no pointers; it changes only the calling thread, which our callers dedicate to it.
    check(unsafe { libc::unshare(flags) })
}

/// Moves the calling thread into the namespace behind `fd`.
pub(crate) fn setns(fd: BorrowedFd<'_>, kind: i32) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call and no memory is passed.
    check(unsafe { libc::setns(fd.as_raw_fd(), kind) })
}

/// Sets the loopback interface of the calling thread's network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: socket takes no pointers.
    let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(raw)?;
    // SAFETY: `raw` was just opened here and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *slot = *byte as libc::c_char;
    }
    // SAFETY: SIOCGIFFLAGS reads the name from and writes the flags into the ifreq, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) })?;
    // SAFETY: the kernel just filled in the flags member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS only reads the ifreq, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })
}

/// Has a program begin with another soft limit of open files.
pub(crate) fn limit_descriptors(command: &mut tokio::process::Command, soft: u64) {
    let limit = move || {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: both calls read or write one rlimit, which outlives them, and allocate nothing.
        unsafe {
            check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit))?;
            limit.rlim_cur = limit.rlim_max.min(soft as libc::rlim_t);
            check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))
        }
    };
    // SAFETY: between fork and exec the closure makes two system calls and nothing else.
    unsafe { command.pre_exec(limit) };
}

/// Ticks of `CLOCK_BOOTTIME` in nanoseconds: durations that survive steps of the wall clock and suspend.
pub(crate) fn boottime_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the timespec outlives the call. CLOCK_BOOTTIME exists since Linux 2.6.39 and cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// One heap arena, and freed memory goes back early. Before any thread.
pub(crate) fn keep_heap_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets parameters of the allocator; no thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

/// Returns the free pages of the heap to the kernel.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim locks the allocator itself and frees only pages that nobody uses.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the pages of a mapping that cannot be written and of which each page is as its file has it.
pub(crate) fn unmap_code(range: std::ops::Range<usize>) {
    // SAFETY: our caller read from the kernel that no page of the mapping differs from its file and that none can be
    // written, so a page which is dropped is read again with the same content.
    unsafe {
        libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED);
    }
}

/// A process that waits in fresh namespaces, for as long as somebody needs it to reach them. Dropping it ends it.
pub(crate) struct Anchor {
    pid: libc::pid_t,
}

impl Anchor {
    /// Forks a process into fresh namespaces. A user namespace can be made by a process of one thread alone, so this
    /// thread cannot do it for itself.
    pub(crate) fn start(flags: i32) -> io::Result<Anchor> {
        let (mut ready, told) = io::pipe()?;
        // SAFETY: the child makes only system calls, on memory of its own, and never returns.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above. It ends with the thread that forked it.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
                let error = if libc::unshare(flags) == 0 { 0 } else { *libc::__errno_location() };
                libc::write(told.as_raw_fd(), (&raw const error).cast(), size_of::<i32>());
                loop {
                    libc::pause();
                }
            }
        }
        check(pid)?;
        let anchor = Anchor { pid };
        drop(told);
        let mut error = [0; size_of::<i32>()];
        io::Read::read_exact(&mut ready, &mut error)?;
        match i32::from_ne_bytes(error) {
            0 => Ok(anchor),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// A file of the process, such as `ns/net`.
    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        format!("/proc/{}/{name}", self.pid).into()
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        // SAFETY: the process is a child that nobody else waits for, so its number is still its own.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// Attributes of a mount, as `mount_setattr(2)` takes them (Linux 5.12).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MountAttributes {
    /// What is added, of the constants below.
    pub(crate) set: u64,
    /// `MS_PRIVATE` or `MS_SLAVE`, or 0 to leave it.
    pub(crate) propagation: u64,
}

impl MountAttributes {
    pub(crate) const READ_ONLY: u64 = 1;
    pub(crate) const NO_SUID: u64 = 2;
    pub(crate) const NO_DEV: u64 = 4;
    pub(crate) const NO_EXEC: u64 = 8;
    const ID_MAP: u64 = 0x10_0000;

    /// Sets them on a detached mount, and on all below it if `recursive`.
    pub(crate) fn apply(self, tree: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
        set_attributes(tree, recursive, [self.set, 0, self.propagation, 0])
    }

    /// Maps the owners of a detached mount's files by a user namespace.
    pub(crate) fn map_ids(tree: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> io::Result<()> {
        let userns = userns.as_raw_fd().unsigned_abs();
        set_attributes(tree, false, [Self::ID_MAP, 0, 0, userns.into()])
    }
}

/// `attributes` is the kernel's struct: what to set, what to clear, the propagation, a user namespace.
fn set_attributes(tree: BorrowedFd<'_>, recursive: bool, attributes: [u64; 4]) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a valid empty string, and the attributes outlive the call and have the size that is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Fills `bytes` from the kernel's random source.
pub(crate) fn random(bytes: &mut [u8]) -> io::Result<()> {
    use std::io::Read as _;
    // getrandom(2) would block early in the boot of a board without entropy; ids need none of that strength.
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}

fn check(result: i32) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
