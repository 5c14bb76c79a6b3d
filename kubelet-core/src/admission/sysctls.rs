//! Which kernel parameters a pod may set: the safe ones, and those that the node's operator allows
//! (`--allowed-unsafe-sysctls`). Lists, versions and texts are those of the kubelet's `pkg/kubelet/sysctl` (1.36).

use super::Rejection;
use crate::api::Pod;
use crate::sandbox_config::dotted;

/// What belongs to a pod alone, with the Linux from which on it does.
const SAFE: [(&str, (u32, u32)); 12] = [
    ("kernel.shm_rmid_forced", (0, 0)),
    ("net.ipv4.ip_local_port_range", (0, 0)),
    ("net.ipv4.tcp_syncookies", (0, 0)),
    ("net.ipv4.ping_group_range", (0, 0)),
    ("net.ipv4.ip_unprivileged_port_start", (0, 0)),
    ("net.ipv4.ip_local_reserved_ports", (3, 16)),
    ("net.ipv4.tcp_keepalive_time", (4, 5)),
    ("net.ipv4.tcp_fin_timeout", (4, 6)),
    ("net.ipv4.tcp_keepalive_intvl", (4, 5)),
    ("net.ipv4.tcp_keepalive_probes", (4, 5)),
    ("net.ipv4.tcp_rmem", (4, 15)),
    ("net.ipv4.tcp_wmem", (4, 15)),
];

/// Parameters of the IPC namespace, besides those below `fs.mqueue`. The short names are beginnings, as in `kernel.shm*`.
const IPC: [&str; 10] = [
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.shm",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.msg",
];

/// A word of `--allowed-unsafe-sysctls` that names nothing a pod could have for itself.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the sysctls {0:?} are not known to be namespaced; name some below net., fs.mqueue., kernel.shm, kernel.msg or kernel.sem"
)]
pub struct SysctlError(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

impl Namespace {
    fn of(name: &str) -> Option<Self> {
        if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
            return Some(Self::Ipc);
        }
        name.starts_with("net.").then_some(Self::Net)
    }

    /// Whether the pod has none of its own.
    fn is_hosts(self, pod: &Pod) -> bool {
        match self {
            Self::Ipc => pod.spec.host_ipc,
            Self::Net => pod.spec.host_network,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ipc => "IPC",
            Self::Net => "Net",
        }
    }
}

#[derive(Clone, Debug)]
struct Allowed {
    name: String,
    is_prefix: bool,
    namespace: Namespace,
}

impl Allowed {
    fn of(pattern: &str) -> Result<Self, SysctlError> {
        let name = dotted(pattern);
        let (name, is_prefix) = match name.split_once('*') {
            Some((prefix, _)) => (prefix.to_owned(), true),
            None => (name, false),
        };
        let namespace = Namespace::of(&name).ok_or_else(|| SysctlError(pattern.to_owned()))?;
        Ok(Self { name, is_prefix, namespace })
    }
}

/// What pods of a node may set.
#[derive(Clone, Debug)]
pub struct AllowedSysctls(Vec<Allowed>);

impl AllowedSysctls {
    /// The safe ones of a Linux of this release, such as `6.1.0-18`, and those of `patterns`, such as
    /// `net.core.somaxconn` or `kernel.msg*`.
    pub fn new(patterns: &[String], release: &str) -> Result<Self, SysctlError> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|text| text.parse().ok());
        let linux: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let safe = SAFE.iter().filter(|(_, since)| linux >= *since).map(|(name, _)| *name);
        safe.chain(patterns.iter().map(String::as_str)).map(Allowed::of).collect::<Result<_, _>>().map(Self)
    }

    /// Why the node does not take the pod, if it sets what it may not.
    pub(crate) fn reject(&self, pod: &Pod) -> Option<Rejection> {
        let context = pod.spec.security_context.as_deref()?;
        let why = context.sysctls.iter().find_map(|sysctl| {
            let name = dotted(&sysctl.name);
            let exact = self.0.iter().find(|allowed| !allowed.is_prefix && allowed.name == name);
            let prefix =
                || self.0.iter().find(|allowed| allowed.is_prefix && name.starts_with(&allowed.name));
            match exact.or_else(prefix).map(|allowed| allowed.namespace) {
                None => Some(format!("{name:?} not allowlisted")),
                Some(space) if space.is_hosts(pod) => {
                    Some(format!("{name:?} not allowed with host {} enabled", space.word()))
                }
                Some(_) => None,
            }
        })?;
        Some(Rejection { reason: "SysctlForbidden".to_owned(), message: format!("forbidden sysctl: {why}") })
    }
}

impl Default for AllowedSysctls {
    /// The safe ones of a Linux of today.
    fn default() -> Self {
        Self(SAFE.iter().filter_map(|(name, _)| Allowed::of(name).ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn why(allowed: &AllowedSysctls, name: &str, host: bool) -> Option<String> {
        let pod = json!({"spec": {"hostNetwork": host, "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}});
        let rejection = allowed.reject(&serde_json::from_value(pod).unwrap())?;
        assert_eq!(rejection.reason, "SysctlForbidden");
        Some(rejection.message)
    }

    #[test]
    fn what_is_not_safe_has_to_be_allowed() {
        let usual = AllowedSysctls::default();
        assert_eq!(why(&usual, "kernel.shm_rmid_forced", true), None);
        assert_eq!(why(&usual, "kernel/shm_rmid_forced", false), None);
        let message = why(&usual, "kernel.msgmax", false).unwrap();
        assert_eq!(message, "forbidden sysctl: \"kernel.msgmax\" not allowlisted");
        let message = why(&usual, "net.ipv4.tcp_rmem", true).unwrap();
        assert_eq!(message, "forbidden sysctl: \"net.ipv4.tcp_rmem\" not allowed with host Net enabled");

        let patterns = ["kernel.msg*", "net.core.somaxconn"].map(str::to_owned);
        let more = AllowedSysctls::new(&patterns, "4.9.337-tegra").unwrap();
        for name in ["kernel.msgmax", "net.core.somaxconn", "net.ipv4.tcp_fin_timeout"] {
            assert_eq!(why(&more, name, false), None, "{name}");
        }
        assert!(why(&more, "net.ipv4.tcp_rmem", false).is_some(), "the host's, on a Linux so old");
        let refused = AllowedSysctls::new(&["vm.swappiness".to_owned()], "6.1.0-18-amd64").unwrap_err();
        assert!(
            refused.to_string().contains("\"vm.swappiness\" are not known to be namespaced"),
            "{refused}"
        );
    }
}
