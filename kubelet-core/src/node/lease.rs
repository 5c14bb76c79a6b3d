//! The node's lease in `kube-node-lease`: renewed every ten seconds by one small patch.
//!
//! One task of the [`super::NodeAgent`]. Once a minute the patch names the version that this process wrote last, so
//! that another process that renews the same lease shows as a conflict: two machines with one name are told to people.

use std::sync::Arc;
use std::time::Duration;

use coracle_cluster::{ApiError, Backoff, Cluster, Object, Patch, Resource};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::NodeConfig;
use crate::api::{Node, ObjectMeta};

/// Where leases of nodes lie.
pub(super) const NAMESPACE: &str = "kube-node-lease";
/// A node without a renewal for so long counts as gone.
const DURATION_SECONDS: u32 = 40;
/// Between renewals, and its jitter in percent, as the kubelet has them.
const INTERVAL: Duration = Duration::from_secs(10);
const JITTER_PERCENT: u32 = 4;
/// Between tries after failures: the first, and the most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(7));
/// Of so many renewals one asks whether somebody else wrote the lease: a version in each would be a twentieth
/// of what an idle node sends.
const CHECK_EVERY: u32 = 6;

/// What is read of a lease.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Lease {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: LeaseSpec,
}

/// Who holds it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct LeaseSpec {
    pub(super) renew_time: String,
}

impl Object for Lease {
    const RESOURCE: Resource = Resource::namespaced("coordination.k8s.io", "v1", "leases", "Lease");
}

/// Renews one lease.
pub(super) struct LeaseKeeper {
    config: Arc<NodeConfig>,
    cluster: Cluster,
    node: watch::Receiver<Option<Arc<Node>>>,
    /// The version that this process wrote last.
    version: Option<String>,
    /// Renewals since one asked whether somebody else wrote the lease.
    unchecked: u32,
    /// Conflicts in a row of renewals that asked: one may be chance, several are a twin.
    conflicts: u32,
    /// What was told last, so that each change is told once.
    failing: bool,
}

impl LeaseKeeper {
    pub(super) fn new(
        config: Arc<NodeConfig>,
        cluster: Cluster,
        node: watch::Receiver<Option<Arc<Node>>>,
    ) -> Self {
        Self { config, cluster, node, version: None, unchecked: 0, conflicts: 0, failing: false }
    }

    /// Renews until dropped. A request that is cut off by that is repeated by the next start.
    pub(super) async fn run(mut self) {
        // A lease belongs to its Node, whose UID is known once it is registered.
        if self.node.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let mut retry = Backoff::new(RETRY);
        loop {
            match self.renew().await {
                Ok(()) => {
                    retry.reset();
                    self.told(None);
                    let jitter = INTERVAL * (super::reporter::random() % (JITTER_PERCENT * 10)) / 1000;
                    tokio::time::sleep(INTERVAL + jitter).await;
                }
                Err(error) => {
                    self.told(Some(&error));
                    tokio::time::sleep(retry.fail(error.retry_after())).await;
                }
            }
        }
    }

    fn told(&mut self, error: Option<&ApiError>) {
        let failing = error.is_some();
        if std::mem::replace(&mut self.failing, failing) == failing {
            return;
        }
        match error {
            Some(error) => {
                tracing::warn!(node = %self.config.name, error = error as &dyn std::error::Error, "lease not renewed");
            }
            None => tracing::info!(node = %self.config.name, "lease renewed again"),
        }
    }

    async fn renew(&mut self) -> Result<(), ApiError> {
        self.unchecked += 1;
        let is_check = self.conflicts > 0 || self.unchecked >= CHECK_EVERY;
        let renewal = match &self.version {
            None => first_renewal(&self.now()),
            Some(version) => renewal(is_check.then_some(version), &self.now()),
        };
        let (node, patch) = (&self.config.name, Patch::Merge(renewal));
        match self.cluster.patch_unread::<Lease>(Some(NAMESPACE), node, &patch).await {
            Ok(version) => {
                if is_check && self.version.is_some() {
                    (self.unchecked, self.conflicts) = (0, 0);
                }
                self.version = Some(version);
                Ok(())
            }
            Err(error) if error.is_not_found() => self.create().await,
            Err(error) if error.is_conflict() => self.conflict().await,
            Err(error) => Err(error),
        }
    }

