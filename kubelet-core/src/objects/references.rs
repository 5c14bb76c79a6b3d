//! Which objects of the API a pod refers to.
//!
//! Pure; called when a pod's objects are to be followed.

use crate::api::Pod;

/// A kind of object that is followed for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ObjectKind {
    /// A v1 ConfigMap.
    ConfigMap,
    /// A v1 Secret.
    Secret,
    /// A v1 Service, or with an empty name all of a namespace.
    Service,
}

impl ObjectKind {
    /// As a kubelet's errors name it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
            Self::Service => "services",
        }
    }
}

/// One object, or all services of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Reference {
    pub(crate) kind: ObjectKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The service that every pod knows, whatever its namespace.
pub(crate) fn kubernetes_service() -> Reference {
    let (namespace, name) = ("default".to_owned(), "kubernetes".to_owned());
    Reference { kind: ObjectKind::Service, namespace, name }
}

/// All objects that the pod refers to, each once, in order.
pub(crate) fn references(pod: &Pod) -> Vec<Reference> {
    let mut found = Vec::new();
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            let namespace = pod.metadata.namespace.clone();
            found.push(Reference { kind, namespace, name: name.to_owned() });
        }
    };
    for secret in &pod.spec.image_pull_secrets {
        add(ObjectKind::Secret, &secret.name);
    }
    for container in pod.all_containers() {
        for source in &container.env_from {
            source.config_map_ref.iter().for_each(|r| add(ObjectKind::ConfigMap, &r.name));
            source.secret_ref.iter().for_each(|r| add(ObjectKind::Secret, &r.name));
        }
        for source in container.env.iter().filter_map(|variable| variable.value_from.as_ref()) {
            source.config_map_key_ref.iter().for_each(|r| add(ObjectKind::ConfigMap, &r.name));
            source.secret_key_ref.iter().for_each(|r| add(ObjectKind::Secret, &r.name));
        }
    }
    for volume in &pod.spec.volumes {
        volume.config_map.iter().for_each(|source| add(ObjectKind::ConfigMap, &source.name));
        volume.secret.iter().for_each(|source| add(ObjectKind::Secret, &source.secret_name));
        for source in volume.projected.iter().flat_map(|projected| &projected.sources) {
            source.config_map.iter().for_each(|source| add(ObjectKind::ConfigMap, &source.name));
            source.secret.iter().for_each(|source| add(ObjectKind::Secret, &source.name));
        }
    }
    if pod.spec.enable_service_links != Some(false) {
        let namespace = pod.metadata.namespace.clone();
        found.push(Reference { kind: ObjectKind::Service, namespace, name: String::new() });
    }
    found.push(kubernetes_service());
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_that_names_an_object_counts_once() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {
                "imagePullSecrets": [{"name": "pull"}],
                "enableServiceLinks": true,
                "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b"}}]}],
                "containers": [{"name": "c", "env": [
                    {"name": "x", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "k"}}},
                    {"name": "y", "valueFrom": {"secretKeyRef": {"name": "d", "key": "k"}}}]}],
                "volumes": [
                    {"name": "v", "configMap": {"name": "e"}},
                    {"name": "w", "secret": {"secretName": "f"}},
                    {"name": "p", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}, {"secret": {"name": "g"}}]}}]
            }
        }))
        .unwrap();
        let found = references(&pod);
        let named: Vec<String> =
            found.iter().map(|r| format!("{} {}/{}", r.kind.word(), r.namespace, r.name)).collect();
        assert_eq!(
            named,
            [
                "configmap n/a",
                "configmap n/e",
                "configmap n/kube-root-ca.crt",
                "secret n/b",
                "secret n/d",
                "secret n/f",
                "secret n/g",
                "secret n/pull",
                "services default/kubernetes",
                "services n/",
            ]
        );
    }
}
