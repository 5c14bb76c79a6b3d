//! Turns the spec of a bundle into what libcontainer is asked to do and what the maker does itself.
//!
//! libcontainer 0.7 makes namespaces, cgroups, mounts, devices and the root. The maker takes over, because there:
//! - seccomp is not applied to `exec`, and a masked comparison swaps mask and value;
//! - propagation of bind mounts is dropped, `rshared` and `rslave` of the root are unknown;
//! - a bind mount on /dev is populated like a private one: devices and links would change on the host;
//! - a cgroup v1 mount is never read-only;
//! - environment goes through a hash map, the working directory must exist, and standard streams keep root as owner;
//! - a limit that may not rise, a capability not held, or an oom_score_adj below our own fails the container.
//!
//! Pure, but for what [`Node`] was told.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp, Mount,
    MountBuilder, PosixRlimitBuilder, Process, Spec, User,
};
use rustix::mount::MountPropagationFlags;

use super::cgroup::Mounts;
use super::finish::{Finish, Init};
use crate::sys::MountAttributes;

/// What the node allows the maker.
pub(super) struct Node {
    pub mounts: Mounts,
    /// Whether limits and scores may be raised past the inherited ones.
    pub sys_resource: bool,
    pub oom_score_adj: i32,
    /// The hard limit of a resource number.
    pub hard_limit: fn(u32) -> Option<u64>,
}

/// The parts of a prepared container.
pub(super) struct Prepared {
    /// For libcontainer.
    pub spec: Spec,
    /// For its init process, at the end.
    pub finish: Finish,
    /// The system call filter, which the maker compiles for `finish`.
    pub seccomp: Option<LinuxSeccomp>,
    /// Source of a bind mount on /dev, which the maker clones before anything else.
    pub dev_source: Option<PathBuf>,
    /// Bind mounts of a container with a user namespace, whose root may not reach their sources on the host: the maker
    /// clones them before anything else.
    pub binds: Vec<Bind>,
    /// The user namespace that the container joins.
    pub user_namespace: Option<PathBuf>,
    /// Rules for the BPF device program, on cgroup v2 only.
    pub device_rules: Option<Vec<LinuxDeviceCgroup>>,
    /// What was asked for and cannot be had here.
    pub warnings: Vec<String>,
}

/// A bind mount that the maker makes.
#[derive(Clone, Debug)]
pub(super) struct Bind {
    pub source: PathBuf,
    pub destination: PathBuf,
    /// With all that is mounted below the source.
    pub recursive: bool,
    /// Attributes of it, and of all below it if `recursive`.
    pub attributes: MountAttributes,
    /// Whether its owners are shown as those of the user namespace.
    pub mapped: bool,
}

/// Why a spec cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    #[error("the spec has no {0}")]
    Missing(&'static str),
}

/// Splits the work. `keyring` is the name of the session keyring, `None` to share the caller's.
pub(super) fn prepare(
    mut spec: Spec,
    keyring: Option<String>,
    node: &Node,
) -> Result<Prepared, PrepareError> {
    let mut warnings = Vec::new();
    let mut process = spec.process().clone().ok_or(PrepareError::Missing("process"))?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(PrepareError::Missing("process.args"));
    }
    adjust_process(&mut process, node, &mut warnings);
    let readonly_root = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    if let Some(root) = spec.root_mut() {
        root.set_readonly(Some(false));
    }

    let mut linux = spec.linux().clone().ok_or(PrepareError::Missing("linux section"))?;
    let seccomp = linux.seccomp().clone();
    linux.set_seccomp(None);
    linux.set_rootfs_propagation(linux.rootfs_propagation().as_deref().map(plain_propagation));
    let device_rules = match linux.resources_mut() {
        Some(resources) => {
            let rules = resources.devices().clone();
            let missing = node.mounts.keep_possible(resources);
            warnings.extend(missing.iter().map(|controller| {
                format!("cgroup controller {controller} is not available, its limits are not applied")
            }));
            node.mounts.unified().then(|| rules.unwrap_or_default())
        }
        None => None,
    };

    let mounts = split_mounts(&spec, &linux, node);
    linux.set_devices(linux.devices().as_ref().map(|devices| makeable_devices(devices, &mounts.list)));
    spec.set_mounts(Some(mounts.list));
    spec.set_process(Some(for_libcontainer(&process)));
    let user_namespace = user_namespace(&linux).and_then(|namespace| namespace.path().clone());
    spec.set_linux(Some(linux));
    let init = Init {
        readonly_root,
        propagation: mounts.propagation,
        readonly_after: mounts.readonly_after,
        dev_tree: None,
        binds: Vec::new(),
    };
    let finish = Finish { process, seccomp: None, keyring, init: Some(init) };
    let (dev_source, binds) = (mounts.dev_source, mounts.binds);
    Ok(Prepared { spec, finish, seccomp, dev_source, binds, user_namespace, device_rules, warnings })
}

