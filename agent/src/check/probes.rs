//! Asks the kernel and the disk for what pods need. Each probe undoes what it made.

use std::path::{Path, PathBuf};

use coracle_runtime::spec::apparmor;

use super::{Finding, Plan};
use crate::sys::{self, LinkKind};

/// The oldest kernel that is supported: that of JetPack 4.
const OLDEST_KERNEL: (u32, u32) = (4, 9);
/// Wall time before this is a clock that was never set: 2025-01-01.
const EARLIEST_TIME: u64 = 1_735_689_600;

pub(super) fn run(plan: &Plan<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(rights());
    findings.extend(kernel());
    findings.extend(namespaces());
    findings.extend(overlay(plan.data_dir));
    findings.extend(seccomp());
    findings.extend(apparmor());
    findings.extend(maker(plan.oci_runtime));
    findings.extend(links());
    findings.extend(plugins(plan.cni_bin_dirs));
    findings.extend(clock());
    findings
}

fn rights() -> Option<Finding> {
    if !rustix::process::geteuid().is_root() {
        return Some(Finding::error(
            "not run as root: namespaces, mounts and cgroups cannot be made",
            "run as root, or with sudo",
        ));
    }
    (!has_capability(24)).then(|| {
        Finding::warning(
            "CAP_SYS_RESOURCE is missing: the OOM killer may choose the agent before pods, and limits of open files \
             cannot be raised",
            "run the agent outside a container, or give it that capability",
        )
    })
}

fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")?.trim().parse_hex());
    mask.is_none_or(|mask| mask >> number & 1 == 1)
}

trait ParseHex {
    fn parse_hex(&self) -> Option<u64>;
}

impl ParseHex for str {
    fn parse_hex(&self) -> Option<u64> {
        u64::from_str_radix(self, 16).ok()
    }
}

fn kernel() -> Option<Finding> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next()?, numbers.next()?);
    (version < OLDEST_KERNEL).then(|| {
        Finding::error(
            format!("Linux {release} is older than 4.9, the oldest supported"),
            "update the kernel",
        )
    })
}

fn namespaces() -> Vec<Finding> {
    [
        ("mnt", ""),
        ("pid", "CONFIG_PID_NS"),
        ("net", "CONFIG_NET_NS"),
        ("ipc", "CONFIG_IPC_NS"),
        ("uts", "CONFIG_UTS_NS"),
    ]
    .into_iter()
    .filter(|(name, _)| !Path::new("/proc/self/ns").join(name).exists())
    .map(|(name, option)| {
        Finding::error(
            format!("the kernel has no {name} namespaces, so pods cannot be kept apart"),
            format!("use a kernel built with {option}"),
        )
    })
    .collect()
}

fn overlay(data_dir: &Path) -> Option<Finding> {
    // Mounting loads the module where it is one, so the list is read after a try.
    let registered =
        || std::fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("\toverlay\n");
    if !registered() {
        let _ = std::process::Command::new("modprobe").arg("overlay").status();
        if !registered() {
            return Some(Finding::error(
                "the kernel lacks overlayfs, so images cannot be layered",
                "modprobe overlay, or use a kernel built with CONFIG_OVERLAY_FS",
            ));
        }
    }
    let folder = data_dir.ancestors().find(|path| path.exists())?;
    let probe = folder.join(format!(".coracle-check-{}", std::process::id()));
    let written = std::fs::create_dir(&probe);
    let _ = std::fs::remove_dir(&probe);
    written.err().map(|error| {
        Finding::error(
            format!(
                "{} cannot be written ({error}): no image and no container can be stored",
                folder.display()
            ),
            "mount it read-write, free disk space, or choose another folder with --data-dir",
        )
    })
}

fn seccomp() -> Option<Finding> {
    (!Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()
        && !std::fs::read_to_string("/proc/self/status").unwrap_or_default().contains("Seccomp:"))
    .then(|| {
        Finding::error(
            "the kernel has no seccomp: pods that ask for the RuntimeDefault profile cannot start",
            "use a kernel built with CONFIG_SECCOMP_FILTER",
        )
    })
}

