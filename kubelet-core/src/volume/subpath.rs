//! Opens a path below a volume that the volume's user may be rewriting at the same time, and binds it.
//!
//! A container owns what is in its volume, so between looking at a path and using it any part of it can become a
//! link to /etc. Nothing here uses a path twice: each component is opened from the descriptor of its parent
//! without following links, links are read through their descriptor and walked by the same rules, `..` goes back
//! to a descriptor opened before, and the bind names the last descriptor and not its path. So the result lies in
//! the volume whatever the other side does. Absolute links count only if they lead into the volume.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::sys;

/// The kernel's own bound on links in one path.
const MAX_LINKS: usize = 40;

/// Why a part of a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    /// It begins with a slash.
    #[error("error SubPath `{0}` must not be an absolute path")]
    Absolute(String),
    /// It climbs.
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    Climbs(String),
    /// It, or a link in it, leads out of the volume.
    #[error("subPath leads out of its volume")]
    Escapes,
    /// More links than a path may have.
    #[error("subPath has too many symbolic links")]
    TooManyLinks,
    /// The file system refused.
    #[error("{operation} a subPath")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn refused<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> SubPathError {
    move |error| SubPathError::Io { operation, source: error.into() }
}

/// Refuses a subPath that no volume can have.
pub(crate) fn check_sub_path(sub_path: &str) -> Result<(), SubPathError> {
    if sub_path.starts_with('/') {
        return Err(SubPathError::Absolute(sub_path.to_owned()));
    }
    if sub_path.split('/').any(|part| part == "..") {
        return Err(SubPathError::Climbs(sub_path.to_owned()));
    }
    Ok(())
}

/// Opens `sub_path` below `volume` as a place (`O_PATH`), making folders that are missing if `create` says so.
pub(super) fn open_within(volume: &Path, sub_path: &str, create: bool) -> Result<OwnedFd, SubPathError> {
    // The volume's own path is the agent's or the host's, so links in it are trusted.
    let volume = std::fs::canonicalize(volume).map_err(refused("resolve the volume of"))?;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let root = rustix::fs::open(&volume, flags, Mode::empty()).map_err(refused("open the volume of"))?;
    Walk { flags, volume, stack: vec![root], rest: VecDeque::new(), links: 0, create }.run(sub_path)
}

struct Walk {
    flags: OFlags,
    volume: PathBuf,
    /// Descriptors from the volume's root to where the walk is; never empty.
    stack: Vec<OwnedFd>,
    rest: VecDeque<OsString>,
    links: usize,
    create: bool,
}

impl Walk {
    fn run(mut self, sub_path: &str) -> Result<OwnedFd, SubPathError> {
        check_sub_path(sub_path)?;
        self.push_front(Path::new(sub_path))?;
        while let Some(part) = self.rest.pop_front() {
            if part == ".." {
                self.stack.pop();
                if self.stack.is_empty() {
                    return Err(SubPathError::Escapes);
                }
            } else {
                self.enter(&part)?;
            }
        }
        Ok(self.stack.pop().expect("a walk never leaves its root"))
    }

