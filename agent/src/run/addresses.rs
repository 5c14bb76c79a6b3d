//! Name, address and resolvers of this node, where no flag gives them.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Result, bail};
use coracle_kubelet_core::node_ips::NodeIps;

/// The host's name as a Kubernetes name: in lower case; an error if it is none.
pub(crate) fn node_name(given: Option<&str>) -> Result<String> {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    let name = given.unwrap_or(&host).trim().to_lowercase();
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        bail!("the host name {name:?} is no name for a node; give one with --hostname-override");
    }
    Ok(name)
}

/// The addresses that were given, or what the machine has.
pub(super) fn node_ips(given: &[IpAddr]) -> Result<NodeIps> {
    match given {
        [] | [_] => Ok(NodeIps::of_flag(given)),
        [first, second] if first.is_ipv4() != second.is_ipv4() => Ok(NodeIps::of_flag(given)),
        _ => bail!("--node-ip must be one address, or two of which one is IPv4 and the other IPv6"),
    }
}

/// The resolver settings that pods can use: a stub on loopback answers nobody in a pod's network.
pub(super) fn resolv_conf() -> PathBuf {
    let (usual, servers) = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf");
    let is_stub = std::fs::read_to_string(usual).is_ok_and(|text| names_only_loopback(&text));
    let is_better = || std::fs::read_to_string(servers).is_ok_and(|text| !names_only_loopback(&text));
    PathBuf::from(if is_stub && is_better() { servers } else { usual })
}

fn names_only_loopback(resolv_conf: &str) -> bool {
    let words = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let mut servers = words.filter_map(|rest| rest.trim().parse::<IpAddr>().ok()).peekable();
    servers.peek().is_some() && servers.all(|server| server.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_resolver_is_told_from_servers() {
        assert!(names_only_loopback("# stub\nnameserver 127.0.0.53\noptions edns0\n"));
        assert!(!names_only_loopback("nameserver 127.0.0.1\nnameserver 192.0.2.1\n"));
        assert!(!names_only_loopback("search local\n"));
    }

    #[test]
    fn addresses_are_one_or_one_of_each_family() {
        let ips = |text: &str| text.split(',').map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        for good in ["192.0.2.1", "fd00::1", "192.0.2.1,fd00::1", "fd00::1,192.0.2.1"] {
            assert_eq!(*node_ips(&ips(good)).unwrap().now(), *ips(good));
        }
        for bad in ["192.0.2.1,192.0.2.2", "fd00::1,fd00::2", "192.0.2.1,fd00::1,fd00::2"] {
            assert!(node_ips(&ips(bad)).unwrap_err().to_string().contains("--node-ip"), "{bad}");
        }
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(node_name(Some("Gateway-7.local")).unwrap(), "gateway-7.local");
        for name in ["", "a_b", "-a", "a..b"] {
            assert!(node_name(Some(name)).unwrap_err().to_string().contains("--hostname-override"), "{name}");
        }
    }
}
