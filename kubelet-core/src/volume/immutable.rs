//! Immutable configMaps and secrets as pods first saw them.
//!
//! As a kubelet does: once a pod uses an object that is marked immutable, it stays what it was for as long as any
//! pod uses it, even if another comes under its name. Shared by all pods; one short lock, never held across I/O.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::api::{ConfigMap, Pod, Secret, ServiceAccountTokenProjection};
use crate::objects::{ObjectSource, Service};

type Key = (String, String);

struct Held<T> {
    object: Arc<T>,
    /// UIDs of the pods that use it.
    users: HashSet<Arc<str>>,
}

struct Tables {
    config_maps: HashMap<Key, Held<ConfigMap>>,
    secrets: HashMap<Key, Held<Secret>>,
}

/// The immutable objects in use.
pub(crate) struct Immutables {
    source: Arc<dyn ObjectSource>,
    tables: Mutex<Tables>,
}

impl Immutables {
    pub(crate) fn new(source: Arc<dyn ObjectSource>) -> Self {
        let tables = Tables { config_maps: HashMap::new(), secrets: HashMap::new() };
        Self { source, tables: Mutex::new(tables) }
    }

    /// The objects as the pod of that UID sees them.
    pub(crate) fn for_pod(&self, uid: Arc<str>) -> PodObjects<'_> {
        PodObjects { all: self, uid }
    }

    /// Where they come from.
    pub(crate) fn source(&self) -> &dyn ObjectSource {
        &*self.source
    }

    /// The pod is gone and holds nothing any more.
    pub(crate) fn release(&self, uid: &str) {
        self.source.release(uid);
        fn drop_user<T>(table: &mut HashMap<Key, Held<T>>, uid: &str) {
            table.retain(|_, held| !held.users.remove(uid) || !held.users.is_empty());
        }
        let mut tables = self.tables();
        drop_user(&mut tables.config_maps, uid);
        drop_user(&mut tables.secrets, uid);
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Each change is one statement, so a panic elsewhere leaves the tables whole.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pod's view.
pub(crate) struct PodObjects<'a> {
    all: &'a Immutables,
    uid: Arc<str>,
}

impl PodObjects<'_> {
    fn get<T>(
        &self,
        table: fn(&mut Tables) -> &mut HashMap<Key, Held<T>>,
        (namespace, name): (&str, &str),
        fetch: impl FnOnce() -> Option<Arc<T>>,
        is_immutable: fn(&T) -> bool,
    ) -> Option<Arc<T>> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut tables = self.all.tables();
        if let Some(held) = table(&mut tables).get_mut(&key) {
            held.users.insert(self.uid.clone());
            return Some(held.object.clone());
        }
        let object = fetch()?;
        if is_immutable(&object) {
            let users = HashSet::from([self.uid.clone()]);
            table(&mut tables).insert(key, Held { object: object.clone(), users });
        }
        Some(object)
    }
}

impl ObjectSource for PodObjects<'_> {
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        let fetch = || self.all.source.config_map(namespace, name);
        self.get(|t| &mut t.config_maps, (namespace, name), fetch, |map| map.immutable == Some(true))
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        let fetch = || self.all.source.secret(namespace, name);
        self.get(|t| &mut t.secrets, (namespace, name), fetch, |secret| secret.immutable == Some(true))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.all.source.changes()
    }

    fn why_unknown(&self, kind: &'static str, namespace: &str, name: &str) -> Option<String> {
        self.all.source.why_unknown(kind, namespace, name)
    }

    fn token(&self, pod: &Pod, source: &ServiceAccountTokenProjection) -> Option<Result<Arc<str>, String>> {
        self.all.source.token(pod, source)
    }

    fn services(&self, pod: &Pod) -> Option<Vec<Service>> {
        self.all.source.services(pod)
    }
}
