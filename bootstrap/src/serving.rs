//! The serving certificate: self-signed, signed by the cluster once it is approved, or from files. One task.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_cluster::Cluster;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::clock::show;
use crate::credentials::{Files, folders, leaf};
use crate::csr::{Request, SERVING_SIGNER, SERVING_USAGES};
use crate::error::JoinError;
use crate::folder_changes::{FolderChanges, SETTLE};
use crate::key::{Key, random};
use crate::renewal::{deadline, persist};
use crate::store::StoreError;
use crate::timer;
use crate::tls::{self, Pair};
use crate::x509::{self, Certificate, Subject, SubjectName};

/// How long a self-signed certificate counts.
const SELF_SIGNED: Duration = Duration::from_secs(365 * 86400);

/// A signed certificate that cannot be kept or used is asked for again after this time.
const RETRY: Duration = Duration::from_secs(3600);

/// Where the serving certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serving {
    /// It vouches for itself, as a kubelet's does by default. Nothing is written.
    SelfSigned,
    /// The cluster signs it (`serverTLSBootstrap`); it vouches for itself until somebody has approved.
    Request,
    /// Somebody provides it.
    Files {
        /// The chain in PEM.
        certificate: PathBuf,
        /// The key in PEM.
        key: PathBuf,
    },
}

/// The serving certificate of the moment.
pub struct ServingCertificate {
    current: watch::Receiver<Arc<CertifiedKey>>,
}

impl ServingCertificate {
    /// The certificate as it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<CertifiedKey>> {
        self.current.clone()
    }
}

impl fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServingCertificate")
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.borrow().clone())
    }
}

struct Task {
    addresses: watch::Receiver<Vec<SubjectName>>,
    cluster: Cluster,
    files: Files,
    out: watch::Sender<Arc<CertifiedKey>>,
}

/// The task and what it fills. The first certificate is there at once.
pub(crate) fn start(
    serving: Serving,
    addresses: watch::Receiver<Vec<SubjectName>>,
    cluster: Cluster,
    files: Files,
) -> Result<(impl Future<Output = ()> + Send + 'static, Arc<ServingCertificate>), JoinError> {
    let names = sorted(&addresses.borrow());
    // From before the first reading on, so that no change comes between.
    let changes = match &serving {
        Serving::Files { certificate, key } => {
            FolderChanges::of(&folders(&[certificate.clone(), key.clone()]))
        }
        _ => FolderChanges::none(),
    };
    let first = match &serving {
        Serving::Files { certificate, key } => from_files(certificate, key)?,
        Serving::Request => match kept(&files, &names) {
            Some((_, pair)) => pair,
            None => self_signed(&files, &names)?,
        },
        Serving::SelfSigned => self_signed(&files, &names)?,
    };
    let (out, current) = watch::channel(first);
    let task = Task { addresses, cluster, files, out };
    let run = async move {
        match serving {
            Serving::SelfSigned => task.vouch().await,
            Serving::Request => task.request(names).await,
            Serving::Files { certificate, key } => task.read(&certificate, &key, changes).await,
        }
    };
    Ok((run, Arc::new(ServingCertificate { current })))
}

impl Task {
    /// A new self-signed certificate for every new set of addresses.
    async fn vouch(mut self) {
        loop {
            let before = sorted(&self.addresses.borrow_and_update());
            if self.addresses.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if sorted(&self.addresses.borrow()) != before {
                self.offer_self_signed();
            }
        }
    }

