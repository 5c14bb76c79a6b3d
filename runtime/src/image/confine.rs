//! What the worker's two processes give up before they touch foreign bytes.
//!
//! The unpacker sees nothing but the store: a mount table of its own with the store bound without devices, setuid
//! and execution, chroot into it, no network, no way to gain privileges, and only the capabilities that making other
//! people's files takes. The fetcher keeps its view (it reads certificates and resolver configuration) and drops the
//! capabilities. Both functions must run before the process has a second thread.

use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::process::{Resource, Rlimit, chdir, chroot, getrlimit, setrlimit, umask};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use super::sys;

/// What the unpacker keeps: owners, modes, setuid bits, devices, file capabilities.
const UNPACK: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// Confines the process to the store, which is `/` afterwards.
pub(crate) fn unpacker(store: &Path) -> io::Result<()> {
    umask(rustix::fs::Mode::empty());
    raise_file_limit()?;
    sys::own_namespaces()?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount_bind(store, store)?;
    let flags = MountFlags::BIND | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_remount(store, flags, "")?;
    chdir(store)?;
    chroot(".")?;
    chdir("/")?;
    keep(UNPACK)
}

/// Confines the process that talks to registries and reads archives.
pub(crate) fn fetcher() -> io::Result<()> {
    umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Archives and keys may belong to any user of the machine.
    keep(CapabilitySet::DAC_OVERRIDE)
}

fn keep(kept: CapabilitySet) -> io::Result<()> {
    set_no_new_privs(true)?;
    for bit in 0..64 {
        let Some(one) = CapabilitySet::from_bits(1 << bit) else { continue };
        if kept.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // EINVAL: this kernel has fewer. EPERM: a container's root may not, and no_new_privs holds anyway.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let own = rustix::thread::capabilities(None)?.permitted;
    let kept = kept.intersection(own);
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// An image of a hundred layers keeps a handle on each.
fn raise_file_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}
