//! Looks at the parts of the host that a container's spec depends on: where its mounts really come from, which
//! devices it gets, which profiles are there. The I/O beside the pure spec builder.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use coracle_cri::v1;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxSeccomp};

use super::security;

/// How a mount shares what is mounted below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Not at all.
    #[default]
    Private,
    /// Both ways.
    Shared,
    /// It receives.
    Slave,
}

/// Where a mount comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountSource {
    /// The source with links resolved.
    pub path: PathBuf,
    /// The mount that holds it.
    pub point: PathBuf,
    /// How that mount shares.
    pub sharing: Sharing,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// One for each mount, in their order.
    pub mounts: Vec<MountSource>,
    /// The devices asked for, with their access (`rwm`).
    pub devices: Vec<(LinuxDevice, String)>,
    /// All of the host's devices, for a privileged container.
    pub host_devices: Vec<LinuxDevice>,
    /// The seccomp profile of a file, where one is named.
    pub seccomp_file: Option<LinuxSeccomp>,
    /// Whether the AppArmor profile that is named is loaded.
    pub apparmor_loaded: bool,
}

/// What could not be seen.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// A source cannot be made or resolved.
    #[error("mount source {path:?}")]
    Source {
        /// The host path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mount table cannot be read.
    #[error("read the mount table")]
    MountTable(#[source] io::Error),
    /// A device is not there.
    #[error("error stating device path {path:?}")]
    Device {
        /// The host path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path that is no device.
    #[error("get device path {0:?}: not a device node")]
    NotADevice(PathBuf),
    /// A seccomp profile that cannot be read.
    #[error("cannot load seccomp profile {path:?}")]
    Profile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Looks at what `config` and `mounts` (from [`super::mounts::merge`]) name. Sources that are not there are made as
/// directories, as containerd does it.
pub fn observe(config: &v1::ContainerConfig, mounts: &[v1::Mount]) -> Result<Observed, ObserveError> {
    let sc = super::security_context(config);
    let propagating = |mount: &v1::Mount| mount.propagation() != v1::MountPropagation::PropagationPrivate;
    // The mount table of a full node is long; most containers never need it.
    let table = match mounts.iter().any(propagating) {
        true => fs::read_to_string("/proc/self/mountinfo").map_err(ObserveError::MountTable)?,
        false => String::new(),
    };
    let mut observed = Observed::default();
    for mount in mounts {
        let path = real_source(Path::new(&mount.host_path))?;
        let (point, sharing) =
            if propagating(mount) { holding_mount(&table, &path) } else { Default::default() };
        observed.mounts.push(MountSource { path, point, sharing });
    }
    for wanted in &config.devices {
        let source = Path::new(&wanted.host_path);
        let real = fs::canonicalize(source)
            .map_err(|error| ObserveError::Device { path: source.to_owned(), source: error })?;
        let target = Some(&wanted.container_path).filter(|path| !path.is_empty()).map(PathBuf::from);
        for device in devices(&real, target.as_deref())? {
            observed.devices.push((device, wanted.permissions.clone()));
        }
    }
    if sc.privileged {
        observed.host_devices = devices(Path::new("/dev"), None)?;
    }
    if let Some(path) = security::seccomp_file(&sc) {
        let fault = |source| ObserveError::Profile { path: path.clone(), source };
        let text = fs::read(&path).map_err(fault)?;
        let profile = serde_json::from_slice(&text).map_err(|error| fault(io::Error::other(error)))?;
        observed.seccomp_file = Some(profile);
    }
    if let Some(name) = security::apparmor_name(&sc) {
        let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
        observed.apparmor_loaded = security::is_loaded(&loaded, &name);
    }
    Ok(observed)
}

fn real_source(path: &Path) -> Result<PathBuf, ObserveError> {
    let fault = |source| ObserveError::Source { path: path.to_owned(), source };
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path).map_err(fault)?;
            fs::canonicalize(path).map_err(fault)
        }
        other => other.map_err(fault),
    }
}

