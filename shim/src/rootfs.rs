//! Mounts a container's root as containerd asks for it, and unmounts it. Called when a container is created and when it
//! is gone; blocks only on the kernel. Option names are those of fstab.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coracle_shim::protocol::task::Mount;

use crate::sys;

/// What the kernel copies of a mount's options: a page with its final zero byte.
const MAX_DATA: usize = 4095;

/// A root that cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("cannot make {path}")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("mounts with option {0:?} are not served by this shim")]
    Unserved(String),
    #[error("{0:?} contains a zero byte")]
    Zero(String),
    #[error("cannot mount {kind} {origin} on {path}")]
    Mount {
        kind: String,
        origin: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Flags by their names, and whether the name takes them away.
const FLAGS: [(&str, bool, libc::c_ulong); 20] = [
    ("ro", false, libc::MS_RDONLY),
    ("rw", true, libc::MS_RDONLY),
    ("nosuid", false, libc::MS_NOSUID),
    ("suid", true, libc::MS_NOSUID),
    ("nodev", false, libc::MS_NODEV),
    ("dev", true, libc::MS_NODEV),
    ("noexec", false, libc::MS_NOEXEC),
    ("exec", true, libc::MS_NOEXEC),
    ("sync", false, libc::MS_SYNCHRONOUS),
    ("async", true, libc::MS_SYNCHRONOUS),
    ("noatime", false, libc::MS_NOATIME),
    ("atime", true, libc::MS_NOATIME),
    ("nodiratime", false, libc::MS_NODIRATIME),
    ("diratime", true, libc::MS_NODIRATIME),
    ("relatime", false, libc::MS_RELATIME),
    ("norelatime", true, libc::MS_RELATIME),
    ("strictatime", false, libc::MS_STRICTATIME),
    ("bind", false, libc::MS_BIND),
    ("rbind", false, libc::MS_BIND | libc::MS_REC),
    ("dirsync", false, libc::MS_DIRSYNC),
];

/// Mounts all of them at `root`, one over the other; none stays when one fails.
pub(crate) fn mount(mounts: &[Mount], root: &Path) -> Result<(), RootError> {
    if mounts.is_empty() {
        return Ok(());
    }
    let made = fs::create_dir_all(root);
    made.map_err(|source| RootError::Folder { path: root.to_path_buf(), source })?;
    for mount in mounts {
        if let Err(error) = mount_one(mount, root) {
            unmount(root);
            return Err(error);
        }
    }
    Ok(())
}

fn mount_one(mount: &Mount, root: &Path) -> Result<(), RootError> {
    let target = root.join(mount.target.trim_start_matches('/'));
    let (flags, data) = parse(&mount.options)?;
    let text = |text: &str| CString::new(text).map_err(|_| RootError::Zero(text.to_owned()));
    let broken = |source| RootError::Mount {
        kind: mount.r#type.clone(),
        origin: mount.source.clone(),
        path: target.clone(),
        source,
    };
    let path = text(&target.to_string_lossy())?;
    let (kind, source) = (text(&mount.r#type)?, text(&mount.source)?);
    // The kernel takes what a bind mount is to be only from a second call.
    let later = if flags & libc::MS_BIND == 0 { 0 } else { flags & !(libc::MS_BIND | libc::MS_REC) };
    let first = flags & !later;
    let folder = (data.len() > MAX_DATA).then(|| common_folder(&data)).flatten();
    let data = match &folder {
        Some(folder) => data.replace(&format!("{}/", folder.display()), ""),
        None => data,
    };
    let data = text(&data)?;
    let mounted = in_folder(folder.as_deref(), || sys::mount(&source, &path, &kind, first, &data));
    mounted.map_err(broken)?;
    if later != 0 {
        let flags = libc::MS_REMOUNT | libc::MS_BIND | later;
        sys::mount(&source, &path, &kind, flags, c"").map_err(broken)?;
    }
    Ok(())
}

/// Cuts options into flags and what the file system reads itself.
fn parse(options: &[String]) -> Result<(libc::c_ulong, String), RootError> {
    let (mut flags, mut data) = (0, Vec::new());
    for option in options {
        if let Some((_, clears, flag)) = FLAGS.iter().find(|(name, _, _)| name == option) {
            flags = if *clears { flags & !flag } else { flags | flag };
        } else if ["uidmap=", "gidmap=", "loop"].iter().any(|unserved| option.starts_with(unserved)) {
            return Err(RootError::Unserved(option.clone()));
        } else if option != "defaults" && !option.starts_with("X-containerd.") {
            data.push(option.as_str());
        }
    }
    Ok((flags, data.join(",")))
}

/// The folder that all lower layers lie in.
fn common_folder(data: &str) -> Option<PathBuf> {
    let layers = data.split(',').find_map(|option| option.strip_prefix("lowerdir="))?;
    let mut layers = layers.split(':');
    let mut common = Path::new(layers.next()?).parent()?;
    for layer in layers {
        while !Path::new(layer).starts_with(common) {
            common = common.parent()?;
        }
    }
    (common.components().count() > 1).then(|| common.to_path_buf())
}

/// Does something in a working folder; the shim's own is the root.
fn in_folder(folder: Option<&Path>, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let Some(folder) = folder else { return act() };
    std::env::set_current_dir(folder)?;
    let result = act();
    std::env::set_current_dir("/")?;
    result
}

/// Unmounts whatever is mounted at `root`; nothing is no error.
pub(crate) fn unmount(root: &Path) {
    /// More than anybody stacks there.
    const MAX: usize = 64;
    let Ok(path) = CString::new(root.as_os_str().as_encoded_bytes()) else { return };
    for _ in 0..MAX {
        let result = sys::unmount(&path, 0).or_else(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => sys::unmount(&path, libc::MNT_DETACH),
            _ => Err(error),
        });
        if result.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &str) -> Vec<String> {
        words.split(' ').map(ToOwned::to_owned).collect()
    }

    #[test]
    fn options_are_flags_or_data() {
        let (flags, data) =
            parse(&options("index=off workdir=/w upperdir=/u lowerdir=/l ro nodev rw")).unwrap();
        assert_eq!(flags, libc::MS_NODEV);
        assert_eq!(data, "index=off,workdir=/w,upperdir=/u,lowerdir=/l");
        assert_eq!(parse(&options("rbind ro")).unwrap().0, libc::MS_BIND | libc::MS_REC | libc::MS_RDONLY);
        assert!(parse(&options("uidmap=0:1000:1")).is_err());
    }

    #[test]
    fn long_options_are_cut_at_the_folder_of_all_layers() {
        let folder = common_folder("workdir=/s/9/work,lowerdir=/s/1/fs:/s/2/fs:/s/10/fs,upperdir=/s/9/fs");
        assert_eq!(folder.as_deref(), Some(Path::new("/s")));
        assert_eq!(common_folder("lowerdir=/a/1:/b/1"), None);
        assert_eq!(common_folder("size=1"), None);
    }
}
