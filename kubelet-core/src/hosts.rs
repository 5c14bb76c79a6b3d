//! The text of a pod's /etc/hosts, as the kubelet writes it.
//!
//! Pure; [`crate::resources`] writes the file and mounts it.

use std::net::IpAddr;

use crate::api::HostAlias;

const HEADER: &str = "# Kubernetes-managed hosts file.\n";
const HOST_NETWORK_HEADER: &str = "# Kubernetes-managed hosts file (host network).\n";
const LOCAL: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\n\
    fe00::1\tip6-allnodes\n\
    fe00::2\tip6-allrouters\n";

/// The file of a pod with a network of its own; `domain` may be empty.
pub fn pod_network(ips: &[IpAddr], hostname: &str, domain: &str, aliases: &[HostAlias]) -> String {
    let mut text = format!("{HEADER}{LOCAL}");
    for ip in ips {
        if domain.is_empty() {
            text.push_str(&format!("{ip}\t{hostname}\n"));
        } else {
            text.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n"));
        }
    }
    push_aliases(&mut text, aliases);
    text
}

/// The file of a pod on the host's network: the host's own, and the pod's aliases.
pub fn host_network(hosts_of_node: &[u8], aliases: &[HostAlias]) -> Vec<u8> {
    let mut text = HOST_NETWORK_HEADER.as_bytes().to_vec();
    text.extend_from_slice(hosts_of_node);
    let mut tail = String::new();
    push_aliases(&mut tail, aliases);
    text.extend_from_slice(tail.as_bytes());
    text
}

fn push_aliases(text: &mut String, aliases: &[HostAlias]) {
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aliases() -> Vec<HostAlias> {
        vec![
            HostAlias { ip: "123.45.67.89".into(), hostnames: vec!["foo".into(), "bar".into()] },
            HostAlias { ip: "456.78.90.123".into(), hostnames: vec!["park".into()] },
        ]
    }

    #[test]
    fn a_pod_of_its_own_network_has_its_addresses_and_aliases() {
        let ips = ["203.0.113.1".parse().unwrap(), "fd00::6".parse().unwrap()];
        let text = pod_network(&ips, "podFoo", "domainFoo", &aliases());
        assert_eq!(
            text,
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost \
             ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n203.0.113.1\tpodFoo.domainFoo\tpodFoo\nfd00::6\tpodFoo.domainFoo\t\
             podFoo\n\n# Entries added by HostAliases.\n123.45.67.89\tfoo\tbar\n456.78.90.123\tpark\n"
        );
        let plain = pod_network(&ips[..1], "podFoo", "", &[]);
        assert!(plain.ends_with("ip6-allrouters\n203.0.113.1\tpodFoo\n"), "{plain}");
    }

    #[test]
    fn a_pod_on_the_hosts_network_has_the_hosts_file() {
        let text = host_network(b"10.1.1.1\tnode\n", &aliases()[..1]);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "# Kubernetes-managed hosts file (host network).\n10.1.1.1\tnode\n\n\
             # Entries added by HostAliases.\n123.45.67.89\tfoo\tbar\n"
        );
        assert_eq!(host_network(b"x\n", &[]), b"# Kubernetes-managed hosts file (host network).\nx\n");
    }
}
