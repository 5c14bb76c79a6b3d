//! The root of a container: an overlay of the image's layers and a writable one.
//!
//! Mounted when a container is created, unmounted when it has ended; synchronous, short system calls.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_change, move_mount, open_tree, unmount,
};

use crate::netns::{NamespaceError, UserMapping, on_thread};
use crate::sys::{self, MountAttributes};

/// The folder beside the upper one in which the kernel works.
pub(crate) const WORK: &str = "work";

/// The kernel copies one page of options, with a zero byte at its end.
const MAX_OPTIONS: usize = 4095;

/// The layers of one container.
#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    /// The image's layers, topmost first.
    pub(crate) lower: Vec<PathBuf>,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) target: PathBuf,
    /// The SELinux label that every file shows, where the container has one.
    pub(crate) label: Option<String>,
}

impl Overlay {
    /// Mounts the overlay. `links` is a folder of ours for short names, used when there are many layers.
    pub(crate) async fn mount(self, links: PathBuf) -> io::Result<()> {
        let plain = self.options(self.lower.iter().map(PathBuf::as_path));
        if plain.len() + VOLATILE.len() <= MAX_OPTIONS {
            return self.mount_with(&plain);
        }
        // Hundreds of long paths do not fit into the options: a thread with a working folder of its own
        // mounts them by the numbers of links in it. Works on every kernel, unlike the new mount calls.
        fs::create_dir_all(&links)?;
        let mut names = Vec::with_capacity(self.lower.len());
        for (number, layer) in self.lower.iter().enumerate() {
            let name = PathBuf::from(number.to_string());
            match symlink(layer, links.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => names.push(name),
            }
        }
        let folder = links.clone();
        let mounted = on_thread(move || Ok::<_, NamespaceError>(self.mount_from(&folder, &names))).await;
        let removed = fs::remove_dir_all(&links);
        mounted.map_err(io::Error::other)??;
        removed
    }

    /// Mounts the overlay with the image's files owned by the ids of a user namespace, which `userns` leads to. Each
    /// layer is cloned below `links`, mapped, and gone again once the overlay holds it.
    pub(crate) async fn mount_mapped(
        self,
        links: PathBuf,
        userns: PathBuf,
        mapping: UserMapping,
    ) -> io::Result<()> {
        // The root of the container is the upper layer's.
        chown(&self.upper, Some(mapping.uids.0), Some(mapping.gids.0))?;
        fs::create_dir_all(&links)?;
        let folder = links.clone();
        let mounted = on_thread(move || Ok::<_, NamespaceError>(self.mount_clones(&folder, &userns))).await;
        unmount_links(&links)?;
        let removed = fs::remove_dir_all(&links);
        mounted.map_err(io::Error::other)??;
        removed
    }

    fn mount_clones(&self, folder: &Path, userns: &Path) -> io::Result<()> {
        let userns = fs::File::open(userns)?;
        let mut names = Vec::with_capacity(self.lower.len());
        for (number, layer) in self.lower.iter().enumerate() {
            let name = PathBuf::from(number.to_string());
            let target = folder.join(&name);
            fs::create_dir(&target)?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = open_tree(CWD, layer, flags)?;
            // Read-only, so that nobody who removes the folder in spite of the mount takes the layer away.
            let attributes = MountAttributes { set: MountAttributes::READ_ONLY, propagation: 0 };
            attributes.apply(tree.as_fd(), false)?;
            MountAttributes::map_ids(tree.as_fd(), userns.as_fd())?;
            move_mount(&tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            names.push(name);
        }
        self.mount_from(folder, &names)
    }

    fn mount_from(&self, folder: &Path, names: &[PathBuf]) -> io::Result<()> {
        sys::unshare(sys::ns::FS)?;
        rustix::process::chdir(folder)?;
        self.mount_with(&self.options(names.iter().map(PathBuf::as_path)))
    }

    fn mount_with(&self, options: &[u8]) -> io::Result<()> {
        let attempt = |extra: &[u8]| {
            let text = CString::new([options, extra].concat())?;
            mount("overlay", &self.target, "overlay", MountFlags::empty(), text.as_c_str())
                .map_err(io::Error::from)
        };
        // The upper layer never outlives its container, so what it writes need not be synced (Linux 5.10).
        match attempt(VOLATILE) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => attempt(b""),
            result => result,
        }
    }

    fn options<'a>(&self, lower: impl Iterator<Item = &'a Path>) -> Vec<u8> {
        let mut options = b"lowerdir=".to_vec();
        for (number, layer) in lower.enumerate() {
            if number > 0 {
                options.push(b':');
            }
            options.extend(escape(layer));
        }
        options.extend_from_slice(b",upperdir=");
        options.extend(escape(&self.upper));
        options.extend_from_slice(b",workdir=");
        options.extend(escape(&self.work));
        if let Some(label) = &self.label {
            // In quotes, because categories are separated as options are.
            options.extend(format!(",context=\"{label}\"").into_bytes());
        }
        options
    }
}

const VOLATILE: &[u8] = b",volatile";

/// The separators of the option list, where they are part of a path.
fn escape(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

/// Unmounts the clones of layers that a mount that was cut off left in a folder. Idempotent.
pub(crate) fn unmount_links(folder: &Path) -> io::Result<()> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        entries => entries?.try_for_each(|entry| {
            let entry = entry?;
            // A link leads to a layer itself.
            if entry.file_type()?.is_dir() { unmount_all(&entry.path()) } else { Ok(()) }
        }),
    }
}

