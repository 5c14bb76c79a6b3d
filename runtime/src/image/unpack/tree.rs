//! One layer's folder seen together with the layers under it, without an overlay mount.
//!
//! Owned by one unpack job, single-threaded. Paths are resolved component by component from directory handles,
//! never by the kernel following links, so that no name in a layer leads out of it; a parent that only a lower
//! layer has (as a folder or as a symlink) counts as overlayfs would show it. Invariant: the lower folders do not
//! change meanwhile, and only this job writes the upper one.
//!
//! What a layer hides is always written as whiteouts (character device 0:0), also for opaque folders, whose lower
//! names are each whited out at the end: overlay's opaque mark is an attribute that only CAP_SYS_ADMIN may set.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, Dir as ReadDir, FileType, Mode, OFlags, Stat, mkdirat, mknodat, openat, statat, unlinkat,
};

use super::{LayerError, metadata};

/// Deepest folder taken: no image comes near, and removal holds a handle per level.
const MAX_DEPTH: usize = 256;
/// As many symlinks as the kernel follows in one path.
const MAX_LINKS: usize = 40;
/// Folders kept open; a tar walks its tree in order, so few are needed.
const OPEN_DIRS: usize = 128;

/// A folder of the upper layer, and which lower layers show through it.
pub(crate) struct Dir {
    /// Its path from the layer's root without links; empty for the root.
    pub(crate) path: Vec<u8>,
    pub(crate) fd: OwnedFd,
    merged: Vec<usize>,
}

/// What the lower layers show under a name.
enum Lower {
    Absent,
    Dir(Vec<usize>),
    Symlink(usize),
    Other(usize),
}

/// The upper folder over its lower ones.
pub(crate) struct Tree {
    root: Rc<Dir>,
    /// Topmost first.
    lowers: Vec<OwnedFd>,
    open: HashMap<Vec<u8>, Rc<Dir>>,
    /// Folders whose lower content this layer hides, with the lower layers that had it.
    hidden: HashMap<Vec<u8>, Vec<usize>>,
    /// Inodes made so far.
    pub(crate) inodes: u64,
}

/// Opens a folder without following a link at its end.
pub(crate) fn open_dir(at: impl AsFd, name: impl AsRef<OsStr>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, name.as_ref(), flags, Mode::empty())?)
}

/// Whether a file is overlayfs' mark of a removed name.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn stat(at: impl AsFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// Splits a path into plain names; an error when it climbs above its start.
pub(crate) fn normalise(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    let mut names = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or_else(|| LayerError::climbs(path))?;
            }
            name => names.push(name),
        }
    }
    Ok(names)
}

impl Tree {
    /// A tree over an empty upper folder.
    pub(crate) fn new(upper: OwnedFd, lowers: Vec<OwnedFd>) -> Self {
        let merged = (0..lowers.len()).collect();
        let root = Rc::new(Dir { path: Vec::new(), fd: upper, merged });
        Self { root, lowers, open: HashMap::new(), hidden: HashMap::new(), inodes: 0 }
    }

    /// The upper folder itself.
    pub(crate) fn root(&self) -> &Rc<Dir> {
        &self.root
    }

