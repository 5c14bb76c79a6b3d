//! Volumes that an image declares: a folder each, beside the writable layer, filled with what the image has
//! at that path.
//!
//! Called while a container is made, off the async threads. Nothing is followed out of the root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use crate::netns::UserMapping;
use crate::service_error::ServiceError;

/// Makes the volumes; answers each path in the container with its folder on the host.
pub(super) async fn make(
    rootfs: &Path,
    layer: &Path,
    paths: Vec<String>,
    user: Option<UserMapping>,
) -> Result<Vec<(String, PathBuf)>, ServiceError> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let (rootfs, parent) = (rootfs.to_path_buf(), layer.join("volumes"));
    let made = tokio::task::spawn_blocking(move || make_all(&rootfs, &parent, paths, user)).await;
    made.unwrap_or(Err(ServiceError::Panicked))
}

fn make_all(
    rootfs: &Path,
    parent: &Path,
    paths: Vec<String>,
    user: Option<UserMapping>,
) -> Result<Vec<(String, PathBuf)>, ServiceError> {
    fs::create_dir(parent).map_err(ServiceError::file("create", parent))?;
    let mut made = Vec::with_capacity(paths.len());
    for (number, path) in paths.into_iter().enumerate() {
        let volume = parent.join(number.to_string());
        let filled = fs::create_dir(&volume).and_then(|()| match plain_folder(rootfs, &path) {
            // What the image has is seen with the pod's owners.
            Some(source) => copy_folder(&source, &volume),
            None => match user {
                Some(mapping) => chown(&volume, Some(mapping.uids.0), Some(mapping.gids.0)),
                None => Ok(()),
            },
        });
        filled.map_err(ServiceError::file("fill volume", &volume))?;
        made.push((path, volume));
    }
    Ok(made)
}

/// The folder at `path` below `rootfs`, unless a link is on the way: a link may lead anywhere.
fn plain_folder(rootfs: &Path, path: &str) -> Option<PathBuf> {
    let mut at = rootfs.to_path_buf();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => return None,
        }
        if !fs::symlink_metadata(&at).ok()?.is_dir() {
            return None;
        }
    }
    Some(at)
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let meta = fs::symlink_metadata(&source)?;
        if meta.is_dir() {
            fs::create_dir(&target)?;
            copy_folder(&source, &target)?;
        } else if meta.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            lchown(&target, Some(meta.uid()), Some(meta.gid()))?;
        } else if meta.is_file() {
            fs::copy(&source, &target)?;
            keep_owner(&meta, &target)?;
        }
        // Sockets, pipes and devices are made by who needs them.
    }
    keep_owner(&fs::metadata(from)?, to)
}

fn keep_owner(meta: &fs::Metadata, target: &Path) -> io::Result<()> {
    chown(target, Some(meta.uid()), Some(meta.gid()))?;
    // After the owner, because a change of owner clears setuid bits.
    fs::set_permissions(target, fs::Permissions::from_mode(meta.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_volume_has_the_images_content_and_links_are_not_followed_out() {
        let dir = tempfile::tempdir().unwrap();
        let (rootfs, layer) = (dir.path().join("rootfs"), dir.path().join("layer"));
        fs::create_dir_all(rootfs.join("data/sub")).unwrap();
        fs::create_dir(&layer).unwrap();
        fs::write(rootfs.join("data/sub/file"), "content").unwrap();
        chown(rootfs.join("data/sub/file"), Some(1000), Some(1000)).unwrap();
        symlink("/etc", rootfs.join("out")).unwrap();
        let paths = vec!["/data".to_owned(), "/out".to_owned(), "/new".to_owned()];
        let made = make(&rootfs, &layer, paths, None).await.unwrap();
        assert_eq!(fs::read_to_string(made[0].1.join("sub/file")).unwrap(), "content");
        assert_eq!(fs::metadata(made[0].1.join("sub/file")).unwrap().uid(), 1000);
        assert_eq!(fs::read_dir(&made[1].1).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&made[2].1).unwrap().count(), 0);
    }
}
