//! A controller on `coracle-cluster` alone: tells when nodes become Ready or cease to, and notes it on the node.
//!
//! `node_readiness URL`, where nobody asks for credentials: `kubectl proxy` serves such a URL on port 8001.
#![allow(clippy::print_stdout, reason = "it is a command")]

use std::collections::BTreeMap;

use anyhow::Context as _;
use coracle_cluster::{Access, Change, Cluster, Object, Patch, Resource, Scope};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;

/// All that this program wants to know of a node.
#[derive(serde::Deserialize)]
struct Node {
    metadata: BTreeMap<String, Value>,
    status: BTreeMap<String, Value>,
}

impl Object for Node {
    const RESOURCE: Resource = Resource::cluster_wide("", "v1", "nodes", "Node");
}

impl Node {
    fn is_ready(&self) -> bool {
        let conditions = self.status.get("conditions").and_then(Value::as_array);
        conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True")
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let url = std::env::args().nth(1).context("usage: node_readiness URL")?;
    let cluster = Cluster::with(Access::plain(url.parse()?));
    let mut nodes = std::pin::pin!(cluster.watch::<Node>(Scope::all()));
    let mut known: BTreeMap<String, bool> = BTreeMap::new();
    while let Some(change) = nodes.next().await {
        let (Change::Listed(node) | Change::Applied(node)) = change else { continue };
        let name = node.metadata["name"].as_str().unwrap_or_default().to_owned();
        if known.insert(name.clone(), node.is_ready()) != Some(node.is_ready()) {
            println!("{name} {}", if node.is_ready() { "Ready" } else { "NotReady" });
            let note =
                json!({"metadata": {"annotations": {"example.com/was-ready": node.is_ready().to_string()}}});
            cluster.patch::<Node>(None, &name, None, &Patch::Merge(note)).await?;
        }
    }
    Ok(())
}