/// The mount that holds a path, from a mountinfo text, and how it shares. Of several mounts on one place the last
/// is the one on top.
fn holding_mount(mountinfo: &str, path: &Path) -> (PathBuf, Sharing) {
    let mut best = (PathBuf::new(), Sharing::Private);
    for line in mountinfo.lines() {
        let Some((left, _)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = left.split(' ').collect();
        let Some(point) = fields.get(4).map(|point| PathBuf::from(unescape(point))) else { continue };
        if !path.starts_with(&point) || point.components().count() < best.0.components().count() {
            continue;
        }
        let tags = fields.get(6..).unwrap_or_default();
        let sharing = if tags.iter().any(|tag| tag.starts_with("shared:")) {
            Sharing::Shared
        } else if tags.iter().any(|tag| tag.starts_with("master:")) {
            Sharing::Slave
        } else {
            Sharing::Private
        };
        best = (point, sharing);
    }
    best
}

/// The kernel writes blanks and backslashes in paths as three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = text.to_owned();
    for (code, letter) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(code, letter);
    }
    plain
}

/// The device at a path, or all in a directory and below, under `target` in the container.
fn devices(path: &Path, target: Option<&Path>) -> Result<Vec<LinuxDevice>, ObserveError> {
    let fault = |source| ObserveError::Device { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(fault)?;
    if !metadata.is_dir() {
        let mut device = device(path, &metadata).ok_or_else(|| ObserveError::NotADevice(path.to_owned()))?;
        if let Some(target) = target {
            device.set_path(target.to_owned());
        }
        return Ok(vec![device]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let name = entry.file_name();
        let target = target.map(|target| target.join(&name));
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            // Virtual directories of /dev that every container has of its own.
            if !["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"]
                .iter()
                .any(|skip| name == *skip)
            {
                found.extend(devices(&entry.path(), target.as_deref())?);
            }
        } else if name != "console" && (kind.is_char_device() || kind.is_block_device()) {
            // A device that vanished since the listing was unplugged.
            let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
            found.extend(device(&target.unwrap_or_else(|| entry.path()), &metadata));
        }
    }
    found.sort_by(|a, b| a.path().cmp(b.path()));
    Ok(found)
}

fn device(path: &Path, metadata: &fs::Metadata) -> Option<LinuxDevice> {
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => LinuxDeviceType::B,
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_fifo() => LinuxDeviceType::P,
        _ => return None,
    };
    let number = metadata.rdev();
    let mut device = LinuxDevice::default();
    device
        .set_path(path.to_owned())
        .set_typ(kind)
        .set_major(i64::from(rustix::fs::major(number)))
        .set_minor(i64::from(rustix::fs::minor(number)))
        .set_file_mode(Some(metadata.mode() & 0o7777))
        .set_uid(Some(metadata.uid()))
        .set_gid(Some(metadata.gid()));
    Some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_holds_a_path() {
        let info = "1 0 8:1 / / rw shared:1 - ext4 x rw\n2 1 8:2 / /data rw,noatime master:7 - ext4 y rw\n\
                    3 2 8:3 / /data/my\\040disk rw - ext4 z rw\n";
        assert_eq!(holding_mount(info, Path::new("/etc")), (PathBuf::from("/"), Sharing::Shared));
        assert_eq!(holding_mount(info, Path::new("/data/x")), (PathBuf::from("/data"), Sharing::Slave));
        assert_eq!(holding_mount(info, Path::new("/data/my disk/x")).1, Sharing::Private);
        assert_eq!(holding_mount(info, Path::new("/database")).0, Path::new("/"));
    }

    #[test]
    fn devices_are_found_singly_and_in_directories() {
        let null = devices(Path::new("/dev/null"), Some(Path::new("/dev/nothing"))).unwrap();
        assert_eq!((null[0].major(), null[0].minor()), (1, 3));
        assert_eq!(null[0].path(), Path::new("/dev/nothing"));
        let all = devices(Path::new("/dev"), None).unwrap();
        assert!(all.iter().any(|device| device.path() == Path::new("/dev/null")));
        assert!(!all.iter().any(|device| device.path().starts_with("/dev/pts")));
        assert!(matches!(devices(Path::new("/etc/passwd"), None), Err(ObserveError::NotADevice(_))));
    }
}
