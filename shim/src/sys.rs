//! Every raw system call of the shim: signals, epoll, processes, descriptors. Called from the loop and at start.
//!
//! The shim has one thread; nothing here may be called from another. Wrappers take and give owned descriptors, so
//! that no other file needs `unsafe`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr;
use std::time::{SystemTime, UNIX_EPOCH};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Keeps the C allocator from holding pages that a request or a burst of output needed for a moment.
pub(crate) fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only stores the numbers; there is one thread.
    unsafe {
        // Buffers for output are this big: mapped when needed and given back when done.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 16 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 * 1024);
        libc::mallopt(libc::M_TOP_PAD, 0);
    }
}

/// Gives free pages back after a request that needed many.
pub(crate) fn trim_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes orphans below this process its children, so that it sees the end of what the maker leaves behind.
pub(crate) fn become_subreaper() -> io::Result<()> {
    /// The kernel reads a whole word.
    const ONE: libc::c_ulong = 1;
    // SAFETY: a prctl that takes integers only.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, ONE) }).map(drop)
}

/// Blocks `signals` and returns a descriptor that delivers them.
pub(crate) fn signal_descriptor(signals: &[libc::c_int]) -> io::Result<File> {
    // SAFETY: the set is initialised by sigemptyset before use, and the descriptor is new and ours.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(File::from_raw_fd(fd))
    }
}

/// Takes one signal that waits at the descriptor.
pub(crate) fn take_signal(descriptor: &File) -> Option<libc::c_int> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer has the size that is passed, and is read only when the kernel filled all of it.
    unsafe {
        let read = libc::read(descriptor.as_raw_fd(), info.as_mut_ptr().cast(), size);
        (usize::try_from(read) == Ok(size)).then(|| info.assume_init().ssi_signo.cast_signed())
    }
}

/// Waits for any of `signals`, which the caller has blocked by [`signal_descriptor`].
pub(crate) fn wait_readable(descriptor: &File) {
    let mut poll = libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&raw mut poll, 1, -1) };
}

/// A child that ended: its pid, and its exit code or 128 and the signal.
pub(crate) fn reap() -> Option<(i32, u32)> {
    let mut status = 0;
    // SAFETY: status is a valid place for the answer.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let code =
        if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    Some((pid, code.unsigned_abs()))
}

/// Sends a signal to one process.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        // 0 and negative numbers mean groups of processes, the shim's own among them.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: kill takes integers only.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// What wakes the loop for a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interest(u32);

impl Interest {
    /// Something can be read.
    pub(crate) const READ: Self = Self(libc::EPOLLIN as u32);
    /// Something can be written.
    pub(crate) const WRITE: Self = Self(libc::EPOLLOUT as u32);
    /// Nothing: only the end of the other side, which is always told.
    pub(crate) const END: Self = Self(0);
    /// Either.
    pub(crate) const BOTH: Self = Self((libc::EPOLLIN | libc::EPOLLOUT) as u32);
}

/// The set of descriptors that wake the loop. Level-triggered.
#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

/// Most wake-ups that one wait returns.
pub(crate) const EVENTS: usize = 16;

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the descriptor is new and ours.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) }))
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, id: u64, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.0, u64: id };
        // SAFETY: the event is valid for the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &raw mut event) }).map(drop)
    }

    pub(crate) fn add(&self, fd: &impl AsRawFd, id: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), id, interest)
    }

    pub(crate) fn modify(&self, fd: &impl AsRawFd, id: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), id, interest)
    }

    /// Takes a descriptor out; one that is not in it is no error.
    pub(crate) fn remove(&self, fd: &impl AsRawFd) {
        drop(self.control(libc::EPOLL_CTL_DEL, fd.as_raw_fd(), 0, Interest(0)));
    }

    /// Waits and writes the ids that woke it to `ids`; returns how many. A negative timeout is for ever.
    pub(crate) fn wait(&self, ids: &mut [u64; EVENTS], timeout_ms: i32) -> io::Result<usize> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let max = libc::c_int::try_from(EVENTS).expect("a small constant fits");
        // SAFETY: the array holds as many events as are asked for.
        let n = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), max, timeout_ms) };
        let n = match check(n) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => usize::try_from(other?).expect("epoll_wait answers a count"),
        };
        for (id, event) in ids.iter_mut().zip(&events[..n]) {
            *id = event.u64;
        }
        Ok(n)
    }
}

