//! Builds what rustls wants from certificates and keys. No I/O.

use std::sync::Arc;

use coracle_cluster::Access;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::clock::WallClock;

/// Why certificates or keys cannot be used. Says nothing of their content.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate authority.
    #[error("{0} holds no certificate authority in PEM")]
    NoAuthority(String),
    /// A certificate authority that rustls cannot read.
    #[error("{origin} holds a certificate authority that cannot be read")]
    Authority {
        /// Where it stands.
        origin: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// No certificate.
    #[error("{0} holds no certificate in PEM")]
    NoCertificate(String),
    /// No key.
    #[error("{0} holds no private key in PEM")]
    NoKey(String),
    /// They do not fit.
    #[error("the certificate of {origin} and its key cannot be used together")]
    Pair {
        /// Where the certificate stands.
        origin: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// Whom to trust as API server.
pub(crate) enum Trust<'a> {
    /// These authorities, in PEM, and where they stand.
    Authorities(&'a [u8], &'a str),
    /// Anybody.
    Anybody,
}

/// A certificate chain and its key in PEM, and where the chain stands.
pub(crate) struct Pair<'a> {
    pub(crate) certificate: &'a [u8],
    pub(crate) key: &'a [u8],
    pub(crate) origin: &'a str,
}

pub(crate) fn chain(pem: &[u8], origin: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| TlsError::NoCertificate(origin.to_owned()))
}

impl Pair<'_> {
    fn parts(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let key =
            PrivateKeyDer::from_pem_slice(self.key).map_err(|_| TlsError::NoKey(self.origin.to_owned()))?;
        Ok((chain(self.certificate, self.origin)?, key))
    }
}

pub(crate) fn client(
    trust: &Trust<'_>,
    pair: Option<&Pair<'_>>,
    clock: &WallClock,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder =
        ClientConfig::builder_with_details(Arc::new(ring::default_provider()), Arc::new(clock.clone()))
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions");
    let builder = match trust {
        Trust::Authorities(pem, origin) => builder.with_root_certificates(roots(pem, origin)?),
        Trust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(
            ring::default_provider().signature_verification_algorithms,
        ))),
    };
    let mut config = match pair {
        Some(pair) => {
            let (chain, key) = pair.parts()?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|source| TlsError::Pair { origin: pair.origin.to_owned(), source })?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = Access::ALPN.iter().map(|protocol| protocol.to_vec()).collect();
    // There are few connections and they last: tickets would only take memory.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn roots(pem: &[u8], origin: &str) -> Result<RootCertStore, TlsError> {
    let chain = chain(pem, origin).map_err(|_| TlsError::NoAuthority(origin.to_owned()))?;
    let mut roots = RootCertStore::empty();
    for authority in chain {
        roots.add(authority).map_err(|source| TlsError::Authority { origin: origin.to_owned(), source })?;
    }
    Ok(roots)
}

/// A serving certificate.
pub(crate) fn server(pair: &Pair<'_>) -> Result<Arc<CertifiedKey>, TlsError> {
    let (chain, key) = pair.parts()?;
    certified(chain, key).map_err(|source| TlsError::Pair { origin: pair.origin.to_owned(), source })
}

pub(crate) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, rustls::Error> {
    let provider: CryptoProvider = ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map(Arc::new)
}

/// Takes every certificate: for the first look at a cluster, whose answer a token's signature proves, and where a
/// kubeconfig says so.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
