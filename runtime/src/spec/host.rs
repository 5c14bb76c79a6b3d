//! What this node can: gathered once when the runtime starts, read by every spec.
//!
//! [`HostFacts::gather`] is the only I/O.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::capabilities::CapSet;

/// Which cgroup hierarchies rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// One hierarchy per controller.
    V1,
    /// Controllers on v1, beside them a cgroup v2 mount without the ones that matter.
    Hybrid,
    /// One hierarchy for all.
    #[default]
    V2,
}

impl CgroupMode {
    /// Whether limits are written to cgroup v2.
    pub fn unified(self) -> bool {
        self == Self::V2
    }
}

/// What this node is and can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
    /// Which cgroup hierarchies rule.
    pub cgroup: CgroupMode,
    /// Controllers that limits can be written to.
    pub controllers: BTreeSet<String>,
    /// Whether swap is accounted.
    pub swap_controller: bool,
    /// Options of the host's cgroup2 mount that another mount of it must repeat.
    pub cgroup_mount_options: Vec<String>,
    /// Whether the kernel filters system calls.
    pub seccomp: bool,
    /// Whether AppArmor is enabled.
    pub apparmor: bool,
    /// The loaded AppArmor profile that stands for `RuntimeDefault`.
    pub apparmor_default: Option<String>,
    /// Whether SELinux is enabled.
    pub selinux: bool,
    /// Capabilities that this process holds, and can give.
    pub capabilities: CapSet,
    /// This process's own score.
    pub oom_score_adj: i32,
    /// Hard limit of open files of this process.
    pub max_open_files: u64,
    /// Huge page sizes as the kubelet writes them (`2MB`).
    pub hugepage_sizes: Vec<String>,
    /// Whether mounts can be made read-only with all below them (Linux 5.12).
    pub recursive_readonly: bool,
    /// Whether mounts can map ids (Linux 5.12).
    pub idmapped_mounts: bool,
    /// The host's name.
    pub hostname: String,
}

impl HostFacts {
    /// Looks at this node. Everything that cannot be read counts as not there.
    pub fn gather() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        let uname = rustix::system::uname();
        let (cgroup, cgroup_mount_options) = cgroup_mode(&mountinfo);
        let controllers = controllers(cgroup, &mountinfo);
        let mount_setattr = crate::maker::kernel_supports_own_maker().is_ok();
        Ok(Self {
            kernel: kernel_version(&uname.release().to_string_lossy()),
            swap_controller: swap_controller(cgroup, &mountinfo),
            cgroup,
            controllers,
            cgroup_mount_options,
            seccomp: status.lines().any(|line| line.starts_with("Seccomp:")),
            apparmor: super::apparmor::is_enabled(),
            apparmor_default: super::security::loaded_default(&text(
                "/sys/kernel/security/apparmor/profiles",
            )),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            capabilities: CapSet(
                field(&status, "CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0),
            ),
            oom_score_adj: text("/proc/self/oom_score_adj").trim().parse().unwrap_or(0),
            max_open_files: max_open_files(&text("/proc/self/limits")),
            hugepage_sizes: hugepage_sizes(),
            recursive_readonly: mount_setattr,
            idmapped_mounts: mount_setattr,
            hostname: uname.nodename().to_string_lossy().into_owned(),
        })
    }

    /// Whether limits of this controller can be written.
    pub fn has_controller(&self, name: &str) -> bool {
        self.controllers.contains(name)
    }

    /// Whether limits and scores may be raised past the inherited ones.
    pub fn may_raise_limits(&self) -> bool {
        super::capabilities::number("CAP_SYS_RESOURCE").is_some_and(|number| self.capabilities.has(number))
    }

    /// The score nearest to the wanted one that this process may give: without CAP_SYS_RESOURCE none below its own.
    pub fn possible_oom_score_adj(&self, wanted: i32) -> i32 {
        if self.may_raise_limits() { wanted } else { wanted.max(self.oom_score_adj) }
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// `6.18.44-rpi` as numbers.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Mount point, options of the mount, file system and its options of each line of a mountinfo text.
fn mounts(mountinfo: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        Some((left.split(' ').nth(4)?, right.next()?, right.nth(1)?))
    })
}

