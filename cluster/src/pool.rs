//! The connections to the API servers: few, shared, replaced when they stall or credentials change. Owned by
//! [`crate::Cluster`]; the service under [`kube::Client`].
//!
//! ```text
//! request ── lend ──► a connection with room ── answer ──► body read or dropped ── give back
//!              └──► none: one task connects, the others wait for it and share its failure
//! ```
//!
//! Concurrency: one lock over plain data, never held across an await.

mod server_clock;
mod service;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::{Method, Request, Response, StatusCode, Uri, header};
use hyper::client::conn::{http1, http2};
use kube::client::Body;
use tokio::sync::watch;

use crate::access::{Access, Server};
use crate::connect::{ConnectError, Sender, connect};
use crate::patience::Patience;

use self::server_clock::ServerClock;
use self::service::Held;
pub(crate) use self::service::Service;

/// API servers allow 100 streams on a connection; some room stays for what is shorter than a watch.
const STREAMS: usize = 80;

/// Idle HTTP/1.1 connections that are kept.
const IDLE: usize = 2;

/// Whether API servers answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Nothing was asked yet.
    Starting,
    /// This server answered last.
    Up {
        /// Its URL.
        server: String,
    },
    /// It answers, but does not know our credentials.
    Unauthorized {
        /// Its URL.
        server: String,
    },
    /// None answers.
    Down {
        /// Why the last one tried did not, with all causes.
        error: String,
    },
}

