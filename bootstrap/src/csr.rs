//! Obtains one certificate: makes or finds the request, waits for its signature, checks what came.
//!
//! The key is kept on disk until the certificate is there, and the request is named after it as a kubelet names it,
//! so that a restart finds the request it made. Runs in its caller's task; cancel it at any point.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use coracle_cluster::{ApiError, Change, Cluster, Object, Resource, Scope};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;

use crate::clock::{WallClock, show};
use crate::credentials::leaf;
use crate::key::{Key, pem};
use crate::store::{Store, StoreError};
use crate::x509::{self, Certificate, Subject, SubjectName};

/// After this long somebody is told what to approve.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why no certificate was obtained.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// The API server refused or did not answer.
    #[error("cannot request a certificate")]
    Api(#[source] ApiError),
    /// Somebody said no.
    #[error(
        "the certificate request {name} was denied ({reason}: {message}); ask the cluster's administrator, then try again"
    )]
    Denied {
        /// The request.
        name: String,
        /// The condition's reason.
        reason: String,
        /// The condition's message.
        message: String,
    },
    /// The signer cannot.
    #[error("the certificate request {name} failed ({reason}: {message}); ask the cluster's administrator")]
    Failed {
        /// The request.
        name: String,
        /// The condition's reason.
        reason: String,
        /// The condition's message.
        message: String,
    },
    /// What came is not for our key.
    #[error("the certificate of request {name} cannot be used: it is not for the key that asked")]
    Foreign {
        /// The request.
        name: String,
    },
    /// The clock is behind.
    #[error(
        "the clock says {now}, before the new certificate's notBefore {not_before}: set the clock (NTP), then try again"
    )]
    ClockBehind {
        /// The clock.
        now: String,
        /// The certificate.
        not_before: String,
    },
    /// The clock is ahead.
    #[error(
        "the clock says {now}, after the new certificate's notAfter {not_after}: set the clock (NTP), then try again"
    )]
    ClockAhead {
        /// The clock.
        now: String,
        /// The certificate.
        not_after: String,
    },
    /// A file.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CsrError {
    /// What the API said, if it is the reason.
    pub(crate) fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(error) => Some(error),
            _ => None,
        }
    }
}

/// A certificate to be asked for.
pub(crate) struct Request<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) store: &'a Store,
    pub(crate) clock: &'a WallClock,
    /// Names the key on disk: `kubelet-client` or `kubelet-server`.
    pub(crate) of: &'static str,
    pub(crate) signer: &'static str,
    pub(crate) usages: &'static [&'static str],
    pub(crate) subject: Subject,
    pub(crate) names: &'a [SubjectName],
}

pub(crate) const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(crate) const CLIENT_USAGES: &[&str] = &["digital signature", "client auth"];
pub(crate) const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
pub(crate) const SERVING_USAGES: &[&str] = &["digital signature", "server auth"];

/// A certificate with its key. The pending key is still on disk: remove it once this is stored.
pub(crate) struct Issued {
    pub(crate) certificate: Certificate,
    /// The chain and the key in one PEM file.
    pub(crate) pem: Vec<u8>,
}

