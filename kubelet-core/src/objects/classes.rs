//! Runtime handlers of RuntimeClasses, asked for when a pod's sandbox is made.
//!
//! A class's handler never changes, so one that was heard of is good while the API server is away. Shared by all
//! workers; the lock is never held across a wait.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_cluster::{Cluster, Object, Resource};
use serde::Deserialize;

/// How long the API server may take.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct RuntimeClass {
    #[serde(default)]
    handler: String,
}

impl Object for RuntimeClass {
    const RESOURCE: Resource = Resource::cluster_wide("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass");
}

/// Handlers by the names of their classes.
#[derive(Default)]
pub(super) struct Classes(Mutex<HashMap<String, String>>);

impl Classes {
    /// The handler of a class; the error is what a kubelet tells.
    pub(super) async fn handler(&self, cluster: &Cluster, name: &str) -> Result<String, String> {
        let problem = match tokio::time::timeout(LIMIT, cluster.get::<RuntimeClass>(None, name)).await {
            Ok(Ok(class)) => {
                self.known().insert(name.to_owned(), class.handler.clone());
                return Ok(class.handler);
            }
            Ok(Err(error)) if error.is_not_found() => {
                self.known().remove(name);
                return Err(format!("runtimeclass.node.k8s.io {name:?} not found"));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", LIMIT.as_secs()),
        };
        self.known()
            .get(name)
            .cloned()
            .ok_or_else(|| format!("failed to lookup RuntimeClass {name}: {problem}"))
    }

    /// The handler of a class that was heard of.
    pub(super) fn heard(&self, name: &str) -> Option<String> {
        self.known().get(name).cloned()
    }

    /// Takes over what was heard before a reboot.
    pub(super) fn restore(&self, name: String, handler: String) {
        self.known().entry(name).or_insert(handler);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, String>> {
        // Whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
