//! A pod's resolver settings from its dnsPolicy and dnsConfig, the node's resolv.conf and the cluster's DNS.
//!
//! Pure; [`crate::resources`] reads the node's file and records the warnings as events. Options keep the order
//! in which they were first named, so that the same pod gets the same file each time.

use std::net::IpAddr;

use coracle_cri::v1::DnsConfig;

use crate::api::{Pod, PodDNSConfigOption};

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCH_PATHS: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
const MAX_SUBDOMAIN: usize = 253;

/// What the node knows about DNS.
#[derive(Clone, Debug, Default)]
pub struct NodeDns<'a> {
    /// The node's resolver settings; `None` if it is told to have none.
    pub host: Option<DnsConfig>,
    /// Addresses of the cluster's DNS service.
    pub cluster_dns: &'a [IpAddr],
    /// The cluster's domain, or empty.
    pub cluster_domain: &'a str,
    /// The node's own addresses.
    pub node_ips: &'a [IpAddr],
}

/// Something that the pod's owner should know, with the kubelet's event reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsWarning {
    /// `MissingClusterDNS` or `DNSConfigForming`.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
}

#[derive(PartialEq, Eq)]
enum Base {
    Cluster,
    Host,
    Empty,
}

/// The resolver settings of a pod, and what was cut or replaced in making them.
pub fn pod_dns(pod: &Pod, node: &NodeDns<'_>) -> (DnsConfig, Vec<DnsWarning>) {
    let mut warnings = Vec::new();
    let host = || node.host.clone().unwrap_or_else(|| nowhere(node.node_ips));
    let mut config = match base(pod) {
        Base::Empty => DnsConfig::default(),
        Base::Host => host(),
        Base::Cluster if node.cluster_dns.is_empty() => {
            warnings.push(missing_cluster_dns(pod));
            host()
        }
        Base::Cluster => DnsConfig {
            servers: node.cluster_dns.iter().map(IpAddr::to_string).collect(),
            searches: cluster_searches(pod, node),
            options: vec!["ndots:5".to_owned()],
        },
    };
    if let Some(own) = &pod.spec.dns_config {
        config.servers = without_repeats(config.servers.into_iter().chain(own.nameservers.iter().cloned()));
        config.searches = without_repeats(config.searches.into_iter().chain(own.searches.iter().cloned()));
        config.options = merge_options(&config.options, &own.options);
    }
    cut_servers(&mut config, &mut warnings);
    cut_searches(&mut config, &mut warnings);
    (config, warnings)
}

fn base(pod: &Pod) -> Base {
    match pod.spec.dns_policy.as_str() {
        "None" => Base::Empty,
        "Default" => Base::Host,
        "ClusterFirst" if pod.spec.host_network => Base::Host,
        // Also for a policy that nobody knows, as the kubelet does.
        _ => Base::Cluster,
    }
}

fn missing_cluster_dns(pod: &Pod) -> DnsWarning {
    let name = format!("{}_{}({})", pod.metadata.name, pod.metadata.namespace, pod.metadata.uid);
    let message = format!(
        "pod: \"{name}\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \
         \"ClusterFirst\" policy. Falling back to \"Default\" policy."
    );
    DnsWarning { reason: "MissingClusterDNS", message }
}

/// With no resolv.conf at all the resolver asks the local machine, which answers nothing.
fn nowhere(node_ips: &[IpAddr]) -> DnsConfig {
    let local = |ip: &IpAddr| if ip.is_ipv6() { "::1" } else { "127.0.0.1" }.to_owned();
    let mut servers: Vec<String> = node_ips.iter().map(local).collect();
    if servers.is_empty() {
        servers.push("127.0.0.1".to_owned());
    }
    DnsConfig { servers, searches: vec![".".to_owned()], options: Vec::new() }
}

fn cluster_searches(pod: &Pod, node: &NodeDns<'_>) -> Vec<String> {
    let host = node.host.iter().flat_map(|host| host.searches.iter().cloned());
    if node.cluster_domain.is_empty() {
        return host.collect();
    }
    let domain = node.cluster_domain;
    let own =
        [format!("{}.svc.{domain}", pod.metadata.namespace), format!("svc.{domain}"), domain.to_owned()];
    without_repeats(own.into_iter().chain(host))
}

fn without_repeats(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut unique: Vec<String> = Vec::new();
    for item in items {
        if !unique.contains(&item) {
            unique.push(item);
        }
    }
    unique
}

fn option_name(option: &str) -> &str {
    option.split_once(':').map_or(option, |(name, _)| name)
}

fn set_option(options: &mut Vec<String>, option: String) {
    match options.iter_mut().find(|known| option_name(known) == option_name(&option)) {
        Some(known) => *known = option,
        None => options.push(option),
    }
}

fn merge_options(existing: &[String], own: &[PodDNSConfigOption]) -> Vec<String> {
    let mut merged = Vec::new();
    for option in existing {
        set_option(&mut merged, option.clone());
    }
    for option in own {
        let value = option.value.as_deref().filter(|value| !value.is_empty());
        let text = value.map_or_else(|| option.name.clone(), |value| format!("{}:{value}", option.name));
        set_option(&mut merged, text);
    }
    merged
}

fn cut_servers(config: &mut DnsConfig, warnings: &mut Vec<DnsWarning>) {
    if config.servers.len() > MAX_NAMESERVERS {
        config.servers.truncate(MAX_NAMESERVERS);
        let message = format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver \
             line is: {}",
            config.servers.join(" ")
        );
        warnings.push(DnsWarning { reason: "DNSConfigForming", message });
    }
}

fn cut_searches(config: &mut DnsConfig, warnings: &mut Vec<DnsWarning>) {
    let wanted = config.searches.len();
    config.searches.truncate(MAX_SEARCH_PATHS);
    // Some resolvers (glibc 2.28) abort on a longer one.
    config.searches.retain(|search| search.len() <= MAX_SUBDOMAIN);
    while config.searches.join(" ").len() > MAX_SEARCH_CHARS {
        config.searches.pop();
    }
    if config.searches.len() < wanted {
        let message = format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line \
             is: {}",
            config.searches.join(" ")
        );
        warnings.push(DnsWarning { reason: "DNSConfigForming", message });
    }
}

/// Reads a resolv.conf(5): nameservers add up, the last search line wins, options override by name.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some("nameserver") => config.servers.extend(fields.next().map(str::to_owned)),
            Some("search") => {
                let domains = fields.filter(|domain| *domain != ".");
                config.searches = domains.map(|d| d.strip_suffix('.').unwrap_or(d).to_owned()).collect();
            }
            Some("options") => {
                for option in fields {
                    set_option(&mut config.options, option.to_owned());
                }
            }
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests;
