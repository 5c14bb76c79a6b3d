//! Joining against the scripted API server, which has an authority and a signer of its own here.

mod identity;
mod joining;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_cluster::testing::FakeApi;
use coracle_cluster::{Access, Change, Cluster, Object, Resource, Scope};
use futures_util::StreamExt as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};

use crate::discovery::sign;
use crate::tls::{self, Trust};
use crate::*;

pub(super) const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const CONFIG_MAPS: &str = "/api/v1/configmaps";
pub(super) const TOKEN: &str = "abcdef.0123456789abcdef";

/// What the signer does with requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Signer {
    Ignores,
    Denies,
    /// Approves and signs; the certificate begins so many seconds from now and lasts so many.
    Signs(i64, u64),
}

pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap() }
    }

    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(super) fn pin(&self) -> CaHash {
        Certificate::parse(self.issuer.der()).unwrap().pin().parse().unwrap()
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(self.issuer.der().to_vec())).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from(certificate.der().to_vec())],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    pub(super) fn sign(&self, request: &str, begin: SystemTime, end: SystemTime) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        request.params.not_before = begin.into();
        request.params.not_after = end.into();
        request.signed_by(&self.issuer).unwrap().pem()
    }

    /// A certificate and key for a client, in PEM.
    pub(super) fn client(&self, name: &str, end: SystemTime) -> String {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        let recently = SystemTime::now() - Duration::from_secs(300);
        parameters.not_before = (end - Duration::from_secs(7200)).min(recently).into();
        parameters.not_after = end.into();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        format!("{}{}", certificate.pem(), key.serialize_pem())
    }
}

/// A cluster with one scripted API server, and a folder for a node.
pub(super) struct Site {
    pub(super) authority: Arc<Authority>,
    pub(super) api: Arc<FakeApi>,
    pub(super) folder: tempfile::TempDir,
    signer: Arc<Mutex<Signer>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Site {
    pub(super) async fn new() -> Self {
        let authority = Arc::new(Authority::new());
        let api = Arc::new(FakeApi::start_tls(authority.server()).await);
        let info = format!(
            "clusters: [{{name: '', cluster: {{server: '{}', certificate-authority-data: {}}}}}]\n",
            api.server(),
            STANDARD.encode(authority.pem())
        );
        let signature = sign(&info, &TOKEN.parse().unwrap());
        api.put(
            CONFIG_MAPS,
            json!({"metadata": {"name": "cluster-info", "namespace": "kube-public"},
                   "data": {"kubeconfig": info, "jws-kubeconfig-abcdef": signature}}),
        );
        let signer = Arc::new(Mutex::new(Signer::Signs(-300, 86400)));
        let task = tokio::spawn(run_signer(api.clone(), authority.clone(), signer.clone()));
        Self { authority, api, folder: tempfile::tempdir().unwrap(), signer, task }
    }

    /// From now on, also for requests that wait.
    pub(super) fn set_signer(&self, signer: Signer) {
        *self.signer.lock().unwrap() = signer;
        for csr in self.api.objects(CSRS) {
            if csr["status"].is_null() {
                let mut again = csr.clone();
                again["metadata"]["annotations"] = json!({"again": format!("{signer:?}")});
                self.api.put(CSRS, again);
            }
        }
    }

    pub(super) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn config(&self) -> JoinConfig {
        let source = Source::Token { token: TOKEN.parse().unwrap(), ca_hashes: vec![self.authority.pin()] };
        let mut config = JoinConfig::new("edge-1", self.path("pki"), source);
        config.servers = vec![self.api.server()];
        config.wait = Duration::from_secs(2);
        config.approval = Duration::from_secs(60);
        config
    }
}

/// A client that trusts the cluster and has no credentials.
fn stranger(api: &FakeApi, authority: &Authority) -> Cluster {
    let pem = authority.pem();
    let tls = tls::client(&Trust::Authorities(pem.as_bytes(), "test"), None, &WallClock::system()).unwrap();
    Cluster::with(Access { tls: Some(tls), ..api.access() })
}

#[derive(serde::Deserialize)]
#[serde(transparent)]
struct AnyCsr(Value);

impl Object for AnyCsr {
    const RESOURCE: Resource = Resource::cluster_wide(
        "certificates.k8s.io",
        "v1",
        "certificatesigningrequests",
        "CertificateSigningRequest",
    );
}

async fn run_signer(api: Arc<FakeApi>, authority: Arc<Authority>, signer: Arc<Mutex<Signer>>) {
    let cluster = stranger(&api, &authority);
    let mut changes = std::pin::pin!(cluster.watch::<AnyCsr>(Scope::all()));
    while let Some(change) = changes.next().await {
        let (Change::Listed(AnyCsr(mut csr)) | Change::Applied(AnyCsr(mut csr))) = change else { continue };
        if !csr["status"].is_null() {
            continue;
        }
        let condition =
            |kind: &str| json!([{"type": kind, "status": "True", "reason": "Test", "message": "said so"}]);
        match *signer.lock().unwrap() {
            Signer::Ignores => continue,
            Signer::Denies => csr["status"] = json!({"conditions": condition("Denied")}),
            Signer::Signs(begin, length) => {
                let request = STANDARD.decode(csr["spec"]["request"].as_str().unwrap()).unwrap();
                let now = SystemTime::now();
                let shift = Duration::from_secs(begin.unsigned_abs());
                let begin = if begin < 0 { now - shift } else { now + shift };
                let end = begin + Duration::from_secs(length);
                let pem = authority.sign(&String::from_utf8(request).unwrap(), begin, end);
                csr["status"] =
                    json!({"conditions": condition("Approved"), "certificate": STANDARD.encode(pem)});
            }
        }
        api.put(CSRS, csr);
    }
}

/// An error with all its causes.
pub(super) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}
