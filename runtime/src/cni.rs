//! The pod network: executes CNI plugins (specification 1.0 and 1.1) for one sandbox at a time.
//!
//! The network is read from the host's configuration at every use, so that a conflist that appears later
//! just works. What ADD was told and answered is kept in the state folder until DEL, so that teardown needs
//! nothing but the sandbox id, also after a crash. At most a few plugin chains run side by side.

mod conflist;
mod exec;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

pub(crate) use conflist::Conflist;

use crate::config::{BridgeNetwork, CniConfig};
use crate::record::write_by_rename;

/// The interface name in the pod.
const INTERFACE: &str = "eth0";

/// Plugin chains that run side by side. More only queue at the locks of iptables and the address pool.
const CONCURRENT: usize = 6;

/// The pod network failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    /// There is no network to join.
    #[error("{0}")]
    NotReady(String),
    /// A configuration file cannot be read.
    #[error("read network configuration {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A configuration file is not a conflist.
    #[error("network configuration {path}: {problem}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A plugin could not be executed.
    #[error("execute network plugin {plugin}")]
    Execute {
        /// Path of the plugin.
        plugin: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A plugin did not end in time.
    #[error("network plugin {plugin} did not end in {seconds} s and was killed")]
    Deadline {
        /// Name of the plugin.
        plugin: String,
        /// The bound.
        seconds: u64,
    },
    /// A plugin answered with an error.
    #[error("network plugin {plugin} {command}: {message}")]
    Plugin {
        /// Name of the plugin.
        plugin: String,
        /// `ADD` or `DEL`.
        command: &'static str,
        /// What it said.
        message: String,
    },
    /// A result could not be kept or read.
    #[error("network record {path}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A sandbox as the plugins see it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attachment {
    pub(crate) sandbox_id: String,
    pub(crate) netns: PathBuf,
    pub(crate) pod_namespace: String,
    pub(crate) pod_name: String,
    pub(crate) pod_uid: String,
    /// Capability arguments by capability; a plugin gets those that its configuration declares.
    pub(crate) capabilities: Map<String, Value>,
}

/// What DEL must know, as kept between ADD and DEL.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    conflist: Value,
    netns: PathBuf,
    args: String,
    capabilities: Map<String, Value>,
    result: Option<Value>,
}

/// The pod network of one runtime.
pub(crate) struct Cni {
    config: CniConfig,
    /// Directory of kept results and of our default network's address leases.
    state: PathBuf,
    pod_cidr: Mutex<Option<String>>,
    chains: Semaphore,
}

impl Cni {
    pub(crate) fn new(config: CniConfig, state: PathBuf) -> Cni {
        Cni { config, state, pod_cidr: Mutex::new(None), chains: Semaphore::new(CONCURRENT) }
    }

