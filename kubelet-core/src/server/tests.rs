//! The kubelet API from outside: over TLS, with certificates and tokens, on a runtime that is a fake.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use coracle_cluster::Access;
use coracle_cri::RuntimeService as _;
use coracle_cri::testing::FakeRuntime;
use coracle_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, PodSandboxConfig,
    PodSandboxMetadata, RunPodSandboxRequest, StartContainerRequest,
};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

mod streaming;

use super::*;
use crate::api::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStatus, Pod,
    PodStatus,
};
use crate::container_config::CONTAINER_NAME_LABEL;
use crate::kubelet::PodView;
use crate::pod::labels::POD_UID;

/// Slow machines are slow; nothing here takes long on any other.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// Everything a test needs to ask one server.
struct World {
    server: Server,
    runtime: FakeRuntime,
    pods: watch::Sender<PodViews>,
    authority: CertifiedIssuer<'static, KeyPair>,
    reviews: Arc<Mutex<Vec<Value>>>,
    logs: tempfile::TempDir,
    container: String,
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    group: &str,
) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

/// An API server that knows one token and what its users may.
async fn reviewer(reviews: Arc<Mutex<Vec<Value>>>) -> Cluster {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let reviews = reviews.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let reviews = reviews.clone();
                async move {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let asked: Value = serde_json::from_slice(&body).unwrap();
                    let mut answer = asked.clone();
                    answer["status"] = if asked["kind"] == "TokenReview" {
                        let user = json!({ "username": "scraper", "groups": ["system:authenticated"] });
                        json!({ "authenticated": asked["spec"]["token"] == "good", "user": user })
                    } else {
                        let is_metrics = asked["spec"]["resourceAttributes"]["subresource"] == "metrics";
                        json!({ "allowed": asked["spec"]["user"] == "admin" || is_metrics })
                    };
                    reviews.lock().unwrap().push(asked);
                    let response = Response::builder().status(201).header("content-type", "application/json");
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::from(answer.to_string()))).unwrap())
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Cluster::with(Access::plain(format!("http://{address}").parse().unwrap()))
}

impl World {
    async fn new() -> Self {
        let reviews = Arc::new(Mutex::new(Vec::new()));
        let cluster = reviewer(reviews.clone()).await;
        let authority = authority("clients");
        let (certificate, key) = leaf(&authority, "node", "nodes");
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        let pem = authority.pem().into_bytes();
        let logs = tempfile::tempdir().unwrap();
        let runtime = FakeRuntime::new();
        let container = run_container(&runtime, logs.path()).await;
        let (pods, views) = watch::channel(PodViews::default());
        let config = ServerConfig {
            address: ([127, 0, 0, 1], 0).into(),
            node_name: "gateway-7".into(),
            cgroups: Default::default(),
            certificates: Arc::new(Fixed(Arc::new(CertifiedKey::new(vec![certificate], key)))),
            client_authorities: watch::channel(Arc::new(pem)).1,
            authenticate_tokens: true,
            authorize: true,
            configz: json!({ "maxPods": 110 }),
            root_dir: "/".into(),
            log_root: logs.path().to_owned(),
            streaming_idle_timeout: Duration::from_secs(4 * 60 * 60),
            clock: Clock::system(),
        };
        let parts = ServerParts {
            idle: watch::channel(PodViews::default()).1,
            cluster: Some(cluster),
            pods: views,
            runtime: Arc::new(runtime.clone()),
            images: Arc::new(runtime.clone()),
            probes: ProbeCounts::default(),
        };
        let server = Server::start(config, parts).await.unwrap();
        let world = Self { server, runtime, pods, authority, reviews, logs, container };
        world.show(true);
        world
    }

    /// The pod with its container running or ended.
    fn show(&self, runs: bool) {
        let mut pod = Pod::default();
        pod.metadata.name = "web".into();
        pod.metadata.namespace = "default".into();
        pod.metadata.uid = "uid-1".into();
        pod.spec.containers = vec![Container { name: "app".into(), ..Container::default() }];
        let id = format!("fake://{}", self.container);
        let state = if runs {
            let running = Some(Box::new(ContainerStateRunning::default()));
            ContainerState { running, ..ContainerState::default() }
        } else {
            let ended = ContainerStateTerminated { container_id: id.clone(), ..Default::default() };
            ContainerState { terminated: Some(Box::new(ended)), ..ContainerState::default() }
        };
        let status = ContainerStatus { name: "app".into(), container_id: id, state, ..Default::default() };
        let status =
            PodStatus { phase: "Running".into(), container_statuses: vec![status], ..Default::default() };
        let view = PodView { pod: Arc::new(pod), status: Arc::new(status), ended: false };
        self.pods.send_replace(Arc::new(BTreeMap::from([("uid-1".into(), view)])));
    }

