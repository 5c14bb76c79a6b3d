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

/// Whether the kernel has `mount_setattr(2)` (Linux 5.12), the newest call that our own maker needs.
pub(crate) fn has_mount_setattr() -> bool {
    // SAFETY: a null attribute of size 0 is refused before anything is read from it.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, std::ptr::null::<libc::c_void>(), 0usize)
    };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Ticks of `CLOCK_BOOTTIME` in nanoseconds: durations that survive steps of the wall clock and suspend.
pub(crate) fn boottime_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the timespec outlives the call. CLOCK_BOOTTIME exists since Linux 2.6.39 and cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
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