impl Request<'_> {
    pub(crate) async fn obtain(&self) -> Result<Issued, CsrError> {
        loop {
            let key = self.store.pending_key(self.of)?;
            let name = self.name(&key);
            let uid = self.submit(&name, &key).await?;
            let Some(chain) = self.wait(&name, &uid).await? else { continue };
            if let Some(issued) = self.check(&name, &key, &chain)? {
                return Ok(issued);
            }
        }
    }

    /// The key has served: its certificate is stored.
    pub(crate) fn done(&self) -> Result<(), StoreError> {
        self.store.remove(&self.store.pending(self.of))
    }

    /// A kubelet's name of its first request: a digest of all that matters, none of it a prefix of another.
    fn name(&self, key: &Key) -> String {
        let mut digest = ring::digest::Context::new(&ring::digest::SHA512_256);
        let mut write = |part: &[u8]| {
            digest.update(URL_SAFE_NO_PAD.encode(part).as_bytes());
            digest.update(b"|");
        };
        write(key.public_key_info());
        write(self.subject.common_name.as_bytes());
        write(self.subject.organization.as_bytes());
        self.usages.iter().for_each(|usage| write(usage.as_bytes()));
        for name in self.names {
            match name {
                SubjectName::Dns(name) => write(name.as_bytes()),
                SubjectName::Ip(address) => write(address.to_string().as_bytes()),
            }
        }
        format!("node-csr-{}", URL_SAFE_NO_PAD.encode(digest.finish()))
    }

    async fn submit(&self, name: &str, key: &Key) -> Result<String, CsrError> {
        let der = x509::request(&self.subject, self.names, key);
        let request = STANDARD.encode(pem("CERTIFICATE REQUEST", &der));
        let body = json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": name},
            "spec": {"request": request, "signerName": self.signer, "usages": self.usages},
        });
        match self.cluster.create::<Csr>(None, None, &body).await {
            Ok(made) => Ok(made.metadata.uid),
            // The name is a digest of the key: it is this request, made before a restart.
            Err(error) if error.is_already_exists() => {
                let found = self.cluster.get::<Csr>(None, name).await.map_err(CsrError::Api)?;
                Ok(found.metadata.uid)
            }
            Err(error) => Err(CsrError::Api(error)),
        }
    }

    /// The signed chain; `None` if the request is gone and another is to be made.
    async fn wait(&self, name: &str, uid: &str) -> Result<Option<Vec<u8>>, CsrError> {
        let mut changes = std::pin::pin!(self.cluster.watch::<Csr>(Scope::all().named(name)));
        let mut reminder = std::pin::pin!(tokio::time::sleep(PATIENCE));
        let mut reminded = false;
        let mut seen = false;
        loop {
            let change = tokio::select! {
                // Cancel-safe: a stream keeps its place.
                change = changes.next() => change,
                // Cancel-safe: only waits.
                () = &mut reminder, if !reminded => {
                    reminded = true;
                    tracing::info!(
                        csr = name,
                        "a certificate request waits for approval: kubectl certificate approve {name}"
                    );
                    continue;
                }
            };
            match change {
                Some(Change::Listed(csr) | Change::Applied(csr)) => {
                    seen = true;
                    if csr.metadata.uid != uid {
                        return Ok(None);
                    }
                    if let Some(chain) = self.verdict(name, csr)? {
                        return Ok(Some(chain));
                    }
                }
                Some(Change::Ready) if seen => {}
                Some(Change::Restart) => seen = false,
                Some(Change::Ready | Change::Deleted(_)) | None => return Ok(None),
            }
        }
    }

    fn verdict(&self, name: &str, csr: Csr) -> Result<Option<Vec<u8>>, CsrError> {
        let Some(status) = csr.status else { return Ok(None) };
        let conditions = status.conditions.unwrap_or_default();
        for condition in &conditions {
            let (name, reason) = (name.to_owned(), condition.reason.clone().unwrap_or_default());
            let message = condition.message.clone().unwrap_or_default();
            let error = match condition.kind.as_str() {
                "Denied" => CsrError::Denied { name, reason, message },
                "Failed" => CsrError::Failed { name, reason, message },
                _ => continue,
            };
            // The next try makes another request, with another key.
            self.done()?;
            return Err(error);
        }
        let is_approved = conditions.iter().any(|condition| condition.kind == "Approved");
        let chain = status.certificate.filter(|chain| is_approved && !chain.is_empty());
        Ok(chain.and_then(|chain| STANDARD.decode(chain).ok()))
    }

    /// `None` if the certificate was issued long ago and is of no use any more.
    fn check(&self, name: &str, key: &Key, chain: &[u8]) -> Result<Option<Issued>, CsrError> {
        let certificate = leaf(chain, name).filter(|leaf| leaf.public_key == key.public_key_info());
        let Some(certificate) = certificate else {
            self.done()?;
            return Err(CsrError::Foreign { name: name.to_owned() });
        };
        let now = self.clock.now();
        if now < certificate.not_before {
            return Err(CsrError::ClockBehind { now: show(now), not_before: show(certificate.not_before) });
        }
        if now >= certificate.not_after {
            self.done()?;
            if self.cluster.server_time().is_some_and(|server| server < certificate.not_after) {
                return Err(CsrError::ClockAhead { now: show(now), not_after: show(certificate.not_after) });
            }
            return Ok(None);
        }
        let mut pem = chain.to_vec();
        if !pem.ends_with(b"\n") {
            pem.push(b'\n');
        }
        pem.extend_from_slice(key.pem().as_bytes());
        Ok(Some(Issued { certificate, pem }))
    }
}

#[derive(Deserialize)]
struct Csr {
    metadata: Metadata,
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Metadata {
    uid: String,
}

#[derive(Deserialize)]
struct Status {
    conditions: Option<Vec<Condition>>,
    certificate: Option<String>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    reason: Option<String>,
    message: Option<String>,
}

impl Object for Csr {
    const RESOURCE: Resource = Resource::cluster_wide(
        "certificates.k8s.io",
        "v1",
        "certificatesigningrequests",
        "CertificateSigningRequest",
    );
}
