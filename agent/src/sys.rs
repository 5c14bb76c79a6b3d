//! The agent's raw system calls.
#![allow(unsafe_code)]

/// A kind of virtual link.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkKind {
    Bridge,
    Veth,
}

/// Whether the kernel makes links of this kind. Tried in a network namespace of a thread that ends with it,
/// so nothing stays.
pub(crate) fn probe_link(kind: LinkKind) -> std::io::Result<()> {
    let name = match kind {
        LinkKind::Bridge => "bridge",
        LinkKind::Veth => "veth",
    };
    std::thread::spawn(move || {
        // SAFETY: unshare changes this thread alone, which ends right after.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        make_link(name)
    })
    .join()
    .map_err(|_| std::io::Error::other("the probe panicked"))?
}

/// RTM_NEWLINK with a name and a kind, by hand: rtnetlink(7).
fn make_link(kind: &str) -> std::io::Result<()> {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let info = attribute(1, kind.as_bytes());
    let mut body = vec![0_u8; 16];
    body.extend(attribute(3, b"probe0\0"));
    body.extend(attribute(18, &info));
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    let mut message = Vec::new();
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0_u8; 8]);
    message.extend(body);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0_u8; 512];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    // An NLMSG_ERROR carries the error number behind the header; 0 is the acknowledgement.
    let code = answer[..length]
        .get(16..20)
        .map_or(0, |bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    if code == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(-code)) }
}

/// One netlink attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + value.len());
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
