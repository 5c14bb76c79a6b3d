//! The kernel's news of addresses and routes: rtnetlink(7), of which only is read that there is some.
#![allow(unsafe_code, reason = "tokio takes file descriptors only from those who vouch for them")]

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

/// Multicast groups: addresses and routes of IPv4 and IPv6.
const GROUPS: u32 = 0x10 | 0x40 | 0x100 | 0x400;

/// Changes from its making on.
pub(super) struct RouteChanges(AsyncFd<OwnedFd>);

impl RouteChanges {
    pub(super) fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        // SAFETY: the `OwnedFd` is a valid descriptor, and the `AsyncFd` owns it until both are dropped here.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self(socket.map_err(|error| io::Error::other(error.to_string()))?))
    }

    /// Returns once something has changed. Cancel-safe: news stay in the kernel's queue.
    pub(super) async fn next(&mut self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut message = [0_u8; 16];
        loop {
            // What is longer is cut off, so that one call reads one message.
            match rustix::net::recv(self.0.get_ref(), &mut message, RecvFlags::empty()) {
                // NOBUFS: more came than the kernel keeps.
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
