//! CRI configurations to OCI runtime specs, as containerd's CRI plugin writes them.
//!
//! The runtime's container service calls, in this order:
//! 1. [`mounts::merge`]: every mount of the container, the sandbox's files and image volumes among them (pure);
//! 2. [`observe::observe`]: what of the host the spec depends on: mount sources, devices, profiles (I/O);
//! 3. [`user::UserFiles::read`] over the mounted root (I/O) and [`user::resolve`] (pure);
//! 4. [`container_spec`] (pure), and [`exec_process`] for what is executed later.
//!
//! Nothing here keeps state; [`host::HostFacts`] is gathered once at start.

pub mod apparmor;
pub mod capabilities;
pub mod cdi;
pub mod devices;
pub mod host;
pub mod mounts;
pub mod observe;
pub mod resources;
pub mod seccomp_default;
pub mod security;
pub mod signal;
pub mod user;

mod process;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use coracle_cri::v1;
use oci_spec::runtime::{
    Linux, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, LinuxResources,
    Process, Root, Spec,
};

use host::HostFacts;
use observe::Observed;
use user::ResolvedUser;

/// The SELinux label of a container's files: `None` without SELinux, or without options of the pod.
pub(crate) fn file_label(config: &v1::ContainerConfig, host: &HostFacts) -> Option<String> {
    security::file_label(&security_context(config), host)
}

/// What an image says about how it runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageDefaults<'a> {
    /// `NAME=value` each.
    pub env: &'a [String],
    /// First part of the command line.
    pub entrypoint: &'a [String],
    /// Rest of the command line, or all of it.
    pub cmd: &'a [String],
    /// Working directory; empty for `/`.
    pub working_dir: &'a str,
}

/// Where a container finds a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NamespaceRef {
    /// The host's.
    #[default]
    Host,
    /// A new one of its own.
    Own,
    /// An existing one, by a path to enter it.
    Path(PathBuf),
}

/// The namespaces of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Network.
    pub net: NamespaceRef,
    /// IPC.
    pub ipc: NamespaceRef,
    /// Host name.
    pub uts: NamespaceRef,
    /// Processes: `Own` unless the pod shares them, targets another container or uses the host's.
    pub pid: NamespaceRef,
    /// Users; the host's unless the pod has its own.
    pub user: NamespaceRef,
}

/// Everything a container's spec is made of.
#[derive(Clone, Copy, Debug)]
pub struct SpecInput<'a> {
    /// The container's id.
    pub container_id: &'a str,
    /// Its sandbox's id.
    pub sandbox_id: &'a str,
    /// What the kubelet asks for.
    pub config: &'a v1::ContainerConfig,
    /// What it asked for the sandbox.
    pub sandbox: &'a v1::PodSandboxConfig,
    /// What the image says.
    pub image: ImageDefaults<'a>,
    /// The image's name for annotations.
    pub image_name: &'a str,
    /// Who the process runs as.
    pub user: &'a ResolvedUser,
    /// Where its namespaces are.
    pub namespaces: &'a Namespaces,
    /// The container's cgroup: an absolute path below the hierarchies, or `slice:prefix:name` for systemd.
    pub cgroups_path: &'a str,
    /// Absolute path of the mounted root.
    pub rootfs: &'a Path,
    /// Every mount, as [`mounts::merge`] gave them.
    pub mounts: &'a [v1::Mount],
    /// What [`observe::observe`] saw for these mounts and this config.
    pub observed: &'a Observed,
    /// What this node is.
    pub host: &'a HostFacts,
}

/// Why no spec can be made. The words are containerd's where it has some.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither pod nor image name a command.
    #[error("no command specified")]
    NoCommand,
    /// A privileged container in a sandbox that is not.
    #[error("no privileged container allowed in sandbox")]
    PrivilegedSandbox,
    /// A capability that does not exist.
    #[error("unknown capability {0:?}")]
    Capability(String),
    /// A mount that cannot be as asked.
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    /// A security profile that cannot be had.
    #[error(transparent)]
    Security(#[from] security::SecurityError),
    /// User namespaces of pod and container differ.
    #[error("user namespace config for sandbox is different from container")]
    UserNamespace,
}

