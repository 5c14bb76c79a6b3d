//! Table tests of the spec builder. Whole specs are compared with `testdata/spec/*.json`; run the tests with
//! `UPDATE_GOLDENS=1` to write those anew, and read the difference before committing it.

use std::path::{Path, PathBuf};

use coracle_cri::v1;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};

use super::capabilities::CapSet;
use super::host::{CgroupMode, HostFacts};
use super::mounts::{MountError, SandboxFiles, merge};
use super::observe::{MountSource, Observed, Sharing};
use super::security::SecurityError;
use super::user::ResolvedUser;
use super::*;
use v1::security_profile::ProfileType;

/// A container's inputs, owned, so that a test changes one and builds.
struct Case {
    config: v1::ContainerConfig,
    sandbox: v1::PodSandboxConfig,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    working_dir: String,
    user: ResolvedUser,
    namespaces: Namespaces,
    files: SandboxFiles,
    observed: Observed,
    host: HostFacts,
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn host(cgroup: CgroupMode) -> HostFacts {
    HostFacts {
        kernel: (6, 12),
        cgroup,
        controllers: ["cpu", "cpuset", "memory", "pids", "hugetlb"].map(str::to_owned).into(),
        swap_controller: true,
        seccomp: true,
        capabilities: CapSet(0x1ff_ffff_ffff),
        recursive_readonly: true,
        idmapped_mounts: true,
        hostname: "node-1".into(),
        ..HostFacts::default()
    }
}

impl Case {
    fn new() -> Self {
        let path =
            |kind: &str| NamespaceRef::Path(PathBuf::from(format!("/run/coracle/sandboxes/s1/ns/{kind}")));
        Self {
            config: v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata { name: "web".into(), attempt: 0 }),
                linux: Some(v1::LinuxContainerConfig {
                    resources: Some(v1::LinuxContainerResources::default()),
                    security_context: Some(v1::LinuxContainerSecurityContext::default()),
                }),
                ..Default::default()
            },
            sandbox: v1::PodSandboxConfig {
                metadata: Some(v1::PodSandboxMetadata {
                    name: "web-node-1".into(),
                    uid: "u-1".into(),
                    namespace: "default".into(),
                    attempt: 0,
                }),
                hostname: "web-node-1".into(),
                linux: Some(v1::LinuxPodSandboxConfig {
                    security_context: Some(v1::LinuxSandboxSecurityContext::default()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            entrypoint: words(&["/entry"]),
            cmd: words(&["serve"]),
            env: words(&["PATH=/app:/bin", "LANG=C"]),
            working_dir: "/srv".into(),
            user: ResolvedUser { uid: 0, gid: 0, additional_gids: vec![0] },
            namespaces: Namespaces {
                net: path("net"),
                ipc: path("ipc"),
                uts: path("uts"),
                pid: NamespaceRef::Own,
                user: NamespaceRef::Host,
            },
            files: SandboxFiles {
                hostname: Some("/run/coracle/sandboxes/s1/hostname".into()),
                hosts: None,
                resolv_conf: Some("/run/coracle/sandboxes/s1/resolv.conf".into()),
                shm: Some("/run/coracle/sandboxes/s1/shm".into()),
            },
            observed: Observed::default(),
            host: host(CgroupMode::V2),
        }
    }

    fn sc(&mut self) -> &mut v1::LinuxContainerSecurityContext {
        self.config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
    }

    fn resources(&mut self) -> &mut v1::LinuxContainerResources {
        self.config.linux.as_mut().unwrap().resources.as_mut().unwrap()
    }

    fn privileged(mut self) -> Self {
        self.sc().privileged = true;
        self.sandbox.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
        self
    }

    fn with<T>(&self, build: impl FnOnce(&SpecInput<'_>) -> T) -> T {
        let mounts = merge(&self.config, &self.files, &[]);
        build(&SpecInput {
            container_id: "c1",
            sandbox_id: "s1",
            config: &self.config,
            sandbox: &self.sandbox,
            image: ImageDefaults {
                env: &self.env,
                entrypoint: &self.entrypoint,
                cmd: &self.cmd,
                working_dir: &self.working_dir,
            },
            image_name: "registry/web:1",
            user: &self.user,
            namespaces: &self.namespaces,
            cgroups_path: "/kubepods/pod1/c1",
            rootfs: Path::new("/run/coracle/containers/c1/rootfs"),
            mounts: &mounts,
            observed: &self.observed,
            host: &self.host,
        })
    }

    fn build(&self) -> Result<Spec, SpecError> {
        self.with(container_spec)
    }

    fn spec(&self) -> Spec {
        self.build().unwrap()
    }

    fn args(&self) -> Vec<String> {
        self.spec().process().as_ref().unwrap().args().clone().unwrap()
    }

    fn caps(&self) -> CapSet {
        let spec = self.spec();
        CapSet::from_oci(
            spec.process().as_ref().unwrap().capabilities().as_ref().unwrap().effective().as_ref(),
        )
    }
}

/// Compares with a golden, sets sorted: the library keeps them in hash maps.
fn golden(name: &str, spec: &Spec) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/spec").join(format!("{name}.json"));
    let mut value = serde_json::to_value(spec).unwrap();
    sort(&mut value);
    let text = format!("{value:#}\n");
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, want, "{} differs; see the head of this file", path.display());
}

fn sort(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = std::mem::take(map).into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            for (key, mut value) in entries {
                let set = matches!(
                    key.as_str(),
                    "bounding" | "effective" | "permitted" | "inheritable" | "ambient"
                );
                if let Some(list) = value.as_array_mut().filter(|_| set) {
                    list.sort_by_key(ToString::to_string);
                }
                sort(&mut value);
                map.insert(key, value);
            }
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(sort),
        _ => {}
    }
}

#[test]
fn an_ordinary_container() {
    let mut case = Case::new();
    case.config.envs = vec![v1::KeyValue { key: "LANG".into(), value: "en".into() }];
    case.config.mounts = vec![v1::Mount {
        container_path: "/etc/hosts".into(),
        host_path: "/var/lib/kubelet/pods/u-1/etc-hosts".into(),
        ..Default::default()
    }];
    let resources = case.resources();
    resources.cpu_shares = 102;
    resources.cpu_quota = 50_000;
    resources.cpu_period = 100_000;
    resources.memory_limit_in_bytes = 64 << 20;
    resources.oom_score_adj = 999;
    resources.hugepage_limits = vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }];
    case.sc().masked_paths = words(&["/proc/kcore"]);
    case.sc().readonly_paths = words(&["/proc/sys"]);
    golden("ordinary", &case.spec());
}

