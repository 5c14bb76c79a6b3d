//! Labels and annotations of containers, from which a restarted agent rebuilds what it must know.
//!
//! Pure. The keys are the kubelet's.

use std::collections::HashMap;

use crate::api::{Container, Pod};
use crate::sandbox_config::identity_labels;

/// The container's name.
pub const CONTAINER_NAME_LABEL: &str = "io.kubernetes.container.name";
/// [`container_hash`] in hexadecimal.
pub const HASH_ANNOTATION: &str = "io.kubernetes.container.hash";
/// How often the container ran before.
pub const RESTART_COUNT_ANNOTATION: &str = "io.kubernetes.container.restartCount";
/// Where the container leaves its last words.
pub const TERMINATION_MESSAGE_PATH_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePath";
/// Whether its log stands in for them.
pub const TERMINATION_MESSAGE_POLICY_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Seconds between the pod's stop signal and its kill.
pub const TERMINATION_GRACE_ANNOTATION: &str = "io.kubernetes.pod.terminationGracePeriod";
/// The same, given with the pod's deletion.
const DELETION_GRACE_ANNOTATION: &str = "io.kubernetes.pod.deletionGracePeriod";
/// The preStop hook as JSON.
pub const PRE_STOP_ANNOTATION: &str = "io.kubernetes.container.preStopHandler";
/// The ports as JSON.
pub const PORTS_ANNOTATION: &str = "io.kubernetes.container.ports";

/// A number that changes when a running container must be replaced: with its name or its image.
pub fn container_hash(container: &Container) -> u64 {
    // FNV-1a, 32 bits, with a separator that neither part can hold.
    let bytes = container.image.bytes().chain([0]).chain(container.name.bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    u64::from(hash)
}

pub(super) fn labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    let mut labels = HashMap::from(identity_labels(pod));
    labels.insert(CONTAINER_NAME_LABEL.to_owned(), container.name.clone());
    labels
}

pub(super) fn annotations(pod: &Pod, container: &Container, attempt: u32) -> HashMap<String, String> {
    let mut annotations = HashMap::new();
    let mut put = |key: &str, value: String| annotations.insert(key.to_owned(), value);
    put(HASH_ANNOTATION, format!("{:x}", container_hash(container)));
    put(RESTART_COUNT_ANNOTATION, attempt.to_string());
    put(TERMINATION_MESSAGE_PATH_ANNOTATION, container.termination_message_path.clone());
    put(TERMINATION_MESSAGE_POLICY_ANNOTATION, container.termination_message_policy.clone());
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        put(DELETION_GRACE_ANNOTATION, seconds.to_string());
    }
    if let Some(seconds) = pod.spec.termination_grace_period_seconds {
        put(TERMINATION_GRACE_ANNOTATION, seconds.to_string());
    }
    let json = "plain structs of strings and numbers have a JSON form";
    if let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
        put(PRE_STOP_ANNOTATION, serde_json::to_string(hook).expect(json));
    }
    if !container.ports.is_empty() {
        put(PORTS_ANNOTATION, serde_json::to_string(&container.ports).expect(json));
    }
    annotations
}