fn cgroup_mode(mountinfo: &str) -> (CgroupMode, Vec<String>) {
    let controllers_on_v1 =
        mounts(mountinfo).any(|(_, kind, options)| kind == "cgroup" && !options.contains("name="));
    let v2 = mounts(mountinfo).find(|(_, kind, _)| *kind == "cgroup2");
    match (v2, controllers_on_v1) {
        (Some(_), true) => (CgroupMode::Hybrid, Vec::new()),
        (None, _) => (CgroupMode::V1, Vec::new()),
        (Some((_, _, options)), false) => {
            let kept =
                options.split(',').filter(|option| matches!(*option, "nsdelegate" | "memory_recursiveprot"));
            (CgroupMode::V2, kept.map(str::to_owned).collect())
        }
    }
}

fn controllers(mode: CgroupMode, mountinfo: &str) -> BTreeSet<String> {
    if mode.unified() {
        let root = mounts(mountinfo).find(|(_, kind, _)| *kind == "cgroup2").map(|(point, _, _)| point);
        let list = root.map(|root| text(&format!("{root}/cgroup.controllers"))).unwrap_or_default();
        return list.split_whitespace().map(str::to_owned).collect();
    }
    const NO_CONTROLLERS: [&str; 5] = ["rw", "ro", "relatime", "xattr", "clone_children"];
    mounts(mountinfo)
        .filter(|(_, kind, _)| *kind == "cgroup")
        .flat_map(|(_, _, options)| options.split(','))
        .filter(|option| !option.contains('=') && !NO_CONTROLLERS.contains(option))
        .map(str::to_owned)
        .collect()
}

fn swap_controller(mode: CgroupMode, mountinfo: &str) -> bool {
    if mode.unified() {
        // The root cgroup has no such file; any cgroup below it has it when swap is accounted.
        let own = text("/proc/self/cgroup");
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        let root =
            mounts(mountinfo).find(|(_, kind, _)| *kind == "cgroup2").map_or("", |(point, _, _)| point);
        if path != "/" {
            return Path::new(&format!("{root}{path}/memory.swap.max")).exists();
        }
        return fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.path().join("memory.swap.max").exists());
    }
    mounts(mountinfo)
        .find(|(_, kind, options)| *kind == "cgroup" && options.split(',').any(|option| option == "memory"))
        .is_some_and(|(point, _, _)| Path::new(point).join("memory.memsw.limit_in_bytes").exists())
}

fn max_open_files(limits: &str) -> u64 {
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    match line.and_then(|line| line.split_whitespace().nth(4)) {
        Some("unlimited") | None => u64::MAX,
        Some(number) => number.parse().unwrap_or(u64::MAX),
    }
}

fn hugepage_sizes() -> Vec<String> {
    let mut sizes: Vec<u64> = fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(hugepage_size).collect()
}

fn hugepage_size(kib: u64) -> String {
    match kib {
        kib if kib % (1 << 20) == 0 => format!("{}GB", kib >> 20),
        kib if kib % (1 << 10) == 0 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_setup_is_told_by_what_is_mounted() {
        let v1 = "1 0 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  2 0 0:2 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        let v2 = "3 0 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert_eq!(cgroup_mode(v1).0, CgroupMode::V1);
        assert_eq!(cgroup_mode(&format!("{v1}{v2}")).0, CgroupMode::Hybrid);
        let (mode, options) = cgroup_mode(v2);
        assert_eq!((mode, options.len()), (CgroupMode::V2, 2));
        assert_eq!(controllers(CgroupMode::V1, v1), BTreeSet::from(["memory".to_owned()]));
    }

    #[test]
    fn small_texts_are_read() {
        assert_eq!(kernel_version("4.9.253-tegra"), (4, 9));
        assert_eq!(hugepage_size(2048), "2MB");
        assert_eq!(hugepage_size(1 << 20), "1GB");
        assert_eq!(hugepage_size(64), "64KB");
        assert_eq!(
            max_open_files("Max open files            1024                 20000                files\n"),
            20000
        );
    }

    #[test]
    fn a_score_below_our_own_needs_the_capability() {
        let mut host = HostFacts { oom_score_adj: -5, ..HostFacts::default() };
        assert_eq!(host.possible_oom_score_adj(-998), -5);
        assert_eq!(host.possible_oom_score_adj(1000), 1000);
        host.capabilities = CapSet(u64::MAX);
        assert_eq!(host.possible_oom_score_adj(-998), -998);
    }

    #[test]
    fn this_host_is_gathered() {
        let host = HostFacts::gather().unwrap();
        assert!(host.kernel.0 >= 4 && host.seccomp && !host.controllers.is_empty(), "{host:?}");
    }
}
