//! The records by which another process finds a cluster, and by which a cluster whose starter died is swept.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::api::Api;
use super::control_plane::Files;
use super::machine::{Lifetime, Machine};
use super::network::{Network, records};
use super::{Cluster, Join, Node};
use crate::peers::Peers;

/// Where the record of a cluster is.
pub(super) fn path(name: &str) -> PathBuf {
    records().join(format!("{name}.json"))
}

/// The names of all clusters with a record.
pub(super) fn names() -> Vec<String> {
    let entries = std::fs::read_dir(records()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// Writes or renews a cluster's record.
pub(super) fn write(cluster: &Cluster) -> Result<()> {
    let nodes: Vec<Value> = cluster
        .nodes
        .iter()
        .map(|node| json!({"machine": node.machine.record(), "index": node.index, "kind": node.kind}))
        .collect();
    let record = json!({
        "version": 1,
        "folder": cluster.folder,
        "network": cluster.network.number(),
        "stays": cluster.lifetime == Lifetime::UntilRemoved,
        "control_plane": cluster.control_plane.record(),
        "nodes": nodes,
        "join": {
            "server": cluster.join.server,
            "token": cluster.join.token,
            "ca_cert_hash": cluster.join.ca_cert_hash,
        },
    });
    let path = path(&cluster.name);
    super::certificates::write(&path, &serde_json::to_string_pretty(&record)?)
}

/// Reads a cluster's record.
pub(super) fn read(name: &str) -> Result<Cluster> {
    let record = load(name)?;
    let folder = PathBuf::from(record["folder"].as_str().context("no folder")?);
    let api = Api::of_kubeconfig(&Files { folder: folder.join("files") }.admin())?;
    let nodes = record["nodes"].as_array().into_iter().flatten();
    let text = |field: &str| record["join"][field].as_str().unwrap_or_default().to_owned();
    Ok(Cluster {
        name: name.to_owned(),
        join: Join { server: text("server"), token: text("token"), ca_cert_hash: text("ca_cert_hash") },
        network: network(&record)?,
        api,
        folder,
        peers: Peers::new(),
        // Whoever opens a cluster does not end it by dropping it.
        lifetime: Lifetime::UntilRemoved,
        control_plane: Machine::of_record(&record["control_plane"])?,
        nodes: nodes.map(node).collect::<Result<_>>()?,
    })
}

fn load(name: &str) -> Result<Value> {
    let path = path(name);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("no cluster {name} ({}): `cargo xtask cluster up`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no record", path.display()))
}

fn network(record: &Value) -> Result<Network> {
    let number = record["network"].as_u64().and_then(|number| u8::try_from(number).ok());
    Ok(Network::of_number(number.context("no network")?))
}

fn node(record: &Value) -> Result<Node> {
    Ok(Node {
        machine: Machine::of_record(&record["machine"])?,
        index: record["index"].as_u64().and_then(|index| u8::try_from(index).ok()).context("no index")?,
        kind: match record["kind"].as_str() {
            Some("reference") => "reference",
            Some("coracle-on-containerd") => "coracle-on-containerd",
            _ => "coracle",
        },
    })
}

/// Whether the cluster of that name has ended, so that its addresses are free.
pub(super) fn is_stale(name: &str) -> bool {
    match load(name) {
        Ok(record) => Machine::of_record(&record["control_plane"]).is_ok_and(|machine| !machine.is_alive()),
        // Without a record it is just being started, unless its starter is gone; then its name bears the pid.
        Err(_) => name
            .rsplit_once('-')
            .and_then(|(_, pid)| pid.parse::<u32>().ok())
            .is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()),
    }
}

/// Takes away what clusters left whose starter was killed.
pub(super) fn sweep() {
    for name in names().into_iter().filter(|name| is_stale(name)) {
        let Ok(record) = load(&name) else { continue };
        let nodes = record["nodes"].as_array().into_iter().flatten().map(|node| &node["machine"]);
        for machine in nodes.chain([&record["control_plane"]]) {
            if let Ok(mut machine) = Machine::of_record(machine) {
                let _ = machine.remove();
            }
        }
        if let Some(folder) = record["folder"].as_str() {
            let _ = std::fs::remove_dir_all(folder);
        }
        if let Ok(network) = network(&record) {
            network.release();
        }
        let _ = std::fs::remove_file(path(&name));
    }
}
