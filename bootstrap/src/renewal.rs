//! Renews the client certificate between 70 and 90 % of its life; joins again where it has ended. One task.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coracle_cluster::{Backoff, Cluster};
use tokio::sync::{Notify, watch};

use crate::credentials::Files;
use crate::csr::{CLIENT_SIGNER, CLIENT_USAGES, CsrError, Request};
use crate::error::JoinError;
use crate::join::{JoinConfig, join};
use crate::key::random;
use crate::timer;
use crate::validity::{self, Validity};
use crate::x509::{Certificate, Subject};

/// Pauses between failed tries.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Further than any wait: a timer of so much wakes only when the clock is set.
const FAR: Duration = Duration::from_secs(10 * 365 * 86400);

pub(crate) struct Renewal {
    pub(crate) cluster: Cluster,
    /// How to join again.
    pub(crate) join: JoinConfig,
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
    let mut due: Option<(Certificate, SystemTime)> = None;
    let mut told = Validity::Counts;
    loop {
        let Some(certificate) = renewal.client.borrow_and_update().clone() else { return };
        let now = renewal.files.clock.now();
        let validity = validity::of(&certificate, now);
        if std::mem::replace(&mut told, validity) != validity {
            validity.tell(&certificate, &renewal.join);
        }
        let deadline = match &due {
            Some((of, deadline)) if *of == certificate => *deadline,
            _ => due.insert((certificate.clone(), deadline(&certificate))).1,
        };
        // A clock that is set ends every wait: what is due, and whether the certificate counts, is looked at anew.
        let (mut replaced, renew) = (renewal.client.clone(), renewal.renew(validity));
        let lives = tokio::select! {
            // All arms are cancel-safe: a join and a request are found again by their names, the rest stays noted.
            () = timer::wait_until(deadline), if now < deadline => true,
            () = timer::wait_until(now + FAR), if validity == Validity::Ended => true,
            changed = replaced.changed() => changed.is_ok(),
            () = renew, if now >= deadline => renewal.client.changed().await.is_ok(),
        };
        if !lives {
            return;
        }
    }
}

impl Renewal {
    /// Tries until there is a new certificate, and rings for it to be used.
    async fn renew(&self, validity: Validity) {
        if validity == Validity::Ended && self.join.source.may_join() {
            self.join_again().await;
        } else {
            self.request().await;
        }
        self.bell.notify_one();
    }

    /// An API server knows nobody by a certificate that has ended.
    async fn join_again(&self) {
        let mut pauses = Backoff::new(PAUSES);
        let mut told: Option<std::mem::Discriminant<JoinError>> = None;
        while let Err(error) = join(&self.join).await {
            let kind = std::mem::discriminant(&error);
            if told.replace(kind) != Some(kind) {
                tracing::warn!(error = &error as &dyn std::error::Error, "the node cannot join again yet");
            }
            tokio::time::sleep(pauses.fail(None)).await;
        }
    }

    async fn request(&self) {
        let store = &self.files.store;
        let request = Request {
            cluster: &self.cluster,
            store,
            clock: &self.files.clock,
            of: "kubelet-client",
            signer: CLIENT_SIGNER,
            usages: CLIENT_USAGES,
            subject: Subject::of_node(&self.files.node_name),
            names: &[],
        };
        let issued = persist(&request).await;
        let mut pauses = Backoff::new(PAUSES);
        while let Err(error) = store.write(&store.client(), &issued.pem).and_then(|()| request.done()) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the new client certificate cannot be kept"
            );
            tokio::time::sleep(pauses.fail(None)).await;
        }
        tracing::info!(
            until = crate::clock::show(issued.certificate.not_after),
            "the client certificate is renewed"
        );
    }
}

/// Asks until there is a certificate; failures are told once, and once more when it works again by success.
pub(crate) async fn persist(request: &Request<'_>) -> crate::csr::Issued {
    let mut pauses = Backoff::new(PAUSES);
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
                tokio::time::sleep(pauses.fail(None)).await;
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
