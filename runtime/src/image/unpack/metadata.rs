//! Owner, mode, times and extended attributes of what is unpacked. Called by the unpacker only, single-threaded:
//! attributes of links and devices are set relative to the process's working directory.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fgetxattr,
    flistxattr, fsetxattr, fstat, futimens, lsetxattr, utimensat,
};
use rustix::io::Errno;

use crate::image::tar::{Entry, Kind};

/// Times whose access and modification are the same.
pub(crate) fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Whether a layer may set an attribute. `trusted.*` steers overlayfs and is the host's alone; SELinux labels are
/// the node's policy, not the image's.
fn allowed(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name == b"security.capability"
        || name == b"security.ima"
        || name.starts_with(b"system.posix_acl_")
}

/// Attributes that the file system does not know are left out, as containerd does.
fn tolerate(result: Result<(), Errno>, name: &[u8], plain: bool) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        // user.* exists on plain files and folders only.
        Err(Errno::PERM) if name.starts_with(b"user.") && !plain => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sets what an entry says on an open file or folder. The time of a folder is set at the end, see `apply`.
pub(crate) fn set_open(fd: &OwnedFd, entry: &Entry) -> io::Result<()> {
    fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    // A change of owner takes the setuid bit and the capabilities away, so these come after it.
    fchmod(fd, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| allowed(name)) {
        tolerate(fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty()), name, true)?;
    }
    if entry.kind != Kind::Dir {
        futimens(fd, &timestamps(entry.mtime))?;
    }
    Ok(())
}

/// Sets what an entry says on a link, device or pipe just made.
pub(crate) fn set_special(dir: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
    let at = OsStr::from_bytes(name);
    let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    chownat(dir, at, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if entry.kind != Kind::Symlink {
        chmodat(dir, at, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    }
    if entry.xattrs.iter().any(|(name, _)| allowed(name)) {
        rustix::process::fchdir(dir)?;
        for (key, value) in entry.xattrs.iter().filter(|(name, _)| allowed(name)) {
            tolerate(lsetxattr(at, OsStr::from_bytes(key), value, XattrFlags::empty()), key, false)?;
        }
    }
    utimensat(dir, at, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Makes one open file or folder like another: owner, mode, attributes, times.
pub(crate) fn copy(from: impl AsFd, to: &OwnedFd) -> io::Result<()> {
    let stat = fstat(&from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    copy_attributes(&from, to)?;
    let time = (stat.st_mtime as i64, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
    Ok(futimens(to, &timestamps(time))?)
}

fn copy_attributes(from: impl AsFd, to: &OwnedFd) -> io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let length = match flistxattr(&from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0; 64 << 10];
    for name in names[..length].split(|&b| b == 0).filter(|name| allowed(name)) {
        let key = OsStr::from_bytes(name);
        let length = fgetxattr(&from, key, &mut value[..])?;
        tolerate(fsetxattr(to, key, &value[..length], XattrFlags::empty()), name, true)?;
    }
    Ok(())
}