/// The spec of a container.
pub fn container_spec(input: &SpecInput<'_>) -> Result<Spec, SpecError> {
    let sc = security_context(input.config);
    let sandbox_sc = input.sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    if sc.privileged && !sandbox_sc.is_some_and(|sandbox| sandbox.privileged) {
        return Err(SpecError::PrivilegedSandbox);
    }
    let userns =
        |options: Option<&v1::NamespaceOption>| options.and_then(|options| options.userns_options.clone());
    if userns(sc.namespace_options.as_ref())
        != userns(sandbox_sc.and_then(|sc| sc.namespace_options.as_ref()))
    {
        return Err(SpecError::UserNamespace);
    }
    let caps = capabilities::for_container(&sc, input.host.capabilities).map_err(SpecError::Capability)?;
    let security = security::choose(&sc, &caps, input.observed, input.host)?;
    let cgroup_namespace = input.host.cgroup.unified() && !sc.privileged;
    let mounts = mounts::to_oci(input, &sc, cgroup_namespace)?;

    let mut process = process::container_process(input, &sc)?;
    process.set_capabilities(Some(caps));
    process.set_apparmor_profile(security.apparmor);
    process.set_selinux_label(security.process_label);

    let mut linux = Linux::default();
    linux
        .set_cgroups_path(Some(PathBuf::from(input.cgroups_path)))
        .set_namespaces(Some(namespaces(input.namespaces, cgroup_namespace)))
        .set_resources(Some(resources::for_container(input, sc.privileged)))
        .set_devices(Some(devices::for_container(input.observed, sc.privileged)))
        .set_seccomp(security.seccomp)
        .set_mount_label(security.mount_label)
        .set_rootfs_propagation(mounts.root_propagation)
        .set_masked_paths(paths(&sc.masked_paths, sc.privileged))
        .set_readonly_paths(paths(&sc.readonly_paths, sc.privileged));
    if input.namespaces.user != NamespaceRef::Host {
        let options = sc.namespace_options.as_ref().and_then(|options| options.userns_options.as_ref());
        linux.set_uid_mappings(options.map(|options| id_mappings(&options.uids)));
        linux.set_gid_mappings(options.map(|options| id_mappings(&options.gids)));
    }
    let mut spec = bare_spec(input.rootfs, sc.readonly_rootfs, process, linux);
    spec.set_mounts(Some(mounts.list));
    spec.set_annotations(Some(annotations(input)));
    Ok(spec)
}

/// What was asked for and this node does not have, in words for an event, each with its cure.
pub fn notices(input: &SpecInput<'_>) -> Vec<String> {
    let sc = security_context(input.config);
    let mut notices = resources::notices(input);
    if sc.selinux_options.is_some() && !input.host.selinux {
        notices.push("seLinuxOptions are ignored: SELinux is not enabled in this node's kernel".to_owned());
    }
    notices
}

/// The process of an exec: the container's own with another command.
///
/// `tty` asks for a terminal; the environment then has TERM as containerd sets it.
pub fn exec_process(container: &Spec, command: &[String], tty: bool) -> Process {
    let mut process = container.process().clone().unwrap_or_default();
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(tty));
    if tty {
        let mut env = process.env().clone().unwrap_or_default();
        process::set_env(&mut env, "TERM=xterm");
        process.set_env(Some(env));
    }
    process
}

