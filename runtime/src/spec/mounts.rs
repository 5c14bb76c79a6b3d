//! The mounts of a container: the default file systems, the sandbox's files, and what the kubelet asks for, merged
//! and ordered as containerd does it. Pure; `observe.rs` looks at the sources.

use std::path::{Component, Path, PathBuf};

use coracle_cri::v1;
use oci_spec::runtime::{LinuxIdMapping, Mount};

use super::observe::Sharing;
use super::{SpecInput, id_mappings};

/// Files of a sandbox that its containers see; absent ones are not mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxFiles {
    /// For /etc/hostname.
    pub hostname: Option<PathBuf>,
    /// For /etc/hosts, where the kubelet mounts none.
    pub hosts: Option<PathBuf>,
    /// For /etc/resolv.conf.
    pub resolv_conf: Option<PathBuf>,
    /// A directory for /dev/shm: the sandbox's tmpfs, or the host's /dev/shm with host IPC.
    pub shm: Option<PathBuf>,
}

/// A mount that cannot be as asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// Bidirectional propagation from a private mount.
    #[error("path {path:?} is mounted on {point:?} but it is not a shared mount")]
    NotShared {
        /// The source.
        path: PathBuf,
        /// The mount that holds it.
        point: PathBuf,
    },
    /// Host-to-container propagation from a private mount.
    #[error("path {path:?} is mounted on {point:?} but it is not a shared or slave mount")]
    NotSlave {
        /// The source.
        path: PathBuf,
        /// The mount that holds it.
        point: PathBuf,
    },
    /// Recursive read-only without a kernel for it.
    #[error("runtime handler does not support recursive read-only mounts (hostPath={0:?})")]
    NoRecursiveReadonly(String),
    /// Recursive read-only on a writable mount.
    #[error("recursive read-only mount conflicts with RW mount (hostPath={0:?})")]
    ReadonlyConflict(String),
    /// Recursive read-only with propagation.
    #[error("recursive read-only mount needs private propagation (hostPath={0:?})")]
    ReadonlyPropagation(String),
    /// A destination that is no path in the container.
    #[error("mount destination {0:?} is not absolute")]
    Relative(String),
}

/// The kubelet's mounts, then the sandbox's files and image volumes where the kubelet has none at the same place;
/// shallow before deep, so that none hides another.
///
/// `volumes` are the image's volumes: destination and host directory.
pub fn merge(
    config: &v1::ContainerConfig,
    files: &SandboxFiles,
    volumes: &[(String, PathBuf)],
) -> Vec<v1::Mount> {
    let sc = super::security_context(config);
    let mut mounts = config.mounts.clone();
    let mut add = |target: &str, source: &Path, readonly: bool, relabel: bool| {
        if config.mounts.iter().any(|mount| clean(&mount.container_path) == clean(target)) {
            return;
        }
        mounts.push(v1::Mount {
            container_path: if target.starts_with('/') { target.to_owned() } else { format!("/{target}") },
            host_path: source.to_string_lossy().into_owned(),
            readonly,
            selinux_relabel: relabel,
            ..v1::Mount::default()
        });
    };
    for (target, file) in [
        ("/etc/hostname", &files.hostname),
        ("/etc/hosts", &files.hosts),
        ("/etc/resolv.conf", &files.resolv_conf),
    ] {
        if let Some(file) = file {
            add(target, file, sc.readonly_rootfs, true);
        }
    }
    if let Some(shm) = &files.shm {
        add("/dev/shm", shm, false, shm != Path::new("/dev/shm"));
    }
    for (target, source) in volumes {
        add(target, source, false, true);
    }
    mounts.sort_by_key(|mount| clean(&mount.container_path).components().count());
    mounts
}

/// What the spec gets.
pub(super) struct OciMounts {
    pub list: Vec<Mount>,
    pub root_propagation: Option<String>,
}