#[test]
fn a_privileged_container() {
    let mut case = Case::new().privileged();
    case.sc().masked_paths = words(&["/proc/kcore"]);
    case.sc().seccomp =
        Some(v1::SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() });
    let mut device = LinuxDevice::default();
    device.set_path("/dev/fuse".into()).set_typ(LinuxDeviceType::C).set_major(10).set_minor(229);
    case.observed.host_devices = vec![device];
    case.host = host(CgroupMode::Hybrid);
    golden("privileged", &case.spec());
}

#[test]
fn a_confined_container() {
    let mut case = Case::new();
    case.user = ResolvedUser { uid: 1000, gid: 1001, additional_gids: vec![44, 1001] };
    case.sc().seccomp =
        Some(v1::SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() });
    case.sc().no_new_privs = true;
    case.sc().readonly_rootfs = true;
    case.sc().capabilities =
        Some(v1::Capability { drop_capabilities: words(&["ALL"]), ..Default::default() });
    case.config.tty = true;
    let mut spec = case.spec();
    // The names of the profile are in its own test.
    let mut linux = spec.linux().clone().unwrap();
    assert!(linux.seccomp().is_some());
    linux.set_seccomp(None);
    spec.set_linux(Some(linux));
    golden("confined", &spec);
}

#[test]
fn the_holder_of_a_pid_namespace() {
    let mut case = Case::new();
    case.host.seccomp = false;
    let spec = hold_spec(
        Path::new("/run/coracle/sandboxes/s1/hold"),
        &["/coracle-shim", "hold"],
        &case.sandbox,
        "s1",
        &case.namespaces,
        "/kubepods/pod1/s1",
        &case.host,
    );
    golden("hold", &spec);
}

#[test]
fn command_lines_are_put_together_as_docker_does_it() {
    for (command, args, entrypoint, cmd, want) in [
        (&[][..], &[][..], &["/e"][..], &["c"][..], &["/e", "c"][..]),
        (&[], &["a"], &["/e"], &["c"], &["/e", "a"]),
        (&["/p"], &[], &["/e"], &["c"], &["/p"]),
        (&["/p"], &["a"], &["/e"], &["c"], &["/p", "a"]),
        (&[], &[], &[""], &["c"], &["c"]),
        (&[], &["a"], &[], &["c"], &["a"]),
    ] {
        let mut case = Case::new();
        case.config.command = words(command);
        case.config.args = words(args);
        case.entrypoint = words(entrypoint);
        case.cmd = words(cmd);
        assert_eq!(case.args(), words(want), "{command:?} {args:?} {entrypoint:?} {cmd:?}");
    }
    let mut none = Case::new();
    (none.entrypoint, none.cmd) = (Vec::new(), Vec::new());
    assert_eq!(none.build().unwrap_err().to_string(), "no command specified");
}

