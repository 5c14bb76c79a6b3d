//! Gives a volume to the pod's fsGroup.
//!
//! As the kubelet does it for volumes that live with the pod: every entry gets the group, and the group may read
//! it and, unless the volume is read-only, write it; folders pass the group on. Links are not followed.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// What the group may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

/// Walks `root`, children before parents, so that a walk that was cut off starts again.
pub(super) fn give_to_group(root: &Path, group: u32, access: Access) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(root)?;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(root)? {
            give_to_group(&entry?.path(), group, access)?;
        }
    }
    if metadata.gid() != group {
        std::os::unix::fs::lchown(root, None, Some(group))?;
    }
    if metadata.is_symlink() {
        return Ok(());
    }
    let mut mask = if access == Access::ReadOnly { 0o440 } else { 0o660 };
    if metadata.is_dir() {
        mask |= 0o2110;
    }
    let mode = metadata.mode() & 0o7777;
    // A change of group clears the setuid bits, so the mode is always set after one.
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(mode | mask))
}
