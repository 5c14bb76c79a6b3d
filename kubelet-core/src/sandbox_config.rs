//! The sandbox of a pod as the runtime is asked for it, and the pod's host name.
//!
//! Pure: from a pod and what the node decided to a CRI message, as the kubelet's `generatePodSandboxConfig`
//! makes it. Called by [`crate::resources`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use coracle_cri::v1::security_profile::ProfileType;
use coracle_cri::v1::{
    DnsConfig, Int64Value, LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
    SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy, UserNamespace,
};

use crate::api::{Container, Pod, SELinuxOptions};
use crate::container_config::{CpuPolicy, linux_resources};
use crate::qos;

/// Labels that every kubelet puts on its sandboxes and containers.
pub const POD_NAME_LABEL: &str = "io.kubernetes.pod.name";
/// The namespace.
pub const POD_NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// The UID.
pub const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";

const HOSTNAME_MAX: usize = 63;
const FQDN_MAX: usize = 64;

/// Why a sandbox cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum SandboxConfigError {
    /// spec.hostname, spec.subdomain or spec.hostnameOverride is no DNS name.
    #[error("pod {field} {value:?} is not a valid DNS {kind}: {rule}")]
    NotADnsName {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// `label` or `subdomain`.
        kind: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// Nothing is left of the name when cut to what the kernel takes.
    #[error("hostname for pod {pod:?} was invalid: {hostname:?}")]
    InvalidHostname {
        /// The pod's name.
        pod: String,
        /// The host name.
        hostname: String,
    },
    /// setHostnameAsFQDN with a name that the kernel does not take.
    #[error(
        "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({FQDN_MAX} \
         characters is the max, {} characters requested)", fqdn.len()
    )]
    FqdnTooLong {
        /// The whole name.
        fqdn: String,
    },
    /// A policy that there is not.
    #[error("unsupported supplementalGroupsPolicy: {0}")]
    SupplementalGroupsPolicy(String),
}

/// What the node decides about a sandbox.
pub struct SandboxInputs<'a> {
    /// How often a sandbox was made for this pod before.
    pub attempt: u32,
    /// The resolver settings.
    pub dns: DnsConfig,
    /// The folder under which pods' log folders lie.
    pub log_root: &'a Path,
    /// The cluster's domain, or empty.
    pub cluster_domain: &'a str,
    /// The pod's cgroup as the runtime is to be told.
    pub cgroup_parent: String,
    /// How CPU limits become quotas.
    pub cpu: CpuPolicy,
    /// The pod's users on the host; none for a pod that has the host's.
    pub user_namespace: Option<UserNamespace>,
}

/// The CRI configuration of a pod's sandbox.
pub fn pod_sandbox_config(
    pod: &Pod,
    inputs: SandboxInputs<'_>,
) -> Result<PodSandboxConfig, SandboxConfigError> {
    let name = pod_hostname(pod, inputs.cluster_domain)?;
    let hostname = if pod.spec.host_network { String::new() } else { kernel_hostname(pod, &name)? };
    let metadata = PodSandboxMetadata {
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.to_string(),
        namespace: pod.metadata.namespace.clone(),
        attempt: inputs.attempt,
    };
    let linux = LinuxPodSandboxConfig {
        cgroup_parent: inputs.cgroup_parent,
        security_context: Some(security_context(pod, inputs.user_namespace)?),
        sysctls: sysctls(pod),
        overhead: Some(overhead(pod, inputs.cpu)),
        resources: Some(resources(pod, inputs.cpu)),
    };
    Ok(PodSandboxConfig {
        metadata: Some(metadata),
        hostname,
        log_directory: pod_log_dir(inputs.log_root, pod).to_string_lossy().into_owned(),
        dns_config: Some(inputs.dns),
        port_mappings: port_mappings(pod),
        labels: labels(pod),
        annotations: pod.metadata.annotations.clone().into_iter().collect(),
        linux: Some(linux),
        windows: None,
    })
}

/// `<log root>/<namespace>_<name>_<uid>`.
pub fn pod_log_dir(log_root: &Path, pod: &Pod) -> std::path::PathBuf {
    let metadata = &pod.metadata;
    log_root.join(format!("{}_{}_{}", metadata.namespace, metadata.name, metadata.uid))
}

/// The labels of the pod, and those that tell whose sandbox or container it is.
fn labels(pod: &Pod) -> HashMap<String, String> {
    let mut labels: HashMap<_, _> = pod.metadata.labels.clone().into_iter().collect();
    labels.extend(identity_labels(pod));
    labels
}

