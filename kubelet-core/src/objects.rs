//! Where configMaps and secrets come from: the trait that volumes and environment read them through.
//!
//! The pod source implements it (files beside the manifests now, the API server later); [`crate::resources`]
//! reads it on every sync. Implementations are shared between pod tasks, answer from memory and never block.

use std::sync::Arc;

use tokio::sync::watch;

use crate::api::{ConfigMap, Secret};

/// The configMaps and secrets that pods of this node may refer to.
pub trait ObjectSource: Send + Sync {
    /// The configMap of that name, if there is one.
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>>;

    /// The secret of that name, if there is one.
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>>;

    /// A number that rises whenever any object appears, changes or goes. A wake means "look again", nothing
    /// more; values may be skipped.
    fn changes(&self) -> watch::Receiver<u64>;
}
