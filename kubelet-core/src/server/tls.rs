//! TLS of the kubelet API: a certificate that may change, and clients that may prove who they are by theirs.
//!
//! Built once by the server. As a kubelet does, any client certificate is taken during the handshake (with proof of its
//! key) and judged when a request comes, so that a client with a strange certificate and a good token is served.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};

use tokio::sync::watch;

use super::subject::{Subject, subject};

/// What the listener speaks.
pub(super) fn server_config(certificates: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AskForCertificate { provider: provider.clone() });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each ticket or stored session costs memory, and clients of a kubelet keep their connections.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // A record for each line of a followed log would be mostly padding.
    config.max_fragment_size = None;
    Ok(config)
}

/// Asks for a certificate and takes any whose key the client holds.
#[derive(Debug)]
struct AskForCertificate {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AskForCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whose certificates are trusted. Read anew only when the authorities change.
pub(super) struct Trust {
    pem: watch::Receiver<Arc<Vec<u8>>>,
    /// What was read last, and from what.
    read: Mutex<Option<(Arc<Vec<u8>>, Verifier)>>,
}

/// None if there is nobody to trust.
type Verifier = Option<Arc<dyn ClientCertVerifier>>;

impl Trust {
    pub(super) fn new(pem: watch::Receiver<Arc<Vec<u8>>>) -> Self {
        Self { pem, read: Mutex::new(None) }
    }

    /// Who a client's certificates name, if one of the authorities signed them and they are valid now.
    pub(super) fn identity(&self, chain: &[CertificateDer<'_>]) -> Option<Subject> {
        let (end_entity, intermediates) = chain.split_first()?;
        let verifier = self.verifier()?;
        verifier.verify_client_cert(end_entity, intermediates, UnixTime::now()).ok()?;
        subject(end_entity)
    }

    fn verifier(&self) -> Verifier {
        let pem = self.pem.borrow().clone();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match &*read {
            Some((from, verifier)) if Arc::ptr_eq(from, &pem) => verifier.clone(),
            _ => {
                let verifier = verifier_of(&pem);
                *read = Some((pem, verifier.clone()));
                verifier
            }
        }
    }
}

fn verifier_of(pem: &[u8]) -> Verifier {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let added = certificate.map(|certificate| roots.add(certificate));
        if !matches!(added, Ok(Ok(()))) {
            tracing::warn!(
                "one of the cluster's certificate authorities cannot be read; its clients are not known"
            );
        }
    }
    if roots.is_empty() {
        return None;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()
}
