//! A proxy between a node and a real API server that misbehaves on request: delays, refusals, bodies that are cut,
//! connections that stall.
//!
//! It ends TLS with the API server's own certificate and speaks for the node as an authenticating proxy does, with the
//! cluster's front-proxy credentials. The node is led to it by a rule in its own network, so nothing in it knows. Runs
//! in threads of its own until it is dropped.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use coracle_cluster::testing::Freezable;
use coracle_integration_tests::cluster::Cluster;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What the proxy does to requests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Every request waits so long before it is passed on.
    Delay(Duration),
    /// Every request is answered so, with the seconds of Retry-After.
    Refuse(u16, &'static str, Option<u64>),
    /// Every request that changes something is answered so.
    RefuseWrites(u16, &'static str),
    /// The body of every watch breaks off after so many bytes.
    CutWatches(usize),
    /// Every watch ends at once with the event ERROR and this code.
    EndWatches(u16, &'static str),
    /// Every list, also the one that begins a watch, is answered so.
    RefuseLists(u16, &'static str),
    /// Every watch of pods begins with this line.
    InsertIntoPods(String),
    /// Connections are closed as soon as they are made, and those that were open with them.
    CloseConnections,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
}

struct Shared {
    fault: Mutex<Fault>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicU64,
    /// A change stalls the connections that are open.
    frozen: tokio::sync::watch::Sender<u64>,
    /// Connections with a smaller number are closed.
    closed: tokio::sync::watch::Sender<u64>,
    upstream: SocketAddr,
    client: Arc<rustls::ClientConfig>,
    node: String,
}

/// A proxy that runs.
pub(crate) struct ApiProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl ApiProxy {
    /// Starts one that speaks for this node.
    pub(crate) fn start(cluster: &Cluster, node: &str) -> Self {
        let upstream = SocketAddr::new(cluster.network.control_plane(), 6443);
        let files = cluster.kubeconfig().parent().unwrap().to_owned();
        let (client, server) = (client_config(&files), server_config(&files));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind((cluster.network.host(), 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            fault: Mutex::new(Fault::None),
            seen: Mutex::default(),
            connections: AtomicU64::new(0),
            frozen: tokio::sync::watch::Sender::new(0),
            closed: tokio::sync::watch::Sender::new(0),
            upstream,
            client,
            node: node.to_owned(),
        });
        runtime.spawn(accept(listener, shared.clone(), server));
        Self { shared, address, _runtime: runtime }
    }

    /// Leads what the node asks of the API server through the proxy from now on.
    pub(crate) fn lead(&self, cluster: &Cluster) {
        let (machine, server) =
            (&cluster.node(&self.shared.node).unwrap().machine, cluster.network.control_plane());
        let rules = format!(
            "table ip coracle-test {{ chain output {{ type nat hook output priority -150; policy accept; \
             ip daddr {server} tcp dport 6443 dnat to {}; }}; }}",
            self.address
        );
        machine.run(&["nft", &rules]).unwrap();
    }

    pub(crate) fn set(&self, fault: Fault) {
        let closes = fault == Fault::CloseConnections;
        *self.shared.fault.lock().unwrap() = fault;
        if closes {
            self.shared.closed.send_replace(self.shared.connections.load(Ordering::SeqCst));
        }
    }

    /// Connections that are open now say nothing any more, and do not end; new ones are well.
    pub(crate) fn stall_connections(&self) {
        self.shared.frozen.send_modify(|times| *times += 1);
    }

    /// What has come so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn chain(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
}

fn roots(path: &Path) -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    chain(path).into_iter().for_each(|certificate| roots.add(certificate).unwrap());
    roots
}

fn client_config(files: &Path) -> Arc<rustls::ClientConfig> {
    let key = PrivateKeyDer::from_pem_file(files.join("front-proxy-client.key")).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(&files.join("ca.crt")))
        .with_client_auth_cert(chain(&files.join("front-proxy-client.crt")), key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn server_config(files: &Path) -> Arc<rustls::ServerConfig> {
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots(&files.join("ca.crt"))),
        provider(),
    );
    let key = PrivateKeyDer::from_pem_file(files.join("apiserver.key")).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain(&files.join("apiserver.crt")), key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tls: Arc<rustls::ServerConfig>) {
    while let Ok((socket, _)) = listener.accept().await {
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        if *shared.fault.lock().unwrap() == Fault::CloseConnections {
            continue;
        }
        let _ = socket.set_nodelay(true);
        let socket = Freezable::new(socket, shared.frozen.subscribe());
        let (shared, tls) = (shared.clone(), tls.clone());
        tokio::spawn(async move {
            let mut closed = shared.closed.subscribe();
            tokio::select! {
                _ = serve(socket, shared, tls) => {}
                _ = closed.wait_for(|first| number < *first) => {}
            }
        });
    }
}

async fn serve(
    socket: Freezable<TcpStream>,
    shared: Arc<Shared>,
    tls: Arc<rustls::ServerConfig>,
) -> io::Result<()> {
    let stream = tokio_rustls::TlsAcceptor::from(tls).accept(socket).await?;
    let upstream = TcpStream::connect(shared.upstream).await?;
    upstream.set_nodelay(true)?;
    let name = ServerName::from(shared.upstream.ip());
    let upstream = tokio_rustls::TlsConnector::from(shared.client.clone()).connect(name, upstream).await?;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(upstream))
            .await
            .map_err(io::Error::other)?;
    tokio::spawn(connection);
    let service = service_fn(move |request| handle(request, shared.clone(), sender.clone()));
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    served.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

async fn handle(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    mut upstream: SendRequest<Incoming>,
) -> Result<Response<Body>, io::Error> {
    let (mut parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default();
    let (is_watch, is_write) = (query.contains("watch=true"), parts.method != http::Method::GET);
    let is_list = query.contains("sendInitialEvents=true") || query.contains("limit=");
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let seen = Seen { method: parts.method.to_string(), path: path.clone() };
    shared.seen.lock().unwrap().push(seen);
    let fault = shared.fault.lock().unwrap().clone();
    match fault {
        Fault::Delay(delay) => tokio::time::sleep(delay).await,
        Fault::Refuse(code, reason, pause) => return Ok(refusal(code, reason, pause)),
        Fault::RefuseWrites(code, reason) if is_write => return Ok(refusal(code, reason, None)),
        Fault::RefuseLists(code, reason) if is_list => return Ok(refusal(code, reason, None)),
        Fault::EndWatches(code, reason) if is_watch => {
            let line = format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", status(code, reason));
            return Ok(json(200, line));
        }
        _ => {}
    }
    parts.uri = format!("https://{}{path}", shared.upstream).parse().map_err(io::Error::other)?;
    parts.headers.remove(http::header::HOST);
    let user = HeaderValue::from_str(&format!("system:node:{}", shared.node)).map_err(io::Error::other)?;
    parts.headers.insert("x-remote-user", user);
    parts.headers.insert("x-remote-group", HeaderValue::from_static("system:nodes"));
    let answer = upstream.send_request(Request::from_parts(parts, body)).await.map_err(io::Error::other)?;
    let cut = match fault {
        Fault::CutWatches(after) if is_watch => Some(after),
        _ => None,
    };
    let first = match fault {
        Fault::InsertIntoPods(line) if is_watch && path.contains("/pods?") => Some(Bytes::from(line)),
        _ => None,
    };
    Ok(answer.map(|inner| Altered { first, inner, left: cut }.boxed_unsync()))
}

fn status(code: u16, reason: &str) -> String {
    format!(
        "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"status\":\"Failure\",\"message\":\"as the test asked\",\
         \"reason\":\"{reason}\",\"code\":{code}}}"
    )
}

fn json(code: u16, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap();
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    answer
}

fn refusal(code: u16, reason: &str, pause: Option<u64>) -> Response<Body> {
    let mut answer = json(code, status(code, reason));
    if let Some(seconds) = pause {
        answer.headers_mut().insert("retry-after", HeaderValue::from(seconds));
    }
    answer
}

/// A body that may begin with something else and break off.
struct Altered {
    first: Option<Bytes>,
    inner: Incoming,
    left: Option<usize>,
}

impl http_body::Body for Altered {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let frame = loop {
            match Pin::new(&mut self.inner).poll_frame(context) {
                // What marks the end of a stream there would be an empty frame in the midst of one here.
                Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                Poll::Ready(frame) => break frame,
                Poll::Pending => return Poll::Pending,
            }
        };
        let frame = frame.map(|frame| frame.map_err(io::Error::other));
        let (Some(left), Some(Ok(data))) = (self.left, &frame) else { return Poll::Ready(frame) };
        let Some(data) = data.data_ref() else { return Poll::Ready(frame) };
        if left == 0 {
            return Poll::Ready(Some(Err(io::Error::other("cut as the test asked"))));
        }
        let part = data.slice(..left.min(data.len()));
        self.left = Some(left - part.len());
        Poll::Ready(Some(Ok(Frame::data(part))))
    }
}