/// The mounts of a spec, by who does what to them.
#[derive(Default)]
struct SplitMounts {
    /// For libcontainer to make.
    list: Vec<Mount>,
    propagation: Vec<(PathBuf, MountPropagationFlags)>,
    readonly_after: Vec<PathBuf>,
    dev_source: Option<PathBuf>,
    binds: Vec<Bind>,
}

fn user_namespace(linux: &Linux) -> Option<&LinuxNamespace> {
    linux.namespaces().iter().flatten().find(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

fn bind_of(mount: &Mount) -> Bind {
    let flag = |option: &str, attribute: u64| if has_option(mount, option) { attribute } else { 0 };
    let recursive = has_option(mount, "rbind");
    let private = if has_option(mount, "rslave") || has_option(mount, "slave") {
        libc::MS_SLAVE
    } else {
        libc::MS_PRIVATE
    };
    Bind {
        source: mount.source().clone().unwrap_or_default(),
        destination: mount.destination().clone(),
        recursive,
        attributes: MountAttributes {
            set: flag("ro", MountAttributes::READ_ONLY)
                | flag("rro", MountAttributes::READ_ONLY)
                | flag("nosuid", MountAttributes::NO_SUID)
                | flag("nodev", MountAttributes::NO_DEV)
                | flag("noexec", MountAttributes::NO_EXEC),
            propagation: private,
        },
        mapped: mount.uid_mappings().as_ref().is_some_and(|mappings| !mappings.is_empty()),
    }
}

fn split_mounts(spec: &Spec, linux: &Linux, node: &Node) -> SplitMounts {
    let mut split = SplitMounts::default();
    let cgroup_namespace =
        linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup);
    for mount in spec.mounts().iter().flatten() {
        split.propagation.extend(propagation_of(mount).map(|flags| (mount.destination().clone(), flags)));
        if is_bind(mount) && mount.destination() == Path::new("/dev") {
            split.dev_source = mount.source().clone();
            split.list.push(tmpfs("/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]));
        } else if is_bind(mount) && user_namespace(linux).is_some() {
            split.binds.push(bind_of(mount));
        } else if mount.typ().as_deref() == Some("cgroup") && !node.mounts.unified() && !cgroup_namespace {
            let path = linux.cgroups_path().clone().unwrap_or_default();
            split.list.extend(cgroup_v1_mounts(mount, &node.mounts, &path));
            // The tmpfs must take the mount points before nobody may write to it.
            split.readonly_after.extend(has_option(mount, "ro").then(|| mount.destination().clone()));
        } else {
            split.list.push(mount.clone());
        }
    }
    split
}

/// Lowers what a process asks for to what this node allows, with a word about each.
pub(super) fn adjust_process(process: &mut Process, node: &Node, warnings: &mut Vec<String>) {
    if node.sys_resource {
        return;
    }
    if let Some(wanted) = process.oom_score_adj().filter(|wanted| *wanted < node.oom_score_adj) {
        warnings.push(format!(
            "oom_score_adj {wanted} needs CAP_SYS_RESOURCE, the container gets {}",
            node.oom_score_adj
        ));
        process.set_oom_score_adj(Some(node.oom_score_adj));
    }
    let mut limits = process.rlimits().clone().unwrap_or_default();
    for limit in &mut limits {
        let Some(hard) = (node.hard_limit)(limit.typ() as u32) else { continue };
        if limit.hard() > hard {
            warnings.push(format!(
                "{} {} needs CAP_SYS_RESOURCE, the container gets {hard}",
                limit.typ(),
                limit.hard()
            ));
            *limit = PosixRlimitBuilder::default()
                .typ(limit.typ())
                .hard(hard)
                .soft(limit.soft().min(hard))
                .build()
                .expect("invariant: every field is set");
        }
    }
    process.set_rlimits(Some(limits).filter(|limits| !limits.is_empty()));
}

/// The process as libcontainer sees it: root, at the root, with everything still to come.
fn for_libcontainer(process: &Process) -> Process {
    let mut plain = process.clone();
    plain.set_user(User::default());
    plain.set_cwd(PathBuf::from("/"));
    plain.set_capabilities(None);
    plain.set_no_new_privileges(None);
    plain.set_apparmor_profile(None);
    plain.set_selinux_label(None);
    plain.set_env(None);
    plain
}

/// libcontainer applies every root propagation recursively and knows only the plain words.
fn plain_propagation(word: &str) -> String {
    match word {
        "rshared" => "shared",
        "rslave" => "slave",
        "rprivate" => "private",
        "runbindable" => "unbindable",
        other => other,
    }
    .to_owned()
}

fn propagation_of(mount: &Mount) -> Option<MountPropagationFlags> {
    mount.options().iter().flatten().rev().find_map(|option| {
        let rec = MountPropagationFlags::REC;
        Some(match option.as_str() {
            "private" => MountPropagationFlags::PRIVATE,
            "rprivate" => MountPropagationFlags::PRIVATE | rec,
            "slave" => MountPropagationFlags::DOWNSTREAM,
            "rslave" => MountPropagationFlags::DOWNSTREAM | rec,
            "shared" => MountPropagationFlags::SHARED,
            "rshared" => MountPropagationFlags::SHARED | rec,
            "unbindable" => MountPropagationFlags::UNBINDABLE,
            "runbindable" => MountPropagationFlags::UNBINDABLE | rec,
            _ => return None,
        })
    })
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has_option(mount, "bind") || has_option(mount, "rbind")
}

fn has_option(mount: &Mount, option: &str) -> bool {
    mount.options().iter().flatten().any(|existing| existing == option)
}

/// Devices that libcontainer may make: each path once, and none where a mount brings its own. It fails on a node
/// that exists, runc does not.
fn makeable_devices(devices: &[LinuxDevice], mounts: &[Mount]) -> Vec<LinuxDevice> {
    let mut seen = HashSet::new();
    let dev = Path::new("/dev");
    let mounted = |path: &Path| {
        let below_dev =
            mounts.iter().map(Mount::destination).filter(|target| *target != dev && target.starts_with(dev));
        below_dev.into_iter().any(|target| path.starts_with(target))
    };
    devices.iter().filter(|d| !mounted(d.path()) && seen.insert(d.path().clone())).cloned().collect()
}

fn tmpfs(target: &str, options: &[&str]) -> Mount {
    MountBuilder::default()
        .source("tmpfs")
        .typ("tmpfs")
        .destination(target)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
        .expect("invariant: every field of a mount is optional")
}

/// The container's own part of every v1 hierarchy, as runc mounts it: a tmpfs with a bind for each, read-only when
/// the spec says so.
fn cgroup_v1_mounts(mount: &Mount, host: &Mounts, cgroups_path: &Path) -> Vec<Mount> {
    let readonly = has_option(mount, "ro");
    let target = mount.destination().to_string_lossy().into_owned();
    let mut mounts = vec![tmpfs(&target, &["nosuid", "noexec", "nodev", "relatime", "mode=755"])];
    let relative = cgroups_path.strip_prefix("/").unwrap_or(cgroups_path);
    let mut points: Vec<&PathBuf> =
        host.v1.iter().filter(|(name, _)| !name.starts_with("name=")).map(|(_, point)| point).collect();
    points.dedup();
    for point in points {
        let Some(name) = point.file_name().and_then(|name| name.to_str()) else { continue };
        let mut options = vec!["rbind", "nosuid", "noexec", "nodev", "relatime"];
        if readonly {
            options.push("ro");
        }
        mounts.push(
            MountBuilder::default()
                .source(point.join(relative))
                .typ("bind")
                .destination(Path::new(&target).join(name))
                .options(options.into_iter().map(str::to_owned).collect::<Vec<_>>())
                .build()
                .expect("invariant: every field of a mount is optional"),
        );
    }
    mounts
}