#[test]
fn the_environment_keeps_its_order_and_the_pod_wins() {
    let mut case = Case::new();
    case.config.tty = true;
    case.config.envs = vec![v1::KeyValue { key: "LANG".into(), value: "de".into() }];
    let env = |case: &Case| case.spec().process().as_ref().unwrap().env().clone().unwrap();
    assert_eq!(env(&case), words(&["PATH=/app:/bin", "TERM=xterm", "HOSTNAME=web-node-1", "LANG=de"]));
    case.sandbox.hostname.clear();
    assert!(env(&case).contains(&"HOSTNAME=node-1".to_owned()));
}

#[test]
fn capabilities_follow_add_drop_and_all() {
    let set = |names: &[&str]| CapSet::from_names(names.iter().copied()).unwrap();
    let default = set(&capabilities::DEFAULT);
    for (add, drop, want) in [
        (&[][..], &[][..], default),
        (&["net_admin"][..], &["MKNOD", "CHOWN"][..], {
            let mut set_ = default;
            set_.0 |= set(&["CAP_NET_ADMIN"]).0;
            set_.0 &= !set(&["CAP_MKNOD", "CAP_CHOWN"]).0;
            set_
        }),
        (&[], &["ALL"], CapSet::default()),
        (&["KILL"], &["all"], set(&["CAP_KILL"])),
        (&["ALL"], &["KILL"], CapSet(0x1ff_ffff_ffff & !set(&["CAP_KILL"]).0)),
    ] {
        let mut case = Case::new();
        case.sc().capabilities = Some(v1::Capability {
            add_capabilities: words(add),
            drop_capabilities: words(drop),
            ..Default::default()
        });
        assert_eq!(case.caps(), want, "+{add:?} -{drop:?}");
    }
    let mut unknown = Case::new();
    unknown.sc().capabilities =
        Some(v1::Capability { add_capabilities: words(&["FLY"]), ..Default::default() });
    assert_eq!(unknown.build().unwrap_err(), SpecError::Capability("FLY".into()));
    let mut held = Case::new().privileged();
    held.host.capabilities = CapSet(0x3);
    assert_eq!(held.caps(), CapSet(0x3), "privileged means what the runtime itself holds");
}

#[test]
fn privileged_needs_a_privileged_sandbox() {
    let mut case = Case::new();
    case.sc().privileged = true;
    assert_eq!(case.build().unwrap_err().to_string(), "no privileged container allowed in sandbox");
}

#[test]
fn mounts_are_merged_ordered_and_shared() {
    let mount = |target: &str, source: &str| v1::Mount {
        container_path: target.into(),
        host_path: source.into(),
        ..Default::default()
    };
    let mut case = Case::new();
    case.config.mounts = vec![
        mount("/a/b/c", "/h/1"),
        mount("/a", "/h/2"),
        v1::Mount { readonly: true, recursive_read_only: true, ..mount("/etc/hostname", "/h/3") },
    ];
    let targets = |case: &Case| -> Vec<String> {
        case.spec().mounts().iter().flatten().map(|mount| mount.destination().display().to_string()).collect()
    };
    let list = targets(&case);
    let position = |path: &str| list.iter().position(|target| target == path).unwrap();
    assert!(position("/a") < position("/a/b/c"), "{list:?}");
    assert_eq!(list.iter().filter(|target| *target == "/dev/shm").count(), 1);
    let spec = case.spec();
    let hostname =
        spec.mounts().iter().flatten().find(|m| m.destination() == Path::new("/etc/hostname")).unwrap();
    assert_eq!(hostname.options().as_ref().unwrap(), &words(&["rbind", "rprivate", "rro"]));
    assert_eq!(hostname.source().as_deref(), Some(Path::new("/h/3")));

    case.config.mounts = vec![mount("/dev", "/dev")];
    let list = targets(&case);
    // Below a /dev of the host's only what was asked for is mounted: the sandbox's shm.
    assert_eq!(
        list.iter().filter(|target| target.starts_with("/dev")).collect::<Vec<_>>(),
        ["/dev", "/dev/shm"]
    );
}

