//! The part of a node that belongs to a cluster: its identity, its pods from the API, its Node and the kubelet API.
//!
//! Made by [`super::supervise`] in two steps around the kubelet's start, and dropped by its end. Of its own it has two
//! tasks: one hands on what the Node says, to admission what bears on pods, to the serving certificate the addresses;
//! the other keeps the pods' addresses over a reboot.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use coracle_bootstrap::{Identity, IdentityConfig, SubjectName};
use coracle_cri::v1::{NetworkConfig, RuntimeConfig, UpdateRuntimeConfigRequest};
use coracle_kubelet_core::api::{Node, ResourceList, Taint};
use coracle_kubelet_core::clock::Clock;
use coracle_kubelet_core::joined::{Joined, JoinedConfig};
use coracle_kubelet_core::kubelet::Kubelet;
use coracle_kubelet_core::node_ips::NodeIps;
use coracle_kubelet_core::source::PodSet;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::engine::Engine;
use super::node_api::{self, NodeApi, ServingTrust};
use super::settings::ClusterSettings;
use crate::replace::replace_durably;

/// A node's tie to its cluster.
pub(super) struct Tie {
    settings: ClusterSettings,
    identity: Identity,
    pub(super) pods: Joined,
    view: watch::Sender<Option<Arc<Node>>>,
    addresses: watch::Sender<Vec<SubjectName>>,
    /// Once the kubelet runs.
    api: Option<NodeApi>,
    tasks: JoinSet<()>,
}

impl Tie {
    /// Reads or obtains the credentials and begins to read the node's pods. Waits for the API server only on the very
    /// first join.
    pub(super) async fn begin(
        settings: ClusterSettings,
        node_ips: &NodeIps,
        static_pods: watch::Receiver<PodSet>,
    ) -> Result<Self> {
        let node_name = settings.node.node.name.clone();
        let (addresses, follow) = watch::channel(subjects(&node_name, &node_ips.now()));
        let identity = Identity::start(IdentityConfig {
            join: settings.join.clone(),
            serving: settings.serving.clone(),
            addresses: follow,
            client_ca_file: settings.client_ca_file.clone(),
        })
        .await?;
        let (view, node) = watch::channel(None);
        let cluster = identity.cluster();
        let kept = settings.kept_pods.clone();
        if let (None, Some(agent)) = (&kept, settings.kept_cidrs.parent()) {
            // Nothing of an earlier start stays that may no longer be kept.
            let _ = std::fs::remove_file(agent.join("pods.json"));
        }
        let (clock, host) = (Clock::system(), settings.host.clone());
        let pods = Joined::start(JoinedConfig { cluster, node_name, static_pods, node, clock, host, kept });
        Ok(Self { settings, identity, pods, view, addresses, api: None, tasks: JoinSet::new() })
    }

    /// Tells the cluster of the node and its pods from now on.
    pub(super) async fn follow(&mut self, kubelet: &Kubelet, engine: &Engine) -> Result<()> {
        self.pods.follow(kubelet);
        use_kept_cidrs(&self.settings.kept_cidrs, engine).await;
        let trust = ServingTrust {
            certificates: self.identity.serving(),
            client_authorities: self.identity.client_authorities(),
        };
        let cluster = self.identity.cluster();
        let api =
            node_api::start(&self.settings.node, cluster, trust, (kubelet, self.pods.idle()), engine).await?;
        let (node, name) = (api.agent.node(), self.settings.node.node.name.clone());
        self.tasks.spawn(keep_cidrs(self.settings.kept_cidrs.clone(), node.clone()));
        self.tasks.spawn(hand_on(node, name, self.view.clone(), self.addresses.clone()));
        self.api = Some(api);
        Ok(())
    }
}

/// Tells the runtime which addresses pods had last: until the API server tells them again, pods start with these.
async fn use_kept_cidrs(path: &Path, engine: &Engine) {
    let Ok(text) = tokio::fs::read_to_string(path).await else { return };
    let network_config = Some(NetworkConfig { pod_cidr: text.trim().to_owned() });
    let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
    if let Err(error) = engine.runtime.update_runtime_config(request).await {
        tracing::warn!(%error, "the runtime does not take the pods' addresses of the last start");
    }
}

/// Writes them down when the cluster gives some, which is once in a Node's life. Runs until the Node's keeper ends.
async fn keep_cidrs(path: PathBuf, mut node: watch::Receiver<Option<Arc<Node>>>) {
    let mut kept = tokio::fs::read_to_string(&path).await.unwrap_or_default();
    node.mark_changed();
    while node.changed().await.is_ok() {
        let Some(now) = node.borrow_and_update().clone() else { continue };
        let cidrs = now.spec.pod_cidrs.join(",");
        if cidrs.is_empty() || cidrs == kept {
            continue;
        }
        let (to, text) = (path.clone(), cidrs.clone());
        let written = tokio::task::spawn_blocking(move || replace_durably(&to, text.as_bytes(), 0o644)).await;
        match written {
            Ok(Ok(())) => kept = cidrs,
            Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "pods' addresses are not kept"),
            Err(_) => return,
        }
    }
}

/// Runs until the Node's keeper ends.
async fn hand_on(
    mut node: watch::Receiver<Option<Arc<Node>>>,
    name: String,
    view: watch::Sender<Option<Arc<Node>>>,
    addresses: watch::Sender<Vec<SubjectName>>,
) {
    node.mark_changed();
    while node.changed().await.is_ok() {
        // A Node that was deleted comes back in a moment; until then its last view serves.
        let Some(now) = node.borrow_and_update().clone() else { continue };
        view.send_if_modified(|known| {
            let is_news = known.as_deref().is_none_or(|known| bears_on_pods(known) != bears_on_pods(&now));
            if is_news {
                *known = Some(now.clone());
            }
            is_news
        });
        let ips: Vec<IpAddr> =
            now.status.addresses.iter().filter_map(|address| address.address.parse().ok()).collect();
        let subjects = subjects(&name, &ips);
        addresses.send_if_modified(|known| {
            let is_news = !ips.is_empty() && *known != subjects;
            if is_news {
                *known = subjects;
            }
            is_news
        });
    }
}

/// What admission and mirrors read of a Node; the rest changes with every report.
#[derive(PartialEq)]
struct Bearing<'a> {
    uid: &'a str,
    labels: &'a BTreeMap<String, String>,
    taints: &'a [Taint],
    allocatable: &'a ResourceList,
    /// Types and statuses of its conditions.
    conditions: Vec<(&'a str, &'a str)>,
}

fn bears_on_pods(node: &Node) -> Bearing<'_> {
    Bearing {
        uid: &node.metadata.uid,
        labels: &node.metadata.labels,
        taints: &node.spec.taints,
        allocatable: &node.status.allocatable,
        conditions: node.status.conditions.iter().map(|c| (c.r#type.as_str(), c.status.as_str())).collect(),
    }
}

/// What the serving certificate vouches for.
fn subjects(name: &str, ips: &[IpAddr]) -> Vec<SubjectName> {
    let mut subjects = vec![SubjectName::parse(name)];
    subjects.extend(ips.iter().map(|ip| SubjectName::parse(&ip.to_string())));
    subjects
}
