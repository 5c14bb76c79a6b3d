//! A real cluster on this machine for tests and benches: an unmodified control plane and nodes, each in namespaces of
//! its own.
//!
//! ```text
//! host ── veth ── [ control plane: etcd, API server, controllers, scheduler; bridge `nodes`; registry ]
//!                      │ veth per node
//!                 [ node: eth0, its pods' bridge, kubelet or coracle, kube-proxy ]
//! ```
//!
//! A cluster of a test ends with the process that started it. One of `cargo xtask cluster up` stays until `down`; a
//! record under /run/coracle-clusters says where it is. Callers own their cluster; no two threads change one at once.

pub mod api;
mod bootstrap_objects;
mod certificates;
mod control_plane;
mod coracle;
pub mod machine;
mod metrics_server;
mod network;
mod node;
mod record;
mod reference;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::Executables;
use crate::images::{self, Set};
use crate::peers::Peers;
use api::Api;
use control_plane::Files;
pub use machine::Lifetime;
use machine::{Machine, checked};
pub use network::Network;
pub(crate) use node::conflist;
pub use node::{Kind, Node};
pub(crate) use reference::containerd_config;

/// Whether an object says of itself that a condition is true, such as `Ready`.
pub fn is_true(object: &Value, condition: &str) -> bool {
    let holds = |it: &Value| it["type"] == condition && it["status"] == "True";
    object["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(holds))
}

/// What the node of [`Cluster::of_test`] is called.
pub const OURS: &str = "ours";

/// What the API server's service is called in the control plane's machine.
const API_SERVER: &str = "kube-apiserver";

/// What a cluster is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Unique on this machine.
    pub name: String,
    /// Whether it ends with this process.
    pub lifetime: Lifetime,
    /// Further flags of kube-apiserver.
    pub api_server_flags: Vec<String>,
    /// Further flags of kube-controller-manager, such as a short `--cluster-signing-duration`.
    pub controller_flags: Vec<String>,
}

impl Options {
    /// A cluster of a test: its name made unique, its end this process's.
    pub fn of_test(name: &str) -> Self {
        Self {
            name: format!("{name}-{}", std::process::id()),
            lifetime: Lifetime::OfThisProcess,
            api_server_flags: Vec::new(),
            controller_flags: Vec::new(),
        }
    }

    /// A cluster that stays.
    pub fn staying(name: &str) -> Self {
        Self { name: name.to_owned(), lifetime: Lifetime::UntilRemoved, ..Self::of_test("") }
    }
}

/// What a node needs to join.
#[derive(Clone, Debug)]
pub struct Join {
    /// `https://HOST:PORT`.
    pub server: String,
    /// A bootstrap token, `ID.SECRET`.
    pub token: String,
    /// `sha256:…` over the public key of the cluster's authority.
    pub ca_cert_hash: String,
}

/// A running cluster.
pub struct Cluster {
    /// Its name on this machine.
    pub name: String,
    /// How nodes join.
    pub join: Join,
    /// Its addresses.
    pub network: Network,
    /// The API server, as an administrator.
    pub api: Api,
    folder: PathBuf,
    peers: Peers,
    lifetime: Lifetime,
    control_plane: Machine,
    nodes: Vec<Node>,
}

impl Cluster {
    /// A cluster of a test with one node of this build, [`OURS`], which has these flags beside the harness's own; pods
    /// can run the basic images.
    pub fn of_test(name: &str, flags: &[&str]) -> Result<Self> {
        let executables = Executables::of_this_build();
        images::write(&Peers::new(), Set::Basic, Some(&executables.example))?;
        let mut cluster = Self::start(&Options::of_test(name))?;
        let flags = flags.iter().copied().map(str::to_owned).collect();
        cluster.add_node(OURS, &Kind::Coracle { executables, flags })?;
        Ok(cluster)
    }

    /// Starts one and waits until nodes can join. The peers' control plane must have been built.
    pub fn start(options: &Options) -> Result<Self> {
        record::sweep();
        let peers = Peers::new();
        peers.program("control-plane")?;
        let folder = crate::target_dir().join("cluster").join(&options.name);
        if record::path(&options.name).exists() {
            bail!("a cluster {} is there already: `cargo xtask cluster down {0}`", options.name);
        }
        let _ = std::fs::remove_dir_all(&folder);
        let network = Network::claim(&options.name, record::is_stale)?;
        let started = Self::start_in(options, &folder, network, peers);
        if started.is_err() {
            network.release();
        }
        started
    }

