//! Whom the worker believes, and who it says it is.
//!
//! The machine's authorities are read one certificate at a time: whole bundles side by side would be half of all that a
//! pull needs in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::image::error::{Failure, FailureKind};
use crate::image::registries::{Endpoint, Tls};

/// Where distributions keep the bundle, the most common first.
const BUNDLES: [&str; 5] = [
    // Debian, Ubuntu, Alpine, Arch.
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora and RHEL.
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    // openSUSE.
    "/etc/ssl/ca-bundle.pem",
    // The BSDs.
    "/etc/ssl/cert.pem",
];
/// Where a machine without a bundle has one file per certificate.
const FOLDER: &str = "/etc/ssl/certs";

/// What connections to an endpoint use.
pub(super) fn config(endpoint: &Endpoint, tls: Option<&Tls>) -> Result<ClientConfig, Failure> {
    let default = Tls::default();
    let tls = tls.unwrap_or(&default);
    let invalid =
        |why: String| Failure::new(FailureKind::Invalid, format!("TLS for {}: {why}", endpoint.host));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("invariant: ring supports the default versions");
    let builder = if tls.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        let mut roots = of_the_machine();
        if !tls.ca_file.is_empty() {
            for certificate in certificates(endpoint, &tls.ca_file)? {
                roots.add(certificate).map_err(|error| invalid(format!("{}: {error}", tls.ca_file)))?;
            }
        }
        // A device without authorities can still pull by plain http.
        if roots.is_empty() && endpoint.base.starts_with("https://") {
            return Err(invalid(
                "this machine knows no certificate authority; install ca-certificates, or name a ca_file in the \
                 registries' settings"
                    .to_owned(),
            ));
        }
        builder.with_root_certificates(roots)
    };
    if tls.cert_file.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let chain = certificates(endpoint, &tls.cert_file)?;
    let key = PrivateKeyDer::from_pem_slice(&read(endpoint, &tls.key_file)?)
        .map_err(|error| invalid(format!("{}: {error}", tls.key_file)))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| invalid(format!("{} with {}: {error}", tls.cert_file, tls.key_file)))
}

fn read(endpoint: &Endpoint, path: &str) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::io(&format!("TLS for {}: {path}", endpoint.host), &error))
}

/// All certificates of a PEM file, of which there must be one.
fn certificates(endpoint: &Endpoint, path: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let pem = read(endpoint, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let why = match found {
        Ok(found) if !found.is_empty() => return Ok(found),
        Ok(_) => "it holds no certificate".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Failure::new(FailureKind::Invalid, format!("TLS for {}: {path}: {why}", endpoint.host)))
}

/// The authorities of the machine: of its bundle, or of the file or folder that `SSL_CERT_FILE` or `SSL_CERT_DIR`
/// name.
fn of_the_machine() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let named = |variable| std::env::var_os(variable).map(PathBuf::from);
    let (file, folder) = (named("SSL_CERT_FILE"), named("SSL_CERT_DIR"));
    match (file, &folder) {
        (Some(file), _) => add(&mut roots, &file),
        (None, None) => {
            if let Some(bundle) = BUNDLES.iter().map(Path::new).find(|bundle| bundle.exists()) {
                add(&mut roots, bundle);
            }
        }
        (None, Some(_)) => {}
    }
    if roots.is_empty() {
        let folder = folder.unwrap_or_else(|| PathBuf::from(FOLDER));
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            add(&mut roots, &entry.path());
        }
    }
    roots
}

/// Adds the certificates of a bundle. Bundles hold some that rustls does not take, which concern nobody.
fn add(roots: &mut RootCertStore, bundle: &Path) {
    let Ok(certificates) = CertificateDer::pem_file_iter(bundle) else { return };
    roots.add_parsable_certificates(certificates.filter_map(Result::ok));
}

/// Takes what any server shows, for those who said so.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_passed_over() {
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertificateParams::new(["a".to_owned()]).unwrap().self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundle.pem");
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let text = format!("# a comment\n{broken}{}{}", authority.pem(), key.serialize_pem());
        std::fs::write(&bundle, text).unwrap();
        let mut roots = RootCertStore::empty();
        add(&mut roots, &bundle);
        add(&mut roots, &folder.path().join("missing"));
        assert_eq!(roots.len(), 1);
    }
}
