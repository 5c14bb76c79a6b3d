//! From files to an [`Access`]: what is known of the cluster at one moment. Called at the start and at every change.

use std::path::{Path, PathBuf};

use coracle_cluster::{Access, Bearer, Server};

use crate::clock::WallClock;
use crate::kubeconfig::{Content, Kubeconfig, KubeconfigError};
use crate::store::{Store, StoreError};
use crate::tls::{self, Pair, TlsError, Trust};
use crate::x509::{Certificate, Subject};

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The kubeconfig.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// Certificates and keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kubeconfig does not say whom to trust.
    #[error(
        "{} names no certificate-authority: say which one signs the API server's certificate", path.display()
    )]
    NoAuthority {
        /// The kubeconfig.
        path: PathBuf,
    },
    /// A token with characters that no header can carry.
    #[error("the token of {} holds characters that no token has", path.display())]
    Token {
        /// The kubeconfig.
        path: PathBuf,
    },
}

/// Where credentials come from.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) kubeconfig: PathBuf,
    /// Tried before those of the kubeconfig.
    pub(crate) servers: Vec<Server>,
    pub(crate) node_name: String,
    pub(crate) store: Store,
    pub(crate) clock: WallClock,
}

/// Who signs API servers.
#[derive(Clone)]
pub(crate) struct Authority {
    /// The authorities of the cluster in PEM; empty if none is known.
    pub(crate) ca: Vec<u8>,
    /// Where they stand, if in a file.
    pub(crate) ca_file: Option<PathBuf>,
    /// Whether anybody is trusted all the same.
    pub(crate) insecure: bool,
}

/// Credentials that were read. Holds no secret in the open.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub(crate) access: Access,
    /// The client certificate in use.
    pub(crate) leaf: Option<Certificate>,
    pub(crate) authority: Authority,
    /// What to look at for changes.
    pub(crate) files: Vec<PathBuf>,
    /// Differs if anything in use differs.
    pub(crate) digest: Vec<u8>,
}

impl Loaded {
    /// Whether the certificate is the one that clusters give this node, so that it may be renewed.
    pub(crate) fn is_node(&self, node_name: &str) -> bool {
        let subject = Subject::of_node(node_name);
        self.leaf.as_ref().is_some_and(|leaf| {
            leaf.common_name == subject.common_name && leaf.organizations.contains(&subject.organization)
        })
    }
}

impl Files {
    pub(crate) fn load(&self) -> Result<Loaded, CredentialsError> {
        let config = Kubeconfig::read(&self.kubeconfig)?;
        let mut files = vec![self.kubeconfig.clone()];
        let mut read = |content: &Content| -> Result<(Vec<u8>, String), CredentialsError> {
            match content {
                Content::Data(data) => Ok((data.clone(), self.kubeconfig.display().to_string())),
                Content::File(path) => {
                    files.push(path.clone());
                    let bytes = std::fs::read(path).map_err(|source| StoreError {
                        operation: "read",
                        path: path.clone(),
                        source,
                    })?;
                    Ok((bytes, path.display().to_string()))
                }
            }
        };
        let ca = config.ca.as_ref().map(&mut read).transpose()?;
        let mut pair = match &config.client {
            Some((certificate, key)) => {
                let (certificate, origin) = read(certificate)?;
                Some(Chosen { certificate, key: read(key)?.0, origin })
            }
            None => None,
        };
        let token = match (&config.token_file, config.token) {
            (Some(path), _) => {
                Some(String::from_utf8_lossy(&read(&Content::File(path.clone()))?.0).into_owned())
            }
            (None, token) => token,
        };
        if let Some(own) = self.own_pair(pair.as_ref())? {
            files.push(self.store.client());
            pair = Some(own);
        }
        let mut servers = self.servers.clone();
        servers.extend(config.servers.into_iter().filter(|server| !self.servers.contains(server)));
        let trust = match &ca {
            _ if config.insecure => Trust::Anybody,
            Some((pem, origin)) => Trust::Authorities(pem, origin),
            None if servers.iter().all(|server| !server.tls) => Trust::Anybody,
            None => return Err(CredentialsError::NoAuthority { path: self.kubeconfig.clone() }),
        };
        let used = pair.as_ref().map(|pair| Pair {
            certificate: &pair.certificate,
            key: &pair.key,
            origin: &pair.origin,
        });
        let tls = tls::client(&trust, used.as_ref(), &self.clock)?;
        let bearer = match &token {
            Some(token) => Some(
                Bearer::new(token)
                    .ok_or_else(|| CredentialsError::Token { path: self.kubeconfig.clone() })?,
            ),
            None => None,
        };
        let leaf = pair.as_ref().and_then(Chosen::leaf);
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        digest.update(format!("{servers:?}{}", config.insecure).as_bytes());
        for part in
            [ca.as_ref().map(|ca| &ca.0), pair.as_ref().map(|pair| &pair.certificate)].into_iter().flatten()
        {
            digest.update(part);
        }
        digest.update(token.unwrap_or_default().as_bytes());
        let ca_file = match config.ca {
            Some(Content::File(path)) => Some(path),
            _ => None,
        };
        Ok(Loaded {
            access: Access { servers, tls: Some(tls), bearer },
            leaf,
            authority: Authority {
                ca: ca.map(|ca| ca.0).unwrap_or_default(),
                ca_file,
                insecure: config.insecure,
            },
            files,
            digest: digest.finish().as_ref().to_vec(),
        })
    }

    /// The certificate that renewal obtained, if it is this node's and younger than the one of the kubeconfig.
    fn own_pair(&self, given: Option<&Chosen>) -> Result<Option<Chosen>, CredentialsError> {
        let path = self.store.client();
        let Some(pem) = self.store.read(&path)? else { return Ok(None) };
        let own = Chosen { certificate: pem.clone(), key: pem, origin: path.display().to_string() };
        let (Some(own_leaf), Some(given_leaf)) = (own.leaf(), given.and_then(Chosen::leaf)) else {
            return Ok(None);
        };
        let fits = own_leaf.common_name == Subject::of_node(&self.node_name).common_name
            && own_leaf.common_name == given_leaf.common_name
            && own_leaf.not_before > given_leaf.not_before;
        Ok(fits.then_some(own))
    }
}

/// A client certificate and its key in PEM.
struct Chosen {
    certificate: Vec<u8>,
    key: Vec<u8>,
    origin: String,
}

impl Chosen {
    fn leaf(&self) -> Option<Certificate> {
        leaf(&self.certificate, &self.origin)
    }
}

pub(crate) fn leaf(pem: &[u8], origin: &str) -> Option<Certificate> {
    Certificate::parse(tls::chain(pem, origin).ok()?.first()?)
}

/// The pins of all authorities in a PEM file.
pub(crate) fn pins(pem: &[u8]) -> Vec<String> {
    let chain = tls::chain(pem, "").unwrap_or_default();
    chain.iter().filter_map(|der| Certificate::parse(der)).map(|certificate| certificate.pin()).collect()
}

/// The folders to watch for changes of files.
pub(crate) fn folders(files: &[PathBuf]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        files.iter().filter_map(|file| file.parent()).map(Path::to_owned).collect();
    folders.sort();
    folders.dedup();
    folders
}
