//! Labels and annotations that tie CRI objects to pods, and what a restarted agent reads back from them.
//!
//! Written by [`crate::container_config`] and [`crate::sandbox_config`]; read by observation, by the
//! dispatcher at start and for orphans. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use crate::api::{Container, ContainerPort, Lifecycle, LifecycleHandler, Pod};
use crate::container_config::{
    CONTAINER_NAME_LABEL, HASH_ANNOTATION, PORTS_ANNOTATION, PRE_STOP_ANNOTATION, RESTART_COUNT_ANNOTATION,
    TERMINATION_GRACE_ANNOTATION,
};

pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
const POD_DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";

/// The hash as the annotation carries it.
pub(crate) fn parse_hash(annotations: &HashMap<String, String>) -> Option<u64> {
    u64::from_str_radix(annotations.get(HASH_ANNOTATION)?, 16).ok()
}

/// The restart count as the annotation carries it.
pub(crate) fn parse_restart_count(annotations: &HashMap<String, String>) -> Option<u32> {
    annotations.get(RESTART_COUNT_ANNOTATION)?.parse().ok()
}

/// A pod as far as its labels tell, for killing what no source knows any more.
pub(crate) fn pod_of_labels(labels: &HashMap<String, String>) -> Option<Pod> {
    let mut pod = Pod::default();
    pod.metadata.name = labels.get(POD_NAME)?.clone();
    pod.metadata.namespace = labels.get(POD_NAMESPACE)?.clone();
    pod.metadata.uid = Arc::from(labels.get(POD_UID)?.as_str());
    Some(pod)
}

/// Adds to such a pod the container that labels and annotations of an instance describe: name, ports,
/// preStop hook, and the pod's grace period.
pub(crate) fn add_container_of_labels(
    pod: &mut Pod,
    labels: &HashMap<String, String>,
    annotations: &HashMap<String, String>,
) {
    let grace = |key| annotations.get(key).and_then(|text: &String| text.parse::<i64>().ok());
    if let Some(seconds) = grace(TERMINATION_GRACE_ANNOTATION) {
        pod.spec.termination_grace_period_seconds = Some(seconds);
    }
    if let Some(seconds) = grace(POD_DELETION_GRACE) {
        pod.metadata.deletion_grace_period_seconds = Some(seconds);
    }
    let Some(name) = labels.get(CONTAINER_NAME_LABEL) else { return };
    if pod.container(name).is_some() {
        return;
    }
    let mut container = Container { name: name.clone(), ..Container::default() };
    let parsed = |key| annotations.get(key).map(String::as_str);
    if let Some(ports) =
        parsed(PORTS_ANNOTATION).and_then(|text| serde_json::from_str::<Vec<ContainerPort>>(text).ok())
    {
        container.ports = ports;
    }
    let hook =
        parsed(PRE_STOP_ANNOTATION).and_then(|text| serde_json::from_str::<LifecycleHandler>(text).ok());
    if let Some(hook) = hook {
        container.lifecycle =
            Some(Box::new(Lifecycle { pre_stop: Some(Box::new(hook)), ..Lifecycle::default() }));
    }
    pod.spec.containers.push(container);
}
