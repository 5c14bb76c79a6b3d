//! Connections of the kubelet API: accepted, their TLS, their requests checked and led to what answers them.
//!
//! One task accepts; one task per connection serves its requests, one after the other, and then the stream that the
//! last of them asked for. A client that does not say what it wants within a while is let go.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::answer::{self, Answer, METRICS, TEXT};
use super::auth::{Denied, User};
use super::route::{Route, permission, route};
use super::streaming::{self, Granted, Session, What};
use super::{CONNECTIONS, Shared, cadvisor, logs, metrics, pods, stats};

/// A handshake takes at most so long.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A request's head comes within so long, and a connection without requests is closed after it.
const HEAD: Duration = Duration::from_secs(90);
/// Memory for a request's head, and for what is written at once.
const BUFFER: usize = 16 * 1024;

/// Accepts until dropped, which ends every connection too.
pub(super) async fn serve(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut strangers = Strangers::default();
    loop {
        if places.available_permits() == 0 {
            strangers.let_one_go();
        }
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a client of the kubelet API could not connect");
                // Out of file descriptors, most likely: accepting again at once would spin.
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        let known = Arc::new(AtomicBool::new(false));
        let client = known.clone();
        let task = connections.spawn(async move {
            let session = connection(stream, acceptor, shared, client).await;
            // Streams have a bound of their own, so that they do not keep requests out.
            drop(place);
            if let Some(session) = session {
                session.await;
            }
        });
        strangers.add(task, known);
    }
}

/// Connections on which nobody has asked for anything that he may have, the oldest first.
#[derive(Default)]
struct Strangers(VecDeque<(AbortHandle, Arc<AtomicBool>)>);

impl Strangers {
    fn add(&mut self, task: AbortHandle, known: Arc<AtomicBool>) {
        self.forget();
        self.0.push_back((task, known));
    }

    fn forget(&mut self) {
        self.0.retain(|(task, known)| !task.is_finished() && !known.load(Ordering::Relaxed));
    }

    /// Ends the oldest, so that those who only hold places keep nobody out.
    fn let_one_go(&mut self) {
        self.forget();
        if let Some((oldest, _)) = self.0.pop_front() {
            oldest.abort();
        }
    }
}

/// Serves requests, and returns the session that the last one began.
async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    known: Arc<AtomicBool>,
) -> Option<Session> {
    let _ = stream.set_nodelay(true);
    let accepted = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
    // Whoever probes the port without TLS is not worth a line of log.
    let mut stream = accepted.ok()?.ok()?;
    // What a slow client has not taken yet waits where it comes from.
    stream.get_mut().1.set_buffer_limit(Some(BUFFER));
    let chain: Vec<CertificateDer<'static>> =
        stream.get_ref().1.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
    let client = Arc::new(Client { shared, chain, known });
    let session = Arc::new(Mutex::new(None));
    let begun = session.clone();
    let service = service_fn(move |request| {
        let (client, begun) = (client.clone(), begun.clone());
        async move {
            let Granted { answer, session } = client.serve(request).await;
            if let Some(session) = session {
                *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection to the kubelet API broke");
        return None;
    }
    session.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// One connection's client.
struct Client {
    shared: Arc<Shared>,
    /// Its certificates; judged at each request, for authorities change and certificates expire.
    chain: Vec<CertificateDer<'static>>,
    /// Whether it has been served anything.
    known: Arc<AtomicBool>,
}

impl Client {
    async fn serve(&self, request: Request<Incoming>) -> Granted {
        let (method, path) = (request.method().as_str(), request.uri().path());
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let user = self.certificate_user();
        let needed = permission(method, path);
        let allowed = self.shared.auth.check(user.as_ref(), authorization, &needed).await;
        if let Err(Denied(status, words)) = allowed {
            return answer::error(status, words).into();
        }
        self.known.store(true, Ordering::Relaxed);
        let shared = &self.shared;
        match route(method, path) {
            Route::Exec(place) => streaming::container(shared, request, &place, What::Exec).await,
            Route::Attach(place) => streaming::container(shared, request, &place, What::Attach).await,
            Route::PortForward(place) => streaming::port_forward(shared, request, &place).await,
            route => self.answer(route, request.uri().query().unwrap_or_default()).await.into(),
        }
    }

    fn certificate_user(&self) -> Option<User> {
        if self.chain.is_empty() {
            return None;
        }
        self.shared.trust.identity(&self.chain).map(User::from)
    }

    async fn answer(&self, route: Route, query: &str) -> Answer {
        let shared = &self.shared;
        match route {
            Route::Healthz { .. } => answer::whole(200, TEXT, "ok"),
            Route::HealthzPart(part) => match part.as_str() {
                "ping" | "log" | "syncloop" => answer::whole(200, TEXT, "ok"),
                _ => answer::error(404, "404 page not found\n"),
            },
            Route::Pods => pods::pods(shared),
            Route::RunningPods => pods::running_pods(shared).await,
            Route::ContainerLogs { namespace, pod, container } => {
                logs::container_logs(shared, &namespace, &pod, &container, query).await
            }
            Route::StatsSummary => stats::summary(shared, query).await,
            Route::Metrics => answer::whole(200, METRICS, metrics::own(shared)),
            Route::MetricsResource => answer::whole(200, METRICS, metrics::resource(shared).await),
            Route::MetricsProbes => answer::whole(200, METRICS, metrics::probes(shared)),
            Route::MetricsCadvisor => answer::whole(200, METRICS, cadvisor::metrics(shared).await),
            Route::Configz => answer::json(&json!({ "kubeletconfig": shared.config.configz })),
            Route::Run(place) => streaming::run(shared, &place, query).await,
            Route::Exec(_) | Route::Attach(_) | Route::PortForward(_) => {
                unreachable!("invariant: `serve` gives these the whole request")
            }
            Route::Disabled(words) => answer::error(405, format!("{words}\n")),
            Route::WrongMethod => answer::error(405, "405: Method Not Allowed"),
            Route::Unknown => answer::error(404, "404: Page Not Found"),
        }
    }
}