    /// Puts the components of a path, or of a link's target, before what is left to walk.
    fn push_front(&mut self, path: &Path) -> Result<(), SubPathError> {
        let mut path = path;
        if path.is_absolute() {
            path = path.strip_prefix(&self.volume).map_err(|_| SubPathError::Escapes)?;
            self.stack.truncate(1);
        }
        for component in path.components().rev() {
            match component {
                Component::Normal(part) => self.rest.push_front(part.to_owned()),
                Component::ParentDir => self.rest.push_front(OsString::from("..")),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        Ok(())
    }

    fn enter(&mut self, part: &OsStr) -> Result<(), SubPathError> {
        let here = self.stack.last().expect("a walk never leaves its root");
        let next = match rustix::fs::openat(here, part, self.flags, Mode::empty()) {
            Err(Errno::NOENT) if self.create => self.make(part)?,
            opened => opened.map_err(refused("open"))?,
        };
        let kind = rustix::fs::fstat(&next).map_err(refused("stat"))?.st_mode;
        if FileType::from_raw_mode(kind) != FileType::Symlink {
            self.stack.push(next);
            return Ok(());
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(SubPathError::TooManyLinks);
        }
        let target = rustix::fs::readlinkat(&next, "", Vec::new()).map_err(refused("read a link in"))?;
        self.push_front(Path::new(&OsString::from_vec(target.into_bytes())))
    }

    /// Makes a folder with the permissions of the volume's root, so that an fsGroup reaches it too.
    fn make(&self, part: &OsStr) -> Result<OwnedFd, SubPathError> {
        let here = self.stack.last().expect("a walk never leaves its root");
        let root = rustix::fs::fstat(&self.stack[0]).map_err(refused("stat"))?;
        let mode = Mode::from_raw_mode(root.st_mode & 0o7777);
        match rustix::fs::mkdirat(here, part, mode) {
            // Someone else made it meanwhile; what it is shows when it is opened.
            Err(Errno::EXIST) => {
                return rustix::fs::openat(here, part, self.flags, Mode::empty()).map_err(refused("open"));
            }
            made => made.map_err(refused("make the folder of"))?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let readable = rustix::fs::openat(here, part, flags, Mode::empty()).map_err(refused("open"))?;
        // The mode of a new folder is cut by the umask; this descriptor is a folder here, whoever's it is.
        rustix::fs::fchmod(&readable, mode).map_err(refused("chmod"))?;
        // A place like the others, from the descriptor and not by name once more.
        let place = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat(&readable, ".", place, Mode::empty()).map_err(refused("open"))
    }
}

/// Which mount of which container a part of a volume is bound for.
pub(crate) struct Bind<'a> {
    pub pod_dir: &'a Path,
    pub volume_name: &'a str,
    pub container: &'a str,
    /// Position of the mount in the container's list.
    pub index: usize,
}

impl Bind<'_> {
    /// `volume-subpaths/<volume>/<container>/<index>` in the pod's folder.
    fn target(&self) -> PathBuf {
        let dir = self.pod_dir.join("volume-subpaths").join(self.volume_name).join(self.container);
        dir.join(self.index.to_string())
    }
}

/// Binds `sub_path` of `volume` where no container can change it, and returns that place.
pub(crate) fn bind_sub_path(volume: &Path, sub_path: &str, bind: &Bind<'_>) -> Result<PathBuf, SubPathError> {
    let source = open_within(volume, sub_path, true)?;
    let target = bind.target();
    let wanted = rustix::fs::fstat(&source).map_err(refused("stat"))?;
    if let Ok(present) = rustix::fs::statat(CWD, &target, AtFlags::SYMLINK_NOFOLLOW) {
        if (present.st_dev, present.st_ino) == (wanted.st_dev, wanted.st_ino) {
            return Ok(target);
        }
        // Bound for an earlier run of the container, to what the path was then.
        while sys::unmount(&target).map_err(refused("unmount"))? {}
    }
    let is_dir = FileType::from_raw_mode(wanted.st_mode) == FileType::Directory;
    make_target(&target, is_dir).map_err(refused("make the mount point of"))?;
    sys::bind_fd(&source, &target).map_err(refused("bind"))?;
    Ok(target)
}

/// An empty folder or file to bind onto; the agent's own, so paths are safe here.
fn make_target(target: &Path, is_dir: bool) -> io::Result<()> {
    let parent = target.parent().expect("a target has a folder");
    std::fs::create_dir_all(parent)?;
    match std::fs::symlink_metadata(target) {
        Ok(present) if present.is_dir() == is_dir => return Ok(()),
        Ok(present) if present.is_dir() => std::fs::remove_dir(target)?,
        Ok(_) => std::fs::remove_file(target)?,
        Err(_) => {}
    }
    if is_dir {
        std::fs::create_dir(target)?;
        std::fs::set_permissions(target, std::fs::Permissions::from_mode(0o750))
    } else {
        std::fs::File::create_new(target)?;
        std::fs::set_permissions(target, std::fs::Permissions::from_mode(0o640))
    }
}

/// Reads a regular file below a volume, at most `limit` bytes of it.
pub(super) fn read_within(volume: &Path, path: &str, limit: u64) -> Result<Vec<u8>, SubPathError> {
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;

    let place = open_within(volume, path, false)?;
    // A fifo or device would hang or act, so only what is a file is opened for reading.
    let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()));
    let metadata = std::fs::metadata(&by_descriptor).map_err(refused("stat"))?;
    if !metadata.is_file() || metadata.size() > limit {
        return Err(refused("read")(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    let file = std::fs::File::open(&by_descriptor).map_err(refused("read"))?;
    let mut data = Vec::new();
    file.take(limit).read_to_end(&mut data).map_err(refused("read"))?;
    Ok(data)
}

#[cfg(test)]
mod tests;
