//! ConfigMaps, Secrets, tokens and services from the API server, each followed only while a pod refers to it.
//!
//! One [`ApiObjects`] is shared by all workers. It owns a task per followed object, which one short lock gives to
//! its table; the lock is never held across a wait. As a kubelet does, it watches single objects by name, which is
//! all that a node may read; a pod that is gone lets go of what it alone referred to.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coracle_cluster::Cluster;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::classes::Classes;
use super::follow::{Found, follow};
use super::references::{ObjectKind, Reference, kubernetes_service, references};
use super::tokens::{self, TokenKey, Tokens};
use super::{ObjectSource, Service};
use crate::api::{ConfigMap, Pod, Secret, ServiceAccountTokenProjection};
use crate::clock::Clock;
use crate::source::is_static;

/// How long a pod waits for objects that were asked for and not heard of.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// What pods refer to, from the API server.
pub struct ApiObjects(pub(super) Arc<Inner>);

pub(super) struct Inner {
    cluster: Cluster,
    pub(super) clock: Clock,
    table: Mutex<Table>,
    pub(super) classes: Classes,
    /// Rises whenever anything is heard.
    pub(super) heard: watch::Sender<u64>,
    /// Rises when a configMap or secret changes.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) followed: HashMap<Reference, Followed>,
    pub(super) tokens: HashMap<Arc<str>, Tokens>,
    /// What was kept over a reboot, until it is followed.
    pub(super) kept: HashMap<Reference, Found>,
}

