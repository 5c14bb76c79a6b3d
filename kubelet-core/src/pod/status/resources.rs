//! The CPU and memory that a container has, as far as the runtime tells.
//!
//! Called by `containers`; pure. Follows the kubelet's `convertContainerStatusResources` (1.36): what a running
//! container was allocated, with the amounts that are set in their place.

use std::collections::BTreeMap;

use super::Inputs;
use crate::api::{Container, Quantity, ResourceRequirements};
use crate::pod::observation::{ContainerPhase, Instance};
use crate::qos::amount;

/// Up to here runtimes round CPU: what was asked for says more than what is set.
const LEAST_CPU_REQUEST: i64 = 2;
const LEAST_CPU_LIMIT: i64 = 10;

pub(super) fn actual(
    inputs: &Inputs<'_>,
    container: &Container,
    instance: &Instance,
) -> ResourceRequirements {
    let mut resources = container.resources.clone();
    if instance.phase != ContainerPhase::Running {
        return resources;
    }
    let set = inputs.sizes.containers.get(&instance.id);
    let set = |of: fn(&crate::pod::resize::Amounts) -> i64| set.map(of).filter(|value| *value > 0);
    let told = &instance.limits;
    if !resources.limits.is_empty() {
        let cpu = told.cpu_limit.or(set(|set| set.cpu_limit));
        put(&mut resources.limits, "cpu", cpu, LEAST_CPU_LIMIT);
        let memory = told.memory_limit.or(set(|set| set.memory_limit));
        put(&mut resources.limits, "memory", memory, 0);
    }
    if !resources.requests.is_empty() {
        let cpu = told.cpu_request.or(set(|set| set.cpu_request));
        put(&mut resources.requests, "cpu", cpu, LEAST_CPU_REQUEST);
        put(&mut resources.requests, "memory", set(|set| set.memory_request), 0);
    }
    resources
}

fn put(list: &mut BTreeMap<String, Quantity>, name: &str, value: Option<i64>, least: i64) {
    let allocated = list.get(name).map_or(0, |quantity| amount(name, quantity));
    let Some(value) = value.filter(|value| *value != allocated && (*value > least || allocated > least))
    else {
        return;
    };
    let quantity = match name {
        "cpu" => Quantity::canonical(i128::from(value), false),
        _ => Quantity::canonical(i128::from(value) * 1000, true),
    };
    list.insert(name.to_owned(), quantity);
}
