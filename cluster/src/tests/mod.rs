//! The client against the scripted API server.

mod transport;
mod verbs;
mod watches;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::patience::Patience;
use crate::testing::FakeApi;
use crate::{Access, Change, Cluster, Object, Resource, Scope};

pub(super) const PODS: &str = "/api/v1/pods";

#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: Spec,
}

#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) resource_version: String,
    #[serde(default)]
    pub(super) labels: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    #[serde(default)]
    pub(super) node_name: Option<String>,
}

impl Object for Pod {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "pods", "Pod");
}

pub(super) fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "web",
           "managedFields": [{"manager": "test", "fieldsV1": {"f:spec": {}}}]},
           "spec": {"nodeName": "here", "containers": [{"name": "app", "image": "app"}]}})
}

/// Waits that fit a test.
pub(super) fn short() -> Patience {
    Patience {
        connect: Duration::from_secs(5),
        read_idle: Duration::from_millis(300),
        ping_answer: Duration::from_millis(700),
        stall: Duration::from_millis(500),
        request: Duration::from_secs(20),
        silence: Duration::from_secs(2),
        list_silence: Duration::from_secs(2),
        back_off: (Duration::from_millis(20), Duration::from_millis(200)),
        ..Patience::default()
    }
}

pub(super) fn client(api: &FakeApi) -> Cluster {
    fixed(api.access())
}

pub(super) fn fixed(access: Access) -> Cluster {
    Cluster::patient(watch::Sender::new(Arc::new(access)).subscribe(), short())
}

/// A watch of pods that a test reads with a bound.
pub(super) struct Pods(Pin<Box<dyn Stream<Item = Change<Pod>> + Send>>);

impl Pods {
    pub(super) fn watch(cluster: &Cluster) -> Self {
        Self::of(cluster, Scope::all().fields("spec.nodeName=here"))
    }

    pub(super) fn of(cluster: &Cluster, scope: Scope) -> Self {
        Self(Box::pin(cluster.watch(scope)))
    }

    /// The next change as text: `Restart`, `Listed a`, …
    pub(super) async fn next(&mut self) -> String {
        let change = tokio::time::timeout(Duration::from_secs(60), self.0.next()).await;
        match change.expect("a change within a minute").expect("a watch never ends") {
            Change::Restart => "Restart".to_owned(),
            Change::Listed(pod) => format!("Listed {}", pod.metadata.name),
            Change::Ready => "Ready".to_owned(),
            Change::Applied(pod) => format!("Applied {}", pod.metadata.name),
            Change::Deleted(pod) => format!("Deleted {}", pod.metadata.name),
        }
    }

    pub(super) async fn expect(&mut self, wanted: &[&str]) {
        for wanted in wanted {
            assert_eq!(self.next().await, *wanted);
        }
    }

    /// Reads up to and including the first change of this text.
    pub(super) async fn until(&mut self, wanted: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            seen.push(self.next().await);
            if seen.last().is_some_and(|last| last == wanted) {
                return seen;
            }
        }
    }
}
