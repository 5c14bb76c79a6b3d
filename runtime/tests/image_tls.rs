//! Registries behind private CAs and those that want to see our certificate.
// Also outside of test functions, where clippy does not see that it is a test.
#![allow(clippy::unwrap_used)]

mod image_support;

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, mpsc};

use coracle_runtime::image::{FailureKind, ImageStore, RegistryConfig, Tls};
use coracle_runtime::testing::{LayerCompression, Registry, RegistryOptions, TestImage};
use image_support::{base, options};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let (pem, der) = (certificate.pem(), certificate.der().clone());
    Authority { issuer: Issuer::new(params, key), pem, der }
}

/// A certificate of the authority and its key.
fn certificate(
    authority: &Authority,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
) -> (rcgen::Certificate, KeyPair) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, &authority.issuer).unwrap(), key)
}

fn server(authority: &Authority, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let (certificate, key) = certificate(authority, "127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.der.clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Arc::new(builder.with_single_cert(vec![certificate.der().clone()], key).unwrap())
}

async fn pull(
    dir: &Path,
    registry: &Registry,
    tls: Option<Tls>,
) -> Result<(), (Option<FailureKind>, String)> {
    pull_with(dir, registry, tls, Vec::new()).await
}

async fn pull_with(
    dir: &Path,
    registry: &Registry,
    tls: Option<Tls>,
    environment: Vec<(OsString, OsString)>,
) -> Result<(), (Option<FailureKind>, String)> {
    let mut options = options(dir);
    options.environment = environment;
    let config = RegistryConfig { auth: None, tls };
    options.registries.configs.insert(registry.host(), config);
    let mirror = coracle_runtime::image::Mirror {
        endpoint: vec![format!("https://{}", registry.host())],
        ..Default::default()
    };
    options.registries.mirrors.insert(registry.host(), mirror);
    let store = ImageStore::open(options).unwrap();
    let pulled = store.pull(&registry.name("app:1"), None, |_| {}).await;
    pulled.map(drop).map_err(|error| {
        (error.kind(), std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
    })
}

fn registry(tls: Arc<ServerConfig>) -> Registry {
    let registry = Registry::start(RegistryOptions { tls: Some(tls), ..RegistryOptions::default() }).unwrap();
    registry.push("app", "1", &TestImage::new().layer(&base(), LayerCompression::Gzip));
    registry
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_named() {
    let authority = authority();
    let registry = registry(server(&authority, None));
    let dir = tempfile::tempdir().unwrap();
    let (kind, text) = pull(dir.path(), &registry, None).await.unwrap_err();
    assert_eq!(kind, Some(FailureKind::Network));
    assert!(text.contains("certificate"), "{text}");
    let ca_file = dir.path().join("ca.pem");
    fs::write(&ca_file, &authority.pem).unwrap();
    let tls = Tls { ca_file: ca_file.display().to_string(), ..Tls::default() };
    pull(dir.path(), &registry, Some(tls)).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    pull(other.path(), &registry, Some(Tls { insecure_skip_verify: true, ..Tls::default() })).await.unwrap();
    let missing = Tls { ca_file: "/none/ca.pem".into(), ..Tls::default() };
    let (_, text) = pull(other.path(), &registry, Some(missing)).await.unwrap_err();
    assert!(text.contains("/none/ca.pem"), "{text}");
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let (authority, clients) = (authority(), authority());
    let registry = registry(server(&authority, Some(&clients)));
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca_file = write("ca.pem", &authority.pem);
    let (certificate, key) = certificate(&clients, "device", ExtendedKeyUsagePurpose::ClientAuth);
    let tls = Tls {
        ca_file: ca_file.clone(),
        cert_file: write("cert.pem", &certificate.pem()),
        key_file: write("key.pem", &key.serialize_pem()),
        insecure_skip_verify: false,
    };
    assert!(
        pull(dir.path(), &registry, Some(Tls { ca_file, ..Tls::default() })).await.is_err(),
        "without one"
    );
    pull(dir.path(), &registry, Some(tls)).await.unwrap();
}

/// A proxy that digs tunnels, and tells the head of each request. It ends with the test's process.
fn tunnels() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let tell = tell.clone();
            std::thread::spawn(move || tunnel(near, &tell));
        }
    });
    (address, told)
}

fn tunnel(mut near: TcpStream, tell: &mpsc::Sender<String>) -> Option<()> {
    let lines = BufReader::new(near.try_clone().ok()?).lines();
    let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let mut far = TcpStream::connect(head.first()?.split(' ').nth(1)?).ok()?;
    tell.send(head.join("\n")).ok()?;
    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    let (mut from, mut to) = (near.try_clone().ok()?, far.try_clone().ok()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut far, &mut near);
    let _ = near.shutdown(Shutdown::Write);
    Some(())
}

#[tokio::test]
async fn tls_goes_through_a_proxy_as_a_tunnel() {
    let authority = authority();
    let registry = registry(server(&authority, None));
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    fs::write(&ca_file, &authority.pem).unwrap();
    let tls = Tls { ca_file: ca_file.display().to_string(), ..Tls::default() };
    let (address, told) = tunnels();
    let proxy = ("HTTPS_PROXY".into(), format!("http://me:secret@{address}").into());
    pull_with(dir.path(), &registry, Some(tls), vec![proxy]).await.unwrap();
    let head = told.try_recv().unwrap();
    assert!(head.starts_with(&format!("CONNECT {} HTTP/1.1", registry.host())), "{head}");
    assert!(head.to_lowercase().contains("proxy-authorization: basic"), "{head}");
}
