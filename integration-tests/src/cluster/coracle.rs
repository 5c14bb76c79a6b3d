//! A node of ours in a test cluster: the agent, joined by token, with the same conflist and registry as the reference.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Cluster;
use super::node::{Node, write};
use crate::Executables;

fn write_registries(cluster: &Cluster, node: &Node) -> Result<()> {
    let mirror =
        format!("mirrors:\n  \"*\":\n    endpoint: [\"http://{}:5000\"]\n", cluster.network.control_plane());
    write(node, "registries.yaml", &mirror)
}

/// Starts the runtime alone, waits until it listens, and says where.
pub(super) fn start_cri(cluster: &Cluster, node: &Node, executables: &Executables) -> Result<&'static str> {
    write_registries(cluster, node)?;
    let plugins = cluster.peers.program("bridge")?;
    let plugins = plugins.parent().context("a program lies in a folder")?;
    let arguments = [
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        executables.coracle.display().to_string(),
        "cri".to_owned(),
        format!("--shim={}", executables.shim.display()),
        "--private-registry=/var/lib/node/registries.yaml".to_owned(),
        "--cni-conf-dir=/var/lib/node/net.d".to_owned(),
        format!("--cni-bin-dir={}", plugins.display()),
    ];
    node.machine.start_service("coracle", Path::new("env"), &arguments)?;
    let listens = ["test", "-S", "/run/coracle/cri.sock"];
    cluster.wait(
        "coracle cri listens",
        Duration::from_secs(60),
        |_| Ok(node.machine.run(&listens).is_ok()),
        || node.machine.last_words("coracle", 20),
    )?;
    Ok("unix:///run/coracle/cri.sock")
}

/// Starts the agent; the node registers itself.
pub(super) fn start(
    cluster: &Cluster,
    node: &Node,
    executables: &Executables,
    flags: &[String],
) -> Result<()> {
    write_registries(cluster, node)?;
    write(node, "token", &format!("{}\n", cluster.join.token))?;
    std::fs::create_dir_all(node.files().join("manifests")).context("cannot create the manifests' folder")?;
    let plugins = cluster.peers.program("bridge")?;
    let plugins = plugins.parent().context("a program lies in a folder")?;
    let mut arguments = vec![
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        executables.coracle.display().to_string(),
        "run".to_owned(),
        format!("--server={}", cluster.join.server),
        "--token-file=/var/lib/node/token".to_owned(),
        format!("--ca-cert-hash={}", cluster.join.ca_cert_hash),
        format!("--hostname-override={}", node.machine.name),
        format!("--node-ip={}", cluster.network.node(node.index)),
        format!("--shim={}", executables.shim.display()),
        "--manifests=/var/lib/node/manifests".to_owned(),
        "--private-registry=/var/lib/node/registries.yaml".to_owned(),
        "--resolv-conf=/var/lib/node/resolv.conf".to_owned(),
        "--cni-conf-dir=/var/lib/node/net.d".to_owned(),
        format!("--cni-bin-dir={}", plugins.display()),
        format!("--cluster-dns={}", cluster.network.dns()),
        // The disk is the developer's own, and may be nearly full.
        "--image-gc-high-threshold=100".to_owned(),
        "--eviction-hard=memory.available<100Mi,nodefs.available<1%,imagefs.available<1%".to_owned(),
    ];
    arguments.extend(flags.iter().cloned());
    node.machine.start_service("coracle", Path::new("env"), &arguments)
}