/// Default mounts without those that the given ones replace, then the given ones.
pub(super) fn to_oci(
    input: &SpecInput<'_>,
    sc: &v1::LinuxContainerSecurityContext,
    cgroup_namespace: bool,
) -> Result<OciMounts, MountError> {
    let access = if sc.privileged { "rw" } else { "ro" };
    let mut cgroup_options = vec!["nosuid", "noexec", "nodev", "relatime", access];
    if !cgroup_namespace {
        // Mounting the one cgroup2 superblock again applies the options of the new mount to it: name the host's.
        cgroup_options.extend(input.host.cgroup_mount_options.iter().map(String::as_str));
    }
    let defaults = [
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup_options),
    ];
    let given: Vec<PathBuf> = input.mounts.iter().map(|mount| clean(&mount.container_path)).collect();
    let own_dev = given.iter().any(|target| target == Path::new("/dev"));
    let mut list: Vec<Mount> = defaults
        .into_iter()
        .filter(|default| !given.contains(default.destination()))
        .filter(|default| {
            !(own_dev
                && default.destination() != Path::new("/dev")
                && default.destination().starts_with("/dev"))
        })
        .collect();
    let mut root_propagation = None;
    for (index, wanted) in input.mounts.iter().enumerate() {
        let bind = bind(input, index, wanted)?;
        match wanted.propagation() {
            v1::MountPropagation::PropagationBidirectional => root_propagation = Some("rshared"),
            v1::MountPropagation::PropagationHostToContainer if root_propagation.is_none() => {
                root_propagation = Some("rslave");
            }
            _ => {}
        }
        list.push(bind);
    }
    Ok(OciMounts { list, root_propagation: root_propagation.map(str::to_owned) })
}

fn bind(input: &SpecInput<'_>, index: usize, wanted: &v1::Mount) -> Result<Mount, MountError> {
    if !wanted.container_path.starts_with('/') {
        return Err(MountError::Relative(wanted.container_path.clone()));
    }
    let source = input.observed.mounts.get(index).cloned().unwrap_or_default();
    let path =
        if source.path.as_os_str().is_empty() { PathBuf::from(&wanted.host_path) } else { source.path };
    let mut options = vec!["rbind"];
    options.push(match wanted.propagation() {
        v1::MountPropagation::PropagationPrivate => "rprivate",
        v1::MountPropagation::PropagationBidirectional if source.sharing != Sharing::Shared => {
            return Err(MountError::NotShared { path, point: source.point });
        }
        v1::MountPropagation::PropagationBidirectional => "rshared",
        v1::MountPropagation::PropagationHostToContainer if source.sharing == Sharing::Private => {
            return Err(MountError::NotSlave { path, point: source.point });
        }
        v1::MountPropagation::PropagationHostToContainer => "rslave",
    });
    options.push(match (wanted.readonly, wanted.recursive_read_only) {
        (false, true) => return Err(MountError::ReadonlyConflict(wanted.host_path.clone())),
        (true, true) if !input.host.recursive_readonly => {
            return Err(MountError::NoRecursiveReadonly(wanted.host_path.clone()));
        }
        (true, true) if wanted.propagation() != v1::MountPropagation::PropagationPrivate => {
            return Err(MountError::ReadonlyPropagation(wanted.host_path.clone()));
        }
        (true, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    });
    let mut bind = mount(&wanted.container_path, "bind", "", &options);
    bind.set_source(Some(path));
    let mapped = |list: &[v1::IdMapping]| -> Option<Vec<LinuxIdMapping>> {
        (!list.is_empty()).then(|| id_mappings(list))
    };
    bind.set_uid_mappings(mapped(&wanted.uid_mappings));
    bind.set_gid_mappings(mapped(&wanted.gid_mappings));
    Ok(bind)
}

/// The mounts of a PID-namespace holder: what a reaper reads, and nothing else.
pub(super) fn hold() -> Vec<Mount> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=64k"]),
    ]
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(target))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

/// A path without `.`, `..` and doubled slashes, by its words alone, always absolute.
pub(super) fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}