/// Unmounts everything at `target`. Idempotent.
pub(crate) fn unmount_all(target: &Path) -> io::Result<()> {
    loop {
        match unmount(target, UnmountFlags::DETACH) {
            Ok(()) => continue,
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether something is mounted at `path` itself.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(mount_points()?.iter().any(|point| point == path))
}

/// Every mount point of this process's mount namespace.
pub(crate) fn mount_points() -> io::Result<Vec<PathBuf>> {
    Ok(mounts(&fs::read("/proc/self/mountinfo")?).map(|(.., point)| point).collect())
}

/// Device, folder of the file system, and mount point of each line of the mount table.
fn mounts(table: &[u8]) -> impl Iterator<Item = (&[u8], PathBuf, PathBuf)> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        Some((fields.next()?, unescape(fields.next()?), unescape(fields.next()?)))
    })
}

/// The mount table writes space, tab, newline and backslash as octal.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                path.push(byte);
                rest = &tail[3..];
            }
            None => {
                path.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&path))
}

/// Makes a folder a mount point whose mounts are copied into no other mount namespace, so that what is
/// unmounted here is gone everywhere. Idempotent.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    if !is_mount_point(&path)? {
        mount_bind(&path, &path)?;
    }
    Ok(mount_change(&path, MountPropagationFlags::PRIVATE)?)
}

/// Takes back [`make_private`], unless something is still mounted below or somebody else mounted the folder.
pub(crate) fn unmake_private(path: &Path) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let table = fs::read("/proc/self/mountinfo")?;
    if is_bound_to_itself(&path, &table) { Ok(unmount(&path, UnmountFlags::DETACH)?) } else { Ok(()) }
}

/// Whether `path`, alone and with nothing mounted below, is a mount of the folder that it covers.
fn is_bound_to_itself(path: &Path, table: &[u8]) -> bool {
    let mounts: Vec<_> = mounts(table).collect();
    let mut here = mounts.iter().filter(|(.., point)| point.starts_with(path));
    let (Some((device, root, point)), None) = (here.next(), here.next()) else { return false };
    let around = mounts.iter().filter(|(.., point)| point != path && path.starts_with(point));
    // Of mounts on one another the last is seen.
    let Some((device_around, root_around, point_around)) =
        around.max_by_key(|(.., point)| point.as_os_str().len())
    else {
        return false;
    };
    let covered = path.strip_prefix(point_around).map(|rest| root_around.join(rest));
    point == path && device == device_around && covered.as_ref() == Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_fields_lose_their_octal() {
        assert_eq!(unescape(b"/a\\040b\\134c\\x"), Path::new("/a b\\c\\x"));
    }

    #[test]
    fn a_label_is_an_option_of_the_mount() {
        let mut overlay = Overlay {
            lower: vec!["/a".into()],
            upper: "/u".into(),
            work: "/w".into(),
            target: "/t".into(),
            label: None,
        };
        let options = |overlay: &Overlay| {
            String::from_utf8(overlay.options(overlay.lower.iter().map(PathBuf::as_path))).unwrap()
        };
        assert_eq!(options(&overlay), "lowerdir=/a,upperdir=/u,workdir=/w");
        overlay.label = Some("system_u:object_r:container_file_t:s0:c1,c2".into());
        assert_eq!(
            options(&overlay),
            "lowerdir=/a,upperdir=/u,workdir=/w,context=\"system_u:object_r:container_file_t:s0:c1,c2\""
        );
    }

    #[test]
    fn only_a_folder_bound_to_itself_is_taken_back() {
        let root = "1 0 254:0 / / rw - ext4 /dev/a rw\n2 1 0:5 / /run rw - tmpfs t rw\n";
        let is_ours =
            |line: &str| is_bound_to_itself(Path::new("/run/coracle"), format!("{root}{line}").as_bytes());
        assert!(is_ours("3 2 0:5 /coracle /run/coracle rw - tmpfs t rw\n"));
        assert!(!is_ours(""), "nothing is mounted there");
        assert!(!is_ours("3 2 0:9 / /run/coracle rw - tmpfs other rw\n"), "a file system of its own");
        assert!(!is_ours("3 2 0:5 /elsewhere /run/coracle rw - tmpfs t rw\n"), "another folder");
        let pinned = "3 2 0:5 /coracle /run/coracle rw - tmpfs t rw\n4 3 0:4 net:[1] /run/coracle/net/a rw - nsfs n rw\n";
        assert!(!is_ours(pinned), "something is mounted below");
    }

    #[tokio::test]
    async fn three_hundred_layers_with_long_names_mount_and_the_topmost_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let lower: Vec<PathBuf> = (0..300).map(|number| path(&format!("{number:0>80}"))).collect();
        for (number, layer) in lower.iter().enumerate() {
            fs::create_dir_all(layer).unwrap();
            fs::write(layer.join("same"), number.to_string()).unwrap();
            fs::write(layer.join(number.to_string()), "").unwrap();
        }
        for name in ["upper", "work", "rootfs"] {
            fs::create_dir(path(name)).unwrap();
        }
        let (upper, work, target) = (path("upper"), path("work"), path("rootfs"));
        let overlay = Overlay { lower, upper, work, target, label: None };
        overlay.mount(path("links")).await.unwrap();
        assert!(is_mount_point(&path("rootfs")).unwrap());
        assert_eq!(fs::read_to_string(path("rootfs/same")).unwrap(), "0");
        assert!(path("rootfs/299").exists());
        unmount_all(&path("rootfs")).unwrap();
        unmount_all(&path("rootfs")).unwrap();
        assert!(!is_mount_point(&path("rootfs")).unwrap());
        assert!(!path("links").exists());
    }
}
