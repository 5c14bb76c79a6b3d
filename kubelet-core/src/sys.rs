//! Mounts, mount tables, kills and open-within-a-folder: the raw system work of this crate.
//!
//! Called from blocking threads by volumes and pod cgroups. Thin over rustix, so that no other file of theirs
//! names a mount flag; nothing here keeps state.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

const TMPFS_MAGIC: i64 = 0x0102_1994;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// Mounts a new file system of memory at `target`.
pub(crate) fn mount_tmpfs(target: &Path, options: &str) -> io::Result<()> {
    mount_new("tmpfs", target, options)
}

/// Mounts a new file system of huge pages at `target`.
pub(crate) fn mount_hugetlbfs(target: &Path, options: &str) -> io::Result<()> {
    mount_new("hugetlbfs", target, options)
}

fn mount_new(kind: &str, target: &Path, options: &str) -> io::Result<()> {
    let data = CString::new(options).map_err(|_| io::ErrorKind::InvalidInput)?;
    rustix::mount::mount(kind, target, kind, MountFlags::empty(), data.as_c_str())?;
    Ok(())
}

/// Binds what a descriptor stands for onto `target`, whatever its path has become since.
pub(crate) fn bind_fd(source: impl AsFd, target: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", source.as_fd().as_raw_fd());
    rustix::mount::mount_bind(source, target)?;
    Ok(())
}

/// Takes one mount off `target`, even if it is in use; false if there was none.
pub(crate) fn unmount(target: &Path) -> io::Result<bool> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Mount points at or below `root`, the last mounted first.
pub(crate) fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|point| point.starts_with(root))
        .collect();
    found.reverse();
    Ok(found)
}

/// Undoes the octal escapes of a mount table.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\').then(|| tail.get(..3)).flatten();
        let code = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Whether something is mounted on `path`, told by its device; a bind within one file system is not seen.
pub(crate) fn is_own_file_system(path: &Path) -> io::Result<bool> {
    let own = std::fs::symlink_metadata(path)?;
    let parent = std::fs::symlink_metadata(path.parent().unwrap_or(path))?;
    Ok(own.dev() != parent.dev())
}

/// Whether the file system that holds `path` is a tmpfs.
pub(crate) fn is_tmpfs(path: &Path) -> io::Result<bool> {
    has_magic(path, TMPFS_MAGIC)
}

/// Whether the file system that holds `path` gives out huge pages.
pub(crate) fn is_hugetlbfs(path: &Path) -> io::Result<bool> {
    has_magic(path, HUGETLBFS_MAGIC)
}

/// Whether `path` is on a cgroup v2 file system.
pub(crate) fn is_cgroup2(path: &Path) -> io::Result<bool> {
    has_magic(path, CGROUP2_MAGIC)
}

fn has_magic(path: &Path, magic: i64) -> io::Result<bool> {
    let of_path = rustix::fs::statfs(path)?.f_type;
    // The field's width and sign differ between architectures; magic numbers have 32 bits.
    #[allow(clippy::unnecessary_cast)]
    Ok((of_path as u32) == (magic as u32))
}

/// Kills a process; one that is gone already is no error.
pub(crate) fn kill(pid: i32) -> io::Result<()> {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else {
        return Ok(());
    };
    match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Mount points by v1 controller (`cpu`, `memory`, …), the shortest path of each.
pub(crate) fn cgroup_v1_mounts() -> io::Result<Vec<(String, PathBuf)>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mut mounts: Vec<(String, PathBuf)> = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        let Some((point, controllers)) = cgroup_v1_line(line) else {
            continue;
        };
        for controller in controllers {
            match mounts.iter_mut().find(|(known, _)| *known == controller) {
                Some((_, known)) if known.as_os_str().len() > point.as_os_str().len() => {
                    *known = point.clone()
                }
                Some(_) => {}
                None => mounts.push((controller, point.clone())),
            }
        }
    }
    Ok(mounts)
}

/// Mount points of every hierarchy, v1 with or without controllers and v2.
pub(crate) fn cgroup_mount_points() -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let point = |line: &[u8]| {
        let line = OsStr::from_bytes(line).to_str()?;
        let (left, right) = line.split_once(" - ")?;
        let is_cgroup = right.starts_with("cgroup ") || right.starts_with("cgroup2 ");
        is_cgroup.then(|| left.split(' ').nth(4)).flatten().map(|field| unescape(field.as_bytes()).into())
    };
    let mut points: Vec<PathBuf> = table.split(|byte| *byte == b'\n').filter_map(point).collect();
    points.sort();
    points.dedup();
    Ok(points)
}

/// The mount point and super options of a line that mounts a v1 hierarchy.
fn cgroup_v1_line(line: &[u8]) -> Option<(PathBuf, Vec<String>)> {
    let line = OsStr::from_bytes(line).to_str()?;
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    if right.next() != Some("cgroup") {
        return None;
    }
    let options = right.nth(1)?;
    let point = PathBuf::from(unescape(left.split(' ').nth(4)?.as_bytes()));
    let names = options.split(',').filter(|o| !matches!(*o, "rw" | "ro" | "xattr" | "noprefix"));
    Some((point, names.filter(|name| !name.contains('=')).map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_tables_are_read_with_their_escapes() {
        assert_eq!(unescape(br"/a\040b\134c"), OsStr::new("/a b\\c"));
        assert_eq!(unescape(br"/a\"), OsStr::new("/a\\"));
        let line = b"33 24 0:28 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct";
        let (point, controllers) = cgroup_v1_line(line).unwrap();
        assert_eq!(point, Path::new("/sys/fs/cgroup/cpu"));
        assert_eq!(controllers, ["cpu", "cpuacct"]);
        let named = b"34 24 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd";
        assert_eq!(cgroup_v1_line(named).unwrap().1, Vec::<String>::new());
        assert!(cgroup_v1_line(b"24 1 0:2 / /proc rw - proc proc rw").is_none());
        assert!(mounts_below(Path::new("/proc")).unwrap().contains(&PathBuf::from("/proc")));
    }
}
