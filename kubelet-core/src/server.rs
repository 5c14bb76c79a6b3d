//! The kubelet API: what the API server, metrics-server and people ask a node directly, on port 10250.
//!
//! A program starts one [`Server`]; dropping it ends the listener and every connection. One task per connection, at
//! most [`CONNECTIONS`]; a followed log is served by its connection's own task, which sleeps until inotify or a status
//! wakes it. Nothing is measured until somebody asks. Paths and permissions are in `route`, which is pure. A connection
//! that becomes a stream (exec, attach, portForward) leaves its place to the next and is one of at most [`SESSIONS`].

mod answer;
mod auth;
mod cadvisor;
mod connection;
mod follow;
mod log_options;
mod logs;
mod metrics;
mod pods;
mod route;
mod stats;
mod streaming;
mod subject;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cluster::Cluster;
use coracle_cri::{ImageService, RuntimeService};
use rustls::server::ResolvesServerCert;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::clock::Clock;
use crate::kubelet::{PodViews, ProbeCounts};
use crate::pod_cgroup::CgroupPlace;
use auth::{Auth, Reviewer};
use stats::StatsCache;

/// Connections served side by side; the next one waits.
pub const CONNECTIONS: usize = 256;
/// Streams open side by side where the limit of open files has room for them, as many as the embedded runtime serves;
/// further ones are refused.
pub const SESSIONS: usize = 512;

/// File descriptors of one stream where the runtime is in the same process, at most.
const DESCRIPTORS: u64 = 7;

/// File descriptors of everything else.
const OTHER_DESCRIPTORS: u64 = 128;

/// How many streams the limit of open files has room for.
fn sessions(limit: Option<u64>) -> usize {
    let room = limit.map(|limit| limit.saturating_sub(OTHER_DESCRIPTORS) / DESCRIPTORS);
    room.and_then(|room| usize::try_from(room).ok()).map_or(SESSIONS, |room| room.clamp(1, SESSIONS))
}

/// How the kubelet API is served. Names follow the kubelet's configuration.
pub struct ServerConfig {
    /// Where to listen (`address`, `port`).
    pub address: SocketAddr,
    /// The node's name, for permissions and statistics.
    pub node_name: String,
    /// The serving certificate; asked for at each handshake, so that it may change.
    pub certificates: Arc<dyn ResolvesServerCert>,
    /// Whose client certificates are trusted, in PEM (`authentication.x509.clientCAFile`); followed.
    pub client_authorities: watch::Receiver<Arc<Vec<u8>>>,
    /// Whether bearer tokens are reviewed by the API server (`authentication.webhook.enabled`).
    pub authenticate_tokens: bool,
    /// Whether permissions are (`authorization.mode: Webhook`); otherwise whoever is known may everything.
    pub authorize: bool,
    /// What `/configz` tells as `kubeletconfig`.
    pub configz: serde_json::Value,
    /// The pods' folders, for the statistics of their file system.
    pub root_dir: PathBuf,
    /// Where the pods' cgroups lie, for `/metrics/cadvisor`.
    pub cgroups: CgroupPlace,
    /// The pods' logs, for the statistics of their sizes.
    pub log_root: PathBuf,
    /// After how long without a byte a stream ends (`streamingConnectionIdleTimeout`); measured coarsely.
    pub streaming_idle_timeout: Duration,
    /// What tells the time.
    pub clock: Clock,
}

/// What requests are answered from.
pub struct ServerParts {
    /// For reviews; without one tokens are refused and permissions not asked for.
    pub cluster: Option<Cluster>,
    /// The pods of this node, from [`crate::kubelet::Kubelet::statuses`].
    pub pods: watch::Receiver<PodViews>,
    /// Those of which nothing runs, from [`crate::joined::Joined::idle`].
    pub idle: watch::Receiver<PodViews>,
    /// For logs and statistics.
    pub runtime: Arc<dyn RuntimeService>,
    /// For statistics.
    pub images: Arc<dyn ImageService>,
    /// What probes found, from [`crate::kubelet::Kubelet::probe_counts`].
    pub probes: ProbeCounts,
}

/// Why the kubelet API is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for the kubelet API; is another kubelet running?")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS for the kubelet API")]
    Tls(#[source] rustls::Error),
}

/// Serves the kubelet API.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

/// What all connections share.
struct Shared {
    config: ServerConfig,
    parts: ServerParts,
    auth: Auth,
    trust: tls::Trust,
    stats: StatsCache,
    sessions: Arc<Semaphore>,
    refused: streaming::RefusedProtocols,
    started: i64,
}

impl Server {
    /// Listens and serves in the background.
    pub async fn start(config: ServerConfig, parts: ServerParts) -> Result<Self, ServerError> {
        let address = config.address;
        let failed = |source| ServerError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let tls = tls::server_config(config.certificates.clone()).map_err(ServerError::Tls)?;
        let reviewer = parts
            .cluster
            .clone()
            .map(|cluster| Arc::new(Reviewer::new(cluster, config.node_name.clone(), config.clock.clone())));
        let auth = Auth { reviewer, tokens: config.authenticate_tokens, webhook: config.authorize };
        let started = config.clock.now().wall_nanos;
        let (trust, stats) = (tls::Trust::new(config.client_authorities.clone()), StatsCache::default());
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let sessions = Arc::new(Semaphore::new(sessions(limit)));
        let shared = Arc::new(Shared {
            config,
            parts,
            auth,
            trust,
            stats,
            sessions,
            refused: Default::default(),
            started,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(connection::serve(listener, TlsAcceptor::from(Arc::new(tls)), shared));
        Ok(Self { address, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("node", &self.config.node_name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
