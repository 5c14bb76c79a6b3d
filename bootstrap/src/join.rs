//! Joining: from a token or a kubeconfig to credentials on disk. Called by `coracle join`, and by `coracle run` when it
//! holds none yet. Runs in its caller's task; cancel it at any point and begin again.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use coracle_cluster::{Access, ApiError, Bearer, Cluster, Object, Resource, Server};
use serde::Deserialize;

use crate::clock::{WallClock, show};
use crate::credentials::Files;
use crate::csr::{CLIENT_SIGNER, CLIENT_USAGES, CsrError, Request};
use crate::discovery::discover;
use crate::error::JoinError;
use crate::kubeconfig;
use crate::store::Store;
use crate::tls::{self, Trust};
use crate::token::{CaHash, Token};
use crate::x509::Subject;

/// A clock may be off by so much.
const SKEW: Duration = Duration::from_secs(300);

/// What a node proves itself with.
#[derive(Clone, Debug)]
pub enum Source {
    /// A kubeadm token, with pins of the cluster's authority. `servers` of the configuration says where.
    Token {
        /// The token.
        token: Token,
        /// One of them must fit.
        ca_hashes: Vec<CaHash>,
    },
    /// A kubeconfig whose credentials may request certificates for nodes.
    BootstrapKubeconfig(PathBuf),
    /// A kubeconfig whose credentials are the node's.
    Kubeconfig(PathBuf),
    /// What an earlier join left.
    Held,
}

impl Source {
    /// Whether new credentials can be had by it.
    pub(crate) fn may_join(&self) -> bool {
        matches!(self, Self::Token { .. } | Self::BootstrapKubeconfig(_))
    }
}

/// How to join, and as whom.
#[derive(Clone, Debug)]
pub struct JoinConfig {
    /// The node's name.
    pub node_name: String,
    /// Where credentials lie: `<root>/pki`.
    pub pki: PathBuf,
    /// API servers in order of preference; those of a kubeconfig come after them.
    pub servers: Vec<Server>,
    /// What the node proves itself with.
    pub source: Source,
    /// How long an API server that does not answer is asked again. `coracle join` waits some seconds, `coracle run`
    /// for ever.
    pub wait: Duration,
    /// How long a certificate request may wait for its approval.
    pub approval: Duration,
    /// Wall time.
    pub clock: WallClock,
}

impl JoinConfig {
    /// With the waits of a command that somebody looks at.
    pub fn new(node_name: impl Into<String>, pki: impl Into<PathBuf>, source: Source) -> Self {
        Self {
            node_name: node_name.into(),
            pki: pki.into(),
            servers: Vec::new(),
            source,
            wait: Duration::from_secs(20),
            approval: Duration::from_secs(3600),
            clock: WallClock::system(),
        }
    }

    pub(crate) fn store(&self) -> Store {
        Store::new(&self.pki)
    }

    /// Where credentials are read from once they are there.
    pub(crate) fn files(&self) -> Files {
        let store = self.store();
        let (kubeconfig, servers) = match &self.source {
            Source::Kubeconfig(path) => (path.clone(), self.servers.clone()),
            _ => (store.kubeconfig(), Vec::new()),
        };
        let (node_name, clock) = (self.node_name.clone(), self.clock.clone());
        Files { kubeconfig, servers, node_name, store, clock }
    }
}

/// Obtains credentials and writes them under the `pki` folder. With [`Source::Kubeconfig`] and [`Source::Held`] it
/// only looks whether they serve.
pub async fn join(config: &JoinConfig) -> Result<(), JoinError> {
    match &config.source {
        Source::Token { token, ca_hashes } => {
            if config.servers.is_empty() {
                return Err(JoinError::NoServer);
            }
            let found = discover(&config.servers, token, ca_hashes, &config.clock, config.wait).await?;
            let tls = tls::client(&Trust::Authorities(&found.ca, "cluster-info"), None, &config.clock)?;
            let bearer = Bearer::new(&token.whole());
            let access = Access { servers: found.servers.clone(), tls: Some(tls), bearer };
            enroll(config, access, &found.ca, None).await
        }
        Source::BootstrapKubeconfig(path) => {
            let store = config.store();
            let (node_name, clock) = (String::new(), config.clock.clone());
            let servers = config.servers.clone();
            let files = Files { kubeconfig: path.clone(), servers, node_name, store, clock };
            let loaded = files.load()?;
            enroll(config, loaded.access, &loaded.ca, loaded.ca_file).await
        }
        Source::Kubeconfig(_) | Source::Held => look(config).await,
    }
}

