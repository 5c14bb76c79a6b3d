//! A pod as a whole: everything of its specification that is no container and no volume.
//!
//! Called by `validate_pod`; pure.

use super::containers::{validate_containers, validate_init_containers};
use super::field::{Errors, Path};
use super::names;
use super::resources::{validate_overhead, validate_pod_resources};
use super::security::validate_pod_security;
use super::volumes::validate_volumes;
use crate::api::{NodeSelector, NodeSelectorRequirement, PodSpec, Toleration, Volume};

const NO_EXECUTE: &str = "NoExecute";

pub(super) fn validate_spec(spec: &PodSpec, errors: &mut Errors) {
    let path = Path::Root("spec");
    if spec.termination_grace_period_seconds.is_none() {
        errors.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let volumes = validate_volumes(&spec.volumes, &path.child("volumes"), errors);
    validate_containers(spec, &volumes, &path, errors);
    validate_init_containers(spec, &volumes, &path, errors);
    if !spec.ephemeral_containers.is_empty() {
        errors.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
    }
    validate_pod_resources(spec, &path, errors);
    host_network_ports(spec, &path, errors);
    policies(spec, &path, errors);
    names::validate_labels(&spec.node_selector, &path.child("nodeSelector"), errors);
    validate_pod_security(spec, &path, errors);
    affinity(spec, &path, errors);
    dns(spec, &path.child("dnsConfig"), errors);
    let gates = path.child("readinessGates");
    for (n, gate) in spec.readiness_gates.iter().enumerate() {
        let gate_path = gates.index(n);
        let messages = names::qualified_name(&gate.condition_type);
        errors.invalid_each(&gate_path.child("conditionType"), &gate.condition_type, messages);
    }
    if !spec.node_name.is_empty() && !spec.scheduling_gates.is_empty() {
        errors
            .forbidden(&path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    host_users(spec, &path, errors);
    host_name(spec, &path, errors);
    plain_names(spec, &path, errors);
    tolerations(&spec.tolerations, &path.child("tolerations"), errors);
    host_aliases(spec, &path.child("hostAliases"), errors);
    validate_overhead(&spec.overhead, &path.child("overhead"), errors);
    operating_system(spec, &path.child("os"), errors);
    file_keys(spec, &path, errors);
    tokens(spec, &path, errors);
}

fn policies(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    for (name, value, supported) in [
        ("restartPolicy", Some(&spec.restart_policy), &["Always", "OnFailure", "Never"][..]),
        (
            "dnsPolicy",
            Some(&spec.dns_policy),
            &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"][..],
        ),
        ("preemptionPolicy", spec.preemption_policy.as_ref(), &["PreemptLowerPriority", "Never"][..]),
    ] {
        let path = path.child(name);
        match value.map(String::as_str) {
            None => {}
            Some("") => errors.required(&path, ""),
            Some(value) if !supported.contains(&value) => errors.not_supported(&path, value, supported),
            Some(_) => {}
        }
    }
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let reason = format!("must be between 1 and {}, inclusive", i32::MAX);
        errors.invalid(&path.child("activeDeadlineSeconds"), seconds, reason);
    }
    if let Some(seconds) = spec.termination_grace_period_seconds.filter(|seconds| *seconds < 0) {
        // An API server sets such a value to one second; a file is better told.
        let path = path.child("terminationGracePeriodSeconds");
        errors.invalid(&path, seconds, "must be greater than or equal to 0");
    }
}

/// Names that refer to something or become part of a host name.
fn plain_names(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    type Rule = fn(&str) -> Vec<String>;
    let runtime_class = spec.runtime_class_name.as_deref();
    for (name, value, rule) in [
        ("serviceAccountName", spec.service_account_name.as_str(), names::dns1123_subdomain as Rule),
        ("nodeName", &spec.node_name, |name| names::dns1123_subdomain(&name.to_lowercase())),
        ("hostname", &spec.hostname, names::dns1123_label),
        ("subdomain", &spec.subdomain, names::dns1123_label),
        ("priorityClassName", &spec.priority_class_name, names::dns1123_subdomain),
        ("runtimeClassName", runtime_class.unwrap_or(""), names::dns1123_subdomain),
    ] {
        if !value.is_empty() || (name == "runtimeClassName" && runtime_class.is_some()) {
            errors.invalid_each(&path.child(name), value, rule(value));
        }
    }
}

fn host_network_ports(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    if !spec.host_network {
        return;
    }
    let list = path.child("containers");
    for (n, container) in spec.containers.iter().enumerate() {
        let path = list.index(n);
        let ports = path.child("ports");
        for (n, port) in container.ports.iter().enumerate() {
            if port.host_port != port.container_port {
                let path = ports.index(n);
                let reason = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid(&path.child("hostPort"), port.host_port, reason);
            }
        }
    }
}

fn host_users(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    if spec.host_users != Some(false) {
        return;
    }
    let names = [("hostNetwork", spec.host_network), ("HostPID", spec.host_pid), ("HostIPC", spec.host_ipc)];
    for (name, _) in names.into_iter().filter(|(_, is_set)| *is_set) {
        errors.forbidden(&path.child(name), "when `hostUsers` is false");
    }
    for (kind, containers) in [("initContainers", &spec.init_containers), ("containers", &spec.containers)] {
        let list = path.child(kind);
        for (n, _) in containers.iter().enumerate().filter(|(_, c)| !c.volume_devices.is_empty()) {
            let path = list.index(n);
            errors.forbidden(&path.child("volumeDevices"), "when `hostUsers` is false");
        }
    }
}

fn host_name(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let Some(name) = &spec.hostname_override else { return };
    let path = path.child("hostnameOverride");
    if spec.set_hostname_as_fqdn == Some(true) {
        errors.forbidden(&path, "may not be specified when setHostnameAsFQDN is true");
    }
    if spec.host_network {
        errors.forbidden(&path, "may not be specified when hostNetwork is true");
    }
    if name.len() > 64 {
        errors.too_long(&path, 64);
    }
    errors.invalid_each(&path, name, names::dns1123_subdomain(name));
}

fn tolerations(tolerations: &[Toleration], path: &Path<'_>, errors: &mut Errors) {
    const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", NO_EXECUTE];
    for (n, toleration) in tolerations.iter().enumerate() {
        let path = path.index(n);
        let operator_path = path.child("operator");
        let (operator, value) = (toleration.operator.as_str(), toleration.value.as_str());
        if !toleration.key.is_empty() {
            errors.invalid_each(&path.child("key"), &toleration.key, names::qualified_name(&toleration.key));
        } else if operator != "Exists" {
            let reason =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&operator_path, operator, reason);
        }
        let effect = toleration.effect.as_str();
        if toleration.toleration_seconds.is_some() && effect != NO_EXECUTE {
            let reason = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&path.child("effect"), effect, reason);
        }
        match operator {
            "Equal" | "" => {
                let messages = names::label_value(value);
                if !messages.is_empty() {
                    errors.invalid(&operator_path, value, messages.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                errors.invalid(&operator_path, value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            other => errors.not_supported(&operator_path, other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.not_supported(&path.child("effect"), effect, &EFFECTS);
        }
    }
}

fn host_aliases(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    for (n, alias) in spec.host_aliases.iter().enumerate() {
        let path = path.index(n);
        errors.invalid_each(&path.child("ip"), &alias.ip, names::ip_address(&alias.ip));
        let list = path.child("hostnames");
        for (n, name) in alias.hostnames.iter().enumerate() {
            errors.invalid_each(&list.index(n), name, names::dns1123_subdomain(name));
        }
    }
}

fn dns(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let servers_path = path.child("nameservers");
    let Some(config) = &spec.dns_config else {
        if spec.dns_policy == "None" {
            errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    if spec.dns_policy == "None" && config.nameservers.is_empty() {
        errors.required(&servers_path, "must provide at least one DNS nameserver when `dnsPolicy` is None");
        return;
    }
    if config.nameservers.len() > 3 {
        errors.invalid(&servers_path, List(&config.nameservers), "must not have more than 3 nameservers");
    }
    for (n, server) in config.nameservers.iter().enumerate() {
        errors.invalid_each(&servers_path.index(n), server, names::ip_address(server));
    }
    let searches_path = path.child("searches");
    if config.searches.len() > 32 {
        errors.invalid(&searches_path, List(&config.searches), "must not have more than 32 search paths");
    }
    if config.searches.join(" ").len() > 2048 {
        let reason = "must not have more than 2048 characters (including spaces) in the search list";
        errors.invalid(&searches_path, List(&config.searches), reason);
    }
    for (n, search) in config.searches.iter().enumerate().filter(|(_, search)| *search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        let messages = names::dns1123_subdomain_with_underscore(search);
        errors.invalid_each(&searches_path.index(n), search, messages);
    }
    let options = path.child("options");
    for (n, _) in config.options.iter().enumerate().filter(|(_, option)| option.name.is_empty()) {
        errors.required(&options.index(n), "must not be empty");
    }
}

/// A list as the bad value.
struct List<'a>(&'a [String]);

impl super::field::Shown for List<'_> {
    fn shown(self) -> String {
        serde_json::to_string(self.0).unwrap_or_default()
    }
}

/// The one rule that a node itself reads: required node affinity.
fn affinity(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let Some(node) = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()) else {
        return;
    };
    let Some(selector) = &node.required_during_scheduling_ignored_during_execution else { return };
    let path = path.child("affinity");
    let path = path.child("nodeAffinity");
    let path = path.child("requiredDuringSchedulingIgnoredDuringExecution");
    node_selector(selector, &path.child("nodeSelectorTerms"), errors);
}

fn node_selector(selector: &NodeSelector, path: &Path<'_>, errors: &mut Errors) {
    if selector.node_selector_terms.is_empty() {
        errors.required(path, "must have at least one node selector term");
    }
    for (n, term) in selector.node_selector_terms.iter().enumerate() {
        let path = path.index(n);
        let list = path.child("matchExpressions");
        for (n, requirement) in term.match_expressions.iter().enumerate() {
            node_requirement(requirement, &list.index(n), errors);
        }
        let list = path.child("matchFields");
        for (n, requirement) in term.match_fields.iter().enumerate() {
            let path = list.index(n);
            if !["In", "NotIn"].contains(&requirement.operator.as_str()) {
                errors.invalid(
                    &path.child("operator"),
                    &requirement.operator,
                    "not a valid selector operator",
                );
            } else if requirement.values.len() != 1 {
                let reason =
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.required(&path.child("values"), reason);
            }
            if requirement.key != "metadata.name" {
                errors.invalid(&path.child("key"), &requirement.key, "not a valid field selector key");
            }
        }
    }
}

fn node_requirement(requirement: &NodeSelectorRequirement, path: &Path<'_>, errors: &mut Errors) {
    let values = path.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" if requirement.values.is_empty() => {
            errors.required(&values, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !requirement.values.is_empty() => {
            errors.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Gt" | "Lt" if requirement.values.len() != 1 => {
            errors.required(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    errors.invalid_each(&path.child("key"), &requirement.key, names::qualified_name(&requirement.key));
    for (n, value) in requirement.values.iter().enumerate() {
        errors.invalid_each(&values.index(n), value, names::label_value(value));
    }
}

fn operating_system(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    match spec.os.as_ref().map(|os| os.name.as_str()) {
        None | Some("linux") => {}
        Some("") => errors.required(&path.child("name"), ""),
        // The kubelet's admission, which refuses what its machine cannot run.
        Some("windows") => errors.forbidden(&path.child("name"), "this node runs linux"),
        Some(other) => errors.not_supported(path, other, &["linux", "windows"]),
    }
}

/// Variables from files need a volume whose files stay in place.
fn file_keys(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    for (kind, containers) in [("initContainers", &spec.init_containers), ("containers", &spec.containers)] {
        let list = path.child(kind);
        for (n, container) in containers.iter().enumerate() {
            let path = list.index(n);
            let env = path.child("env");
            for (n, variable) in container.env.iter().enumerate() {
                let source = variable.value_from.as_ref().and_then(|source| source.file_key_ref.as_ref());
                let Some(name) = source.map(|source| source.volume_name.as_str()) else { continue };
                let variable = env.index(n);
                let (source, key) = (variable.child("valueFrom"), "fileKeyRef");
                let reference = source.child(key);
                let path = reference.child("volumeName");
                match spec.volumes.iter().find(|volume| volume.name == name) {
                    None => errors.not_found(&path, name),
                    Some(Volume { empty_dir: None, .. }) => {
                        errors.invalid(&path, name, "referenced volume must be of type emptyDir");
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

fn tokens(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    if !spec.service_account_name.is_empty() {
        return;
    }
    let list = path.child("volumes");
    for (n, volume) in spec.volumes.iter().enumerate() {
        let path = list.index(n);
        let path = path.child("projected");
        let sources = path.child("sources");
        for (n, source) in volume.projected.iter().flat_map(|projected| &projected.sources).enumerate() {
            if source.service_account_token.is_some() {
                let path = sources.index(n);
                let reason = "must not be specified when serviceAccountName is not set";
                errors.forbidden(&path.child("serviceAccountToken"), reason);
            }
        }
    }
}
