//! Where kinds of objects live in the API, and which of them are asked for. Plain data.

/// Where a kind of object lives in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version, such as `v1`.
    pub version: &'static str,
    /// The plural in paths, such as `pods`.
    pub plural: &'static str,
    /// The kind, such as `Pod`.
    pub kind: &'static str,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
}

impl Resource {
    /// A kind whose objects live in namespaces.
    pub const fn namespaced(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        kind: &'static str,
    ) -> Self {
        Self { group, version, plural, kind, namespaced: true }
    }

    /// A kind whose objects belong to the whole cluster.
    pub const fn cluster_wide(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        kind: &'static str,
    ) -> Self {
        Self { group, version, plural, kind, namespaced: false }
    }

    /// What objects of this kind say in `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The path of the collection; of all namespaces if none is given.
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        let mut path = match self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if let Some(namespace) = namespace.filter(|_| self.namespaced) {
            path.push_str("/namespaces/");
            path.push_str(namespace);
        }
        path.push('/');
        path.push_str(self.plural);
        path
    }
}

/// An object as the caller wants to see it: a struct of its own with only the fields it uses.
///
/// Fields that the struct does not name (managedFields among them) are skipped while reading and never held.
pub trait Object: serde::de::DeserializeOwned + Send + 'static {
    /// Where objects of this kind live.
    const RESOURCE: Resource;
}

/// The field that all kinds can be selected by.
const BY_NAME: &str = "metadata.name=";

/// Which objects of a kind are listed or watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only objects with these fields, such as `spec.nodeName=here`.
    pub field_selector: Option<String>,
    /// Only objects with these labels.
    pub label_selector: Option<String>,
}

impl Scope {
    /// All objects of the kind.
    pub fn all() -> Self {
        Self::default()
    }

    /// All objects of one namespace.
    pub fn namespace(namespace: impl Into<String>) -> Self {
        Self { namespace: Some(namespace.into()), ..Self::default() }
    }

    /// The same, only with these fields.
    #[must_use]
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.field_selector = Some(selector.into());
        self
    }

    /// The same, only with these labels.
    #[must_use]
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.label_selector = Some(selector.into());
        self
    }

    /// One object by its name.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        self.fields(format!("{BY_NAME}{name}"))
    }

    pub(crate) fn is_one(&self) -> bool {
        self.field_selector.as_ref().is_some_and(|fields| fields.starts_with(BY_NAME))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_group_and_namespace() {
        let pods = Resource::namespaced("", "v1", "pods", "Pod");
        assert_eq!(pods.path(Some("web")), "/api/v1/namespaces/web/pods");
        assert_eq!(pods.path(None), "/api/v1/pods");
        let nodes = Resource::cluster_wide("", "v1", "nodes", "Node");
        assert_eq!(nodes.path(Some("web")), "/api/v1/nodes");
        let leases = Resource::namespaced("coordination.k8s.io", "v1", "leases", "Lease");
        assert_eq!(
            leases.path(Some("kube-node-lease")),
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        );
        assert_eq!(
            (leases.api_version(), pods.api_version()),
            ("coordination.k8s.io/v1".into(), "v1".into())
        );
    }
}
