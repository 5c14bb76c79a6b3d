//! Takes away a pod's folder with all that is mounted in it.
//!
//! Blocking, idempotent, and never follows a link or crosses into a mount: what is still mounted is not entered,
//! so that no file of a volume that refuses to go is deleted by mistake.

use std::io;
use std::path::{Path, PathBuf};

use crate::sys;

/// What of a pod's folder stays behind, and why.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct VolumeTeardownError {
    /// What was tried.
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeTeardownError {
    let path = path.to_owned();
    move |source| VolumeTeardownError { operation, path, source }
}

/// Unmounts everything at or below `pod_dir` and removes it; goes on after errors and returns all.
pub(crate) fn tear_down(pod_dir: &Path) -> Vec<VolumeTeardownError> {
    let mut errors = Vec::new();
    // The table has no links in its paths.
    let real = match std::fs::canonicalize(pod_dir) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return errors,
        Err(error) => return vec![failed("resolve", pod_dir)(error)],
    };
    match sys::mounts_below(&real) {
        Ok(points) => {
            for point in points {
                if let Err(error) = sys::unmount(&point) {
                    errors.push(failed("unmount", &point)(error));
                }
            }
        }
        Err(error) => return vec![failed("list the mounts below", &real)(error)],
    }
    match sys::mounts_below(&real) {
        Ok(left) if left.is_empty() => remove(&real, &mut errors),
        Ok(_) => {
            if errors.is_empty() {
                errors.push(failed("unmount", &real)(io::ErrorKind::ResourceBusy.into()));
            }
        }
        Err(error) => errors.push(failed("list the mounts below", &real)(error)),
    }
    errors
}

fn remove(pod_dir: &Path, errors: &mut Vec<VolumeTeardownError>) {
    // Does not follow links, and is safe against folders that become links meanwhile.
    match std::fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            errors.push(failed("remove", pod_dir)(error));
        }
        _ => {}
    }
}
