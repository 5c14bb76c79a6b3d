//! Makes a folder hold a set of files, so that readers see the old set or the new one and nothing between.
//!
//! The layout is the kubelet's: files lie in a hidden folder with a name of its own each time, `..data` is a link
//! to it that is replaced by rename, and each top-level name is a link into `..data`. Called under the gate of
//! the pod, so never twice at once for a folder; safe to cut off anywhere.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::payload::Payload;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4096;

/// Why the files of a volume cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AtomicWriteError {
    /// A path that is empty, absolute, too long, climbs, or begins with two dots.
    #[error("invalid path: {rule}: {path:?}")]
    Path {
        /// What it must be.
        rule: &'static str,
        /// The path.
        path: String,
    },
    /// The file system refused.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn refused(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AtomicWriteError {
    let path = path.to_owned();
    move |source| AtomicWriteError::Io { operation, path, source }
}

/// Makes `dir` hold exactly `payload`; `own` sets owners in the new folder before anyone sees it.
///
/// Writes nothing if the content is there already.
pub(super) fn write(
    dir: &Path,
    payload: &Payload,
    own: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), AtomicWriteError> {
    for path in payload.keys() {
        check_path(path)?;
    }
    let data = dir.join(DATA);
    let current = read_link(&data)?;
    let is_current = match &current {
        Some(name) => holds(&dir.join(name), payload)?,
        None => false,
    };
    if !is_current {
        publish(dir, &data, payload, own)?;
    }
    link_names(dir, payload)?;
    sweep(dir, payload)
}

fn check_path(path: &str) -> Result<(), AtomicWriteError> {
    let first = path.split('/').next().unwrap_or("");
    let rule = if path.is_empty() {
        "must not be empty"
    } else if path.starts_with('/') {
        "must be relative path"
    } else if path.len() > MAX_PATH {
        "must be less than or equal to 4096 characters"
    } else if path.split('/').any(|part| part == "..") {
        "must not contain '..'"
    } else if path.split('/').any(|part| part.len() > MAX_NAME) {
        "filenames must be less than or equal to 255 characters"
    } else if first.starts_with("..") {
        "must not start with '..'"
    } else {
        return Ok(());
    };
    Err(AtomicWriteError::Path { rule, path: path.to_owned() })
}

fn read_link(link: &Path) -> Result<Option<PathBuf>, AtomicWriteError> {
    match std::fs::read_link(link) {
        Ok(target) => Ok(Some(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refused("read link", link)(error)),
    }
}

/// Whether the folder has these files with this content, and no others.
fn holds(dir: &Path, payload: &Payload) -> Result<bool, AtomicWriteError> {
    for (path, file) in payload {
        let path = dir.join(path);
        match std::fs::read(&path) {
            Ok(data) if data == file.data => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(refused("read", &path)(error)),
        }
    }
    let mut found = 0;
    count_files(dir, &mut found).map_err(refused("list", dir))?;
    let distinct: BTreeSet<PathBuf> = payload.keys().map(|path| dir.join(path)).collect();
    Ok(found == distinct.len())
}

fn count_files(dir: &Path, found: &mut usize) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count_files(&entry.path(), found)?;
        } else {
            *found += 1;
        }
    }
    Ok(())
}

fn publish(
    dir: &Path,
    data: &Path,
    payload: &Payload,
    own: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), AtomicWriteError> {
    let (name, fresh) = fresh_dir(dir)?;
    for (path, file) in payload {
        write_file(&fresh, path, &file.data, file.mode)?;
        if let Some(owner) = file.owner {
            let path = fresh.join(path);
            std::os::unix::fs::chown(&path, Some(owner), None).map_err(refused("chown", &path))?;
        }
    }
    own(&fresh).map_err(refused("set the owners in", &fresh))?;
    let new_data = dir.join(NEW_DATA);
    // Left behind by a write that was cut off.
    match std::fs::remove_file(&new_data) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(refused("remove", &new_data)(error));
        }
        _ => {}
    }
    symlink(&name, &new_data).map_err(refused("link", &new_data))?;
    std::fs::rename(&new_data, data).map_err(refused("replace", data))
}

/// A new folder named as the kubelet names it, by time; the time is a label and nothing depends on it.
fn fresh_dir(dir: &Path) -> Result<(String, PathBuf), AtomicWriteError> {
    let now = jiff::Timestamp::now();
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S");
    let mut serial = now.subsec_nanosecond();
    loop {
        let name = format!("{stamp}.{serial}");
        let path = dir.join(&name);
        match std::fs::DirBuilder::new().mode(0o755).create(&path) {
            Ok(()) => {
                set_mode(&path, 0o755)?;
                return Ok((name, path));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => serial += 1,
            Err(error) => return Err(refused("create", &path)(error)),
        }
    }
}

/// Creation modes are cut by the umask, so the mode is set again.
fn set_mode(path: &Path, mode: u32) -> Result<(), AtomicWriteError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(refused("chmod", path))
}

fn write_file(root: &Path, path: &str, data: &[u8], mode: u32) -> Result<(), AtomicWriteError> {
    let path = root.join(path);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(refused("create", parent))?;
    }
    let opened = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&path);
    opened.and_then(|mut file| file.write_all(data)).map_err(refused("write", &path))?;
    set_mode(&path, mode)
}

fn top(path: &str) -> Option<&str> {
    path.split('/').find(|part| !matches!(*part, "" | "."))
}

/// Each top-level name of the payload links into `..data`.
fn link_names(dir: &Path, payload: &Payload) -> Result<(), AtomicWriteError> {
    for name in payload.keys().filter_map(|path| top(path)) {
        let link = dir.join(name);
        if std::fs::symlink_metadata(&link).is_ok() {
            // Also a folder made for a volume that is mounted inside this one.
            continue;
        }
        symlink(Path::new(DATA).join(name), &link).map_err(refused("link", &link))?;
    }
    Ok(())
}

/// Removes links to files that are gone, and data folders that no longer are or never became current.
fn sweep(dir: &Path, payload: &Payload) -> Result<(), AtomicWriteError> {
    let current = read_link(&dir.join(DATA))?;
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| top(path)).collect();
    for entry in std::fs::read_dir(dir).map_err(refused("list", dir))? {
        let entry = entry.map_err(refused("list", dir))?;
        let (name, path) = (entry.file_name(), entry.path());
        let kind = entry.file_type().map_err(refused("stat", &path))?;
        let text = name.to_string_lossy();
        let is_old_data =
            kind.is_dir() && text.starts_with("..") && current.as_deref() != Some(Path::new(&name));
        if is_old_data {
            std::fs::remove_dir_all(&path).map_err(refused("remove", &path))?;
        } else if kind.is_symlink() && !text.starts_with("..") && !wanted.contains(&*text) {
            std::fs::remove_file(&path).map_err(refused("remove", &path))?;
        }
    }
    Ok(())
}