/// A pipe: the end to read and the end to write, both closed on exec.
pub(crate) fn pipe() -> io::Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: the array holds both descriptors, which are new and ours.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])))
    }
}

/// Lets reads and writes on this end fail instead of wait.
pub(crate) fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: fcntl with integers on an open descriptor.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

/// Sets the size of a terminal by its master.
pub(crate) fn set_window_size(master: &File, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Bytes of a control message that carries one descriptor.
const CONTROL_LEN: usize = 64;

/// Receives one descriptor (SCM_RIGHTS) without waiting.
pub(crate) fn receive_descriptor(stream: &UnixStream) -> io::Result<File> {
    let mut byte = [0u8; 512];
    // The kernel wants the buffer aligned as a header.
    let mut control = [0u64; CONTROL_LEN / 8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: all-zero is a valid msghdr; the pointers outlive the call; the control message is read only within the
    // length that the kernel wrote, and the descriptor in it is new and ours.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_LEN as _;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        if libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) < 0 {
            return Err(io::Error::last_os_error());
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null()
            || (*header).cmsg_level != libc::SOL_SOCKET
            || (*header).cmsg_type != libc::SCM_RIGHTS
            || ((*header).cmsg_len as usize) < libc::CMSG_LEN(4) as usize
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message without a descriptor"));
        }
        Ok(File::from_raw_fd(libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned()))
    }
}

unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

/// Variables of a service manager's that must not reach a maker: runc would wait for a notification.
const NOT_FOR_MAKERS: [&[u8]; 4] = [b"NOTIFY_SOCKET=", b"LISTEN_", b"WATCHDOG_", b"MAINPID="];

/// This process's environment without [`NOT_FOR_MAKERS`], ending in a null pointer.
fn maker_environment() -> Vec<*const libc::c_char> {
    let mut kept = Vec::new();
    // SAFETY: environ is a null-terminated array of C strings; the shim never changes it.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            let variable = CStr::from_ptr(*at).to_bytes();
            if !NOT_FOR_MAKERS.iter().any(|prefix| variable.starts_with(prefix)) {
                kept.push(*at);
            }
            at = at.add(1);
        }
    }
    kept.push(ptr::null());
    kept
}

/// Starts a program with these three descriptors and default signals, and returns its pid.
///
/// The program is killed when this process dies: a maker that went on would make a container that nobody holds.
pub(crate) fn spawn(arguments: &[CString], stdio: [&File; 3]) -> io::Result<i32> {
    let mut argv: Vec<*const libc::c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    argv.push(ptr::null());
    let environment = maker_environment();
    let (mut failure, mut tell_failure) = pipe()?;
    let shim = std::process::id().cast_signed();
    // SAFETY: there is one thread, so the child may do anything; it only makes system calls on memory that was
    // prepared before, and never returns.
    let pid = unsafe {
        match check(libc::fork())? {
            0 => {
                let error = become_program(&argv, &environment, stdio, shim);
                drop(tell_failure.write_all(&error.raw_os_error().unwrap_or(0).to_ne_bytes()));
                libc::_exit(127)
            }
            pid => pid,
        }
    };
    drop(tell_failure);
    let mut error = [0; 4];
    // The pipe ends without a word when the program runs.
    match failure.read_exact(&mut error) {
        Err(_) => Ok(pid),
        Ok(()) => {
            // SAFETY: the child is ours and has ended; its status is of no interest.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(error)))
        }
    }
}

/// In the child of a fork: becomes the program, or returns why not.
///
/// # Safety
/// `argv` and `environment` are arrays of C strings that end in a null pointer, the first of which has an element.
unsafe fn become_program(
    argv: &[*const libc::c_char],
    environment: &[*const libc::c_char],
    stdio: [&File; 3],
    parent: i32,
) -> io::Error {
    // SAFETY: system calls on integers, on an initialised set, and on what the caller vouches for.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::c_ulong::from(libc::SIGKILL.unsigned_abs()));
        if libc::getppid() != parent {
            // It died before it could be watched.
            return io::Error::from_raw_os_error(libc::ESRCH);
        }
        // A container inherits the mask and the dispositions of whatever started its maker.
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        for (fd, target) in stdio.iter().zip(0..) {
            if libc::dup2(fd.as_raw_fd(), target) < 0 {
                return io::Error::last_os_error();
            }
        }
        libc::execvpe(argv[0], argv.as_ptr(), environment.as_ptr());
    }
    io::Error::last_os_error()
}

