//! A node that has joined: its credentials while it runs. Started once by the agent.
//!
//! | task | owns | hears by | tells by |
//! |---|---|---|---|
//! | reload | what was read last | inotify of the folders of all files in use, a bell | `watch` of [`Access`], of the CA, of the client certificate |
//! | renewal | the client certificate's successor, by a new join where it has ended | `watch` of the client certificate, a timer of wall time | the file, the reload bell |
//! | client_ca | who signs clients, where a file says so | inotify | `watch` of them |
//! | serving | the serving certificate | `watch` of addresses, a timer of wall time | [`ServingCertificate`] |

use std::path::PathBuf;
use std::sync::Arc;

use coracle_cluster::{Access, Cluster};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::credentials::{Files, Loaded};
use crate::error::JoinError;
use crate::join::{JoinConfig, Source, join};
use crate::serving::{Serving, ServingCertificate};
use crate::x509::{Certificate, SubjectName};
use crate::{client_ca, reload, renewal, serving, validity};

/// What a running node needs.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// How to join if that has not been done, and where credentials lie.
    pub join: JoinConfig,
    /// Where the serving certificate comes from.
    pub serving: Serving,
    /// The node's addresses and names: what the serving certificate vouches for. Its changes are followed.
    pub addresses: watch::Receiver<Vec<SubjectName>>,
    /// Who signs clients of the kubelet API, in PEM; the cluster's authorities if none. Its changes are followed.
    pub client_ca_file: Option<PathBuf>,
}

/// Credentials of a running node. Its tasks end when it is dropped.
pub struct Identity {
    cluster: Cluster,
    access: watch::Receiver<Arc<Access>>,
    client_authorities: watch::Receiver<Arc<Vec<u8>>>,
    client: watch::Receiver<Option<Certificate>>,
    serving: Arc<ServingCertificate>,
    _tasks: JoinSet<()>,
}

impl Identity {
    /// Reads the credentials that are held, or joins first if there are none. Does not ask the cluster if there are,
    /// and does not mind the clock: a node starts without its API server, in 1970 and after its certificate's end too,
    /// so that its pods run. What is wrong is told, and mended when the API server answers.
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
        let (ca_sender, ca) = watch::channel(Arc::new(loaded.authority.ca.clone()));
        let (client_sender, client) = watch::channel(loaded.leaf.clone());
        let cluster = Cluster::new(access.clone());
        let bell = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        if loaded.is_node(&config.join.node_name) {
            tasks.spawn(renewal::run(renewal::Renewal {
                cluster: cluster.clone(),
                join: config.join.clone(),
                files: files.clone(),
                client: client.clone(),
                bell: bell.clone(),
            }));
        } else if let Some(leaf) = &loaded.leaf {
            validity::of(leaf, config.join.clock.now()).tell(leaf, &config.join);
        }
        let (task, serving) =
            serving::start(config.serving, config.addresses, cluster.clone(), files.clone())?;
        tasks.spawn(task);
        let client_authorities = match config.client_ca_file {
            Some(path) => {
                let (task, authorities) = client_ca::start(path)?;
                tasks.spawn(task);
                authorities
            }
            None => ca,
        };
        let out = reload::Out { access: access_sender, ca: ca_sender, client: client_sender };
        tasks.spawn(reload::run(files, loaded, bell, out));
        Ok(Self { cluster, access, client_authorities, client, serving, _tasks: tasks })
    }

    /// The cluster's API with these credentials.
    pub fn cluster(&self) -> Cluster {
        self.cluster.clone()
    }

    /// Servers and credentials as they change.
    pub fn access(&self) -> watch::Receiver<Arc<Access>> {
        self.access.clone()
    }

    /// Who signs clients of the kubelet API, in PEM.
    pub fn client_authorities(&self) -> watch::Receiver<Arc<Vec<u8>>> {
        self.client_authorities.clone()
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

/// Credentials that are there; `None` if joining is called for.
fn held(config: &JoinConfig, files: &Files) -> Result<Option<Loaded>, JoinError> {
    let may_join = config.source.may_join();
    if !files.kubeconfig.exists() && !matches!(config.source, Source::Kubeconfig(_)) {
        let path = files.kubeconfig.clone();
        return if may_join { Ok(None) } else { Err(JoinError::NotJoined { path }) };
    }
    match files.load() {
        Ok(loaded) => Ok(Some(loaded)),
        Err(error) if may_join => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "held credentials cannot be read; joining again"
            );
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
