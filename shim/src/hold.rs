//! The first process of a PID namespace that a pod's containers share.
//!
//! It is run as a container's `args: ["/coracle-shim", "hold"]`. It reaps what its namespace orphans and ends on
//! SIGTERM or SIGINT; with it the kernel ends everything else in the namespace. One thread, no descriptor but one.

use std::io;

use crate::sys;

/// Reaps until asked to end.
pub(crate) fn hold() -> io::Result<()> {
    let signals = sys::signal_descriptor(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT])?;
    sys::trim_allocator();
    loop {
        sys::wait_readable(&signals);
        while let Some(signal) = sys::take_signal(&signals) {
            match signal {
                libc::SIGTERM | libc::SIGINT => return Ok(()),
                // Several children may have ended under one signal.
                _ => while sys::reap().is_some() {},
            }
        }
    }
}
