//! A node that has joined: its credentials while it runs. Started once by the agent.
//!
//! | task | owns | hears by | tells by |
//! |---|---|---|---|
//! | reload | what was read last | inotify of the folders of all files in use, a bell | `watch` of [`Access`], of the CA, of the client certificate |
//! | renewal | the client certificate's successor | `watch` of the client certificate, a timer of wall time | the file, the reload bell |
//! | serving | the serving certificate | `watch` of addresses, a timer of wall time | [`ServingCertificate`] |

use std::sync::Arc;
use std::time::SystemTime;

use coracle_cluster::{Access, Cluster};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::clock::show;
use crate::credentials::{Files, Loaded};
use crate::error::JoinError;
use crate::join::{JoinConfig, Source, join};
use crate::serving::{Serving, ServingCertificate};
use crate::x509::{Certificate, SubjectName};
use crate::{reload, renewal, serving};

/// What a running node needs.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// How to join if that has not been done, and where credentials lie.
    pub join: JoinConfig,
    /// Where the serving certificate comes from.
    pub serving: Serving,
    /// The node's addresses and names: what the serving certificate vouches for. Its changes are followed.
    pub addresses: watch::Receiver<Vec<SubjectName>>,
}

/// Credentials of a running node. Its tasks end when it is dropped.
pub struct Identity {
    cluster: Cluster,
    access: watch::Receiver<Arc<Access>>,
    ca: watch::Receiver<Arc<Vec<u8>>>,
    client: watch::Receiver<Option<Certificate>>,
    serving: Arc<ServingCertificate>,
    _tasks: JoinSet<()>,
}

impl Identity {
    /// Reads the credentials that are held, or joins first if there are none that count. Does not ask the cluster if
    /// there are: a node starts without its API server.
    pub async fn start(config: IdentityConfig) -> Result<Self, JoinError> {
        let files = config.join.files();
        let loaded = match held(&config.join, &files)? {
            Some(loaded) => loaded,
            None => {
                join(&config.join).await?;
                files.load()?
            }
        };
        let (access_sender, access) = watch::channel(Arc::new(loaded.access.clone()));
        let (ca_sender, ca) = watch::channel(Arc::new(loaded.ca.clone()));
        let (client_sender, client) = watch::channel(loaded.leaf.clone());
        let cluster = Cluster::new(access.clone());
        let bell = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        if loaded.is_node(&config.join.node_name) {
            tasks.spawn(renewal::run(renewal::Renewal {
                cluster: cluster.clone(),
                files: files.clone(),
                client: client.clone(),
                bell: bell.clone(),
            }));
        }
        let (task, serving) =
            serving::start(config.serving, config.addresses, cluster.clone(), files.clone())?;
        tasks.spawn(task);
        let out = reload::Out { access: access_sender, ca: ca_sender, client: client_sender };
        tasks.spawn(reload::run(files, loaded, bell, out));
        Ok(Self { cluster, access, ca, client, serving, _tasks: tasks })
    }

    /// The cluster's API with these credentials.
    pub fn cluster(&self) -> Cluster {
        self.cluster.clone()
    }

    /// Servers and credentials as they change.
    pub fn access(&self) -> watch::Receiver<Arc<Access>> {
        self.access.clone()
    }

    /// The cluster's certificate authorities in PEM: who signs API servers, and clients of the kubelet API.
    pub fn ca(&self) -> watch::Receiver<Arc<Vec<u8>>> {
        self.ca.clone()
    }

    /// The client certificate in use; none where a token is used.
    pub fn client_certificate(&self) -> watch::Receiver<Option<Certificate>> {
        self.client.clone()
    }

    /// The serving certificate, for `rustls::ServerConfig::…::with_cert_resolver`. It changes under it.
    pub fn serving(&self) -> Arc<ServingCertificate> {
        self.serving.clone()
    }
}

/// Credentials that are there and count; `None` if joining is called for.
fn held(config: &JoinConfig, files: &Files) -> Result<Option<Loaded>, JoinError> {
    let may_join = matches!(config.source, Source::Token { .. } | Source::BootstrapKubeconfig(_));
    if !files.kubeconfig.exists() && !matches!(config.source, Source::Kubeconfig(_)) {
        let path = files.kubeconfig.clone();
        return if may_join { Ok(None) } else { Err(JoinError::NotJoined { path }) };
    }
    let loaded = match files.load() {
        Ok(loaded) => loaded,
        Err(error) if may_join => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "held credentials cannot be read; joining again"
            );
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let now = config.clock.now();
    let Some(leaf) = &loaded.leaf else { return Ok(Some(loaded)) };
    if now < leaf.not_before {
        warn_clock(now, leaf);
    } else if now >= leaf.not_after {
        let (not_after, now) = (show(leaf.not_after), show(now));
        if may_join {
            tracing::warn!(%not_after, %now, "the node's certificate has ended; joining again");
            return Ok(None);
        }
        return Err(JoinError::Ended { not_after, now });
    }
    Ok(Some(loaded))
}

/// Such a node starts all the same: its pods run, and clocks are often set a moment later.
fn warn_clock(now: SystemTime, leaf: &Certificate) {
    let (now, not_before) = (show(now), show(leaf.not_before));
    tracing::error!(
        "the clock says {now}, before the node's certificate begins to count at {not_before}: set the clock (NTP)"
    );
}
