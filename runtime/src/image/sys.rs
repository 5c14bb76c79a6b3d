//! The one system call of image handling that has no safe form. Called by `confine` before any thread exists.
#![allow(unsafe_code)]

use std::io;

use rustix::thread::UnshareFlags;

/// Gives the process a mount table, and where possible a network and IPC objects, of its own.
pub(crate) fn own_namespaces() -> io::Result<()> {
    let all = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    // SAFETY: no flag of ours unshares the file descriptor table, which is what could confuse other threads; and
    // the process has one thread.
    let unshared = unsafe { rustix::thread::unshare_unsafe(all) };
    match unshared {
        // A kernel without network or IPC namespaces.
        Err(rustix::io::Errno::INVAL) => {
            // SAFETY: as above.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
        }
        other => other?,
    }
    Ok(())
}
