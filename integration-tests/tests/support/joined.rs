//! What the tests of pods on a node of a cluster share: where pods are, what they run, and when they are ready.

use std::time::Duration;

use coracle_integration_tests::cluster;
use coracle_integration_tests::images::EXAMPLE;
use serde_json::{Value, json};

pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// A container of the example image, with further fields.
pub(crate) fn container(more: Value) -> Value {
    let mut container = json!({"name": "main", "image": EXAMPLE, "imagePullPolicy": "IfNotPresent"});
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    cluster::is_true(pod, "Ready")
}
