//! Renews the client certificate between 70 and 90 % of its life. One task.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coracle_cluster::Cluster;
use tokio::sync::{Notify, watch};

use crate::credentials::Files;
use crate::csr::{CLIENT_SIGNER, CLIENT_USAGES, CsrError, Request};
use crate::key::random;
use crate::timer;
use crate::x509::{Certificate, Subject};

/// Pauses between failed tries.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

pub(crate) struct Renewal {
    pub(crate) cluster: Cluster,
    pub(crate) files: Files,
    pub(crate) client: watch::Receiver<Option<Certificate>>,
    pub(crate) bell: Arc<Notify>,
}

/// A moment between 70 and 90 % of a certificate's life, so that a cluster's nodes do not come all at once.
pub(crate) fn deadline(certificate: &Certificate) -> SystemTime {
    let fraction = f64::from(u16::from_be_bytes([random()[0], random()[1]])) / f64::from(u16::MAX);
    certificate.not_before + certificate.lifetime().mul_f64(0.7 + 0.2 * fraction)
}

pub(crate) async fn run(mut renewal: Renewal) {
    loop {
        let Some(certificate) = renewal.client.borrow_and_update().clone() else { return };
        let deadline = deadline(&certificate);
        tracing::debug!(at = crate::clock::show(deadline), "the client certificate is to be renewed");
        while renewal.files.clock.now() < deadline {
            tokio::select! {
                // Both arms are cancel-safe: they only wait for what stays noted.
                () = timer::wait_until(deadline) => {}
                changed = renewal.client.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
            }
        }
        // Somebody else may have put another certificate there.
        if renewal.client.borrow().as_ref() != Some(&certificate) {
            continue;
        }
        if renewal.renew().await.is_err() {
            return;
        }
    }
}

impl Renewal {
    /// Tries until there is a new certificate and it is in use. Fails only when nobody listens any more.
    async fn renew(&mut self) -> Result<(), watch::error::RecvError> {
        let store = self.files.store.clone();
        let request = Request {
            cluster: &self.cluster,
            store: &store,
            clock: &self.files.clock,
            of: "kubelet-client",
            signer: CLIENT_SIGNER,
            usages: CLIENT_USAGES,
            subject: Subject::of_node(&self.files.node_name),
            names: &[],
        };
        let issued = persist(&request).await;
        let mut pause = PAUSES.0;
        while let Err(error) = store.write(&store.client(), &issued.pem).and_then(|()| request.done()) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the new client certificate cannot be kept"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        tracing::info!(
            until = crate::clock::show(issued.certificate.not_after),
            "the client certificate is renewed"
        );
        self.bell.notify_one();
        self.client.changed().await
    }
}

/// Asks until there is a certificate; failures are told once, and once more when it works again by success.
pub(crate) async fn persist(request: &Request<'_>) -> crate::csr::Issued {
    let mut pause = PAUSES.0;
    let mut told: Option<std::mem::Discriminant<CsrError>> = None;
    loop {
        match request.obtain().await {
            Ok(issued) => return issued,
            Err(error) => {
                let kind = std::mem::discriminant(&error);
                if told.replace(kind) != Some(kind) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "no certificate from {}; trying again",
                        request.signer
                    );
                }
                // Between a half and the whole of a doubling pause.
                let jitter = f64::from(random()[0]) / 510.0;
                tokio::time::sleep(pause.mul_f64(0.5 + jitter)).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_falls_between_70_and_90_percent() {
        let not_before = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let certificate = Certificate {
            common_name: String::new(),
            organizations: Vec::new(),
            not_before,
            not_after: not_before + Duration::from_secs(1000),
            names: Vec::new(),
            public_key: Vec::new(),
        };
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let after = deadline(&certificate).duration_since(not_before).unwrap().as_secs();
            assert!((700..=900).contains(&after), "{after}");
            seen.insert(after);
        }
        assert!(seen.len() > 20, "{seen:?}");
    }
}