    /// Takes the pod CIDR as the subnet of the default network for pods to come; false when it is none.
    pub(crate) fn set_pod_cidr(&self, cidr: &str) -> bool {
        let parts = cidr
            .split_once('/')
            .and_then(|(address, length)| Some((address.parse().ok()?, length.parse().ok()?)));
        let is_one = match parts {
            Some((IpAddr::V4(_), length)) => (0..=30_u8).contains(&length),
            Some((IpAddr::V6(_), length)) => length <= 126,
            None => false,
        };
        if is_one {
            *self.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner) = Some(cidr.to_owned());
        }
        is_one
    }

    /// The network that a pod would join now, with every plugin of it in place.
    pub(crate) fn network(&self) -> Result<Conflist, CniError> {
        self.network_for(true)
    }

    fn network_for(&self, host_ports: bool) -> Result<Conflist, CniError> {
        let conflist = match conflist::first_in(&self.config.conf_dir)? {
            Some(conflist) => conflist,
            None => self.default_network(host_ports)?,
        };
        for plugin in conflist.executables() {
            self.find(plugin)?;
        }
        Ok(conflist)
    }

    fn default_network(&self, host_ports: bool) -> Result<Conflist, CniError> {
        let Some(default) = &self.config.default else {
            return Err(CniError::NotReady(format!(
                "no network configuration in {}; put a conflist there, or let the default network be used",
                self.config.conf_dir.display()
            )));
        };
        let cidr = self.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let subnet = cidr.unwrap_or_else(|| default.subnet.clone());
        if subnet.is_empty() {
            let words =
                "the cluster has not given this node its pods' addresses yet (spec.podCIDR of the Node)";
            return Err(CniError::NotReady(words.to_owned()));
        }
        let network = BridgeNetwork { subnet, ..default.clone() };
        Ok(conflist::bridge(&network, &self.state.join("networks"), host_ports))
    }

    fn find(&self, plugin: &str) -> Result<PathBuf, CniError> {
        let found = self.config.bin_dirs.iter().map(|dir| dir.join(plugin)).find(|path| path.is_file());
        found.ok_or_else(|| {
            let dirs: Vec<String> =
                self.config.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
            CniError::NotReady(format!(
                "network plugin {plugin:?} is in none of {}; install it (Debian and Ubuntu: apt-get install \
                 containernetworking-plugins)",
                dirs.join(", ")
            ))
        })
    }

    /// Joins a sandbox to the network; answers its addresses, the primary first.
    ///
    /// After an error, or a crash at any point, [`Cni::detach`] gives back whatever was taken.
    pub(crate) async fn attach(&self, attachment: &Attachment) -> Result<Vec<String>, CniError> {
        let conflist = self.network_for(attachment.capabilities.contains_key("portMappings"))?;
        let mut kept = Kept {
            version: 1,
            conflist: conflist.raw.clone(),
            netns: attachment.netns.clone(),
            args: arguments(attachment),
            capabilities: attachment.capabilities.clone(),
            result: None,
        };
        self.keep(&attachment.sandbox_id, &kept)?;
        let _turn = self.chains.acquire().await;
        let mut previous = None;
        for plugin in conflist.plugins() {
            let config = plugin.configuration(&attachment.capabilities, previous.as_ref());
            let output = self.execute("ADD", &attachment.sandbox_id, &kept, plugin.kind(), &config).await?;
            previous = output.or(previous);
        }
        let ips = previous.as_ref().map(conflist::addresses).unwrap_or_default();
        kept.result = previous;
        self.keep(&attachment.sandbox_id, &kept)?;
        Ok(ips)
    }

    /// Gives back what [`Cni::attach`] took for a sandbox. Idempotent; goes on after an error and returns all.
    pub(crate) async fn detach(&self, sandbox_id: &str) -> Vec<CniError> {
        let path = self.kept_path(sandbox_id);
        let kept = match self.kept(&path) {
            Ok(Some(kept)) => kept,
            Ok(None) => return Vec::new(),
            Err(error) => return vec![error],
        };
        let Some(conflist) = Conflist::from_value(kept.conflist.clone()) else {
            return vec![CniError::Parse { path, problem: "the kept network is not a conflist".into() }];
        };
        let _turn = self.chains.acquire().await;
        let mut errors = Vec::new();
        for plugin in conflist.plugins().rev() {
            let config = plugin.configuration(&kept.capabilities, kept.result.as_ref());
            if let Err(error) = self.execute("DEL", sandbox_id, &kept, plugin.kind(), &config).await {
                errors.push(error);
            }
        }
        if errors.is_empty()
            && let Err(source) = fs::remove_file(&path)
            && source.kind() != io::ErrorKind::NotFound
        {
            errors.push(CniError::Record { path, source });
        }
        errors
    }

    /// Removes what a kill in the middle of keeping a result has left. Called before any pod is made.
    pub(crate) fn sweep_drafts(&self) {
        let entries = fs::read_dir(self.state.join("results")).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().ends_with(b".new")) {
            // One that stays harms nothing and is tried again at the next start.
            let _ = fs::remove_file(entry.path());
        }
    }

    /// Removes records that a kill left half written. What they announce was not begun.
    pub(crate) fn remove_half_written(&self) {
        let Ok(entries) = fs::read_dir(self.state.join("results")) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"."))
        {
            // The next start tries again.
            let _ = fs::remove_file(entry.path());
        }
    }

    /// Ids of the sandboxes for which something is kept.
    pub(crate) fn attached(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.state.join("results")) else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
            .collect()
    }

    async fn execute(
        &self,
        command: &'static str,
        sandbox_id: &str,
        kept: &Kept,
        plugin: &str,
        config: &Value,
    ) -> Result<Option<Value>, CniError> {
        // A namespace that is gone already is told by an empty name; plugins then only free what is outside it.
        let netns = if command == "DEL" && !kept.netns.exists() { Path::new("") } else { &kept.netns };
        let paths = std::env::join_paths(&self.config.bin_dirs).unwrap_or_default();
        let call = exec::Call {
            plugin,
            path: self.find(plugin)?,
            command,
            environment: [
                ("CNI_COMMAND", command.as_ref()),
                ("CNI_CONTAINERID", sandbox_id.as_ref()),
                ("CNI_NETNS", netns.as_os_str()),
                ("CNI_IFNAME", INTERFACE.as_ref()),
                ("CNI_ARGS", kept.args.as_ref()),
                ("CNI_PATH", paths.as_os_str()),
            ],
        };
        call.run(config).await
    }

    fn kept_path(&self, sandbox_id: &str) -> PathBuf {
        self.state.join("results").join(format!("{sandbox_id}.json"))
    }

    fn keep(&self, sandbox_id: &str, kept: &Kept) -> Result<(), CniError> {
        let path = self.kept_path(sandbox_id);
        let dir = self.state.join("results");
        let content = serde_json::to_vec(kept).expect("a record of strings and JSON serializes");
        fs::create_dir_all(&dir)
            .and_then(|()| {
                write_by_rename(&dir, &format!(".{sandbox_id}.new"), &format!("{sandbox_id}.json"), &content)
            })
            .map_err(|source| CniError::Record { path, source })
    }

    fn kept(&self, path: &Path) -> Result<Option<Kept>, CniError> {
        let record = |source| CniError::Record { path: path.into(), source };
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| record(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(record(error)),
        }
    }
}

fn arguments(attachment: &Attachment) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        attachment.pod_namespace, attachment.pod_name, attachment.sandbox_id, attachment.pod_uid
    )
}

/// The capability arguments that a pod's configuration asks for, with the names of the CNI conventions.
pub(crate) fn capabilities(config: &coracle_cri::v1::PodSandboxConfig) -> Map<String, Value> {
    use coracle_cri::v1::Protocol;
    let mut capabilities = Map::new();
    let ports: Vec<Value> = config
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            let protocol = match mapping.protocol() {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            json!({
                "hostPort": mapping.host_port, "containerPort": mapping.container_port,
                "protocol": protocol, "hostIP": mapping.host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        capabilities.insert("portMappings".into(), ports.into());
    }
    if let Some(dns) = &config.dns_config {
        capabilities.insert(
            "dns".into(),
            json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}),
        );
    }
    if let Some(bandwidth) = conflist::bandwidth(&config.annotations) {
        capabilities.insert("bandwidth".into(), bandwidth);
    }
    if let Some(linux) = &config.linux
        && !linux.cgroup_parent.is_empty()
    {
        capabilities.insert("cgroupPath".into(), linux.cgroup_parent.clone().into());
    }
    capabilities
}