pub(crate) fn identity_labels(pod: &Pod) -> [(String, String); 3] {
    [
        (POD_NAME_LABEL.to_owned(), pod.metadata.name.clone()),
        (POD_NAMESPACE_LABEL.to_owned(), pod.metadata.namespace.clone()),
        (POD_UID_LABEL.to_owned(), pod.metadata.uid.to_string()),
    ]
}

/// A pod's short host name and its domain, which is empty unless the pod has a subdomain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodHostname {
    /// At most 63 characters.
    pub hostname: String,
    /// `<subdomain>.<namespace>.svc.<cluster domain>`, or empty.
    pub domain: String,
}

/// The host name that a pod's spec asks for, the pod's name by default.
pub fn pod_hostname(pod: &Pod, cluster_domain: &str) -> Result<PodHostname, SandboxConfigError> {
    if let Some(name) = &pod.spec.hostname_override {
        let fits = name.len() <= 253 && name.split('.').all(is_label_text);
        check_dns("HostnameOverride", name, "subdomain", SUBDOMAIN_RULE, fits)?;
        return Ok(PodHostname { hostname: truncate(pod, name)?, domain: String::new() });
    }
    let mut hostname = &pod.metadata.name;
    if !pod.spec.hostname.is_empty() {
        hostname = &pod.spec.hostname;
        check_dns("Hostname", hostname, "label", LABEL_RULE, is_label(hostname))?;
    }
    let hostname = truncate(pod, hostname)?;
    let subdomain = &pod.spec.subdomain;
    if subdomain.is_empty() {
        return Ok(PodHostname { hostname, domain: String::new() });
    }
    check_dns("Subdomain", subdomain, "label", LABEL_RULE, is_label(subdomain))?;
    let domain = format!("{subdomain}.{}.svc.{cluster_domain}", pod.metadata.namespace);
    Ok(PodHostname { hostname, domain })
}

const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or \
    '-', and must start and end with an alphanumeric character, and be at most 63 characters long";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
    characters, '-' or '.', and must start and end with an alphanumeric character, and be at most 253 \
    characters long";

fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    !bytes.is_empty() && bytes.iter().all(inner) && bytes[0] != b'-' && bytes[bytes.len() - 1] != b'-'
}

fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_label_text(text)
}

fn check_dns(
    field: &'static str,
    value: &str,
    kind: &'static str,
    rule: &'static str,
    fits: bool,
) -> Result<(), SandboxConfigError> {
    if fits {
        return Ok(());
    }
    Err(SandboxConfigError::NotADnsName { field, value: value.to_owned(), kind, rule })
}

/// Pod names may be longer than the kernel's host names.
fn truncate(pod: &Pod, hostname: &str) -> Result<String, SandboxConfigError> {
    if hostname.len() <= HOSTNAME_MAX {
        return Ok(hostname.to_owned());
    }
    let cut = hostname.get(..HOSTNAME_MAX).unwrap_or("").trim_end_matches(['-', '.']);
    if cut.is_empty() {
        let pod = pod.metadata.name.clone();
        return Err(SandboxConfigError::InvalidHostname { pod, hostname: hostname.to_owned() });
    }
    Ok(cut.to_owned())
}

fn kernel_hostname(pod: &Pod, name: &PodHostname) -> Result<String, SandboxConfigError> {
    if name.domain.is_empty() || pod.spec.set_hostname_as_fqdn != Some(true) {
        return Ok(name.hostname.clone());
    }
    let fqdn = format!("{}.{}", name.hostname, name.domain);
    if fqdn.len() > FQDN_MAX { Err(SandboxConfigError::FqdnTooLong { fqdn }) } else { Ok(fqdn) }
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if pod.spec.host_network {
        // The ports are the host's own; there is nothing to map.
        return Vec::new();
    }
    let sidecars = pod.spec.init_containers.iter().filter(|init| init.is_restartable_init());
    pod.spec.containers.iter().chain(sidecars).flat_map(container_port_mappings).collect()
}

