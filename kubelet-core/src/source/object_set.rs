//! ConfigMaps and Secrets of the manifest folder, for pods that refer to them without a cluster.
//!
//! Written by the manifest folder's task alone; volumes, environment and the image puller read it through
//! [`ObjectSource`]. A reader takes an `Arc` and holds nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::api::{ConfigMap, Secret};
use crate::objects::ObjectSource;

/// Objects by namespace and name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// ConfigMaps.
    pub config_maps: BTreeMap<(String, String), Arc<ConfigMap>>,
    /// Secrets.
    pub secrets: BTreeMap<(String, String), Arc<Secret>>,
}

/// The objects as they are now, and a count of their changes.
#[derive(Debug)]
pub struct ObjectSet {
    objects: watch::Sender<Arc<Objects>>,
    changes: watch::Sender<u64>,
}

impl ObjectSet {
    /// A set with these objects.
    pub fn new(objects: Objects) -> Self {
        Self { objects: watch::Sender::new(Arc::new(objects)), changes: watch::Sender::new(0) }
    }

    /// All objects as they are now.
    pub fn snapshot(&self) -> Arc<Objects> {
        self.objects.borrow().clone()
    }

    /// Replaces all objects; counts a change only if one differs.
    pub fn replace(&self, objects: Objects) {
        let changed = self.objects.send_if_modified(|current| {
            let differs = **current != objects;
            if differs {
                *current = Arc::new(objects);
            }
            differs
        });
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

impl Default for ObjectSet {
    fn default() -> Self {
        Self::new(Objects::default())
    }
}

impl ObjectSource for ObjectSet {
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        self.objects.borrow().config_maps.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        self.objects.borrow().secrets.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