#[test]
fn propagation_needs_a_source_that_shares() {
    let both = v1::MountPropagation::PropagationBidirectional;
    let down = v1::MountPropagation::PropagationHostToContainer;
    let mut case = Case::new();
    case.files = SandboxFiles::default();
    for (wanted, sharing, root) in [
        (both, Sharing::Shared, Some("rshared")),
        (both, Sharing::Slave, None),
        (down, Sharing::Shared, Some("rslave")),
        (down, Sharing::Slave, Some("rslave")),
        (down, Sharing::Private, None),
    ] {
        case.config.mounts = vec![v1::Mount {
            container_path: "/m".into(),
            host_path: "/h".into(),
            propagation: wanted.into(),
            ..Default::default()
        }];
        case.observed.mounts = vec![MountSource { path: "/h".into(), point: "/".into(), sharing }];
        let built = case.build();
        match root {
            Some(root) => assert_eq!(
                built.unwrap().linux().as_ref().unwrap().rootfs_propagation().as_deref(),
                Some(root)
            ),
            None => assert!(matches!(built, Err(SpecError::Mount(_))), "{wanted:?} {sharing:?}"),
        }
    }
    assert_eq!(
        MountError::NotShared { path: "/h".into(), point: "/".into() }.to_string(),
        r#"path "/h" is mounted on "/" but it is not a shared mount"#
    );
}

#[test]
fn recursive_readonly_is_refused_where_it_cannot_be() {
    let mount = |readonly, propagation: v1::MountPropagation| v1::Mount {
        container_path: "/m".into(),
        host_path: "/h".into(),
        readonly,
        recursive_read_only: true,
        propagation: propagation.into(),
        ..Default::default()
    };
    let private = v1::MountPropagation::PropagationPrivate;
    let mut case = Case::new();
    case.config.mounts = vec![mount(false, private)];
    assert!(matches!(case.build(), Err(SpecError::Mount(MountError::ReadonlyConflict(_)))));
    case.config.mounts = vec![mount(true, private)];
    case.host.recursive_readonly = false;
    assert!(matches!(case.build(), Err(SpecError::Mount(MountError::NoRecursiveReadonly(_)))));
}

#[test]
fn limits_without_controllers_are_left_out_and_told() {
    let mut case = Case::new();
    case.resources().memory_limit_in_bytes = 1 << 20;
    case.resources().cpu_shares = 2;
    case.resources().unified = [("memory.high".to_owned(), "1".to_owned())].into();
    let full = case.spec();
    let full = full.linux().as_ref().unwrap().resources().as_ref().unwrap();
    assert_eq!(full.memory().as_ref().unwrap().swap(), Some(1 << 20), "no swapping by default");
    assert!(full.unified().is_some());
    assert_eq!(case.with(notices), Vec::<String>::new());

    // As on a Raspberry Pi, where a file of the missing controller cannot be opened.
    case.host.controllers.remove("memory");
    let spec = case.spec();
    let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
    assert!(resources.memory().is_none() && resources.unified().is_none());

    case.host = host(CgroupMode::V1);
    case.host.controllers.remove("memory");
    let spec = case.spec();
    let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
    assert!(resources.memory().is_none() && resources.unified().is_none());
    assert_eq!(resources.cpu().as_ref().unwrap().shares(), Some(2));
    let told = case.with(notices);
    assert!(told.len() == 1 && told[0].contains("cgroup_enable=memory"), "{told:?}");
}

#[test]
fn profiles_that_cannot_be_had_are_refused() {
    let profile = |kind: ProfileType, local: &str| {
        Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: local.into() })
    };
    let security = |case: &Case| match case.build() {
        Err(SpecError::Security(error)) => error,
        other => panic!("{other:?}"),
    };
    let mut case = Case::new();
    case.host.seccomp = false;
    case.sc().seccomp = profile(ProfileType::RuntimeDefault, "");
    assert_eq!(security(&case), SecurityError::NoSeccomp);
    case.sc().seccomp = profile(ProfileType::Unconfined, "");
    assert!(case.spec().linux().as_ref().unwrap().seccomp().is_none());
    case.sc().apparmor = profile(ProfileType::RuntimeDefault, "");
    assert_eq!(security(&case), SecurityError::NoAppArmor);
    case.host.apparmor = true;
    assert_eq!(security(&case), SecurityError::NoAppArmorDefault);
    case.host.apparmor_default = Some("cri-coracle.apparmor.d".into());
    let label = |case: &Case| case.spec().process().as_ref().unwrap().apparmor_profile().clone();
    assert_eq!(label(&case).as_deref(), Some("cri-coracle.apparmor.d"));
    case.sc().apparmor = profile(ProfileType::Localhost, "localhost/mine");
    assert_eq!(security(&case), SecurityError::AppArmorNotLoaded("mine".into()));
    case.observed.apparmor_loaded = true;
    assert_eq!(label(&case).as_deref(), Some("mine"));
    case.sc().apparmor = profile(ProfileType::RuntimeDefault, "stray");
    assert_eq!(security(&case), SecurityError::StrayReference("apparmor"));
}

