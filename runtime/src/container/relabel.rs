//! Gives the files behind a container's mounts its SELinux label, where CRI asks for it. Blocking; called when the
//! specification of a container is made.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use coracle_cri::v1;
use rustix::fs::{XattrFlags, lsetxattr};

const ATTRIBUTE: &str = "security.selinux";

/// Folders of the system, whose services could do nothing any more with files of a container's label.
const NOT_THESE: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// A mount whose files did not get their label.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelabelError {
    /// The system needs the label that it has.
    #[error("SELinux relabeling of {0} is not allowed")]
    Refused(PathBuf),
    /// A file kept its label.
    #[error("relabel {path} with {label:?}")]
    File {
        /// Which.
        path: PathBuf,
        /// The label.
        label: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Labels what lies behind the mounts that ask for it.
pub(super) fn mounts(mounts: &[v1::Mount], label: &str) -> Result<(), RelabelError> {
    mounts.iter().filter(|mount| mount.selinux_relabel).try_for_each(|mount| {
        // As it is mounted: the file behind a link. What is not there is told by the mount itself.
        let Ok(path) = fs::canonicalize(&mount.host_path) else { return Ok(()) };
        let named = Path::new(&mount.host_path);
        let is_kept = |folder: &str| path == Path::new(folder) || named == Path::new(folder);
        if NOT_THESE.iter().any(|folder| is_kept(folder)) {
            return Err(RelabelError::Refused(path));
        }
        tree(&path, label)
    })
}

/// Labels a file, or a folder and all below it.
fn tree(root: &Path, label: &str) -> Result<(), RelabelError> {
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let failed = |source| RelabelError::File { path: path.clone(), label: label.to_owned(), source };
        match lsetxattr(&path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()).map_err(io::Error::from) {
            // A file system without labels has one for all its files, by its mount.
            Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(()),
            // Gone meanwhile: another container's mounts may hold the same volume.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            labelled => labelled.map_err(failed)?,
        }
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            let entries = fs::read_dir(&path).map_err(failed)?;
            open.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_that_ask_are_labelled_and_folders_of_the_system_never() {
        let mount = |path: &str, selinux_relabel| v1::Mount {
            host_path: path.into(),
            selinux_relabel,
            ..v1::Mount::default()
        };
        let label = "system_u:object_r:container_file_t:s0";
        mounts(&[mount("/usr", false), mount("/nonexistent", true)], label).unwrap();
        let refused = mounts(&[mount("/usr/", true)], label).unwrap_err();
        assert_eq!(refused.to_string(), "SELinux relabeling of /usr is not allowed");
    }

    #[test]
    fn a_whole_tree_is_labelled_but_not_what_links_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("volume/deep"), dir.path().join("outside"));
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join("file"), "").unwrap();
        fs::write(&outside, "").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        tree(&dir.path().join("volume"), label).unwrap();
        let read = |path: &Path| {
            let mut value = [0; 64];
            rustix::fs::lgetxattr(path, ATTRIBUTE, &mut value)
                .map(|length| String::from_utf8_lossy(&value[..length]).into_owned())
        };
        // Without SELinux the kernel keeps the attribute as any other, where the file system has them.
        let has_labels = read(&dir.path().join("volume")).is_ok();
        assert_eq!(read(&inside.join("file")).is_ok_and(|found| found == label), has_labels);
        assert!(read(&outside).is_err(), "what a link leads to keeps its label");
    }
}
