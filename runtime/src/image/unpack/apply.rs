//! Applies the entries of a layer's tar to its folder, as the OCI image specification's "applying changesets" and
//! containerd do, without privileges over the mount table. One job, single-threaded.

use std::ffi::OsStr;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ftruncate, linkat, makedev, mkdirat, mknodat, openat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::tree::{Dir, Tree, is_dir, is_whiteout, normalise, open_dir};
use super::{LayerError, Limits, metadata};
use crate::image::tar::{Archive, Entry, Kind, Recorder};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// After how many bytes the free space is looked at again.
const FREE_CHECK: u64 = 32 << 20;

/// What a plain file's content was written to, so that a record of the tar can name it.
pub(crate) trait ContentMark {
    /// `size` bytes of content follow, which `path` in the layer holds.
    fn content(&mut self, path: &[u8], size: u64) -> io::Result<()>;
}

impl ContentMark for () {
    fn content(&mut self, _path: &[u8], _size: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Applies entries one after another.
pub(crate) struct Applier {
    tree: Tree,
    limits: Limits,
    bytes: u64,
    until_check: u64,
    /// Times of folders, set at the end because every entry inside changes them.
    dir_times: Vec<(Vec<u8>, (i64, u32))>,
}

impl Applier {
    /// An applier into an empty folder over lower ones, topmost first.
    pub(crate) fn new(upper: OwnedFd, lowers: Vec<OwnedFd>, limits: Limits) -> Self {
        Self { tree: Tree::new(upper, lowers), limits, bytes: 0, until_check: 0, dir_times: Vec::new() }
    }

    /// Applies a whole archive and returns its reader for the rest of the stream.
    pub(crate) fn run<R: BufRead, W: Recorder + ContentMark>(
        mut self,
        mut archive: Archive<R, W>,
        mut progress: impl FnMut(u64),
    ) -> Result<(R, W), LayerError> {
        while let Some(entry) = archive.next().map_err(LayerError::Decode)? {
            self.entry(&entry, &mut archive)?;
            progress(self.bytes);
        }
        self.tree.write_hidden()?;
        self.set_dir_times()?;
        self.check(0)?;
        archive.finish().map_err(LayerError::Decode)
    }

    /// Counts what an entry takes before it is written.
    fn check(&mut self, bytes: u64) -> Result<(), LayerError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.bytes {
            return Err(LayerError::Limit { limit: self.limits.bytes, what: "bytes" });
        }
        if self.tree.inodes > self.limits.inodes {
            return Err(LayerError::Limit { limit: self.limits.inodes, what: "files" });
        }
        if self.until_check < bytes {
            self.until_check = FREE_CHECK;
            let stat = rustix::fs::fstatvfs(&self.tree.root().fd).map_err(|e| LayerError::Store(e.into()))?;
            if (stat.f_bavail * stat.f_frsize).saturating_sub(bytes.min(FREE_CHECK)) < self.limits.keep_free {
                return Err(LayerError::NoSpace { keep_free: self.limits.keep_free });
            }
        }
        self.until_check -= bytes.min(self.until_check);
        Ok(())
    }

    fn entry<R: BufRead, W: Recorder + ContentMark>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R, W>,
    ) -> Result<(), LayerError> {
        let mut names = normalise(&entry.path)?;
        // The root's own metadata is the container's business, not a layer's.
        let Some(name) = names.pop() else { return Ok(()) };
        let dir = self.tree.dir(&names)?;
        self.check(0)?;
        let failed = |error: io::Error| LayerError::file(&entry.path, error);
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.apply_whiteout(&dir, name, hidden, entry);
        }
        match entry.kind {
            Kind::Dir => self.folder(&dir, name, entry)?,
            Kind::File => self.plain(&dir, name, entry, archive)?,
            Kind::HardLink => self.hard_link(&dir, name, entry)?,
            Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo => {
                self.special(&dir, name, entry).map_err(failed)?;
                metadata::set_special(&dir.fd, name, entry).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn apply_whiteout(
        &mut self,
        dir: &Rc<Dir>,
        name: &[u8],
        hidden: &[u8],
        entry: &Entry,
    ) -> Result<(), LayerError> {
        let failed = |error: io::Error| LayerError::file(&entry.path, error);
        if name == OPAQUE {
            self.tree.hide_dir(dir);
            return Ok(());
        }
        if name.starts_with(WHITEOUT_META) {
            // Other names of this form are AUFS' own bookkeeping.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerError::Whiteout { path: super::lossy(&entry.path) });
        }
        match self.tree.upper(dir, hidden).map_err(failed)? {
            // A whiteout speaks of the lower layers only; what this one has put there stays.
            Some(found) if is_dir(&found) => {
                let path = [&dir.path[..], hidden].join(&b'/');
                let path = path.strip_prefix(b"/").unwrap_or(&path);
                self.tree.hide(path, dir, hidden)
            }
            Some(_) => Ok(()),
            None if self.tree.lower_has(dir, hidden).map_err(failed)? => {
                self.tree.whiteout(&dir.fd, hidden).map_err(failed)
            }
            None => Ok(()),
        }
    }

    fn folder(&mut self, dir: &Rc<Dir>, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let failed = |error: io::Error| LayerError::file(&entry.path, error);
        let at = OsStr::from_bytes(name);
        let path = if dir.path.is_empty() { name.to_vec() } else { [&dir.path[..], name].join(&b'/') };
        match mkdirat(&dir.fd, at, Mode::from_raw_mode(0o700)) {
            Ok(()) => self.tree.inodes += 1,
            Err(Errno::EXIST) => {
                let found = self.tree.upper(dir, name).map_err(failed)?;
                if let Some(found) = found.filter(|found| !is_dir(found)) {
                    self.tree.remove(dir, name, &found).map_err(failed)?;
                    mkdirat(&dir.fd, at, Mode::from_raw_mode(0o700)).map_err(|e| failed(e.into()))?;
                    // Whatever was replaced, whiteout or file, hid the lower layers' folder of this name.
                    self.tree.hide(&path, dir, name)?;
                }
            }
            Err(error) => return Err(failed(error.into())),
        }
        let fd = open_dir(&dir.fd, at).map_err(failed)?;
        metadata::set_open(&fd, entry).map_err(failed)?;
        self.dir_times.push((path, entry.mtime));
        Ok(())
    }

    /// Runs `make`; when the name is taken, removes what has it and runs `make` again.
    fn replacing<T>(
        &mut self,
        dir: &Rc<Dir>,
        name: &[u8],
        make: impl Fn(&OwnedFd) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let made = match make(&dir.fd) {
            Err(Errno::EXIST) => {
                if let Some(found) = self.tree.upper(dir, name)? {
                    self.tree.remove(dir, name, &found)?;
                }
                make(&dir.fd)?
            }
            other => other?,
        };
        self.tree.inodes += 1;
        Ok(made)
    }

    fn create(&mut self, dir: &Rc<Dir>, name: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        self.replacing(dir, name, |fd| openat(fd, OsStr::from_bytes(name), flags, mode))
    }

    fn plain<R: BufRead, W: Recorder + ContentMark>(
        &mut self,
        dir: &Rc<Dir>,
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R, W>,
    ) -> Result<(), LayerError> {
        let failed = |error: io::Error| LayerError::file(&entry.path, error);
        let fd = self.create(dir, name).map_err(failed)?;
        match &entry.sparse {
            None => {
                let path =
                    if dir.path.is_empty() { name.to_vec() } else { [&dir.path[..], name].join(&b'/') };
                archive.recorder().content(&path, entry.size).map_err(LayerError::Store)?;
                self.copy(&fd, entry, archive, None)?;
            }
            Some(map) => {
                for &(offset, length) in map {
                    rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(offset))
                        .map_err(|e| failed(e.into()))?;
                    self.copy(&fd, entry, archive, Some(length))?;
                }
                ftruncate(&fd, entry.size).map_err(|e| failed(e.into()))?;
            }
        }
        metadata::set_open(&fd, entry).map_err(failed)
    }

    /// Copies `length` bytes, or all, of the current content to the file's position.
    fn copy<R: BufRead, W: Recorder + ContentMark>(
        &mut self,
        fd: &OwnedFd,
        entry: &Entry,
        archive: &mut Archive<R, W>,
        length: Option<u64>,
    ) -> Result<(), LayerError> {
        let mut left = length.unwrap_or(u64::MAX);
        let mut content = archive.content();
        while left > 0 {
            let piece = content.piece().map_err(LayerError::Decode)?;
            if piece.is_empty() {
                break;
            }
            let piece = &piece[..piece.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            self.check(piece.len() as u64)?;
            let written =
                rustix::io::write(fd, piece).map_err(|error| LayerError::file(&entry.path, error.into()))?;
            content.consume(written).map_err(LayerError::Store)?;
            left -= written as u64;
        }
        Ok(())
    }

    fn special(&mut self, dir: &Rc<Dir>, name: &[u8], entry: &Entry) -> io::Result<()> {
        let at = OsStr::from_bytes(name);
        let mode = Mode::from_raw_mode(entry.mode);
        let device = makedev(entry.device.0, entry.device.1);
        self.replacing(dir, name, |fd| match entry.kind {
            Kind::Symlink => symlinkat(OsStr::from_bytes(&entry.link), fd, at),
            Kind::Char => mknodat(fd, at, FileType::CharacterDevice, mode, device),
            Kind::Block => mknodat(fd, at, FileType::BlockDevice, mode, device),
            _ => mknodat(fd, at, FileType::Fifo, mode, 0),
        })
    }

    fn hard_link(&mut self, dir: &Rc<Dir>, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let failed = |error: io::Error| LayerError::file(&entry.path, error);
        let mut target = normalise(&entry.link)
            .map_err(|_| LayerError::Climbs { path: super::lossy(&entry.path), how: "by a hard link" })?;
        let target_name = target.pop().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let target_dir = self.tree.dir(&target)?;
        if target_dir.path == dir.path && target_name == name {
            return Ok(());
        }
        match self.tree.upper(&target_dir, target_name).map_err(failed)? {
            Some(found) if is_whiteout(&found) => return Err(failed(io::ErrorKind::NotFound.into())),
            Some(_) => {}
            None => self.copy_up(&target_dir, target_name).map_err(failed)?,
        }
        let (from, to) = (OsStr::from_bytes(target_name), OsStr::from_bytes(name));
        self.replacing(dir, name, |fd| linkat(&target_dir.fd, from, fd, to, AtFlags::empty())).map_err(failed)
    }

    /// Brings a lower layer's file into this one, because a hard link cannot reach across layers.
    fn copy_up(&mut self, dir: &Rc<Dir>, name: &[u8]) -> io::Result<()> {
        let (at, path) = self.tree.lower_file(dir, name)?.ok_or(io::ErrorKind::NotFound)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = openat(at.as_fd(), &path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&from)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a hard link to a lower layer's special file",
            ));
        }
        let to = self.create(dir, name)?;
        io::copy(&mut std::fs::File::from(from.try_clone()?), &mut std::fs::File::from(to.try_clone()?))?;
        metadata::copy(&from, &to)?;
        self.bytes = self.bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        Ok(())
    }

    fn set_dir_times(&mut self) -> Result<(), LayerError> {
        for (path, mtime) in std::mem::take(&mut self.dir_times) {
            let failed = |error: io::Error| LayerError::file(&path, error);
            let mut names = normalise(&path)?;
            let Some(name) = names.pop() else { continue };
            let Some(parent) = self.tree.existing_dir(&names).map_err(failed)? else { continue };
            let times = metadata::timestamps(mtime);
            match utimensat(&parent, OsStr::from_bytes(name), &times, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