fn apparmor() -> Option<Finding> {
    (apparmor::is_enabled() && find_program("apparmor_parser").is_none()).then(|| {
        Finding::warning(
            "AppArmor is enabled, but its parser is missing: containers run without the default profile, and pods that \
             ask for it cannot start",
            "apt-get install apparmor",
        )
    })
}

fn maker(oci_runtime: Option<&Path>) -> Option<Finding> {
    if let Some(path) = oci_runtime {
        return (!path.exists()).then(|| {
            Finding::error(
                format!("the OCI runtime {} does not exist", path.display()),
                "install it, or leave --oci-runtime away to use the one built in",
            )
        });
    }
    let missing = coracle_runtime::maker::kernel_supports_own_maker().err()?;
    if find_program("runc").or_else(|| find_program("crun")).is_some() {
        return None;
    }
    Some(Finding::error(
        format!(
            "this kernel is too old for the built-in OCI runtime ({missing}), and neither runc nor crun is installed"
        ),
        "apt-get install runc",
    ))
}

/// Looks for an executable where services find theirs.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn links() -> Vec<Finding> {
    [(LinkKind::Bridge, "bridge", "CONFIG_BRIDGE"), (LinkKind::Veth, "veth", "CONFIG_VETH")]
        .into_iter()
        .filter_map(|(kind, name, option)| {
            let error = sys::probe_link(kind).err()?;
            Some(Finding::warning(
                format!("the kernel makes no {name} links ({error}): only pods with hostNetwork run"),
                format!("modprobe {name}, or use a kernel built with {option}"),
            ))
        })
        .collect()
}

fn plugins(folders: &[PathBuf]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let missing: Vec<&str> = ["bridge", "host-local", "portmap"]
        .into_iter()
        .filter(|name| !folders.iter().any(|folder| folder.join(name).is_file()))
        .collect();
    if !missing.is_empty() {
        let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        findings.push(Finding::warning(
            format!(
                "CNI plugins are missing in {}: {}; only pods with hostNetwork run",
                folders.join(", "),
                missing.join(", ")
            ),
            "apt-get install containernetworking-plugins, or name their folder with --cni-bin-dir",
        ));
    }
    if find_program("iptables").is_none() {
        findings.push(Finding::warning(
            "iptables is missing: pods on the bridge reach nothing beyond the node, and hostPort does nothing",
            "apt-get install iptables",
        ));
    } else {
        findings.extend(nat());
    }
    findings
}

/// What the bridge plugin and portmap ask of the kernel: translated addresses of connections that it keeps track of.
fn nat() -> Vec<Finding> {
    let follows = "pods on the bridge reach nothing beyond the node, and hostPort does nothing";
    let mut findings = Vec::new();
    let tracks = || Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists();
    if !tracks() {
        let _ = std::process::Command::new("modprobe").arg("nf_conntrack").status();
        if !tracks() {
            findings.push(Finding::warning(
                format!("the kernel keeps no track of connections: {follows}"),
                "modprobe nf_conntrack, or use a kernel built with CONFIG_NF_CONNTRACK",
            ));
        }
    }
    let listed = std::process::Command::new("iptables").args(["-w", "5", "-t", "nat", "-S"]).output();
    let refused = match listed {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(error.to_string()),
    };
    findings.extend(refused.map(|why| {
        Finding::warning(
            format!("iptables has no table nat ({why}): {follows}"),
            "modprobe iptable_nat or nft_chain_nat, whichever `iptables --version` names, or use a kernel built with \
             CONFIG_NF_NAT, and CONFIG_IP_NF_NAT or CONFIG_NFT_NAT and CONFIG_NFT_COMPAT",
        )
    }));
    findings
}

fn clock() -> Option<Finding> {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    (now < EARLIEST_TIME).then(|| {
        Finding::warning(
            "the clock was never set: certificates of registries look not yet valid, so pulls fail until it is",
            "wait for NTP, or set it: date -s 'YYYY-MM-DD HH:MM'",
        )
    })
}
