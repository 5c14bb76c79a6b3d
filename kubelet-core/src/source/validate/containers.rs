//! Containers and init containers of a pod.
//!
//! Called by `pod`; pure.

use std::collections::BTreeSet;

use super::env::validate_env;
use super::field::{Errors, Path};
use super::handlers::validate_handlers;
use super::mounts::{Volumes, validate_mounts};
use super::names;
use super::resources::validate_container_resources;
use super::security::validate_container_security;
use super::volumes::pull_policy;
use crate::api::{Container, ContainerPort, PodSpec};

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const RESTART_POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
const ACTIONS: [&str; 2] = ["Restart", "RestartAllContainers"];

pub(super) fn validate_containers(
    spec: &PodSpec,
    volumes: &Volumes<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let path = path.child("containers");
    if spec.containers.is_empty() {
        errors.required(&path, "");
        return;
    }
    let mut names = BTreeSet::new();
    for (n, container) in spec.containers.iter().enumerate() {
        let path = path.index(n);
        validate_any(container, spec, volumes, &path, errors);
        if !names.insert(container.name.as_str()) {
            errors.duplicate(&path.child("name"), &container.name);
        }
        validate_handlers(container, spec, &path, errors);
        restart_policy(container, &path, errors);
    }
    host_ports(&spec.containers, 0, &path, errors);
}

pub(super) fn validate_init_containers(
    spec: &PodSpec,
    volumes: &Volumes<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let list = path.child("initContainers");
    let mut names: BTreeSet<&str> = spec.containers.iter().map(|container| container.name.as_str()).collect();
    for (n, container) in spec.init_containers.iter().enumerate() {
        let path = list.index(n);
        validate_any(container, spec, volumes, &path, errors);
        restart_policy(container, &path, errors);
        if !names.insert(container.name.as_str()) && !container.name.is_empty() {
            errors.duplicate(&path.child("name"), &container.name);
        }
        // They run one by one, so their ports conflict with their own alone.
        host_ports(std::slice::from_ref(container), n, &list, errors);
        if container.is_restartable_init() {
            validate_handlers(container, spec, &path, errors);
            continue;
        }
        for (name, is_set) in [
            ("lifecycle", container.lifecycle.is_some()),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
        ] {
            if is_set {
                let reason = "may not be set for init containers without restartPolicy=Always";
                errors.forbidden(&path.child(name), reason);
            }
        }
    }
}

/// What holds for containers of either kind.
fn validate_any(
    container: &Container,
    spec: &PodSpec,
    volumes: &Volumes<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if container.name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        errors.invalid_each(&path.child("name"), &container.name, names::dns1123_label(&container.name));
    }
    if container.image.is_empty() {
        errors.required(&path.child("image"), "");
    } else if container.image.trim() != container.image {
        let reason = "must not have leading or trailing whitespace";
        errors.invalid(&path.child("image"), &container.image, reason);
    }
    let policy_path = path.child("terminationMessagePolicy");
    match container.termination_message_policy.as_str() {
        "File" | "FallbackToLogsOnError" => {}
        "" => errors.required(&policy_path, ""),
        policy => errors.not_supported(&policy_path, policy, &["File", "FallbackToLogsOnError"]),
    }
    ports(&container.ports, &path.child("ports"), errors);
    validate_env(container, path, errors);
    validate_mounts(container, volumes, path, errors);
    pull_policy(&container.image_pull_policy, &path.child("imagePullPolicy"), errors);
    validate_container_resources(&container.resources, &path.child("resources"), errors);
    validate_container_security(container.security_context.as_deref(), spec, path, errors);
}

fn ports(ports: &[ContainerPort], path: &Path<'_>, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (n, port) in ports.iter().enumerate() {
        let path = path.index(n);
        let name_path = path.child("name");
        let messages = if port.name.is_empty() { Vec::new() } else { names::port_name(&port.name) };
        if !messages.is_empty() {
            errors.invalid_each(&name_path, &port.name, messages);
        } else if !port.name.is_empty() && !names.insert(port.name.as_str()) {
            errors.duplicate(&name_path, &port.name);
        }
        let number_path = path.child("containerPort");
        if port.container_port == 0 {
            errors.required(&number_path, "");
        } else {
            for message in names::port_number(port.container_port) {
                errors.invalid(&number_path, port.container_port, message);
            }
        }
        if port.host_port != 0 {
            for message in names::port_number(port.host_port) {
                errors.invalid(&path.child("hostPort"), port.host_port, message);
            }
        }
        let protocol_path = path.child("protocol");
        if port.protocol.is_empty() {
            errors.required(&protocol_path, "");
        } else if !PROTOCOLS.contains(&port.protocol.as_str()) {
            errors.not_supported(&protocol_path, &port.protocol, &PROTOCOLS);
        }
    }
}

/// No two containers may take the same port of the host.
fn host_ports(containers: &[Container], first: usize, path: &Path<'_>, errors: &mut Errors) {
    let mut taken = BTreeSet::new();
    for (n, container) in containers.iter().enumerate() {
        let container_path = path.index(first + n);
        let list = container_path.child("ports");
        for (n, port) in container.ports.iter().enumerate().filter(|(_, port)| port.host_port != 0) {
            let key = format!("{}/{}/{}", port.protocol, port.host_ip, port.host_port);
            let path = list.index(n);
            if taken.contains(&key) {
                errors.duplicate(&path.child("hostPort"), &key);
            }
            taken.insert(key);
        }
    }
}

/// A container's own restart policy and the rules beside it.
fn restart_policy(container: &Container, path: &Path<'_>, errors: &mut Errors) {
    let rules = &container.restart_policy_rules;
    let policy_path = path.child("restartPolicy");
    match container.restart_policy.as_deref() {
        None if rules.is_empty() => return,
        None => errors.required(&policy_path, "must specify restartPolicy when restart rules are used"),
        Some(policy) if !RESTART_POLICIES.contains(&policy) => {
            errors.not_supported(&policy_path, policy, &RESTART_POLICIES);
        }
        Some(_) => {}
    }
    let list = path.child("restartPolicyRules");
    if rules.len() > 20 {
        errors.too_many(&list, rules.len(), 20);
    }
    for (n, rule) in rules.iter().enumerate() {
        let path = list.index(n);
        if !ACTIONS.contains(&rule.action.as_str()) {
            errors.not_supported(&path.child("action"), &rule.action, &ACTIONS);
        }
        let codes_path = path.child("exitCodes");
        let Some(codes) = &rule.exit_codes else {
            errors.required(&codes_path, "must be specified");
            continue;
        };
        if !["In", "NotIn"].contains(&codes.operator.as_str()) {
            errors.not_supported(&codes_path.child("operator"), &codes.operator, &["In", "NotIn"]);
        }
        if codes.values.len() > 255 {
            errors.too_many(&codes_path.child("values"), codes.values.len(), 255);
        }
    }
}
