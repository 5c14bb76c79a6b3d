//! Joining: from a token or a kubeconfig to credentials on disk. Called by `coracle join`, and by `coracle run` when it
//! holds none yet. Runs in its caller's task; cancel it at any point and begin again.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use coracle_cluster::{Access, ApiError, Backoff, Bearer, Cluster, Object, Resource, Server};
use serde::Deserialize;

use crate::clock::{WallClock, show};
use crate::credentials::{Authority, Files};
use crate::csr::{CLIENT_SIGNER, CLIENT_USAGES, CsrError, Request};
use crate::discovery::discover;
use crate::error::JoinError;
use crate::kubeconfig;
use crate::store::Store;
use crate::tls::{self, Trust};
use crate::token::{CaHash, Token, TokenError};
use crate::x509::Subject;

/// A clock may be off by so much.
const SKEW: Duration = Duration::from_secs(300);
/// Between tries while no server answers: the first, and the most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What a node proves itself with.
#[derive(Clone, Debug)]
pub enum Source {
    /// A kubeadm token, with pins of the cluster's authority. `servers` of the configuration says where.
    Token {
        /// The token, or where it lies.
        token: TokenSource,
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

/// A bootstrap token, or where it is read from when a join needs one: nobody else misses it.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// The token itself.
    Given(Token),
    /// A file that holds nothing else.
    File(PathBuf),
    /// Standard input, which gives it once.
    Stdin,
}

impl FromStr for TokenSource {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        text.parse().map(Self::Given)
    }
}

impl TokenSource {
    async fn token(&self) -> Result<Token, JoinError> {
        let (origin, text) = match self {
            Self::Given(token) => return Ok(token.clone()),
            Self::File(path) => (path.display().to_string(), tokio::fs::read_to_string(path).await),
            Self::Stdin => {
                let read = tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin()));
                ("standard input".to_owned(), read.await.unwrap_or_else(|error| Err(error.into())))
            }
        };
        let text = text.map_err(|source| JoinError::TokenFile { origin: origin.clone(), source })?;
        text.parse().map_err(|source| JoinError::Token { origin, source })
    }
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
        let kubeconfig = match &self.source {
            Source::Kubeconfig(path) => path.clone(),
            _ => store.kubeconfig(),
        };
        let (servers, node_name, clock) = (self.servers.clone(), self.node_name.clone(), self.clock.clone());
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
            let token = token.token().await?;
            let found = discover(&config.servers, &token, ca_hashes, &config.clock, config.wait).await?;
            let tls = tls::client(&Trust::Authorities(&found.ca, "cluster-info"), None, &config.clock)?;
            let bearer = Bearer::new(&token.whole());
            let access = Access { servers: found.servers, tls: Some(tls), bearer };
            let authority = Authority { ca: found.ca, ca_file: None, insecure: false };
            enroll(config, access, authority).await
        }
        Source::BootstrapKubeconfig(path) => {
            let store = config.store();
            let (node_name, clock) = (String::new(), config.clock.clone());
            let servers = config.servers.clone();
            let files = Files { kubeconfig: path.clone(), servers, node_name, store, clock };
            let loaded = files.load()?;
            if loaded.authority.insecure {
                tracing::warn!(
                    kubeconfig = %path.display(),
                    "insecure-skip-tls-verify is set: whoever answers is taken for the API server, now and later"
                );
            }
            enroll(config, loaded.access, loaded.authority).await
        }
        Source::Kubeconfig(_) | Source::Held => look(config).await,
    }
}

/// Requests the client certificate and writes all that a start needs.
async fn enroll(config: &JoinConfig, access: Access, authority: Authority) -> Result<(), JoinError> {
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
    let obtain = retry_by(config.wait, CsrError::api, || request.obtain());
    let issued = tokio::time::timeout(config.approval, obtain)
        .await
        .map_err(|_| JoinError::NotApproved { seconds: config.approval.as_secs() })??;
    let ca = match authority.ca_file {
        Some(path) => Some(path),
        None if authority.ca.is_empty() => None,
        None => {
            store.write(&store.ca(), &authority.ca)?;
            Some(store.ca())
        }
    };
    store.write(&store.client(), &issued.pem)?;
    let trust = kubeconfig::WrittenTrust { ca: ca.as_deref(), insecure: authority.insecure };
    // Last: whoever finds it finds all it names.
    store.write(&store.kubeconfig(), kubeconfig::write(&servers, trust, &store.client()).as_bytes())?;
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
    retry_by(wait, |error| Some(error), ask).await
}

/// As [`retry`], for errors of which some are of the API.
async fn retry_by<T, E, F>(
    wait: Duration,
    api: fn(&E) -> Option<&ApiError>,
    ask: impl Fn() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let begun = tokio::time::Instant::now();
    let mut pauses = Backoff::new(PAUSES);
    loop {
        let result = ask().await;
        let Some(error) = result.as_ref().err().and_then(api) else { return result };
        if !error.is_transient() || needs_hands(error) {
            return result;
        }
        let pause = pauses.fail(error.retry_after());
        if begun.elapsed() + pause >= wait {
            return result;
        }
        tokio::time::sleep(pause).await;
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