    async fn create(&mut self) -> Result<(), ApiError> {
        let Some(node) = self.node.borrow().clone() else {
            // The Node went meanwhile; its successor gets a new lease.
            self.version = None;
            return Ok(());
        };
        let body = lease(&self.config.name, &node.metadata.uid, &self.now());
        let _: Lease = self.cluster.create(Some(NAMESPACE), None, &body).await?;
        // Unknown, so that the next renewal is a first one, which makes the lease small.
        self.version = None;
        Ok(())
    }

    /// Somebody else wrote the lease. An answer that got lost looks the same once; a twin does it every time.
    async fn conflict(&mut self) -> Result<(), ApiError> {
        self.conflicts += 1;
        self.version = None;
        if self.conflicts == 3 {
            tracing::error!(
                node = %self.config.name,
                "another machine renews the lease of this node: two machines use one name; give one of them \
                 another with --hostname-override"
            );
        }
        let patch = Patch::Merge(first_renewal(&self.now()));
        self.version =
            Some(self.cluster.patch_unread::<Lease>(Some(NAMESPACE), &self.config.name, &patch).await?);
        Ok(())
    }

    fn now(&self) -> String {
        micro_time(self.config.clock.now().wall_nanos)
    }
}

/// The patch that renews, if nobody else wrote the lease since `version`.
fn renewal(version: Option<&String>, now: &str) -> Value {
    match version {
        Some(version) => json!({ "spec": { "renewTime": now }, "metadata": { "resourceVersion": version } }),
        None => json!({ "spec": { "renewTime": now } }),
    }
}

/// The patch that renews a lease of which nothing is known. An older one may have been written with another duration.
/// The record of who wrote which field is half of a lease, and every renewal would be answered with it; once emptied it
/// stays so, until somebody applies.
fn first_renewal(now: &str) -> Value {
    json!({
        "spec": { "renewTime": now, "leaseDurationSeconds": DURATION_SECONDS },
        "metadata": { "managedFields": [{}] },
    })
}

/// A new lease, owned by the Node.
fn lease(name: &str, uid: &str, now: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid }],
        },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now },
    })
}

/// As the API writes times with microseconds.
fn micro_time(wall_nanos: i64) -> String {
    let micros = wall_nanos.div_euclid(1000);
    match jiff::Timestamp::from_microsecond(micros) {
        Ok(time) => format!("{time:.6}"),
        Err(_) => "0001-01-01T00:00:00.000000Z".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_are_small_and_times_have_microseconds() {
        assert_eq!(micro_time(1_700_000_000_000_001_999), "2023-11-14T22:13:20.000001Z");
        assert_eq!(micro_time(0), "1970-01-01T00:00:00.000000Z");
        let checked = renewal(Some(&"7".to_owned()), "T").to_string();
        assert_eq!(checked, r#"{"spec":{"renewTime":"T"},"metadata":{"resourceVersion":"7"}}"#);
        assert_eq!(renewal(None, "T").to_string(), r#"{"spec":{"renewTime":"T"}}"#);
        assert_eq!(first_renewal("T")["metadata"]["managedFields"], json!([{}]));
        let lease = lease("n", "u", "T");
        assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    }

    #[tokio::test]
    async fn another_writer_of_the_lease_is_found_within_a_minute_and_then_at_once() {
        const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";
        let api = coracle_cluster::testing::FakeApi::start().await;
        let theirs = || {
            api.put(
                LEASES,
                json!({ "metadata": { "name": "n", "namespace": NAMESPACE }, "spec": { "renewTime": "T" } }),
            )
        };
        theirs();
        let (_node, node) = watch::channel(None);
        let mut keeper = LeaseKeeper::new(Arc::new(NodeConfig::new("n")), api.cluster(), node);
        for _ in 1..CHECK_EVERY {
            keeper.renew().await.unwrap();
            theirs();
        }
        assert_eq!(keeper.conflicts, 0, "not asked yet");
        for count in 1..=3 {
            keeper.renew().await.unwrap();
            theirs();
            assert_eq!(keeper.conflicts, count);
        }
        keeper.renew().await.unwrap();
        assert_eq!(keeper.conflicts, 4);
        keeper.renew().await.unwrap();
        assert_eq!((keeper.conflicts, keeper.unchecked), (0, 0), "the other has ended");
    }
}
