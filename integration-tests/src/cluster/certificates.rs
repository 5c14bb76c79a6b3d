//! The keys and certificates of a cluster, made at its start: what kubeadm makes, with P-256 keys.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use sha2::{Digest, Sha256};

/// A signing authority with its files `NAME.crt` and `NAME.key`.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    /// `sha256:…` over the public key, as `--ca-cert-hash` of kubeadm takes it.
    pub(super) pin: String,
    folder: PathBuf,
}

/// A certificate and its key, in PEM.
pub(super) struct Credentials {
    certificate: String,
    key: String,
}

impl Authority {
    /// Makes one and writes its files.
    pub(super) fn new(folder: &Path, name: &str, common_name: &str) -> Result<Self> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let mut params = params(common_name, None)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).context("cannot sign a certificate")?.pem();
        let pin = format!(
            "sha256:{}",
            hex::encode(Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&key)))
        );
        let authority = Self {
            certificate: certificate.clone(),
            pin,
            folder: folder.to_owned(),
            issuer: {
                Credentials { certificate, key: key.serialize_pem() }.write(folder, name)?;
                Issuer::new(params, key)
            },
        };
        Ok(authority)
    }

    /// A certificate for a client: user and group.
    pub(super) fn client(&self, user: &str, group: Option<&str>) -> Result<Credentials> {
        let mut params = params(user, group)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// A certificate for a server under these names and addresses.
    pub(super) fn server(&self, names: &[&str], addresses: &[IpAddr]) -> Result<Credentials> {
        let mut params = params(names.first().copied().unwrap_or("server"), None)?;
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into().context("not a DNS name")?));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Credentials> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params.signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        Ok(Credentials { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Writes a kubeconfig whose user has these credentials.
    pub(super) fn kubeconfig(&self, name: &str, server: &str, user: &Credentials) -> Result<PathBuf> {
        let data = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let user = format!(
            "    client-certificate-data: {}\n    client-key-data: {}\n",
            data(&user.certificate),
            data(&user.key)
        );
        self.write_kubeconfig(name, server, &user)
    }

    /// Writes a kubeconfig whose user has a token.
    pub(super) fn token_kubeconfig(&self, path: &Path, server: &str, token: &str) -> Result<()> {
        write(path, &self.kubeconfig_text(server, &format!("    token: {token}\n")))
    }

    fn write_kubeconfig(&self, name: &str, server: &str, user: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("{name}.kubeconfig"));
        write(&path, &self.kubeconfig_text(server, user))?;
        Ok(path)
    }

    fn kubeconfig_text(&self, server: &str, user: &str) -> String {
        let authority = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters:\n- name: test\n  cluster:\n    \
             server: {server}\n    certificate-authority-data: {authority}\ncontexts:\n- name: test\n  context:\n    \
             cluster: test\n    user: user\nusers:\n- name: user\n  user:\n{user}"
        )
    }
}

impl Credentials {
    /// Writes `NAME.crt` and `NAME.key`.
    pub(super) fn write(&self, folder: &Path, name: &str) -> Result<()> {
        write(&folder.join(format!("{name}.crt")), &self.certificate)?;
        write(&folder.join(format!("{name}.key")), &self.key)
    }
}

/// Writes `NAME.key` and `NAME.pub`: what service-account tokens are signed with.
pub(super) fn write_signing_key(folder: &Path, name: &str) -> Result<()> {
    let key = KeyPair::generate().context("cannot make a key")?;
    write(&folder.join(format!("{name}.key")), &key.serialize_pem())?;
    write(&folder.join(format!("{name}.pub")), &key.public_key_pem())
}

fn params(common_name: &str, group: Option<&str>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new()).context("no names are no wrong names")?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    Ok(params)
}

/// Writes a file that nobody else may read.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}
