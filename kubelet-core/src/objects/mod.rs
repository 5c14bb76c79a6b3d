//! Where configMaps, secrets, tokens and services come from: the trait that volumes and environment read them
//! through.
//!
//! A folder's [`ObjectSet`](crate::source::ObjectSet) implements it without a cluster, [`ApiObjects`] with one;
//! [`crate::resources`] reads it on every sync. Implementations are shared between pod tasks and answer from memory
//! without blocking; what has to be fetched first is waited for in [`ObjectSource::settle`].

mod api;
mod classes;
mod early;
mod follow;
mod kept;
mod references;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::api::{ConfigMap, Pod, Secret, ServiceAccountTokenProjection};

pub use api::ApiObjects;
pub(crate) use kept::{KeptObject, KeptToken};

/// What a pod needs to know of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its address; empty or `None` for a service without one.
    pub cluster_ip: String,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// One port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; the first may have none.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`; empty for TCP.
    pub protocol: String,
    /// Its number.
    pub port: i32,
}

/// The configMaps and secrets that pods of this node may refer to.
#[async_trait]
pub trait ObjectSource: Send + Sync {
    /// The configMap of that name, if there is one.
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>>;

    /// The secret of that name, if there is one.
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>>;

    /// A number that rises whenever any object appears, changes or goes. A wake means "look again", nothing
    /// more; values may be skipped.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Returns when what the pod refers to has been looked up, or could not be within some seconds. Cancel-safe,
    /// and at once for what is known already.
    async fn settle(&self, _pod: &Pod) {}

    /// A number that changes when something changed that the pod refers to.
    fn revision(&self, _pod: &Pod) -> u64 {
        *self.changes().borrow()
    }

    /// Why a configMap (or else a secret) is not known, when it is not simply absent.
    fn why_unknown(&self, _kind: &'static str, _namespace: &str, _name: &str) -> Option<String> {
        None
    }

    /// The token that a projected source of the pod asks for; the error is what a person reads. `None` where no
    /// API server gives out tokens.
    fn token(&self, _pod: &Pod, _source: &ServiceAccountTokenProjection) -> Option<Result<Arc<str>, String>> {
        None
    }

    /// When (since boot) the first of the pod's tokens is to be renewed.
    fn renewal(&self, _uid: &str) -> Option<Duration> {
        None
    }

    /// The services whose addresses the pod's variables tell; `None` while they are not known.
    fn services(&self, _pod: &Pod) -> Option<Vec<Service>> {
        Some(Vec::new())
    }

    /// The runtime handler that the pod's RuntimeClass names, empty for a pod without one; the error is what a person
    /// reads. Without a cluster there are no classes, and a pod names the handler itself.
    async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        Ok(pod.spec.runtime_class_name.clone().unwrap_or_default())
    }

    /// The pod is gone and refers to nothing any more.
    fn release(&self, _uid: &str) {}
}
