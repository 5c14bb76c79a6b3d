//! What of the objects that pods refer to is kept on disk, and how it comes back after a start without an API server.
//!
//! Called by [`crate::kept`] and by [`crate::joined`]'s source of pods; no I/O of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::api::ApiObjects;
use super::follow::Found;
use super::references::{ObjectKind, Reference, references};
use super::tokens::{TokenKey, Tokens};
use super::{Service, ServicePort};
use crate::api::{ConfigMap, Pod, Secret};

/// An object, or the services of a namespace; one that is known to be absent is kept as such.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum KeptObject {
    ConfigMap { namespace: String, name: String, object: Option<Arc<ConfigMap>> },
    Secret { namespace: String, name: String, object: Option<Arc<Secret>> },
    Services { namespace: String, name: String, services: Vec<KeptService> },
    RuntimeClass { name: String, handler: String },
}

/// What variables tell of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeptService {
    name: String,
    address: String,
    /// Name, protocol, number.
    ports: Vec<(String, String, i32)>,
}

/// A token of a pod.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeptToken {
    uid: Arc<str>,
    key: TokenKey,
    token: Arc<str>,
}

impl KeptToken {
    /// Whose it is and what for.
    pub(crate) fn of(&self) -> (&str, &TokenKey) {
        (&self.uid, &self.key)
    }
}

impl std::fmt::Debug for KeptToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptToken").field("uid", &self.uid).field("key", &self.key).finish_non_exhaustive()
    }
}

impl ApiObjects {
    /// What these pods refer to, as far as it is known, and their tokens.
    pub(crate) fn keep(&self, pods: &[Arc<Pod>]) -> (Vec<KeptObject>, Vec<KeptToken>) {
        let mut wanted: Vec<Reference> = pods.iter().flat_map(|pod| references(pod)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let table = self.0.table();
        let known = wanted.into_iter().filter_map(|r| Some((table.followed.get(&r)?.found.clone()?, r)));
        let mut objects: Vec<KeptObject> = known.map(|(found, r)| to_kept(found, r)).collect();
        let mut classes: Vec<&str> =
            pods.iter().filter_map(|pod| pod.spec.runtime_class_name.as_deref()).collect();
        classes.sort_unstable();
        classes.dedup();
        let class = |name: &str| Some((name.to_owned(), self.0.classes.heard(name)?));
        let heard = classes.into_iter().filter_map(class);
        objects.extend(heard.map(|(name, handler)| KeptObject::RuntimeClass { name, handler }));
        let of_pod = |pod: &Arc<Pod>| {
            let uid = pod.metadata.uid.clone();
            let mut tokens: Vec<KeptToken> = table
                .tokens
                .get(&uid)
                .into_iter()
                .flat_map(Tokens::held)
                .map(|(key, token)| KeptToken { uid: uid.clone(), key: key.clone(), token: token.clone() })
                .collect();
            tokens.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            tokens
        };
        (objects, pods.iter().flat_map(of_pod).collect())
    }

    /// Rises when anything is heard that may be kept.
    pub(crate) fn kept_changes(&self) -> watch::Receiver<u64> {
        self.0.heard.subscribe()
    }

    /// Takes over what was kept, for pods that ask before the API server answers. Tokens serve until there are new
    /// ones: nobody but the API server could refuse them.
    pub(crate) fn restore(&self, objects: Vec<KeptObject>, tokens: Vec<KeptToken>) {
        let now = self.0.clock.now().boot;
        let mut table = self.0.table();
        for kept in objects {
            let Some((reference, found)) = self.of_kept(kept) else { continue };
            match table.followed.get_mut(&reference) {
                Some(followed) => {
                    followed.found.get_or_insert(found);
                }
                None => {
                    table.kept.insert(reference, found);
                }
            }
        }
        for KeptToken { uid, key, token } in tokens {
            table.tokens.entry(uid).or_default().restore(key, token, now);
        }
        drop(table);
        self.0.heard.send_modify(|count| *count += 1);
    }

    /// What a pod asks for by a watch; a class is handed to its table.
    fn of_kept(&self, kept: KeptObject) -> Option<(Reference, Found)> {
        let reference = |kind, namespace, name| Reference { kind, namespace, name };
        Some(match kept {
            KeptObject::ConfigMap { namespace, name, object } => {
                (reference(ObjectKind::ConfigMap, namespace, name), Found::ConfigMap(object))
            }
            KeptObject::Secret { namespace, name, object } => {
                (reference(ObjectKind::Secret, namespace, name), Found::Secret(object))
            }
            KeptObject::Services { namespace, name, services } => {
                let services: BTreeMap<String, Service> = services.into_iter().map(service).collect();
                (reference(ObjectKind::Service, namespace, name), Found::Services(services))
            }
            KeptObject::RuntimeClass { name, handler } => {
                self.0.classes.restore(name, handler);
                return None;
            }
        })
    }
}

fn service(kept: KeptService) -> (String, Service) {
    let ports = kept.ports.into_iter().map(|(name, protocol, port)| ServicePort { name, protocol, port });
    (kept.name.clone(), Service { name: kept.name, cluster_ip: kept.address, ports: ports.collect() })
}

fn to_kept(found: Found, Reference { namespace, name, .. }: Reference) -> KeptObject {
    match found {
        Found::ConfigMap(object) => KeptObject::ConfigMap { namespace, name, object },
        Found::Secret(object) => KeptObject::Secret { namespace, name, object },
        Found::Services(services) => {
            let kept = |service: Service| KeptService {
                name: service.name,
                address: service.cluster_ip,
                ports: service.ports.into_iter().map(|p| (p.name, p.protocol, p.port)).collect(),
            };
            KeptObject::Services { namespace, name, services: services.into_values().map(kept).collect() }
        }
    }
}

/// A kept token is asked for anew after this long, so that the pod's start does not wait for an answer.
pub(super) const ASK_AFTER: Duration = Duration::from_secs(20);
