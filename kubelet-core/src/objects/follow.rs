//! Follows one object of the API, or the services of one namespace, by a watch of its own.
//!
//! A task per followed thing, started and owned by [`super::ApiObjects`]. It holds nothing: what it hears goes to
//! the table. An object that is marked immutable is read once and its watch ended.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use coracle_cluster::{Change, Cluster, Object, Resource, Scope};
use futures_util::{Stream, StreamExt as _};
use serde::Deserialize;

use super::references::{ObjectKind, Reference};
use super::{Service, ServicePort};
use crate::api::{ByteString, ConfigMap, Secret};

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
    let scope = Scope::namespace(reference.namespace.clone());
    let scope = if reference.name.is_empty() { scope } else { scope.named(&reference.name) };
    match reference.kind {
        ObjectKind::ConfigMap => {
            let found = |map: Option<ApiConfigMap>| Found::ConfigMap(map.map(|map| Arc::new(map.into())));
            follow_one(cluster.watch::<ApiConfigMap>(scope), found, publish).await;
        }
        ObjectKind::Secret => {
            let found =
                |secret: Option<ApiSecret>| Found::Secret(secret.map(|secret| Arc::new(secret.into())));
            follow_one(cluster.watch::<ApiSecret>(scope), found, publish).await;
        }
        ObjectKind::Service => follow_services(cluster, scope, &mut publish).await,
    }
}

async fn follow_one<K>(
    changes: impl Stream<Item = Change<K>> + Send,
    found: impl Fn(Option<K>) -> Found,
    mut publish: impl FnMut(Found),
) {
    let mut changes = pin!(changes);
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

async fn follow_services(cluster: Cluster, scope: Scope, publish: &mut impl FnMut(Found)) {
    let mut changes = pin!(cluster.watch::<ApiService>(scope));
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
}

/// A ConfigMap without what no pod sees.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ApiConfigMap {
    metadata: Metadata,
    immutable: Option<bool>,
    data: Option<BTreeMap<String, String>>,
    binary_data: Option<BTreeMap<String, ByteString>>,
}

impl Object for ApiConfigMap {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "configmaps", "ConfigMap");
}

impl From<ApiConfigMap> for ConfigMap {
    fn from(object: ApiConfigMap) -> Self {
        let mut map = Self {
            immutable: object.immutable,
            data: object.data.unwrap_or_default(),
            binary_data: object.binary_data.unwrap_or_default(),
            ..Self::default()
        };
        map.metadata.name = object.metadata.name;
        map.metadata.namespace = object.metadata.namespace;
        map
    }
}

/// A Secret without what no pod sees.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ApiSecret {
    metadata: Metadata,
    immutable: Option<bool>,
    r#type: String,
    data: Option<BTreeMap<String, ByteString>>,
}

impl Object for ApiSecret {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "secrets", "Secret");
}

impl From<ApiSecret> for Secret {
    fn from(object: ApiSecret) -> Self {
        let mut secret = Self {
            immutable: object.immutable,
            r#type: object.r#type,
            data: object.data.unwrap_or_default(),
            ..Self::default()
        };
        secret.metadata.name = object.metadata.name;
        secret.metadata.namespace = object.metadata.namespace;
        secret
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
