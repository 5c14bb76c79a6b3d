//! Follows one object of the API, or the services of one namespace, by a watch of its own.
//!
//! A task per followed thing, started and owned by [`super::ApiObjects`]. It holds nothing: what it hears goes to
//! the table. A pod waits for the first word of an object, so that is a read of its own: the API server answers it at
//! once, whereas a list waits until the server's cache has caught up with its store. An object that is marked
//! immutable is not watched.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use coracle_cluster::{Change, Cluster, Object, Resource, Scope};
use futures_util::{Stream, StreamExt as _};
use serde::Deserialize;

use super::early::once_known;
use super::references::{ObjectKind, Reference};
use super::{Service, ServicePort};
use crate::api::{ByteString, ConfigMap, ObjectMeta, Secret};

/// What is known of a followed thing.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    ConfigMap(Option<Arc<ConfigMap>>),
    Secret(Option<Arc<Secret>>),
    /// By name.
    Services(BTreeMap<String, Service>),
}

impl Found {
    fn is_final(&self) -> bool {
        match self {
            Self::ConfigMap(map) => map.as_ref().is_some_and(|map| map.immutable == Some(true)),
            Self::Secret(secret) => secret.as_ref().is_some_and(|secret| secret.immutable == Some(true)),
            Self::Services(_) => false,
        }
    }
}

/// Tells `publish` what is there, first and after each change. Ends for an immutable object alone.
pub(super) async fn follow(cluster: Cluster, reference: Reference, mut publish: impl FnMut(Found) + Send) {
    match reference.kind {
        ObjectKind::ConfigMap => {
            let found = |map: Option<Payload<String>>| Found::ConfigMap(map.map(|map| Arc::new(map.into())));
            follow_one(&cluster, &reference, found, publish).await;
        }
        ObjectKind::Secret => {
            let found = |secret: Option<Payload<ByteString>>| {
                Found::Secret(secret.map(|secret| Arc::new(secret.into())))
            };
            follow_one(&cluster, &reference, found, publish).await;
        }
        ObjectKind::Service => {
            let scope = Scope::namespace(reference.namespace);
            follow_services(cluster.watch(scope), &mut publish).await;
        }
    }
}

async fn follow_one<K: Object>(
    cluster: &Cluster,
    Reference { namespace, name, .. }: &Reference,
    found: impl Fn(Option<K>) -> Found,
    mut publish: impl FnMut(Found),
) {
    let first = match once_known(|| cluster.get::<K>(Some(namespace), name)).await {
        Ok(object) => Some(found(Some(object))),
        Err(error) if error.is_not_found() => Some(found(None)),
        // Whatever is wrong, the watch meets it too, tells of it and tries again.
        Err(_) => None,
    };
    if let Some(first) = first {
        let is_final = first.is_final();
        publish(first);
        if is_final {
            return;
        }
    }
    let mut changes = pin!(cluster.watch(Scope::namespace(namespace.clone()).named(name)));
    let mut listed = None;
    while let Some(change) = changes.next().await {
        let now = match change {
            Change::Restart => {
                listed = None;
                continue;
            }
            Change::Listed(object) => {
                listed = Some(object);
                continue;
            }
            Change::Ready => found(listed.take()),
            Change::Applied(object) => found(Some(object)),
            Change::Deleted(_) => found(None),
        };
        let is_final = now.is_final();
        publish(now);
        if is_final {
            return;
        }
    }
}

async fn follow_services(
    changes: impl Stream<Item = Change<ApiService>> + Send,
    publish: &mut impl FnMut(Found),
) {
    let mut changes = pin!(changes);
    let mut services = BTreeMap::new();
    let mut is_listing = true;
    while let Some(change) = changes.next().await {
        match change {
            Change::Restart => {
                services.clear();
                is_listing = true;
            }
            Change::Ready => is_listing = false,
            Change::Listed(service) | Change::Applied(service) => {
                let service = Service::from(service);
                services.insert(service.name.clone(), service);
            }
            Change::Deleted(service) => {
                services.remove(&service.metadata.name);
            }
        }
        if !is_listing {
            publish(Found::Services(services.clone()));
        }
    }
}

/// All that is read of an object's metadata: annotations may repeat the whole object.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
    /// Of a Secret, which the records of pulls know by it.
    uid: Arc<str>,
}

impl From<Metadata> for ObjectMeta {
    fn from(Metadata { name, namespace, uid }: Metadata) -> Self {
        Self { name, namespace, uid, ..Self::default() }
    }
}

/// A ConfigMap or a Secret without what no pod sees: the data of the one are texts, of the other bytes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload<V> {
    #[serde(default)]
    metadata: Metadata,
    immutable: Option<bool>,
    r#type: Option<String>,
    data: Option<BTreeMap<String, V>>,
    binary_data: Option<BTreeMap<String, ByteString>>,
}

impl Object for Payload<String> {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "configmaps", "ConfigMap");
}

impl Object for Payload<ByteString> {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "secrets", "Secret");
}

impl From<Payload<String>> for ConfigMap {
    fn from(Payload { metadata, immutable, data, binary_data, .. }: Payload<String>) -> Self {
        let (data, binary_data) = (data.unwrap_or_default(), binary_data.unwrap_or_default());
        let metadata = Metadata { uid: Arc::default(), ..metadata };
        Self { metadata: metadata.into(), immutable, data, binary_data, ..Self::default() }
    }
}

impl From<Payload<ByteString>> for Secret {
    fn from(Payload { metadata, immutable, r#type, data, .. }: Payload<ByteString>) -> Self {
        let (r#type, data) = (r#type.unwrap_or_default(), data.unwrap_or_default());
        Self { metadata: metadata.into(), immutable, r#type, data, ..Self::default() }
    }
}

/// A Service's address and ports.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ApiService {
    metadata: Metadata,
    spec: ApiServiceSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ApiServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    ports: Option<Vec<ApiServicePort>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ApiServicePort {
    name: String,
    protocol: String,
    port: i32,
}

impl Object for ApiService {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "services", "Service");
}

impl From<ApiService> for Service {
    fn from(service: ApiService) -> Self {
        let ports = service.spec.ports.unwrap_or_default().into_iter();
        let port =
            |port: ApiServicePort| ServicePort { name: port.name, protocol: port.protocol, port: port.port };
        Self {
            name: service.metadata.name,
            cluster_ip: service.spec.cluster_ip,
            ports: ports.map(port).collect(),
        }
    }
}