pub(super) struct Followed {
    /// UIDs of the pods that refer to it.
    users: HashSet<Arc<str>>,
    pub(super) found: Option<Found>,
    revision: u64,
    task: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ApiObjects {
    /// Follows nothing yet.
    pub fn new(cluster: Cluster, clock: Clock) -> Self {
        let inner = Inner {
            cluster,
            clock,
            table: Mutex::default(),
            classes: Classes::default(),
            heard: watch::Sender::new(0),
            changes: watch::Sender::new(0),
        };
        Self(Arc::new(inner))
    }

    /// How many objects are followed.
    pub fn followed(&self) -> usize {
        self.0.table().followed.len()
    }

    /// Follows what the pod refers to and was not followed for it yet.
    fn follow(&self, pod: &Pod) -> Vec<Reference> {
        let references = references(pod);
        let mut table = self.0.table();
        for reference in &references {
            let Table { followed, kept, .. } = &mut *table;
            let followed = followed.entry(reference.clone()).or_insert_with(|| Followed {
                users: HashSet::new(),
                found: kept.remove(reference),
                revision: 0,
                task: self.start(reference.clone()),
            });
            if !followed.users.contains(&pod.metadata.uid) {
                followed.users.insert(pod.metadata.uid.clone());
            }
        }
        references
    }

    fn start(&self, reference: Reference) -> JoinHandle<()> {
        let (cluster, inner) = (self.0.cluster.clone(), Arc::downgrade(&self.0));
        let key = reference.clone();
        tokio::spawn(follow(cluster, reference, move |found| {
            if let Some(inner) = inner.upgrade() {
                inner.hear(&key, found);
            }
        }))
    }

    async fn settle_objects(&self, pod: &Pod) {
        let mut heard = self.0.heard.subscribe();
        let references = self.follow(pod);
        if is_static(pod) {
            // It refers to no object but services, and must start with no API server in reach.
            return;
        }
        let deadline = tokio::time::Instant::now() + SETTLE_LIMIT;
        loop {
            heard.borrow_and_update();
            let is_known = {
                let table = self.0.table();
                references.iter().all(|r| table.followed.get(r).is_some_and(|f| f.found.is_some()))
            };
            if is_known || tokio::time::timeout_at(deadline, heard.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Asks for the tokens that the pod lacks or that are due, one after the other.
    async fn settle_tokens(&self, pod: &Pod) {
        for key in tokens::keys(pod) {
            let now = self.0.clock.now().boot;
            let is_due = {
                let table = self.0.table();
                table.tokens.get(&pod.metadata.uid).is_none_or(|tokens| tokens.is_due(&key, now))
            };
            if !is_due {
                continue;
            }
            let answer = tokens::request(&self.0.cluster, pod, &key).await;
            let now = self.0.clock.now().boot;
            self.0.table().tokens.entry(pod.metadata.uid.clone()).or_default().set(key, answer, now);
            // Whoever keeps tokens hears of it.
            self.0.heard.send_modify(|count| *count += 1);
        }
    }
}

impl Inner {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // Each change of the table leaves it whole, so a panic elsewhere does no harm.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, reference: &Reference, found: Found) {
        {
            let mut table = self.table();
            let Some(followed) = table.followed.get_mut(reference) else { return };
            if followed.found.as_ref() == Some(&found) {
                return;
            }
            followed.found = Some(found);
            followed.revision += 1;
        }
        self.heard.send_modify(|count| *count += 1);
        if reference.kind != ObjectKind::Service {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    fn found<T>(
        &self,
        kind: ObjectKind,
        (namespace, name): (&str, &str),
        pick: fn(&Found) -> Option<T>,
    ) -> Option<T> {
        let key = Reference { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        self.table().followed.get(&key)?.found.as_ref().and_then(pick)
    }
}

#[async_trait]
impl ObjectSource for ApiObjects {
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        self.0.found(ObjectKind::ConfigMap, (namespace, name), |found| match found {
            Found::ConfigMap(map) => map.clone(),
            _ => None,
        })
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        self.0.found(ObjectKind::Secret, (namespace, name), |found| match found {
            Found::Secret(secret) => secret.clone(),
            _ => None,
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    async fn settle(&self, pod: &Pod) {
        tokio::join!(self.settle_objects(pod), self.settle_tokens(pod));
    }

    fn revision(&self, pod: &Pod) -> u64 {
        let table = self.0.table();
        let objects = references(pod).into_iter().filter(|r| r.kind != ObjectKind::Service);
        let revisions = objects.filter_map(|r| table.followed.get(&r)).map(|f| f.revision);
        revisions.fold(0, u64::wrapping_add)
    }

    fn why_unknown(&self, kind: &'static str, namespace: &str, name: &str) -> Option<String> {
        let of_kind = if kind == "configmap" { ObjectKind::ConfigMap } else { ObjectKind::Secret };
        let is_known = self.0.found(of_kind, (namespace, name), |_| Some(())).is_some();
        (!is_known)
            .then(|| format!("failed to sync {} cache: timed out waiting for the condition", of_kind.word()))
    }

    fn token(&self, pod: &Pod, source: &ServiceAccountTokenProjection) -> Option<Result<Arc<str>, String>> {
        let key = TokenKey::of(pod, source);
        let now = self.0.clock.now().boot;
        let table = self.0.table();
        let token = table.tokens.get(&pod.metadata.uid).and_then(|tokens| tokens.get(&key, now));
        Some(token.unwrap_or_else(|| Err("failed to fetch token: not asked for yet".to_owned())))
    }

    async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        match pod.spec.runtime_class_name.as_deref().unwrap_or_default() {
            "" => Ok(String::new()),
            name => self.0.classes.handler(&self.0.cluster, name).await,
        }
    }

    fn renewal(&self, uid: &str) -> Option<Duration> {
        self.0.table().tokens.get(uid)?.renewal()
    }

    fn services(&self, pod: &Pod) -> Option<Vec<Service>> {
        let table = self.0.table();
        let of = |reference: &Reference| match table.followed.get(reference)?.found.as_ref()? {
            Found::Services(services) => Some(services),
            _ => None,
        };
        let mut services = Vec::new();
        let all = references(pod).into_iter().filter(|r| r.kind == ObjectKind::Service);
        for reference in all {
            match of(&reference) {
                Some(found) => {
                    let is_main = reference == kubernetes_service();
                    // The service that every pod knows is that of its own namespace in `default` alone.
                    let shadowed =
                        |name: &str| !is_main && name == "kubernetes" && pod.metadata.namespace != "default";
                    services.extend(found.values().filter(|s| !shadowed(&s.name)).cloned());
                }
                None if is_static(pod) => {}
                None => return None,
            }
        }
        Some(services)
    }

    fn release(&self, uid: &str) {
        let mut table = self.0.table();
        table.tokens.remove(uid);
        table.followed.retain(|_, followed| !followed.users.remove(uid) || !followed.users.is_empty());
    }
}

impl std::fmt::Debug for ApiObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiObjects").field("followed", &self.followed()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