    fn admin(&self) -> Option<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
        Some(leaf(&self.authority, "admin", "system:masters"))
    }

    async fn connect(
        &self,
        client: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(self.server.address()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// Status and body of a whole answer.
    async fn ask(
        &self,
        client: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
        head: &str,
    ) -> (u16, String) {
        let mut stream = self.connect(client).await;
        let request = format!("{head}\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
        // hyper closes a connection without a goodbye of TLS once an upgrade was asked for and refused.
        let is_cut = |error: &std::io::Error| error.kind() == std::io::ErrorKind::UnexpectedEof;
        assert!(read.is_ok() || read.as_ref().is_err_and(is_cut), "{read:?}");
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask(self.admin(), &format!("GET {path} HTTP/1.1")).await
    }

    fn write_log(&self, text: &str) {
        use std::io::Write as _;
        let path = self.logs.path().join("app/0.log");
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

async fn run_container(runtime: &FakeRuntime, logs: &std::path::Path) -> String {
    let metadata = PodSandboxMetadata {
        name: "web".into(),
        uid: "uid-1".into(),
        namespace: "default".into(),
        attempt: 0,
    };
    let config = PodSandboxConfig {
        metadata: Some(metadata),
        log_directory: logs.to_string_lossy().into_owned(),
        labels: [(POD_UID.to_owned(), "uid-1".to_owned())].into(),
        ..PodSandboxConfig::default()
    };
    let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let sandbox = runtime.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
    std::fs::create_dir(logs.join("app")).unwrap();
    runtime.add_image("app");
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "app".into(), attempt: 0 }),
        image: Some(ImageSpec { image: "app".into(), ..ImageSpec::default() }),
        log_path: "app/0.log".into(),
        labels: [(POD_UID, "uid-1"), (CONTAINER_NAME_LABEL, "app")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..ContainerConfig::default()
    };
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox,
        config: Some(container),
        sandbox_config: Some(config),
    };
    let id = runtime.create_container(request).await.unwrap().container_id;
    runtime.start_container(StartContainerRequest { container_id: id.clone() }).await.unwrap();
    id
}

#[tokio::test]
async fn nobody_is_served_without_proof_and_permission() {
    let world = World::new().await;
    assert_eq!(world.ask(None, "GET /pods HTTP/1.1").await, (401, "Unauthorized".into()));
    let bad = world.ask(None, "GET /pods HTTP/1.1\r\nAuthorization: Bearer bad").await;
    assert_eq!(bad, (401, "Unauthorized".into()));
    let stranger = leaf(&authority("others"), "admin", "system:masters");
    assert_eq!(world.ask(Some(stranger), "GET /healthz HTTP/1.1").await.0, 401);
    let words = "Forbidden (user=scraper, verb=get, resource=nodes, subresource(s)=[pods proxy])\n";
    let good = "Authorization: Bearer good";
    assert_eq!(world.ask(None, &format!("GET /pods HTTP/1.1\r\n{good}")).await, (403, words.into()));
    assert_eq!(world.ask(None, &format!("GET /metrics HTTP/1.1\r\n{good}")).await.0, 200);
    assert_eq!(world.get("/healthz").await, (200, "ok".into()));
    let asked = world.reviews.lock().unwrap().len();
    assert_eq!(world.ask(None, &format!("GET /metrics HTTP/1.1\r\n{good}")).await.0, 200);
    assert_eq!(world.get("/healthz").await.0, 200);
    assert_eq!(world.reviews.lock().unwrap().len(), asked, "answers are remembered");
}

#[tokio::test]
async fn strangers_get_nothing_and_keep_nobody_out() {
    let world = World::new().await;
    let others = authority("others");
    // More than there are places: half that do not speak TLS, half that never finish what they ask for.
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS / 2 + 10 {
        held.push(TcpStream::connect(world.server.address()).await.unwrap());
    }
    let mut slow = Vec::new();
    for _ in 0..CONNECTIONS / 2 {
        let mut stream = world.connect(Some(leaf(&others, "admin", "system:masters"))).await;
        stream.write_all(b"GET /pods HTTP/1.1\r\nHost: ").await.unwrap();
        slow.push(stream);
    }
    let served = tokio::time::timeout(Duration::from_secs(8), world.get("/healthz")).await;
    assert_eq!(served.expect("a place is made at once"), (200, "ok".into()));
    drop((held, slow));
    // A head without an end.
    let mut stream = world.connect(Some(leaf(&others, "admin", "system:masters"))).await;
    let flood = async {
        stream.write_all(b"GET /pods HTTP/1.1\r\n").await?;
        loop {
            stream.write_all(b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n").await?;
        }
    };
    let ended: std::io::Result<()> = tokio::time::timeout(DEADLINE, flood).await.unwrap();
    assert!(ended.is_err(), "it is let go");
    // What another authority vouches for runs nothing.
    let stranger = leaf(&others, "admin", "system:masters");
    let head = "POST /exec/default/web/app?command=sh&output=1 HTTP/1.1\r\nContent-Length: 0\r\n\
                Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io";
    assert_eq!(world.ask(Some(stranger), head).await.0, 401);
}

#[tokio::test]
async fn pods_metrics_and_configuration_are_told() {
    let world = World::new().await;
    let (status, body) = world.get("/pods").await;
    assert_eq!(status, 200);
    assert!(body.contains(r#""kind":"PodList""#) && body.contains(r#""name":"web""#), "{body}");
    let (_, body) = world.get("/runningpods/").await;
    assert!(body.contains(r#""uid":"uid-1""#), "{body}");
    assert_eq!(world.get("/configz").await.1, r#"{"kubeletconfig":{"maxPods":110}}"#);
    let (_, body) = world.get("/metrics/resource").await;
    for line in ["node_cpu_usage_seconds_total ", "node_memory_working_set_bytes ", "resource_scrape_error 0"]
    {
        assert!(body.contains(line), "{line}: {body}");
    }
    let (status, body) = world.get("/stats/summary").await;
    assert_eq!(status, 200, "{body}");
    let summary: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(summary["node"]["nodeName"], "gateway-7");
    assert_eq!(world.get("/metrics/probes").await.0, 200);
    let (status, body) = world.get("/metrics/cadvisor").await;
    assert!(status == 200 && body.contains("machine_memory_bytes{"), "{body}");
    assert_eq!(world.get("/nothing").await.0, 404);
}

#[tokio::test]
async fn a_log_is_read_and_its_absence_explained() {
    let world = World::new().await;
    world.write_log("2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two\n");
    let logs = "/containerLogs/default/web/app";
    let body = |answer: (u16, String)| {
        assert_eq!(answer.0, 200, "{}", answer.1);
        answer.1
    };
    assert_eq!(unchunked(&body(world.get(logs).await)), "one\ntwo\n");
    assert_eq!(
        unchunked(&body(world.get(&format!("{logs}?tailLines=1&timestamps=true")).await)),
        "2026-01-01T00:00:01Z two\n"
    );
    assert_eq!(unchunked(&body(world.get(&format!("{logs}?stream=Stdout")).await)), "one\n");
    assert_eq!(world.get(&format!("{logs}?tailLines=x")).await.0, 400);
    let absent = world.get("/containerLogs/default/db/app").await;
    assert_eq!(absent, (404, "pod \"db\" does not exist".into()));
    let absent = world.get("/containerLogs/default/web/db").await;
    assert_eq!(absent, (404, "container \"db\" not found in pod \"web\"".into()));
    let absent = world.get(&format!("{logs}?previous=true")).await;
    assert_eq!(absent, (400, "previous terminated container \"app\" in pod \"web\" not found".into()));
    assert!(world.runtime.containers().len() == 1);
}

/// The content of a chunked body.
fn unchunked(body: &str) -> String {
    let (mut out, mut rest) = (String::new(), body);
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&tail[..size]);
        rest = tail[size..].trim_start_matches("\r\n");
    }
    out
}

#[tokio::test]
async fn a_log_is_followed_over_a_rotation_until_its_container_ends() {
    let world = World::new().await;
    world.write_log("t stdout F one\n");
    let mut stream = world.connect(world.admin()).await;
    let request =
        "GET /containerLogs/default/web/app?follow=true HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = String::new();
    read_until(&mut stream, &mut seen, "one\n").await;
    world.write_log("t stdout F two\n");
    read_until(&mut stream, &mut seen, "two\n").await;
    let path = world.logs.path().join("app/0.log");
    std::fs::rename(&path, world.logs.path().join("app/0.log.20260101-000000")).unwrap();
    world.write_log("t stdout F three\n");
    read_until(&mut stream, &mut seen, "three\n").await;
    world.write_log("t stdout F four\n");
    world.show(false);
    let mut rest = Vec::new();
    tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    seen.push_str(&String::from_utf8(rest).unwrap());
    assert!(seen.contains("four\n") && seen.ends_with("0\r\n\r\n"), "{seen}");
}

async fn read_until(stream: &mut TlsStream<TcpStream>, seen: &mut String, text: &str) {
    let read = async {
        let mut buffer = [0; 1024];
        while !seen.contains(text) {
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "ended after {seen:?}");
            seen.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap_or_else(|_| panic!("no {text:?}"));
}

#[test]
fn streams_are_bound_by_the_limit_of_open_files() {
    for (limit, streams) in [(Some(1024), 128), (Some(64), 1), (Some(1 << 20), SESSIONS), (None, SESSIONS)] {
        assert_eq!(sessions(limit), streams, "{limit:?}");
    }
}
