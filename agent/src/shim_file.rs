//! Finds the shim: the one that is named, the one built in, or the one beside this executable.
//!
//! The one built in is written to the data folder once per release, under a name with its checksum, so that
//! all shims of a release share the pages of one file, and running shims of the last release keep theirs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::replace::replace_durably;

#[cfg(embedded_shim)]
const EMBEDDED: Option<&[u8]> = Some(include_bytes!(env!("CORACLE_EMBEDDED_SHIM")));
#[cfg(not(embedded_shim))]
const EMBEDDED: Option<&[u8]> = None;

/// The shim to use.
pub(crate) fn find(named: Option<&Path>, data_dir: &Path) -> Result<PathBuf> {
    if let Some(path) = named {
        if !path.is_file() {
            bail!("--shim: {} is not a file", path.display());
        }
        return Ok(path.to_owned());
    }
    if let Some(bytes) = EMBEDDED {
        return install(bytes, data_dir);
    }
    let own = std::env::current_exe().context("cannot tell where this executable lies")?;
    let beside = own.with_file_name("coracle-shim");
    if beside.is_file() {
        return Ok(beside);
    }
    bail!("no coracle-shim beside {}; put it there, or name it with --shim", own.display())
}

fn install(bytes: &[u8], data_dir: &Path) -> Result<PathBuf> {
    let folder = data_dir.join("bin");
    let path = folder.join(format!("coracle-shim-{:016x}", checksum(bytes)));
    // Compared whole: a power loss may have left a file of the right name and length.
    if std::fs::read(&path).is_ok_and(|present| present == bytes) {
        return Ok(path);
    }
    replace_durably(&path, bytes, 0o755).context("cannot install the shim")?;
    Ok(path)
}

/// FNV-1a: names a release's file, guards nothing.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_shim_is_written_once_and_mended() {
        let data = tempfile::tempdir().unwrap();
        let path = install(b"shim", data.path()).unwrap();
        std::fs::write(&path, b"torn").unwrap();
        assert_eq!(install(b"shim", data.path()).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), b"shim");
    }

    #[test]
    fn a_shim_that_is_not_there_is_told() {
        assert!(
            find(Some(Path::new("/nonexistent")), Path::new("/")).unwrap_err().to_string().contains("--shim")
        );
    }
}
