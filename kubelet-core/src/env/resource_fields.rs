//! Requests and limits of a container as numbers, for `resourceFieldRef`.
//!
//! Pure; used by variables and by downwardAPI files. A limit that is not set is the pod's, or else what the node
//! can give. The value is divided by the divisor and rounded up.

use std::collections::BTreeMap;

use crate::api::{Container, Pod, Quantity, ResourceFieldSelector};

/// A resource that cannot be resolved.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceFieldError {
    /// The selector names a container that the pod has not.
    #[error("container {0} not found")]
    NoContainer(String),
    /// No such resource is offered.
    #[error("unsupported container resource : {0}")]
    Unsupported(String),
}

/// The value that `selector` names; `own` is the container that asks, if it is one that does.
pub fn resource_field(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, ResourceFieldError> {
    let container = match own {
        Some(own) if selector.container_name.is_empty() => own,
        _ => pod
            .spec
            .containers
            .iter()
            .chain(&pod.spec.init_containers)
            .find(|container| container.name == selector.container_name)
            .ok_or_else(|| ResourceFieldError::NoContainer(selector.container_name.clone()))?,
    };
    let unsupported = || ResourceFieldError::Unsupported(selector.resource.clone());
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let is_offered =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    let quantity = match list {
        "limits" if is_offered => limit(pod, container, resource, allocatable),
        "requests" if is_offered => container.resources.requests.get(resource),
        _ => return Err(unsupported()),
    };
    Ok(divide(resource, quantity, selector.divisor.as_ref()).to_string())
}

fn limit<'a>(
    pod: &'a Pod,
    container: &'a Container,
    resource: &str,
    allocatable: &'a BTreeMap<String, Quantity>,
) -> Option<&'a Quantity> {
    let set = |list: &'a BTreeMap<String, Quantity>| list.get(resource).filter(|q| !q.is_zero());
    let own = set(&container.resources.limits);
    if resource.starts_with("hugepages-") {
        // Huge pages are never overcommitted, so a missing limit is none at all.
        return own;
    }
    let of_pod = pod.spec.resources.as_ref().and_then(|resources| set(&resources.limits));
    own.or(of_pod.filter(|_| resource != "ephemeral-storage")).or_else(|| allocatable.get(resource))
}

fn divide(resource: &str, quantity: Option<&Quantity>, divisor: Option<&Quantity>) -> i64 {
    let amount = |q: &Quantity| if resource == "cpu" { q.milli_value() } else { q.value() };
    let one = if resource == "cpu" { 1000 } else { 1 };
    let divisor = divisor.filter(|d| !d.is_zero()).map_or(one, amount);
    let value = quantity.map_or(0, amount);
    // A divisor is validated as positive.
    value.div_euclid(divisor) + i64::from(value.rem_euclid(divisor) != 0)
}
