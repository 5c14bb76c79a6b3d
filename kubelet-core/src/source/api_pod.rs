//! A pod as an API server serves it: read leniently, because the server has checked it and may be newer than we are.
//!
//! Called by the reader of the API's watch; pure. Unknown fields and nulls mean nothing. A pod that still cannot be
//! read is named with what is wrong, so that one bad object does not hide the others.

use coracle_cluster::{Object, Resource};
use serde::de::{Deserialize, Deserializer};
use serde_json::Value;

use super::decode::drop_nulls;
use crate::api::Pod;

/// Tells a static pod's copy in the API from a pod of the API; holds the static pod's hash.
pub(crate) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Holds the hash that a static pod's UID is made from.
pub(crate) const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
/// Where a pod came from: `file` or `api`.
pub(crate) const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// When this node saw a pod first.
pub(crate) const SEEN_ANNOTATION: &str = "kubernetes.io/config.seen";

/// Whether a pod comes from this node alone.
pub fn is_static(pod: &Pod) -> bool {
    pod.metadata.annotations.get(SOURCE_ANNOTATION).is_some_and(|source| source != "api")
}

/// Whether a pod of the API only shows a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.contains_key(MIRROR_ANNOTATION)
}

/// A served pod, or what is known of one that cannot be read.
#[derive(Debug)]
pub(crate) struct ApiPod(pub(crate) Result<Box<Pod>, BadPod>);

/// A pod that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Which field is wrong and why.
    pub(crate) error: String,
}

impl Object for ApiPod {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "pods", "Pod");
}

impl<'de> Deserialize<'de> for ApiPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(read(Value::deserialize(deserializer)?)))
    }
}

fn read(mut value: Value) -> Result<Box<Pod>, BadPod> {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        // Kept by the server, used by nobody here, and often the largest part of an object.
        metadata.shift_remove("managedFields");
    }
    drop_nulls(&mut value, false);
    let text = |key: &str| {
        let text = value.pointer(&format!("/metadata/{key}")).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let (namespace, name, uid) = (text("namespace"), text("name"), text("uid"));
    serde_path_to_error::deserialize(value).map_err(|error| {
        let error = format!("{}: {}", error.path(), error.inner());
        BadPod { namespace, name, uid, error }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nulls_and_news_mean_nothing() {
        let pod: ApiPod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "generation": 3,
                "creationTimestamp": "2026-01-31T12:00:00Z", "deletionTimestamp": null,
                "deletionGracePeriodSeconds": null, "resourceVersion": "12",
                "managedFields": [{"manager": "kubectl"}], "fromTheFuture": {"a": 1}},
            "spec": {"containers": [{"name": "c", "image": "i", "args": null, "env": null, "new": []}],
                "volumes": null, "schedulingGates": [{"name": "g"}], "nodeName": "n"},
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True",
                "lastProbeTime": null, "lastTransitionTime": "2026-01-31T12:00:00Z"}]}
        }))
        .unwrap();
        let pod = pod.0.unwrap();
        assert_eq!((pod.metadata.generation, &*pod.metadata.uid), (Some(3), "u"));
        assert!(pod.metadata.managed_fields.is_empty() && pod.spec.volumes.is_empty());
        assert_eq!(pod.status.conditions[0].r#type, "PodScheduled");
    }

    #[test]
    fn a_pod_of_wrong_types_names_itself_and_the_field() {
        let pod: ApiPod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": 7}]}
        }))
        .unwrap();
        let bad = pod.0.unwrap_err();
        assert_eq!((bad.name.as_str(), bad.uid.as_str()), ("web", "u"));
        assert!(bad.error.starts_with("spec.containers[0].image: invalid type"), "{}", bad.error);
    }
}
