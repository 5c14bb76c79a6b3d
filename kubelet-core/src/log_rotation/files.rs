//! The files of a container's log: sizes, renames, compression.
//!
//! Called by the rotation's task and, for compression, by a thread of its own. A compressed file is complete
//! before it has its name.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::plan::{self, LogPolicy};

/// A file of a log could not be handled.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct LogFileError {
    /// What was tried.
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl LogFileError {
    fn new(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { operation, path: path.to_owned(), source }
    }

    pub(super) fn interrupted(path: &Path, error: &tokio::task::JoinError) -> Self {
        Self { operation: "tidy up", path: path.to_owned(), source: io::Error::other(error.to_string()) }
    }
}

/// All files of a container's log that hold something, oldest first, the current one last.
pub fn all_logs(log: &Path) -> Result<Vec<PathBuf>, LogFileError> {
    let names = rotated(log)?;
    let mut used: Vec<PathBuf> =
        plan::in_use(&names).into_iter().map(|name| log.with_file_name(name)).collect();
    used.sort_unstable();
    used.push(log.to_owned());
    Ok(used)
}

/// Size of a log, `None` if there is none.
pub(super) fn size(log: &Path) -> Result<Option<u64>, LogFileError> {
    match fs::metadata(log) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LogFileError::new("read the size of", log)(error)),
    }
}

/// Removes what is too much and compresses what is not yet.
pub(super) fn tidy(log: &Path, policy: &LogPolicy) -> Result<(), LogFileError> {
    let plan = plan::tidying(file_name(log), &rotated(log)?, policy);
    for name in &plan.remove {
        let path = log.with_file_name(name);
        fs::remove_file(&path).map_err(LogFileError::new("remove", &path))?;
    }
    for name in &plan.compress {
        compress(&log.with_file_name(name))?;
    }
    Ok(())
}

/// Gives the current log the name of a rotated one.
pub(super) fn rename_aside(log: &Path, unix_seconds: i64) -> Result<PathBuf, LogFileError> {
    let plan = plan::tidying(file_name(log), &rotated(log)?, &LogPolicy::default());
    let suffix = plan::suffix(unix_seconds, plan.newest.as_deref());
    let aside = log.with_file_name(format!("{}.{suffix}", file_name(log)));
    fs::rename(log, &aside).map_err(LogFileError::new("rename", log))?;
    Ok(aside)
}

/// Undoes [`rename_aside`], unless a new log is there already.
pub(super) fn rename_back(aside: &Path, log: &Path) -> Result<(), LogFileError> {
    if log.exists() {
        return Ok(());
    }
    fs::rename(aside, log).map_err(LogFileError::new("rename", aside))
}

/// Names of the rotated files beside a log.
fn rotated(log: &Path) -> Result<Vec<String>, LogFileError> {
    let folder = log.parent().unwrap_or(Path::new("."));
    let prefix = format!("{}.", file_name(log));
    let failed = || LogFileError::new("list", folder);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        names.extend(name.into_string().ok().filter(|name| name.starts_with(&prefix)));
    }
    Ok(names)
}

fn file_name(log: &Path) -> &str {
    log.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

fn compress(path: &Path) -> Result<(), LogFileError> {
    let failed = || LogFileError::new("compress", path);
    let with_suffix = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let (temporary, compressed) = (with_suffix(".tmp"), with_suffix(".gz"));
    let source = File::open(path).map_err(failed())?;
    let mode = source.metadata().map_err(failed())?.permissions().mode();
    let options = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary);
    let result = options.and_then(|target| {
        // The lightest level: logs shrink to a tenth with it as well, in a third of the time.
        let mut encoder = GzEncoder::new(BufWriter::new(target), Compression::fast());
        io::copy(&mut BufReader::new(source), &mut encoder)?;
        encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        fs::rename(&temporary, &compressed)
    });
    if let Err(error) = result {
        // On a full disk the half-made file is what is in the way.
        let _ = fs::remove_file(&temporary);
        return Err(failed()(error));
    }
    fs::remove_file(path).map_err(LogFileError::new("remove", path))
}
