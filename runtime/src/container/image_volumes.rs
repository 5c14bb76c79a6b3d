//! Images as volumes: each is mounted below the container's bundle and held while the container is there.
//!
//! Called while a container is made, adopted and taken away. What is mounted can be written by nobody: the container gets
//! it read-only, and the writable layer that an overlay must have goes with the container.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coracle_cri::v1;

use super::overlay::{self, Overlay};
use crate::config::Layout;
use crate::netns::UserMapping;
use crate::service::Engine;
use crate::service_error::{ServiceError, chain};

/// What containerd's errors about them begin with, and kubelets look for.
const FAILED: &str = "ImageVolumeMountFailed";

/// Who holds an image volume's image.
fn holder(id: &str, number: usize) -> String {
    format!("{id}/{number}")
}

/// The folder of a container's image volumes.
fn folder(layout: &Layout, id: &str) -> PathBuf {
    layout.bundle(id).join("images")
}

fn failed(what: impl std::fmt::Display) -> ServiceError {
    ServiceError::Invalid { what: format!("{FAILED}: {what}") }
}

impl Engine {
    /// Mounts the images that a container's mounts name, and says in them where.
    pub(crate) async fn mount_images(
        &self,
        id: &str,
        sandbox_id: &str,
        mounts: &mut [v1::Mount],
        (user, label): (Option<UserMapping>, Option<String>),
    ) -> Result<(), ServiceError> {
        for (number, mount) in mounts.iter_mut().enumerate() {
            let Some(image) = &mount.image else { continue };
            if !mount.host_path.is_empty() {
                return Err(failed(format_args!(
                    "hostpath must be empty while mount image: {:?}",
                    mount.host_path
                )));
            }
            if !mount.readonly {
                return Err(failed("readonly must be true while mount image"));
            }
            if image.image.is_empty() {
                return Err(failed("image not specified"));
            }
            let target =
                self.mount_image(id, sandbox_id, number, &image.image, (user, label.clone())).await?;
            mount.host_path = sub_folder(&target, &mount.image_sub_path)?.to_string_lossy().into_owned();
            // The files have the pod's owners already.
            mount.uid_mappings.clear();
            mount.gid_mappings.clear();
        }
        Ok(())
    }

    async fn mount_image(
        &self,
        id: &str,
        sandbox_id: &str,
        number: usize,
        name: &str,
        (user, label): (Option<UserMapping>, Option<String>),
    ) -> Result<PathBuf, ServiceError> {
        let image = self.images.resolve(name);
        let image =
            image.ok_or_else(|| failed(format_args!("failed to resolve image {name:?}: not found")))?;
        let held = self.images.hold(&holder(id, number), &image.id);
        held.map_err(|error| failed(format_args!("failed to resolve image {name:?}: {}", chain(&error))))?;
        let place = folder(&self.layout, id).join(number.to_string());
        let (layer, links) =
            (self.layout.layer(id).join(format!("image-{number}")), place.with_extension("lower"));
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        for dir in [&place, &upper, &work] {
            fs::create_dir_all(dir).map_err(ServiceError::file("create", dir))?;
        }
        let overlay = Overlay { lower: image.lower_dirs.clone(), upper, work, target: place.clone(), label };
        let mounted = match user {
            None => overlay.mount(links).await,
            Some(mapping) => {
                let userns = self.layout.pins(sandbox_id).join("user");
                overlay.mount_mapped(links, userns, mapping).await
            }
        };
        mounted.map_err(|error| failed(format_args!("failed to mount image volume {name:?}: {error}")))?;
        Ok(place)
    }

    /// Holds the images of a container that an earlier runtime made.
    pub(crate) fn hold_images_again(&self, id: &str, mounts: &[v1::Mount]) {
        for (number, mount) in mounts.iter().enumerate() {
            let Some(name) = mount.image.as_ref().map(|image| &image.image) else { continue };
            let held = match self.images.resolve(name) {
                Some(image) => self.images.hold(&holder(id, number), &image.id).map(drop),
                None => Ok(()),
            };
            if let Err(error) = held {
                tracing::warn!(container = %id, error = %chain(&error), "the image of a volume is gone");
            }
        }
    }

    /// Lets go of a container's image volumes, which must be unmounted.
    pub(crate) async fn release_images(&self, id: &str, mounts: &[v1::Mount]) {
        for (number, _) in mounts.iter().enumerate().filter(|(_, mount)| mount.image.is_some()) {
            if let Err(error) = self.images.release(&holder(id, number)).await {
                tracing::warn!(container = %id, error = %chain(&error), "the image of a removed volume stays");
            }
        }
    }
}

/// Unmounts a container's image volumes. Idempotent.
pub(crate) fn unmount(layout: &Layout, id: &str) -> io::Result<()> {
    let entries = match fs::read_dir(folder(layout, id)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some() {
            overlay::unmount_links(&path)?;
        } else {
            overlay::unmount_all(&path)?;
        }
    }
    Ok(())
}

/// The folder at `path` below a mounted image; links may lead about in it, not out of it.
fn sub_folder(root: &Path, path: &str) -> Result<PathBuf, ServiceError> {
    if path.is_empty() {
        return Ok(root.to_path_buf());
    }
    let missing = |error: io::Error| failed(format_args!("failed to ensure image subpath {path:?}: {error}"));
    let root = fs::canonicalize(root).map_err(missing)?;
    let found = fs::canonicalize(root.join(path.trim_start_matches('/'))).map_err(missing)?;
    if !found.starts_with(&root) {
        return Err(failed(format_args!("image subpath {path:?} leads out of the image")));
    }
    if !found.is_dir() {
        return Err(failed(format_args!("only directory subpath is supported, subpath: {path:?}")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_is_a_folder_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        std::os::unix::fs::symlink("a", root.join("inside")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("outside")).unwrap();
        assert_eq!(sub_folder(root, "").unwrap(), root);
        assert!(sub_folder(root, "inside/b").unwrap().ends_with("a/b"));
        for (path, words) in [
            ("file", "only directory subpath is supported"),
            ("outside", "leads out of the image"),
            ("../..", "leads out of the image"),
            ("none", "failed to ensure image subpath"),
        ] {
            let error = sub_folder(root, path).unwrap_err().to_string();
            assert!(error.starts_with("ImageVolumeMountFailed: ") && error.contains(words), "{error}");
        }
    }
}
