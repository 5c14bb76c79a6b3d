//! Checks that the path of a hostPath volume is what its type says, or makes it.
//!
//! Blocking; texts are the kubelet's.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::api::HostPathVolumeSource;

/// Why a path of the host cannot be a volume.
#[derive(Debug, thiserror::Error)]
pub enum HostPathError {
    /// It is something else.
    #[error("hostPath type check failed: {path} is not a {expected}")]
    Mismatch {
        /// The path.
        path: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A type that there is not.
    #[error("{0} is an invalid volume type")]
    UnknownType(String),
    /// It cannot be made.
    #[error("create {path}")]
    Create {
        /// The path.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

pub(super) fn check(source: &HostPathVolumeSource) -> Result<(), HostPathError> {
    let path = Path::new(&source.path);
    let kind = source.r#type.as_deref().unwrap_or("");
    let create = |made: io::Result<()>| match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(HostPathError::Create { path: source.path.clone(), source: error })
        }
        _ => Ok(()),
    };
    let file_type = std::fs::metadata(path).map(|metadata| metadata.file_type());
    let is = |test: fn(&std::fs::FileType) -> bool| file_type.as_ref().is_ok_and(test);
    let (fits, expected) = match kind {
        "" => return Ok(()),
        "DirectoryOrCreate" if file_type.is_err() => return create(make_dir(path)),
        "DirectoryOrCreate" | "Directory" => (is(std::fs::FileType::is_dir), "directory"),
        "FileOrCreate" if file_type.is_err() => return create(make_file(path)),
        "FileOrCreate" | "File" => (is(std::fs::FileType::is_file), "file"),
        "Socket" => (is(|t| t.is_socket()), "socket file"),
        "CharDevice" => (is(|t| t.is_char_device()), "character device"),
        "BlockDevice" => (is(|t| t.is_block_device()), "block device"),
        other => return Err(HostPathError::UnknownType(other.to_owned())),
    };
    if fits { Ok(()) } else { Err(HostPathError::Mismatch { path: source.path.clone(), expected }) }
}

fn make_dir(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}

fn make_file(path: &Path) -> io::Result<()> {
    // Not its folder: the kubelet does not make that either.
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop)
}
