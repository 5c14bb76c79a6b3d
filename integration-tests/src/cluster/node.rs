//! What every node of a test cluster has, whoever runs its pods: addresses, a conflist of its pod CIDR, kube-proxy.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::machine::Machine;
use super::{Cluster, coracle, reference};
use crate::Executables;

/// How long a node may take to become Ready on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What runs the pods of a node.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A kubelet with containerd and runc.
    Reference,
    /// The agent of these executables.
    Coracle {
        /// What is run.
        executables: Executables,
        /// Further flags of `coracle run`.
        flags: Vec<String>,
    },
    /// The same with containerd and runc in the place of its own runtime.
    CoracleOnContainerd {
        /// What is run.
        executables: Executables,
        /// Further flags of `coracle run`.
        flags: Vec<String>,
    },
    /// A kubelet with `coracle cri` of these executables as its only runtime.
    KubeletOnCoracle {
        /// What is run.
        executables: Executables,
    },
}

/// Where containerd listens on a node.
const CONTAINERD: &str = "--container-runtime-endpoint=unix:///run/containerd/containerd.sock";

impl Kind {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Coracle { .. } => "coracle",
            Self::CoracleOnContainerd { .. } => "coracle-on-containerd",
            Self::KubeletOnCoracle { .. } => "kubelet-on-coracle",
        }
    }
}

/// A node of a cluster.
#[derive(Debug)]
pub struct Node {
    /// Where it runs. Its name is the node's.
    pub machine: Machine,
    /// `reference`, `coracle`, `coracle-on-containerd` or `kubelet-on-coracle`.
    pub kind: &'static str,
    pub(super) index: u8,
}

impl Node {
    /// Files that the node is given; in the machine they are under /var/lib/node.
    pub(super) fn files(&self) -> PathBuf {
        self.machine.folder.join("lib/node")
    }

    /// The services of which a bench counts everything: all but kube-proxy.
    pub fn services(&self) -> &'static [&'static str] {
        match self.kind {
            "reference" => &["containerd", "kubelet"],
            "coracle-on-containerd" => &["containerd", "coracle"],
            "kubelet-on-coracle" => &["coracle", "kubelet"],
            _ => &["coracle"],
        }
    }

    /// What its services have said last.
    pub fn last_words(&self) -> String {
        let words =
            self.services().iter().map(|name| format!("{name}:\n{}", self.machine.last_words(name, 15)));
        words.collect::<Vec<_>>().join("\n")
    }
}

/// Writes a file of the node's.
pub(super) fn write(node: &Node, name: &str, text: &str) -> Result<()> {
    let path = node.files().join(name);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Brings a machine up as a node and waits until it is Ready.
pub(super) fn prepare(cluster: &Cluster, node: &Node, kind: &Kind) -> Result<()> {
    cluster.network.connect_node(&cluster.control_plane, &node.machine, node.index)?;
    write(node, "resolv.conf", &format!("nameserver {}\n", cluster.network.control_plane()))?;
    for (name, path) in [
        ("ca.crt", cluster.authority()),
        ("bootstrap.kubeconfig", cluster.files().bootstrap()),
        ("kube-proxy.kubeconfig", cluster.files().proxy()),
    ] {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        write(node, name, &text)?;
    }
    match kind {
        Kind::Reference => reference::start(cluster, node)?,
        Kind::Coracle { executables, flags } => coracle::start(cluster, node, executables, flags)?,
        Kind::CoracleOnContainerd { executables, flags } => {
            reference::start_containerd(cluster, node)?;
            let flags: Vec<String> =
                [CONTAINERD.to_owned()].into_iter().chain(flags.iter().cloned()).collect();
            coracle::start(cluster, node, executables, &flags)?;
        }
        Kind::KubeletOnCoracle { executables } => {
            let endpoint = coracle::start_cri(cluster, node, executables)?;
            reference::start_kubelet(cluster, node, endpoint)?;
        }
    }
    let name = &node.machine.name;
    let path = format!("/api/v1/nodes/{name}");
    let mut pods = String::new();
    let shown = || node.last_words();
    cluster.wait(
        &format!("{name} is registered and has addresses for pods"),
        LIMIT,
        |api| {
            let answer = api.request("GET", &path, None)?;
            pods = answer.body["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned();
            Ok(!pods.is_empty())
        },
        shown,
    )?;
    cluster.network.route_pods(&cluster.control_plane, node.index, &pods)?;
    write(node, "net.d/10-test.conflist", &conflist(&pods).to_string())?;
    start_proxy(cluster, node)?;
    cluster.wait(&format!("{name} is Ready"), LIMIT, |api| Ok(is_ready(&api.get(&path)?)), shown)?;
    Ok(())
}

/// Whether a Node object says Ready, and nothing keeps pods away from it.
fn is_ready(node: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array();
    super::is_true(node, "Ready")
        && !taints.is_some_and(|taints| taints.iter().any(|taint| taint["effect"] == "NoSchedule"))
}

/// The pods' network on one node: a bridge, and routes on the way.
pub(crate) fn conflist(pods: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "test",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods",
                "isGateway": true,
                "hairpinMode": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-networks",
                    "ranges": [[{"subnet": pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    })
}

fn start_proxy(cluster: &Cluster, node: &Node) -> Result<()> {
    let program = cluster.peers.program("control-plane")?.with_file_name("kube-proxy");
    let arguments = [
        "--kubeconfig=/var/lib/node/kube-proxy.kubeconfig".to_owned(),
        format!("--hostname-override={}", node.machine.name),
        "--proxy-mode=nftables".to_owned(),
        format!("--cluster-cidr={}", cluster.network.pods()),
        // A network namespace has no say in these.
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-tcp-timeout-established=0s".to_owned(),
        "--conntrack-tcp-timeout-close-wait=0s".to_owned(),
    ];
    node.machine.start_service("kube-proxy", &program, &arguments)
}