fn container_port_mappings(container: &Container) -> Vec<PortMapping> {
    let mut names: Vec<String> = Vec::new();
    let mut mappings = Vec::new();
    for port in &container.ports {
        let family = match port.host_ip.parse::<IpAddr>() {
            _ if port.host_ip.is_empty() => "any",
            Ok(IpAddr::V6(_)) => "v6",
            _ => "v4",
        };
        let name = if port.name.is_empty() {
            let (ip, inside, outside) = (&port.host_ip, port.container_port, port.host_port);
            format!("{family}-{}-{ip}:{inside}:{outside}", port.protocol)
        } else {
            port.name.clone()
        };
        if names.contains(&name) {
            continue;
        }
        names.push(name);
        let protocol = match port.protocol.as_str() {
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        mappings.push(PortMapping {
            protocol: protocol.into(),
            container_port: port.container_port,
            host_port: port.host_port,
            host_ip: port.host_ip.clone(),
        });
    }
    mappings
}

fn sysctls(pod: &Pod) -> HashMap<String, String> {
    let context = pod.spec.security_context.as_deref();
    let list = context.map(|context| context.sysctls.as_slice()).unwrap_or_default();
    // Runtimes take the dotted form alone.
    list.iter().map(|sysctl| (dotted(&sysctl.name), sysctl.value.clone())).collect()
}

/// `net/ipv4/conf/eth0.100/x` is `net.ipv4.conf.eth0/100.x`: the first separator decides which form it is.
pub(crate) fn dotted(name: &str) -> String {
    let first = name.find(['.', '/']);
    if first.is_none_or(|at| name.as_bytes()[at] == b'.') {
        return name.to_owned();
    }
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        c => c,
    };
    name.chars().map(swap).collect()
}

fn security_context(
    pod: &Pod,
    user_namespace: Option<UserNamespace>,
) -> Result<LinuxSandboxSecurityContext, SandboxConfigError> {
    let runtime_default =
        SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), localhost_ref: String::new() };
    let mut context = LinuxSandboxSecurityContext {
        namespace_options: Some(namespace_options(pod, user_namespace)),
        privileged: pod.all_containers().any(is_privileged),
        seccomp: Some(runtime_default),
        ..LinuxSandboxSecurityContext::default()
    };
    if let Some(of_pod) = pod.spec.security_context.as_deref() {
        context.run_as_user = of_pod.run_as_user.map(|value| Int64Value { value });
        context.run_as_group = of_pod.run_as_group.map(|value| Int64Value { value });
        context.supplemental_groups = supplemental_groups(pod);
        context.supplemental_groups_policy = supplemental_groups_policy(pod)?.into();
        context.selinux_options = of_pod.se_linux_options.as_deref().map(selinux);
    }
    Ok(context)
}

fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
}

/// fsGroup first, then the pod's own supplemental groups.
pub(crate) fn supplemental_groups(pod: &Pod) -> Vec<i64> {
    let context = pod.spec.security_context.as_deref();
    context.into_iter().flat_map(|c| c.fs_group.iter().chain(&c.supplemental_groups).copied()).collect()
}

pub(crate) fn supplemental_groups_policy(pod: &Pod) -> Result<SupplementalGroupsPolicy, SandboxConfigError> {
    let context = pod.spec.security_context.as_deref();
    match context.and_then(|context| context.supplemental_groups_policy.as_deref()) {
        None | Some("Merge") => Ok(SupplementalGroupsPolicy::Merge),
        Some("Strict") => Ok(SupplementalGroupsPolicy::Strict),
        Some(other) => Err(SandboxConfigError::SupplementalGroupsPolicy(other.to_owned())),
    }
}

pub(crate) fn selinux(options: &SELinuxOptions) -> SeLinuxOption {
    SeLinuxOption {
        user: options.user.clone(),
        role: options.role.clone(),
        r#type: options.r#type.clone(),
        level: options.level.clone(),
    }
}

/// The namespaces that the pod's containers share with one another or with the host.
pub fn namespace_options(pod: &Pod, user_namespace: Option<UserNamespace>) -> NamespaceOption {
    let spec = &pod.spec;
    let shared = |host| if host { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = match spec.share_process_namespace {
        _ if spec.host_pid => NamespaceMode::Node,
        Some(true) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOption {
        network: shared(spec.host_network).into(),
        pid: pid.into(),
        ipc: shared(spec.host_ipc).into(),
        target_id: String::new(),
        userns_options: user_namespace,
    }
}

/// What a pod has beside its containers, and what they have together.
pub(crate) fn sandbox_size(pod: &Pod, cpu: CpuPolicy) -> [LinuxContainerResources; 2] {
    [overhead(pod, cpu), resources(pod, cpu)]
}

fn resources(pod: &Pod, cpu: CpuPolicy) -> LinuxContainerResources {
    let requests = qos::pod_requests(pod, false);
    let limits = qos::pod_limits(pod, false);
    let limit = |name| limits.get(name).copied().unwrap_or(0);
    linux_resources(requests.get("cpu").copied(), limit("cpu"), limit("memory"), cpu)
}

fn overhead(pod: &Pod, cpu: CpuPolicy) -> LinuxContainerResources {
    if pod.spec.overhead.is_empty() {
        return LinuxContainerResources::default();
    }
    let of = |name| pod.spec.overhead.get(name).map_or(0, |quantity| qos::amount(name, quantity));
    linux_resources(Some(of("cpu")), of("cpu"), of("memory"), cpu)
}

#[cfg(test)]
mod tests;
