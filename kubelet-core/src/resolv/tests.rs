//! Resolver settings against the kubelet's rules.

use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}, "spec": spec}))
        .unwrap()
}

fn host() -> DnsConfig {
    parse_resolv_conf("nameserver 192.0.2.53\nsearch lan\noptions timeout:1\n")
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn resolv_conf_is_read_as_the_resolver_does() {
    let config = parse_resolv_conf(
        "# nameserver 9.9.9.9\n; x\n  nameserver 1.1.1.1 \nnameserver\nnameserver 2001:db8::1\nsearch a b\n\
         search c. . d\noptions ndots:1 rotate\noptions ndots:3\n",
    );
    assert_eq!(config.servers, ["1.1.1.1", "2001:db8::1"]);
    assert_eq!(config.searches, ["c", "d"]);
    assert_eq!(config.options, ["ndots:3", "rotate"]);
}

#[test]
fn the_policy_chooses_the_base() {
    let cluster = ["10.43.0.10".parse().unwrap()];
    let node =
        NodeDns { host: Some(host()), cluster_dns: &cluster, cluster_domain: "cluster.local", node_ips: &[] };
    let of = |spec: Value| pod_dns(&pod(spec), &node);
    let (config, warnings) = of(json!({"dnsPolicy": "ClusterFirst"}));
    assert_eq!(config.servers, ["10.43.0.10"]);
    assert_eq!(config.searches, ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"]);
    assert_eq!((config.options, warnings), (texts(&["ndots:5"]), vec![]));
    for spec in [json!({"dnsPolicy": "Default"}), json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true})] {
        assert_eq!(of(spec), (host(), vec![]));
    }
    let spec = json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true});
    assert_eq!(of(spec).0.servers, ["10.43.0.10"]);
    let spec = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["8.8.8.8"]}});
    assert_eq!(of(spec).0, DnsConfig { servers: texts(&["8.8.8.8"]), ..DnsConfig::default() });
}

#[test]
fn without_cluster_dns_the_hosts_settings_serve_and_the_pod_is_told() {
    let node = NodeDns { host: Some(host()), ..NodeDns::default() };
    let (config, warnings) = pod_dns(&pod(json!({"dnsPolicy": "ClusterFirst"})), &node);
    assert_eq!(config, host());
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].reason, "MissingClusterDNS");
    assert_eq!(
        warnings[0].message,
        "pod: \"web_ns(u)\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \
         \"ClusterFirst\" policy. Falling back to \"Default\" policy."
    );
    let ips = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    let nothing = NodeDns { node_ips: &ips, ..NodeDns::default() };
    let (config, _) = pod_dns(&pod(json!({"dnsPolicy": "Default"})), &nothing);
    assert_eq!((config.servers, config.searches), (texts(&["127.0.0.1", "::1"]), texts(&["."])));
}

#[test]
fn the_pods_own_settings_are_merged_and_cut() {
    let node = NodeDns { host: Some(host()), ..NodeDns::default() };
    let spec = json!({"dnsPolicy": "Default", "dnsConfig": {
        "nameservers": ["192.0.2.53", "1.1.1.1"], "searches": ["lan", "b"],
        "options": [{"name": "timeout", "value": "3"}, {"name": "edns0"}]
    }});
    let (config, warnings) = pod_dns(&pod(spec), &node);
    assert_eq!(config.servers, ["192.0.2.53", "1.1.1.1"]);
    assert_eq!(config.searches, ["lan", "b"]);
    assert_eq!(config.options, ["timeout:3", "edns0"]);
    assert!(warnings.is_empty());

    let many = json!({"dnsPolicy": "None", "dnsConfig": {
        "nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"],
        "searches": (0..40).map(|n| format!("d{n}")).collect::<Vec<_>>()
    }});
    let (config, warnings) = pod_dns(&pod(many), &node);
    assert_eq!((config.servers.len(), config.searches.len()), (3, 32));
    assert!(warnings.iter().all(|warning| warning.reason == "DNSConfigForming"));
    assert_eq!(
        warnings[0].message,
        "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: \
         1.1.1.1 2.2.2.2 3.3.3.3"
    );
    assert!(warnings[1].message.starts_with("Search Line limits were exceeded"), "{}", warnings[1].message);

    let mut searches = vec!["x".to_owned(), "y".repeat(254), "z".repeat(250)];
    searches.extend((0..9).map(|n| format!("{n}{}", "w".repeat(249))));
    let long = json!({"dnsPolicy": "None", "dnsConfig": {"searches": searches}});
    let (config, _) = pod_dns(&pod(long), &node);
    assert!(config.searches.iter().all(|search| search.len() < 254));
    assert!(config.searches.join(" ").len() <= 2048 && config.searches.len() > 7);
}