impl Connection {
    /// Whether a server answers and knows us.
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

/// Why a request got no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// No server could be connected to; the last one's reason.
    #[error("no API server can be reached")]
    Connect(#[source] Arc<ConnectError>),
    /// The connection broke.
    #[error("{server}: the connection broke")]
    Broken {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: Arc<hyper::Error>,
    },
    /// The body of an answer broke off or the client below failed.
    #[error("the answer broke off")]
    Body(#[source] Arc<kube::Error>),
}

impl TransportError {
    /// Whether the server that was reached is not the one it should be: waiting does not help.
    pub fn is_distrust(&self) -> bool {
        matches!(self, Self::Connect(error) if error.is_distrust())
    }
}

pub(crate) struct Pool {
    access: watch::Receiver<Arc<Access>>,
    lines: Mutex<Lines>,
    connecting: tokio::sync::Mutex<()>,
    connection: watch::Sender<Connection>,
    clock: ServerClock,
    pub(crate) patience: Patience,
}

#[derive(Default)]
struct Lines {
    access: Option<Arc<Access>>,
    open: Vec<Line>,
    next_id: u64,
    /// The server to try first.
    server: usize,
    /// How often all servers failed, and how the last time.
    failures: u64,
    failure: Option<Arc<ConnectError>>,
}

struct Line {
    id: u64,
    server: Arc<Server>,
    /// Absent while the only stream of an HTTP/1.1 connection is lent.
    sender: Option<Sender>,
    streams: usize,
}

/// A stream on a connection, given back when dropped.
struct Lease {
    pool: Arc<Pool>,
    id: u64,
    server: Arc<Server>,
    http1: Option<http1::SendRequest<Body>>,
    since: Instant,
    answered: bool,
}

enum Lent {
    Http1(Lease),
    Http2(Lease, http2::SendRequest<Body>),
}

impl Pool {
    pub(crate) fn new(access: watch::Receiver<Arc<Access>>, patience: Patience) -> Arc<Self> {
        Arc::new(Self {
            access,
            lines: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            connection: watch::Sender::new(Connection::Starting),
            clock: ServerClock::default(),
            patience,
        })
    }

    pub(crate) fn access(&self) -> watch::Receiver<Arc<Access>> {
        self.access.clone()
    }

    pub(crate) fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    /// Sends a request whose URI is a path on whichever server answers.
    async fn send(self: Arc<Self>, request: Request<Body>) -> Result<Response<Held>, TransportError> {
        // A connection that was open for long may be gone without our knowing: what reads may be asked again.
        let mut spare = (request.method() == Method::GET).then(|| bare(&request));
        let mut request = request;
        loop {
            let lent = self.checkout().await?;
            request = match self.attempt(lent, request).await {
                Ok(response) => return Ok(response),
                Err((_, Some(unsent))) => unsent,
                Err((error, None)) => spare.take().ok_or(error)?,
            };
        }
    }

    /// The error carries the request if it was certainly not sent.
    async fn attempt(
        self: &Arc<Self>,
        lent: Lent,
        request: Request<Body>,
    ) -> Result<Response<Held>, (TransportError, Option<Request<Body>>)> {
        let bearer = self.access.borrow().bearer.clone();
        let path = request.uri().clone();
        let (mut lease, result) = match lent {
            Lent::Http1(mut lease) => {
                let request = addressed(request, &lease.server, bearer, false);
                let sender = lease.http1.as_mut().expect("an HTTP/1.1 lease holds its connection");
                let result = sender.try_send_request(request).await;
                (lease, result)
            }
            Lent::Http2(lease, mut sender) => {
                let request = addressed(request, &lease.server, bearer, true);
                let result = sender.try_send_request(request).await;
                (lease, result)
            }
        };
        match result {
            Ok(response) => {
                lease.answered = true;
                self.answered(&lease.server, response.status());
                self.clock.read(response.headers());
                Ok(response.map(|body| Held { body, _lease: lease }))
            }
            Err(mut failed) => {
                self.retire(lease.id);
                let unsent = failed.take_message().map(|mut request| {
                    *request.uri_mut() = path;
                    request
                });
                let server = lease.server.to_string();
                Err((TransportError::Broken { server, source: Arc::new(failed.into_error()) }, unsent))
            }
        }
    }

    async fn checkout(self: &Arc<Self>) -> Result<Lent, TransportError> {
        let failures = self.lock().failures;
        if let Some(lent) = self.lend() {
            return Ok(lent);
        }
        let _one = self.connecting.lock().await;
        {
            let lines = self.lock();
            if lines.failures != failures
                && let Some(failure) = &lines.failure
            {
                return Err(TransportError::Connect(failure.clone()));
            }
        }
        if let Some(lent) = self.lend() {
            return Ok(lent);
        }
        self.open().await
    }

    /// A stream on an open connection with room.
    fn lend(self: &Arc<Self>) -> Option<Lent> {
        let mut lines = self.lock();
        let current = self.access.borrow().clone();
        if !lines.access.as_ref().is_some_and(|access| Arc::ptr_eq(access, &current)) {
            // What runs on old connections runs on; nothing new is begun with old credentials.
            *lines = Lines { access: Some(current), next_id: lines.next_id, ..Lines::default() };
        }
        lines.open.retain(|line| !line.sender.as_ref().is_some_and(Sender::is_closed));
        let line = lines.open.iter_mut().find(|line| line.has_room())?;
        Some(line.lend(self))
    }

    /// Connects to the first server that takes us, beginning with the one that did last.
    async fn open(self: &Arc<Self>) -> Result<Lent, TransportError> {
        let (access, first) = {
            let lines = self.lock();
            (self.access.borrow().clone(), lines.server)
        };
        let mut last = None;
        for step in 0..access.servers.len() {
            let index = (first + step) % access.servers.len();
            let server = Arc::new(access.servers[index].clone());
            match connect(&access, &server, &self.patience).await {
                Ok(sender) => {
                    let mut lines = self.lock();
                    lines.server = index;
                    lines.failure = None;
                    let mut line = Line { id: lines.next_id, server, sender: Some(sender), streams: 0 };
                    lines.next_id += 1;
                    let lent = line.lend(self);
                    lines.open.push(line);
                    return Ok(lent);
                }
                Err(error) => {
                    tracing::debug!(%server, error = &error as &dyn std::error::Error, "cannot connect");
                    last = Some(error);
                }
            }
        }
        let error = Arc::new(last.expect("an access names at least one server"));
        {
            let mut lines = self.lock();
            lines.failures += 1;
            lines.failure = Some(error.clone());
            lines.server = (first + 1) % access.servers.len();
        }
        self.note(Connection::Down { error: chain(&*error) });
        Err(TransportError::Connect(error))
    }

    fn answered(&self, server: &Server, status: StatusCode) {
        match status {
            StatusCode::UNAUTHORIZED => self.note(Connection::Unauthorized { server: server.to_string() }),
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                self.avoid(server);
            }
            _ => {
                let up = matches!(&*self.connection.borrow(), Connection::Up { .. });
                if !up {
                    self.note(Connection::Up { server: server.to_string() });
                }
            }
        }
    }

    /// The time of the server that answered last.
    pub(crate) fn server_time(&self) -> Option<std::time::SystemTime> {
        self.clock.now()
    }

    /// This server is alive but cannot serve: what comes next goes to another one, if there is one.
    fn avoid(&self, server: &Server) {
        let mut lines = self.lock();
        let servers = self.access.borrow().servers.len();
        if servers > 1 && lines.open.iter().any(|line| *line.server == *server) {
            lines.open.retain(|line| *line.server != *server);
            lines.server = (lines.server + 1) % servers;
        }
    }

    fn note(&self, now: Connection) {
        self.connection.send_if_modified(|before| {
            if *before == now
                || matches!((&*before, &now), (Connection::Down { .. }, Connection::Down { .. }))
            {
                return false;
            }
            match &now {
                Connection::Starting => {}
                Connection::Up { server } => tracing::info!(%server, "the API server answers"),
                Connection::Unauthorized { server } => {
                    tracing::error!(%server, "the API server does not know these credentials");
                }
                Connection::Down { error } => tracing::warn!(%error, "no API server answers"),
            }
            *before = now;
            true
        });
    }

    /// No new stream on this connection; those that run on it run on.
    fn retire(&self, id: u64) {
        self.lock().open.retain(|line| line.id != id);
    }

    fn give_back(&self, id: u64, http1: Option<http1::SendRequest<Body>>) {
        let mut lines = self.lock();
        let Some(position) = lines.open.iter().position(|line| line.id == id) else { return };
        let line = &mut lines.open[position];
        line.streams -= 1;
        let surplus = match http1 {
            Some(sender) => {
                let closed = sender.is_closed();
                line.sender = Some(Sender::Http1(sender));
                let idle = lines.open.iter().filter(|line| line.is_idle_http1()).count();
                closed || idle > IDLE
            }
            None => {
                line.streams == 0
                    && lines
                        .open
                        .iter()
                        .any(|line| line.id != id && line.is_http2() && line.streams < STREAMS / 2)
            }
        };
        if surplus {
            lines.open.remove(position);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

impl Line {
    fn has_room(&self) -> bool {
        match &self.sender {
            // One whose last answer was not read to its end is not ready.
            Some(Sender::Http1(sender)) => sender.is_ready(),
            Some(Sender::Http2(_)) => self.streams < STREAMS,
            None => false,
        }
    }

    fn is_http2(&self) -> bool {
        matches!(self.sender, Some(Sender::Http2(_)))
    }

    fn is_idle_http1(&self) -> bool {
        matches!(self.sender, Some(Sender::Http1(_)))
    }

    fn lend(&mut self, pool: &Arc<Pool>) -> Lent {
        self.streams += 1;
        let mut lease = Lease {
            pool: pool.clone(),
            id: self.id,
            server: self.server.clone(),
            http1: None,
            since: Instant::now(),
            answered: false,
        };
        match self.sender.take().expect("a connection with room is not lent") {
            Sender::Http1(sender) => {
                lease.http1 = Some(sender);
                Lent::Http1(lease)
            }
            Sender::Http2(sender) => {
                self.sender = Some(Sender::Http2(sender.clone()));
                Lent::Http2(lease, sender)
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.answered && self.since.elapsed() >= self.pool.patience.stall {
            tracing::debug!(server = %self.server, "a connection to the API server has stalled");
            self.pool.retire(self.id);
        }
        self.pool.give_back(self.id, self.http1.take());
    }
}

/// The same request without a body.
fn bare(request: &Request<Body>) -> Request<Body> {
    let mut bare = Request::new(Body::empty());
    *bare.method_mut() = request.method().clone();
    *bare.uri_mut() = request.uri().clone();
    *bare.headers_mut() = request.headers().clone();
    bare
}

/// The request as this server wants it.
fn addressed(
    mut request: Request<Body>,
    server: &Server,
    bearer: Option<crate::Bearer>,
    http2: bool,
) -> Request<Body> {
    let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let path = path.strip_suffix('?').unwrap_or(path);
    let bare_host =
        if server.host.contains(':') { format!("[{}]", server.host) } else { server.host.clone() };
    let host = format!("{bare_host}:{}", server.port);
    let scheme = if server.tls { "https" } else { "http" };
    let uri = if http2 {
        format!("{scheme}://{host}{}{path}", server.prefix)
    } else {
        format!("{}{path}", server.prefix)
    };
    if let Ok(uri) = uri.parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    let headers = request.headers_mut();
    if !http2 && let Ok(host) = header::HeaderValue::from_str(&host) {
        headers.insert(header::HOST, host);
    }
    if let Some(bearer) = bearer {
        headers.insert(header::AUTHORIZATION, bearer.header());
    }
    request
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
