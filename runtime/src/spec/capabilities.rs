//! Capability names and numbers, the default set, and what a security context makes of it.
//! Pure; used by the spec builder, the seccomp profile and the maker.

use std::str::FromStr;

use coracle_cri::v1;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// Every capability of Linux, its index being its number (`include/uapi/linux/capability.h`).
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container holds when its security context says nothing (containerd's and docker's set).
pub const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A set of capabilities as the kernel writes it in `/proc/PID/status`: one bit per number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSet(pub u64);

impl CapSet {
    /// The set of these names, with or without `CAP_`; the first unknown name is the error.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut set = 0;
        for name in names {
            set |= 1 << number(name).ok_or_else(|| name.to_owned())?;
        }
        Ok(Self(set))
    }

    /// The set behind an OCI list, `None` being empty.
    pub fn from_oci(list: Option<&Capabilities>) -> Self {
        let bits = list.into_iter().flatten().filter_map(|cap| number(&cap.to_string()));
        Self(bits.fold(0, |set, bit| set | 1 << bit))
    }

    /// The names of the set in the order of their numbers.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().enumerate().filter(move |(bit, _)| self.has(*bit as u32)).map(|(_, name)| *name)
    }

    /// The set as an OCI list.
    pub fn to_oci(self) -> Capabilities {
        self.names().filter_map(|name| Capability::from_str(name.trim_start_matches("CAP_")).ok()).collect()
    }

    /// Whether the capability of this number is in the set.
    pub fn has(self, number: u32) -> bool {
        self.0 & (1 << number) != 0
    }

    /// What is in both sets.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The kernel's number of a capability, given with or without `CAP_`, in any case.
pub fn number(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| known.strip_prefix("CAP_") == Some(bare)).map(|index| index as u32)
}

/// Which capabilities a container gets: the default set, `ALL` added or dropped first, then single names, as
/// containerd orders it. `held` is what this node's runtime itself holds: `ALL` and privileged mean that.
/// The error is the first name that is no capability.
pub fn for_container(
    sc: &v1::LinuxContainerSecurityContext,
    held: CapSet,
) -> Result<LinuxCapabilities, String> {
    let mut set = CapSet::from_names(DEFAULT).expect("invariant: the default names are known");
    let mut ambient = CapSet::default();
    if let Some(wanted) = &sc.capabilities {
        let all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
        let named = |list: &[String]| {
            CapSet::from_names(list.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")).map(String::as_str))
        };
        if all(&wanted.add_capabilities) {
            set = held;
        }
        if all(&wanted.drop_capabilities) {
            set = CapSet::default();
        }
        set.0 |= named(&wanted.add_capabilities)?.0;
        set.0 &= !named(&wanted.drop_capabilities)?.0;
        ambient = named(&wanted.add_ambient_capabilities)?;
        set.0 |= ambient.0;
    }
    if sc.privileged {
        set = held;
        ambient = CapSet::default();
    }
    let mut caps = LinuxCapabilities::default();
    caps.set_bounding(Some(set.to_oci()));
    caps.set_effective(Some(set.to_oci()));
    caps.set_permitted(Some(set.to_oci()));
    // Inheritable stays empty: a file with inheritable bits must not raise what the pod did not ask for
    // (CVE-2022-24769). Ambient capabilities need theirs.
    let listed = (ambient.0 != 0).then(|| ambient.to_oci());
    caps.set_inheritable(listed.clone());
    caps.set_ambient(listed);
    Ok(caps)
}