    fn offer_self_signed(&self) {
        match self_signed(&self.files, &sorted(&self.addresses.borrow())) {
            Ok(pair) => {
                self.out.send_replace(pair);
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "no self-signed serving certificate"
                );
            }
        }
    }

    /// Keeps a certificate signed by the cluster for the addresses of the moment. `offered` is vouched for already.
    async fn request(mut self, mut offered: Vec<SubjectName>) {
        loop {
            let names = sorted(&self.addresses.borrow_and_update());
            let held = kept(&self.files, &names);
            let due = held.as_ref().map(|(certificate, _)| deadline(certificate));
            let store = self.files.store.clone();
            let request = Request {
                cluster: &self.cluster,
                store: &store,
                clock: &self.files.clock,
                of: "kubelet-server",
                signer: SERVING_SIGNER,
                usages: SERVING_USAGES,
                subject: Subject::of_node(&self.files.node_name),
                names: &names,
            };
            if held.is_none() && names != offered {
                self.offer_self_signed();
            }
            offered.clone_from(&names);
            let clock = self.files.clock.clone();
            let obtain = async {
                if names.is_empty() {
                    std::future::pending::<()>().await; // Nothing to vouch for yet.
                }
                while due.is_some_and(|due| clock.now() < due) {
                    timer::wait_until(due.expect("looked at above")).await;
                }
                persist(&request).await
            };
            let issued = tokio::select! {
                // Cancel-safe: the request and its key are found again by their name.
                issued = obtain => issued,
                // Cancel-safe: a change stays noted until it was looked at.
                changed = self.addresses.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => std::future::pending().await,
                },
            };
            let origin = store.server().display().to_string();
            let pair = tls::server(&Pair { certificate: &issued.pem, key: &issued.pem, origin: &origin });
            match (store.write(&store.server(), &issued.pem).and_then(|()| request.done()), pair) {
                (Ok(()), Ok(pair)) => {
                    tracing::info!(
                        until = show(issued.certificate.not_after),
                        "the cluster signed the serving certificate"
                    );
                    self.out.send_replace(pair);
                }
                (Err(error), _) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the serving certificate cannot be kept"
                    );
                    tokio::time::sleep(RETRY).await;
                }
                (_, Err(error)) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the signed serving certificate cannot be used"
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn read(self, certificate: &Path, key: &Path, mut changes: FolderChanges) {
        let mut failing = false;
        loop {
            changes.next().await;
            tokio::time::sleep(SETTLE).await;
            match from_files(certificate, key) {
                Ok(pair) => {
                    failing = false;
                    self.out.send_if_modified(|now| {
                        let changed = now.cert != pair.cert;
                        if changed {
                            *now = pair;
                        }
                        changed
                    });
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the serving certificate cannot be read again"
                    );
                }
                Err(_) => {}
            }
        }
    }
}

fn sorted(names: &[SubjectName]) -> Vec<SubjectName> {
    let mut names = names.to_vec();
    names.sort();
    names.dedup();
    names
}

/// The certificate that the cluster signed, if it counts and vouches for exactly these names.
fn kept(files: &Files, names: &[SubjectName]) -> Option<(Certificate, Arc<CertifiedKey>)> {
    let path = files.store.server();
    let pem = files.store.read(&path).ok()??;
    let origin = path.display().to_string();
    let certificate = leaf(&pem, &origin)?;
    let now = files.clock.now();
    let fits = sorted(&certificate.names) == names
        && certificate.common_name == Subject::of_node(&files.node_name).common_name
        && now < certificate.not_after;
    let pair = tls::server(&Pair { certificate: &pem, key: &pem, origin: &origin }).ok()?;
    fits.then_some((certificate, pair))
}

fn self_signed(files: &Files, names: &[SubjectName]) -> Result<Arc<CertifiedKey>, JoinError> {
    let no_randomness = || StoreError {
        operation: "make a key for",
        path: files.store.server(),
        source: std::io::Error::other("the kernel gives no randomness"),
    };
    let key = Key::generate().ok_or_else(no_randomness)?;
    let subject = Subject { organization: String::new(), common_name: files.node_name.clone() };
    let der = x509::self_signed(&subject, names, &key, random(), files.clock.now(), SELF_SIGNED);
    let private = PrivatePkcs8KeyDer::from(key.pkcs8().to_vec());
    let pair = tls::certified(vec![CertificateDer::from(der)], private.into());
    Ok(pair.expect("rustls takes a certificate and the key it was made for"))
}

fn from_files(certificate: &std::path::Path, key: &std::path::Path) -> Result<Arc<CertifiedKey>, JoinError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|source| StoreError { operation: "read", path: path.to_owned(), source })
    };
    let (chain, private) = (read(certificate)?, read(key)?);
    let origin = certificate.display().to_string();
    Ok(tls::server(&Pair { certificate: &chain, key: &private, origin: &origin })?)
}