    /// The folder that `names` lead to, made in the upper layer with the metadata of the lower one where it
    /// exists only there, or with mode 0755 where no layer names it.
    pub(crate) fn dir(&mut self, names: &[&[u8]]) -> Result<Rc<Dir>, LayerError> {
        let wanted = names.join(&b'/');
        if names.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(dir) = self.open.get(&wanted) {
            return Ok(dir.clone());
        }
        let mut links = 0;
        let mut ahead: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let mut stack = vec![self.root.clone()];
        while let Some(name) = ahead.pop() {
            if name == b".." {
                stack.pop();
                if stack.is_empty() {
                    return Err(LayerError::climbs_by_link(&wanted));
                }
                continue;
            }
            let parent = stack.last().expect("the root is never popped without an error");
            match self.step(&parent.clone(), &name).map_err(|e| e.about(&wanted))? {
                Step::Dir(dir) => stack.push(dir),
                Step::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(LayerError::climbs_by_link(&wanted));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let parts = target.split(|&b| b == b'/').rev().filter(|n| !n.is_empty() && *n != b".");
                    ahead.extend(parts.map(<[u8]>::to_vec));
                }
            }
            if stack.len() > MAX_DEPTH {
                return Err(LayerError::too_deep(&wanted));
            }
        }
        let dir = stack.pop().expect("the root is never popped without an error");
        if self.open.len() >= OPEN_DIRS {
            self.open.clear();
        }
        self.open.insert(wanted, dir.clone());
        Ok(dir)
    }

    fn step(&mut self, parent: &Rc<Dir>, name: &[u8]) -> Result<Step, LayerError> {
        let path = join(&parent.path, name);
        if let Some(dir) = self.open.get(&path).filter(|dir| dir.path == path) {
            return Ok(Step::Dir(dir.clone()));
        }
        let failed = |error: io::Error| LayerError::file(&path, error);
        match stat(&parent.fd, os(name)).map_err(failed)? {
            Some(found) => match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => {
                    let merged = match self.hidden.contains_key(&path) {
                        true => Vec::new(),
                        false => self.lower_dirs(parent, name)?,
                    };
                    let fd = open_dir(&parent.fd, os(name)).map_err(failed)?;
                    Ok(Step::Dir(Rc::new(Dir { path, fd, merged })))
                }
                FileType::Symlink => Ok(Step::Link(read_link(&parent.fd, os(name)).map_err(failed)?)),
                _ if is_whiteout(&found) => {
                    unlinkat(&parent.fd, os(name), AtFlags::empty()).map_err(|e| failed(e.into()))?;
                    self.make_dir(parent, name, None).map(Step::Dir)
                }
                _ => Err(failed(io::ErrorKind::NotADirectory.into())),
            },
            None => match self.lower(parent, name).map_err(failed)? {
                Lower::Symlink(layer) => {
                    let target = read_link(&self.lowers[layer], os(&path)).map_err(failed)?;
                    Ok(Step::Link(target))
                }
                Lower::Dir(merged) => self.make_dir(parent, name, Some(merged)).map(Step::Dir),
                Lower::Absent | Lower::Other(_) => self.make_dir(parent, name, None).map(Step::Dir),
            },
        }
    }

    /// Makes a folder that the layer did not name (yet), as it is in the lower layers that show it.
    fn make_dir(
        &mut self,
        parent: &Rc<Dir>,
        name: &[u8],
        merged: Option<Vec<usize>>,
    ) -> Result<Rc<Dir>, LayerError> {
        let path = join(&parent.path, name);
        let failed = |error: io::Error| LayerError::file(&path, error);
        mkdirat(&parent.fd, os(name), Mode::from_raw_mode(0o755)).map_err(|e| failed(e.into()))?;
        self.inodes += 1;
        let fd = open_dir(&parent.fd, os(name)).map_err(failed)?;
        if let Some(&layer) = merged.as_ref().and_then(|layers| layers.first()) {
            let source = open_dir(&self.lowers[layer], os(&path)).map_err(failed)?;
            metadata::copy(&source, &fd).map_err(failed)?;
        }
        let merged = match merged {
            Some(merged) => merged,
            None => {
                // What was under this name below is hidden: a whiteout gave way to this folder, or a file did.
                self.hide(&path, parent, name)?;
                Vec::new()
            }
        };
        Ok(Rc::new(Dir { path, fd, merged }))
    }

    /// Marks a folder as showing nothing of the lower layers.
    pub(crate) fn hide(&mut self, path: &[u8], parent: &Dir, name: &[u8]) -> Result<(), LayerError> {
        let merged = self.lower_dirs(parent, name)?;
        if !merged.is_empty() {
            self.hidden.entry(path.to_vec()).or_insert(merged);
            self.forget_open();
        }
        Ok(())
    }

    /// Marks an open folder (also the root) as showing nothing of the lower layers.
    pub(crate) fn hide_dir(&mut self, dir: &Dir) {
        if dir.merged.is_empty() {
            return;
        }
        self.hidden.entry(dir.path.clone()).or_insert_with(|| dir.merged.clone());
        self.forget_open();
        if dir.path.is_empty() {
            let fd = self.root.fd.try_clone().expect("a directory handle can be duplicated");
            self.root = Rc::new(Dir { path: Vec::new(), fd, merged: Vec::new() });
        }
    }

    /// Forgets resolved folders; to be called after anything but an addition.
    pub(crate) fn forget_open(&mut self) {
        self.open.clear();
    }

    /// Whether the lower layers show anything under a name.
    pub(crate) fn lower_has(&self, parent: &Dir, name: &[u8]) -> io::Result<bool> {
        Ok(!matches!(self.lower(parent, name)?, Lower::Absent))
    }

    /// The lower layer's folder handle and path of a name that is no folder there.
    pub(crate) fn lower_file(&self, parent: &Dir, name: &[u8]) -> io::Result<Option<(&OwnedFd, OsString)>> {
        let path = || os(&join(&parent.path, name)).to_owned();
        Ok(match self.lower(parent, name)? {
            Lower::Symlink(layer) | Lower::Other(layer) => Some((&self.lowers[layer], path())),
            Lower::Absent | Lower::Dir(_) => None,
        })
    }

    fn lower_dirs(&self, parent: &Dir, name: &[u8]) -> Result<Vec<usize>, LayerError> {
        match self.lower(parent, name).map_err(|e| LayerError::file(name, e))? {
            Lower::Dir(merged) => Ok(merged),
            _ => Ok(Vec::new()),
        }
    }

    fn lower(&self, parent: &Dir, name: &[u8]) -> io::Result<Lower> {
        let path = join(&parent.path, name);
        let mut merged = Vec::new();
        for &layer in &parent.merged {
            let Some(found) = stat(&self.lowers[layer], os(&path))? else { continue };
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => merged.push(layer),
                _ if !merged.is_empty() || is_whiteout(&found) => break,
                FileType::Symlink => return Ok(Lower::Symlink(layer)),
                _ => return Ok(Lower::Other(layer)),
            }
        }
        Ok(if merged.is_empty() { Lower::Absent } else { Lower::Dir(merged) })
    }

    /// Writes the whiteouts of every hidden folder. To be called once, after the last entry.
    pub(crate) fn write_hidden(&mut self) -> Result<(), LayerError> {
        for (path, merged) in std::mem::take(&mut self.hidden) {
            let names = normalise(&path)?;
            let Some(dir) = self.existing_dir(&names).map_err(|e| LayerError::file(&path, e))? else {
                continue;
            };
            self.hide_children(&dir, &path, &merged, 0).map_err(|e| LayerError::file(&path, e))?;
        }
        Ok(())
    }

    fn hide_children(
        &mut self,
        dir: &OwnedFd,
        path: &[u8],
        merged: &[usize],
        depth: usize,
    ) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let mut names = BTreeSet::new();
        for &layer in merged {
            let at = if path.is_empty() { b"." } else { path };
            for child in ReadDir::read_from(open_dir(&self.lowers[layer], os(at))?)? {
                names.insert(child?.file_name().to_bytes().to_vec());
            }
        }
        for name in names.iter().filter(|name| *name != b"." && *name != b"..") {
            let below = Dir { path: path.to_vec(), fd: dir.try_clone()?, merged: merged.to_vec() };
            let lower = self.lower(&below, name)?;
            match (lower, stat(dir, os(name))?) {
                (Lower::Absent, _) => {}
                (_, None) => self.whiteout(dir, name)?,
                (Lower::Dir(merged), Some(upper)) if is_dir(&upper) => {
                    let child = open_dir(dir, os(name))?;
                    self.hide_children(&child, &join(path, name), &merged, depth + 1)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes overlayfs' mark of a removed name.
    pub(crate) fn whiteout(&mut self, dir: impl AsFd, name: &[u8]) -> io::Result<()> {
        mknodat(dir, os(name), FileType::CharacterDevice, Mode::empty(), 0)?;
        self.inodes += 1;
        Ok(())
    }

    /// The upper folder at exactly this path, following no link, `None` when it is something else by now.
    pub(crate) fn existing_dir(&self, names: &[&[u8]]) -> io::Result<Option<OwnedFd>> {
        let mut fd = self.root.fd.try_clone()?;
        for name in names {
            match open_dir(&fd, os(name)) {
                Ok(next) => fd = next,
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(fd))
    }

    /// Removes what the upper layer has under a name, with everything below it.
    pub(crate) fn remove(&mut self, dir: &Dir, name: &[u8], found: &Stat) -> io::Result<()> {
        if is_dir(found) {
            remove_children(&open_dir(&dir.fd, os(name))?)?;
            unlinkat(&dir.fd, os(name), AtFlags::REMOVEDIR)?;
        } else {
            unlinkat(&dir.fd, os(name), AtFlags::empty())?;
        }
        self.forget_open();
        Ok(())
    }

    /// What the upper layer itself has under a name.
    pub(crate) fn upper(&self, dir: &Dir, name: &[u8]) -> io::Result<Option<Stat>> {
        stat(&dir.fd, os(name))
    }
}

enum Step {
    Dir(Rc<Dir>),
    Link(Vec<u8>),
}

/// Whether a file is a folder.
pub(crate) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn read_link(at: impl AsFd, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(at, path.as_ref(), Vec::new())?.into_bytes())
}

fn remove_children(dir: &OwnedFd) -> io::Result<()> {
    for child in ReadDir::read_from(dir)? {
        let child = child?;
        let name = child.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {
                remove_children(&open_dir(dir, os(name.to_bytes()))?)?;
                unlinkat(dir, name, AtFlags::REMOVEDIR)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
