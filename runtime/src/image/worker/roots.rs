//! The machine's certificate authorities, read one at a time.
//!
//! The loader that reqwest brings reads the bundle and the folder of the same certificates whole, side by side, which
//! would be half of all that a pull needs in memory.

use std::path::{Path, PathBuf};

use reqwest::Certificate;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Where distributions keep the bundle, the most common first.
const BUNDLES: [&str; 5] = [
    // Debian, Ubuntu, Alpine, Arch.
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora and RHEL.
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    // openSUSE.
    "/etc/ssl/ca-bundle.pem",
    // Alpine and the BSDs.
    "/etc/ssl/cert.pem",
];

/// The authorities of the machine's bundle, or of the one that `SSL_CERT_FILE` names; `None` where there is no bundle,
/// or a folder is asked for by `SSL_CERT_DIR`.
pub(super) fn of_the_machine() -> Option<Vec<Certificate>> {
    if std::env::var_os("SSL_CERT_DIR").is_some() {
        return None;
    }
    let bundle = match std::env::var_os("SSL_CERT_FILE") {
        Some(file) => PathBuf::from(file),
        None => BUNDLES.iter().map(PathBuf::from).find(|bundle| bundle.exists())?,
    };
    Some(read(&bundle)).filter(|found| !found.is_empty())
}

/// The certificates of a bundle that rustls takes; bundles hold some that it does not, which concern nobody.
fn read(bundle: &Path) -> Vec<Certificate> {
    let Ok(certificates) = CertificateDer::pem_file_iter(bundle) else { return Vec::new() };
    let usable = |der: &CertificateDer<'_>| RootCertStore::empty().add(der.clone()).is_ok();
    let certificates = certificates.filter_map(Result::ok).filter(usable);
    certificates.filter_map(|der| Certificate::from_der(&der).ok()).collect()
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
        std::fs::write(&bundle, format!("# a comment\n{broken}{}{}", authority.pem(), key.serialize_pem()))
            .unwrap();
        assert_eq!(read(&bundle).len(), 1);
        assert!(read(&folder.path().join("missing")).is_empty());
    }
}