    fn start_in(options: &Options, folder: &Path, network: Network, peers: Peers) -> Result<Self> {
        let id = machine_id(&options.name, "control-plane");
        let mut machine =
            Machine::start(&id, "control-plane", &folder.join("control-plane"), options.lifetime)?;
        let files = Files { folder: folder.join("files") };
        let started = network
            .connect_host(&machine)
            .and_then(|()| control_plane::start(&machine, network, &files, &peers, options));
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                // The logs are in the error; a machine that stays must not be left by a start that failed.
                machine.remove()?;
                return Err(error);
            }
        };
        let cluster = Self {
            name: options.name.clone(),
            join: started.join,
            network,
            api: started.api,
            folder: folder.to_owned(),
            peers,
            lifetime: options.lifetime,
            control_plane: machine,
            nodes: Vec::new(),
        };
        record::write(&cluster)?;
        Ok(cluster)
    }

    /// The cluster of that name, started by another process.
    pub fn open(name: &str) -> Result<Self> {
        record::read(name)
    }

    /// The names of the clusters of this machine.
    pub fn names() -> Vec<String> {
        record::names()
    }

    /// The administrator's credentials.
    pub fn kubeconfig(&self) -> PathBuf {
        self.files().admin()
    }

    /// The authority that signed the API server's certificate.
    pub fn authority(&self) -> PathBuf {
        self.files().authority()
    }

    fn files(&self) -> Files {
        Files { folder: self.folder.join("files") }
    }

    /// A `kubectl` with the administrator's credentials.
    pub fn kubectl(&self) -> Result<Command> {
        let program = self.peers.program("control-plane")?.with_file_name("kubectl");
        let mut command = Command::new(program);
        command.arg("--kubeconfig").arg(self.kubeconfig()).stdin(std::process::Stdio::null());
        Ok(command)
    }

    /// What `kubectl` prints.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        checked(self.kubectl()?.args(words))
    }

    /// What `cluster status` prints.
    pub fn status(&self) -> Result<String> {
        control_plane::status(&self.api)
    }

    /// The machine of the control plane.
    pub fn control_plane(&self) -> &Machine {
        &self.control_plane
    }

    /// The nodes that were added, in that order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let node = self.nodes.iter().find(|node| node.machine.name == name);
        node.with_context(|| format!("no node {name} in the cluster {}", self.name))
    }

    /// Adds a node and waits until it is Ready and pods can run on it.
    pub fn add_node(&mut self, name: &str, kind: &Kind) -> Result<&Node> {
        let index = (0..200)
            .find(|index| self.nodes.iter().all(|node| node.index != *index))
            .context("a cluster has at most 200 nodes")?;
        let folder = self.folder.join("nodes").join(name);
        let machine = Machine::start(&machine_id(&self.name, name), name, &folder, self.lifetime)?;
        let node = Node { machine, index, kind: kind.name() };
        let prepared = node::prepare(self, &node, kind);
        self.nodes.push(node);
        record::write(self)?;
        prepared?;
        self.nodes.last().context("a node was added")
    }

    /// Takes the API server away, as a power cut of the control plane would.
    pub fn kill_api_server(&self) -> Result<()> {
        self.control_plane.kill_service(API_SERVER)
    }

    /// Brings it back and waits until it is ready.
    pub fn start_api_server(&self) -> Result<()> {
        self.control_plane.start_service_again(API_SERVER)?;
        let ready =
            |api: &Api| Ok(api.request("GET", "/readyz", None).is_ok_and(|answer| answer.code == 200));
        let shown = || self.control_plane.last_words(API_SERVER, 20);
        self.wait("the API server is ready", Duration::from_secs(120), ready, shown).map(drop)
    }

    /// Starts metrics-server, which must have been built.
    pub fn start_metrics_server(&self) -> Result<()> {
        metrics_server::start(self)
    }

    /// Ends a node and deletes it from the cluster.
    pub fn remove_node(&mut self, name: &str) -> Result<()> {
        let position = self.nodes.iter().position(|node| node.machine.name == name);
        let mut node = self.nodes.remove(position.with_context(|| format!("no node {name}"))?);
        let ended = node.machine.remove();
        record::write(self)?;
        self.api.request("DELETE", &format!("/api/v1/nodes/{name}"), None)?;
        ended
    }

    /// Waits until a predicate holds, and shows what `shown` says if it never does.
    pub fn wait(
        &self,
        what: &str,
        limit: Duration,
        mut predicate: impl FnMut(&Api) -> Result<bool>,
        shown: impl Fn() -> String,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let last = predicate(&self.api);
            if matches!(last, Ok(true)) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > limit {
                bail!("{what}: not within {limit:?} ({last:?})\n{}", shown());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it and takes away all it made.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let mut errors = Vec::new();
        for node in &mut self.nodes {
            errors.extend(node.machine.remove().err());
        }
        errors.extend(self.control_plane.remove().err());
        let _ = std::fs::remove_dir_all(&self.folder);
        self.network.release();
        let _ = std::fs::remove_file(record::path(&self.name));
        match errors.pop() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::OfThisProcess
            && let Err(error) = self.end()
        {
            eprintln!("the cluster {} is not wholly gone: {error:#}", self.name);
        }
    }
}

/// What the cgroup of a machine is called.
fn machine_id(cluster: &str, machine: &str) -> String {
    format!("coracle-cluster-{cluster}-{machine}")
}