/// The spec of the process that holds a pod's shared PID namespace: `args` below `rootfs`, read-only, without
/// capabilities, in the namespaces of the pod.
pub fn hold_spec(
    rootfs: &Path,
    args: &[&str],
    sandbox: &v1::PodSandboxConfig,
    sandbox_id: &str,
    pod: &Namespaces,
    cgroups_path: &str,
    host: &HostFacts,
) -> Spec {
    let mut process = process::bare(args.iter().map(|arg| (*arg).to_owned()).collect());
    // It must outlive what it holds: as the kubelet does it for a pause container.
    process.set_oom_score_adj(Some(host.possible_oom_score_adj(-998)));
    process.set_no_new_privileges(Some(true));
    let caps = capabilities::CapSet::default().to_oci();
    let mut none = oci_spec::runtime::LinuxCapabilities::default();
    none.set_bounding(Some(caps.clone())).set_effective(Some(caps.clone())).set_permitted(Some(caps));
    none.set_inheritable(None).set_ambient(None);
    let seccomp = host.seccomp.then(|| seccomp_default::profile(&none, std::env::consts::ARCH));
    process.set_capabilities(Some(none));
    let mut list = namespaces(pod, false);
    list.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
    let mut pid = LinuxNamespace::default();
    pid.set_typ(LinuxNamespaceType::Pid);
    list.push(pid);
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(vec![devices::deny_all()]));
    let mut linux = Linux::default();
    linux
        .set_cgroups_path(Some(PathBuf::from(cgroups_path)))
        .set_namespaces(Some(list))
        .set_resources(Some(resources))
        .set_seccomp(seccomp)
        .set_masked_paths(None)
        .set_readonly_paths(None);
    let mut spec = bare_spec(rootfs, true, process, linux);
    spec.set_mounts(Some(mounts::hold()));
    let mut annotations = sandbox_annotations(sandbox, sandbox_id);
    annotations.insert("io.kubernetes.cri.container-type".to_owned(), "sandbox".to_owned());
    spec.set_annotations(Some(annotations));
    spec
}

fn security_context(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// A spec with nothing but what is given: the default of the library is a container of its own taste.
fn bare_spec(rootfs: &Path, readonly: bool, process: Process, linux: Linux) -> Spec {
    let mut root = Root::default();
    root.set_path(rootfs.to_owned());
    root.set_readonly(Some(readonly));
    let mut spec = Spec::default();
    spec.set_version("1.1.0".to_owned())
        .set_root(Some(root))
        .set_process(Some(process))
        .set_linux(Some(linux))
        .set_hostname(None)
        .set_domainname(None)
        .set_hooks(None);
    spec
}

fn namespaces(of: &Namespaces, cgroup: bool) -> Vec<LinuxNamespace> {
    let entry = |typ: LinuxNamespaceType, path: Option<PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ).set_path(path);
        namespace
    };
    let mut list = vec![entry(LinuxNamespaceType::Mount, None)];
    for (typ, place) in [
        (LinuxNamespaceType::Pid, &of.pid),
        (LinuxNamespaceType::Ipc, &of.ipc),
        (LinuxNamespaceType::Uts, &of.uts),
        (LinuxNamespaceType::Network, &of.net),
        (LinuxNamespaceType::User, &of.user),
    ] {
        match place {
            NamespaceRef::Host => {}
            NamespaceRef::Own => list.push(entry(typ, None)),
            NamespaceRef::Path(path) => list.push(entry(typ, Some(path.clone()))),
        }
    }
    if cgroup {
        list.push(entry(LinuxNamespaceType::Cgroup, None));
    }
    list
}

fn id_mappings(list: &[v1::IdMapping]) -> Vec<LinuxIdMapping> {
    let entry = |mapping: &v1::IdMapping| {
        LinuxIdMappingBuilder::default()
            .host_id(mapping.host_id)
            .container_id(mapping.container_id)
            .size(mapping.length)
            .build()
            .expect("invariant: every field is set")
    };
    list.iter().map(entry).collect()
}

fn paths(list: &[String], privileged: bool) -> Option<Vec<String>> {
    (!privileged && !list.is_empty()).then(|| list.to_vec())
}

fn sandbox_annotations(sandbox: &v1::PodSandboxConfig, sandbox_id: &str) -> HashMap<String, String> {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    HashMap::from([
        ("io.kubernetes.cri.sandbox-id".to_owned(), sandbox_id.to_owned()),
        ("io.kubernetes.cri.sandbox-namespace".to_owned(), metadata.namespace),
        ("io.kubernetes.cri.sandbox-uid".to_owned(), metadata.uid),
        ("io.kubernetes.cri.sandbox-name".to_owned(), metadata.name),
    ])
}

fn annotations(input: &SpecInput<'_>) -> HashMap<String, String> {
    let mut all = sandbox_annotations(input.sandbox, input.sandbox_id);
    let name = input.config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    all.insert("io.kubernetes.cri.container-name".to_owned(), name);
    all.insert("io.kubernetes.cri.image-name".to_owned(), input.image_name.to_owned());
    all.insert("io.kubernetes.cri.container-type".to_owned(), "container".to_owned());
    all
}

#[cfg(test)]
mod tests;
