//! Requests and limits of containers and pods.
//!
//! Called by `containers` and `pod`; pure.

use std::collections::BTreeMap;

use super::field::{Errors, Path};
use super::names;
use crate::api::{PodSpec, Quantity, ResourceRequirements};

const NOT_INTEGER: &str = "must be an integer";
const NEGATIVE: &str = "must be greater than or equal to 0";

/// Names that mean something to Kubernetes without a prefix, in a container or anywhere else.
const STANDARD: [&str; 20] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];
const CONTAINER: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

fn is_hugepages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Names of Kubernetes' own: without a prefix, or with its own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether more may be requested by all than there is.
fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_hugepages(name)
}

fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

type NameCheck = fn(&str, &Path<'_>, &mut Errors);

/// Resources of a container.
pub(super) fn validate_container_resources(
    resources: &ResourceRequirements,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    validate(resources, container_name, path, errors);
}

/// Resources of a whole pod.
pub(super) fn validate_pod_resources(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let Some(resources) = &spec.resources else { return };
    let path = path.child("resources");
    if !resources.claims.is_empty() {
        errors.forbidden(&path.child("claims"), "claims may not be set for Resources at pod-level");
    }
    validate(resources, pod_name, &path, errors);
    let containers = path.child("containers");
    for (n, container) in spec.containers.iter().enumerate() {
        for (name, limit) in &container.resources.limits {
            let Some(pod_limit) = resources.limits.get(name) else { continue };
            if limit.milli_value() > pod_limit.milli_value() {
                let (container, reason) =
                    (containers.index(n), format!("must be less than or equal to pod limits of {pod_limit}"));
                let key = container.key(name);
                errors.invalid(&key.child("limits"), limit.as_str(), reason);
            }
        }
    }
    let requests = path.child("requests");
    for (name, sum) in crate::source::defaults::aggregate_requests(spec) {
        let Some(request) = resources.requests.get(&name) else { continue };
        if sum.milli_value() > request.milli_value() {
            let reason = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(&requests.key(&name), request.as_str(), reason);
        }
    }
}

/// What a sandbox needs beyond its containers.
pub(super) fn validate_overhead(overhead: &BTreeMap<String, Quantity>, path: &Path<'_>, errors: &mut Errors) {
    // An API server checks it as limits of a container, and says so in the path.
    let resources = ResourceRequirements { limits: overhead.clone(), ..ResourceRequirements::default() };
    validate(&resources, container_name, path, errors);
}

fn validate(resources: &ResourceRequirements, check_name: NameCheck, path: &Path<'_>, errors: &mut Errors) {
    let (limits, requests) = (path.child("limits"), path.child("requests"));
    for (list, quantities) in [(&limits, &resources.limits), (&requests, &resources.requests)] {
        for (name, quantity) in quantities {
            let path = list.key(name);
            check_name(name, &path, errors);
            check_quantity(name, quantity, &path, errors);
        }
    }
    for (name, request) in &resources.requests {
        let Some(limit) = resources.limits.get(name) else {
            if !may_overcommit(name) {
                errors.required(&limits, "Limit must be set for non overcommitable resources");
            }
            continue;
        };
        let (shown, request, limit_value) = (request.as_str(), request.milli_value(), limit.milli_value());
        if request != limit_value && !may_overcommit(name) {
            errors.invalid(&requests, shown, format!("must be equal to {name} limit of {limit}"));
        } else if request > limit_value {
            errors.invalid(
                &requests,
                shown,
                format!("must be less than or equal to {name} limit of {limit}"),
            );
        }
    }
    let mut all = resources.limits.keys().chain(resources.requests.keys());
    let has_compute = all.clone().any(|name| name == "cpu" || name == "memory");
    if !has_compute && all.any(|name| is_hugepages(name)) {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
}

fn check_quantity(name: &str, quantity: &Quantity, path: &Path<'_>, errors: &mut Errors) {
    if quantity.milli_value() < 0 {
        errors.invalid(path, quantity.as_str(), NEGATIVE);
    }
    if is_extended(name) && quantity.milli_value() % 1000 != 0 {
        errors.invalid(path, quantity.as_str(), NOT_INTEGER);
    }
    if let Some(size) = name.strip_prefix("hugepages-") {
        let size = size.parse().map_or(0, |size: Quantity| size.value());
        if size <= 0 || quantity.value() % size != 0 {
            let reason = format!("{quantity} is not positive integer multiple of {name}");
            errors.invalid(path, quantity.as_str(), reason);
        }
    }
}

fn resource_name(name: &str, path: &Path<'_>, errors: &mut Errors) -> bool {
    let messages = names::qualified_name(name);
    if !messages.is_empty() {
        errors.invalid_each(path, name, messages);
        return false;
    }
    if !name.contains('/') && !STANDARD.contains(&name) && !is_hugepages(name) {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
        return false;
    }
    true
}

fn container_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    resource_name(name, path, errors);
    if !name.contains('/') {
        if !CONTAINER.contains(&name) && !is_hugepages(name) {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

fn pod_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if resource_name(name, path, errors) && name != "cpu" && name != "memory" && !is_hugepages(name) {
        errors.not_supported(path, name, &["cpu", "hugepages-", "memory"]);
    }
}