/// Connects to a socket without waiting for room in its queue.
pub(crate) fn connect_nonblocking(path: &Path) -> io::Result<UnixStream> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: the address is zeroed, so that it ends in a zero byte beyond what is copied within its length; the
    // descriptor is new and ours.
    unsafe {
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        if bytes.len() >= address.sun_path.len() {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        ptr::copy_nonoverlapping(bytes.as_ptr().cast(), address.sun_path.as_mut_ptr(), bytes.len());
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let socket = UnixStream::from_raw_fd(check(libc::socket(libc::AF_UNIX, kind, 0))?);
        let length =
            libc::socklen_t::try_from(size_of::<libc::sockaddr_un>()).expect("a small constant fits");
        check(libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length))?;
        Ok(socket)
    }
}

/// Mounts.
pub(crate) fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: libc::c_ulong,
    data: &CStr,
) -> io::Result<()> {
    // SAFETY: all are C strings.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    check(result).map(drop)
}

/// Unmounts what is mounted at the very path.
pub(crate) fn unmount(target: &CStr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: a C string and flags.
    check(unsafe { libc::umount2(target.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) }).map(drop)
}

/// Which side of a fork this is.
#[derive(Debug)]
pub(crate) enum Forked {
    /// The new process, in a session of its own.
    Child,
    /// The old one.
    Parent {
        /// The new process.
        child: i32,
    },
}

/// Forks; the child leaves its parent's session and terminal.
pub(crate) fn fork_session() -> io::Result<Forked> {
    // SAFETY: there is one thread, so the child may go on as usual.
    match check(unsafe { libc::fork() })? {
        0 => {
            // SAFETY: setsid takes nothing; a fresh child is never a group leader, so it cannot fail.
            unsafe { libc::setsid() };
            Ok(Forked::Child)
        }
        child => Ok(Forked::Parent { child }),
    }
}

/// Closes every descriptor beyond the standard three. For the start, when this program has opened none that lasts.
pub(crate) fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    // The list is complete, and the folder's own descriptor closed, before any of it is closed.
    let open: Vec<RawFd> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: nothing in this program owns it; at worst it is closed already.
        unsafe { libc::close(fd) };
    }
}

/// Puts a copy of `file` in place of standard descriptor `target` (0, 1 or 2).
pub(crate) fn replace_stdio(file: &File, target: RawFd) -> io::Result<()> {
    // SAFETY: dup2 on an open descriptor; the standard three are owned by nobody in this program.
    check(unsafe { libc::dup2(file.as_raw_fd(), target) }).map(drop)
}

/// Sets the permission bits that new files lack, and returns those of before.
pub(crate) fn umask(bits: u32) -> u32 {
    // SAFETY: umask always succeeds.
    unsafe { libc::umask(bits) }
}

/// Sets the soft limit of open files of this process and those that it starts.
pub(crate) fn limit_descriptors(soft: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one rlimit, which outlives them.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit))?;
        limit.rlim_cur = limit.rlim_max.min(soft as libc::rlim_t);
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)).map(drop)
    }
}

/// An event counter, used for the memory controller's notifications of cgroup v1.
pub(crate) fn event_counter() -> io::Result<File> {
    // SAFETY: the descriptor is new and ours.
    unsafe { Ok(File::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?)) }
}

/// Milliseconds since boot, for deadlines.
pub(crate) fn boot_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: now is a valid place for the answer; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    // The fields' types differ between architectures.
    let part = |value: i128| u64::try_from(value).unwrap_or(0);
    part(i128::from(now.tv_sec)) * 1000 + part(i128::from(now.tv_nsec)) / 1_000_000
}

/// Nanoseconds since 1970, UTC.
pub(crate) fn unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
