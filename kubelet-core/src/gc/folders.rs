//! Logs of pods that are gone, and links to logs that are.
//!
//! Called by the collector between its calls to the runtime; each removal is short.

use std::io;
use std::path::{Path, PathBuf};

use super::GcError;
use super::plan::{Known, id_of_log_link, uid_of_log_folder};

/// Entries of a folder; none if there is no folder.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, GcError> {
    let failed = |source| GcError::File { operation: "list", path: folder.to_owned(), source };
    match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            entries.map_err(failed)?.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
        }
    }
}

/// Removes the folders of logs whose pods are gone. Others in the same place are nobody's business here.
pub(super) fn remove_logs(folders: &[PathBuf], known: &Known, errors: &mut Vec<GcError>) {
    for folder in folders {
        let uid = folder.file_name().and_then(|name| name.to_str()).and_then(uid_of_log_folder);
        if uid.is_some_and(|uid| !known.contains(uid)) {
            gone(std::fs::remove_dir_all(folder), folder, errors);
        }
    }
}

/// Removes links whose log is not there, except for containers that run: while a log is rotated it is not
/// there for a moment.
pub(super) fn remove_dangling_links(
    folder: &Path,
    is_running: impl Fn(&str) -> bool,
    errors: &mut Vec<GcError>,
) {
    let links = match list(folder) {
        Ok(links) => links,
        Err(error) => return errors.push(error),
    };
    for link in links {
        let id = link.file_name().and_then(|name| name.to_str()).and_then(id_of_log_link);
        let dangles = link.is_symlink() && !link.exists();
        if dangles && id.is_some_and(|id| !is_running(id)) {
            gone(std::fs::remove_file(&link), &link, errors);
        }
    }
}

/// Someone else may have removed it first.
fn gone(result: io::Result<()>, path: &Path, errors: &mut Vec<GcError>) {
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            errors.push(GcError::File { operation: "remove", path: path.to_owned(), source });
        }
        _ => {}
    }
}