#[test]
#[allow(deprecated, reason = "the test is about the deprecated field")]
fn the_deprecated_seccomp_path_still_speaks() {
    let mut case = Case::new();
    let has = |case: &Case| case.spec().linux().as_ref().unwrap().seccomp().is_some();
    for (path, want) in
        [("", false), ("runtime/default", true), ("docker/default", true), ("unconfined", false)]
    {
        case.sc().seccomp_profile_path = path.into();
        assert_eq!(has(&case), want, "{path:?}");
    }
    case.sc().seccomp_profile_path = "nonsense".into();
    assert!(case.build().is_err());
}

#[test]
fn selinux_labels_need_a_kernel_that_has_it() {
    let mut case = Case::new();
    case.sc().selinux_options =
        Some(v1::SeLinuxOption { r#type: "spc_t".into(), level: "s0:c1,c2".into(), ..Default::default() });
    assert_eq!(case.spec().process().as_ref().unwrap().selinux_label(), &None);
    assert!(case.with(notices)[0].contains("SELinux is not enabled"));
    case.host.selinux = true;
    let spec = case.spec();
    assert_eq!(
        spec.process().as_ref().unwrap().selinux_label().as_deref(),
        Some("system_u:system_r:spc_t:s0:c1,c2")
    );
    let label = spec.linux().as_ref().unwrap().mount_label().clone();
    assert_eq!(label.as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c2"));
}

#[test]
fn host_namespaces_are_left_out() {
    let mut case = Case::new();
    case.namespaces = Namespaces { pid: NamespaceRef::Host, ..Namespaces::default() };
    let types = |case: &Case| -> Vec<String> {
        let spec = case.spec();
        let list = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        list.iter().map(|namespace| namespace.typ().to_string()).collect()
    };
    assert_eq!(types(&case), ["mnt", "cgroup"]);
    case.host = host(CgroupMode::Hybrid);
    assert_eq!(types(&case), ["mnt"]);
}

#[test]
fn an_exec_is_the_containers_process_with_another_command() {
    let case = Case::new();
    let spec = case.spec();
    let process = exec_process(&spec, &words(&["ls", "-l"]), true);
    assert_eq!(process.args().as_ref().unwrap(), &words(&["ls", "-l"]));
    assert_eq!(process.terminal(), Some(true));
    assert!(process.env().as_ref().unwrap().contains(&"TERM=xterm".to_owned()));
    assert_eq!(process.cwd(), Path::new("/srv"));
    assert_eq!(process.capabilities(), spec.process().as_ref().unwrap().capabilities());
}

#[test]
fn the_default_profile_opens_with_capabilities() {
    let caps = |names: &[&str]| {
        let mut caps = oci_spec::runtime::LinuxCapabilities::default();
        caps.set_bounding(Some(CapSet::from_names(names.iter().copied()).unwrap().to_oci()));
        caps
    };
    let allowed = |profile: &oci_spec::runtime::LinuxSeccomp, name: &str| {
        profile.syscalls().iter().flatten().any(|rule| {
            rule.names().iter().any(|n| n == name)
                && rule.action() == oci_spec::runtime::LinuxSeccompAction::ScmpActAllow
                && rule.args().is_none()
        })
    };
    let none = seccomp_default::profile(&caps(&[]), "x86_64");
    for name in
        ["read", "clone", "clone3", "mount", "keyctl", "unshare", "bpf", "socket", "add_key", "kexec_load"]
    {
        assert_eq!(allowed(&none, name), name == "read", "{name}");
    }
    let admin = seccomp_default::profile(&caps(&["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]), "aarch64");
    for name in ["mount", "clone", "clone3", "unshare", "chroot", "cacheflush"] {
        assert!(allowed(&admin, name), "{name}");
    }
    assert!(!allowed(&admin, "reboot") && !allowed(&admin, "arch_prctl"));
    let names: Vec<_> =
        none.syscalls().iter().flatten().take(1).flat_map(|rule| rule.names().clone()).collect();
    let unique: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(names.len(), unique.len());
}