/// Requests the client certificate and writes all that a start needs.
async fn enroll(
    config: &JoinConfig,
    access: Access,
    ca: &[u8],
    ca_file: Option<PathBuf>,
) -> Result<(), JoinError> {
    let servers = access.servers.clone();
    let cluster = Cluster::with(access);
    // A machine with credentials of this name, ended though they may be, is that node.
    if !config.files().load().is_ok_and(|held| held.is_node(&config.node_name)) {
        check_name(config, &cluster).await?;
    }
    check_clock(config, &cluster)?;
    let store = config.store();
    let request = Request {
        cluster: &cluster,
        store: &store,
        clock: &config.clock,
        of: "kubelet-client",
        signer: CLIENT_SIGNER,
        usages: CLIENT_USAGES,
        subject: Subject::of_node(&config.node_name),
        names: &[],
    };
    let obtain = retry_csr(config.wait, || request.obtain());
    let issued = tokio::time::timeout(config.approval, obtain)
        .await
        .map_err(|_| JoinError::NotApproved { seconds: config.approval.as_secs() })??;
    let ca_path = match ca_file {
        Some(path) => path,
        None => {
            store.write(&store.ca(), ca)?;
            store.ca()
        }
    };
    store.write(&store.client(), &issued.pem)?;
    // Last: whoever finds it finds all it names.
    store.write(&store.kubeconfig(), kubeconfig::write(&servers, &ca_path, &store.client()).as_bytes())?;
    request.done()?;
    tracing::info!(node = config.node_name, server = %servers[0], "joined the cluster");
    Ok(())
}

/// Whether credentials that are there already serve.
async fn look(config: &JoinConfig) -> Result<(), JoinError> {
    let files = config.files();
    if !files.kubeconfig.exists() && matches!(config.source, Source::Held) {
        return Err(JoinError::NotJoined { path: files.kubeconfig });
    }
    let loaded = files.load()?;
    let cluster = Cluster::with(loaded.access);
    let name = &config.node_name;
    let answer = retry(config.wait, || cluster.get::<Node>(None, name)).await;
    check_clock(config, &cluster)?;
    match answer {
        Err(error) if error.is_unauthorized() => Err(JoinError::Unauthorized(error)),
        Err(error @ (ApiError::Decode { .. } | ApiError::TooLarge { .. })) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "not a Node");
            Err(JoinError::NotApiServer {
                server: files.servers.first().map(ToString::to_string).unwrap_or_default(),
            })
        }
        Err(error) if error.code().is_none() => Err(JoinError::Api(error)),
        _ => Ok(()),
    }
}

/// A Ready node of this name is somebody else, or this machine a moment ago; kubeadm refuses both.
async fn check_name(config: &JoinConfig, cluster: &Cluster) -> Result<(), JoinError> {
    let name = &config.node_name;
    let node = match retry(config.wait, || cluster.get::<Node>(None, name)).await {
        Ok(node) => node,
        Err(error) if error.is_unauthorized() => return Err(JoinError::Unauthorized(error)),
        // The credentials need not be allowed to look.
        Err(error) if error.code().is_some() => return Ok(()),
        Err(error) => return Err(JoinError::Api(error)),
    };
    let mut conditions = node.status.and_then(|status| status.conditions).unwrap_or_default().into_iter();
    if conditions.any(|condition| condition.kind == "Ready" && condition.status == "True") {
        return Err(JoinError::NameTaken { name: name.clone() });
    }
    Ok(())
}

fn check_clock(config: &JoinConfig, cluster: &Cluster) -> Result<(), JoinError> {
    let Some(server) = cluster.server_time() else { return Ok(()) };
    let now = config.clock.now();
    let apart = |a: SystemTime, b: SystemTime| a.duration_since(b).is_ok_and(|apart| apart > SKEW);
    if apart(now, server) || apart(server, now) {
        return Err(JoinError::Clock { now: show(now), server: show(server) });
    }
    Ok(())
}

/// Asks again while no server answers, with a growing pause.
pub(crate) async fn retry<T, F>(wait: Duration, ask: impl Fn() -> F) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    let begun = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(500);
    loop {
        match ask().await {
            Err(error) if error.is_transient() && begun.elapsed() + pause < wait && !needs_hands(&error) => {
                tokio::time::sleep(pause.max(error.retry_after().unwrap_or_default())).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            result => return result,
        }
    }
}

async fn retry_csr<T, F>(wait: Duration, ask: impl Fn() -> F) -> Result<T, CsrError>
where
    F: Future<Output = Result<T, CsrError>>,
{
    let begun = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(500);
    loop {
        match ask().await {
            Err(CsrError::Api(error)) if error.is_transient() && begun.elapsed() + pause < wait => {
                tokio::time::sleep(pause.max(error.retry_after().unwrap_or_default())).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            result => return result,
        }
    }
}

/// A certificate that does not fit does not mend by waiting.
fn needs_hands(error: &ApiError) -> bool {
    matches!(error, ApiError::Transport { source, .. } if source.is_distrust())
}

#[derive(Deserialize)]
struct Node {
    status: Option<NodeStatus>,
}

#[derive(Deserialize)]
struct NodeStatus {
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Object for Node {
    const RESOURCE: Resource = Resource::cluster_wide("", "v1", "nodes", "Node");
}
