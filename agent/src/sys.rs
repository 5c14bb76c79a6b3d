//! The agent's raw system calls.
#![allow(unsafe_code)]

/// Keeps the heap of a process that lives for months small: one arena, and freed memory goes back early.
///
/// Called once at the start, before any thread.
pub(crate) fn keep_heap_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets parameters of the allocator; no thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

/// Gives back what a burst of work needed and idling does not: free heap pages, and the code that ran for it, which
/// stays in the page cache while there is room and comes back at its next use. Called after bursts, never in a loop.
pub(crate) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim locks the allocator itself and frees only pages that nobody uses.
    unsafe {
        libc::malloc_trim(0);
    }
    // Without the table of mappings the code stays mapped, which costs memory and nothing else.
    for range in unchanged_code(&std::fs::read_to_string("/proc/self/smaps").unwrap_or_default()) {
        // SAFETY: each page of these mappings is as its file has it and cannot be written, so that a page which is
        // dropped is read again with the same content.
        unsafe {
            libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED);
        }
    }
}

/// The mappings of files, by their addresses, that cannot be written and of which no page differs from its file.
fn unchanged_code(smaps: &str) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        if let Some(range) = mapping_of_file(line) {
            mapping = range;
        } else if line.split_whitespace().take(2).eq(["Anonymous:", "0"]) {
            found.extend(mapping.take());
        }
    }
    found
}

/// `None` where the line begins no mapping; `Some(None)` where it begins one of another kind.
fn mapping_of_file(line: &str) -> Option<Option<std::ops::Range<usize>>> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    let access = fields.next()?;
    let inode = fields.nth(2)?;
    Some((matches!(access, "r-xp" | "r--p") && inode != "0").then_some(range))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_its_file_has_it_is_unmapped() {
        let smaps = "00400000-00500000 r--p 00000000 fe:00 12 /bin/coracle\nRss: 8 kB\nAnonymous:             0 kB\n\
            00500000-00600000 r-xp 00100000 fe:00 12 /bin/coracle\nAnonymous:             0 kB\nVmFlags: rd ex\n\
            00600000-00610000 r--p 00200000 fe:00 12 /bin/coracle\nAnonymous:            64 kB\n\
            00610000-00620000 rw-p 00210000 fe:00 12 /bin/coracle\nAnonymous:             0 kB\n\
            7ffc0000-7ffc1000 r-xp 00000000 00:00 0 [vdso]\nAnonymous:             0 kB\n";
        assert_eq!(unchanged_code(smaps), [0x40_0000..0x50_0000, 0x50_0000..0x60_0000]);
    }
}
