//! The HTTP half: takes connections, finds what waits for the token of a request, agrees on a protocol, and hands the
//! connection on to a session.
//!
//! One task accepts; one task per client serves its request. A client without a token that works gets a 404 and is let
//! go soon; only so many are served at a time, and who has said nothing for longest makes room for the next.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_streaming::server::{self, Refusal};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::session::Line;
use super::{Ticket, attach, exec, forward};
use crate::service::Engine;

/// Clients that have not shown a token yet.
const CLIENTS: usize = 64;
/// A request's head comes within so long, and a connection without requests is closed after it.
const HEAD: Duration = Duration::from_secs(10);
/// Memory for a request's head, and for what is written at once.
const BUFFER: usize = 16 * 1024;

/// A session's connection.
pub(super) type Io = TokioIo<Upgraded>;

/// Accepts until dropped, which ends every connection that is no session yet.
pub(super) async fn serve(engine: Arc<Engine>, listener: TcpListener) {
    // A client that has shown its token is a session of the engine's; all here are strangers, the oldest first.
    let mut clients = JoinSet::new();
    let mut strangers: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a client of the streaming server could not connect");
                // Out of file descriptors, most likely: accepting again at once would spin.
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        while clients.try_join_next().is_some() {}
        strangers.retain(|client| !client.is_finished());
        if strangers.len() >= CLIENTS
            && let Some(oldest) = strangers.pop_front()
        {
            oldest.abort();
        }
        strangers.push_back(clients.spawn(client(engine.clone(), stream)));
    }
}

async fn client(engine: Arc<Engine>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let line = match Line::new(&stream) {
        Ok(line) => line,
        Err(error) => return tracing::warn!(%error, "a client of the streaming server cannot be watched"),
    };
    let service = service_fn(move |request| {
        let answer = answer(&engine, &line, request);
        async move { Ok::<_, Infallible>(answer.unwrap_or_else(refusal)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "a client of the streaming server broke off"
        );
    }
}

/// Begins the session that waits for the request's token.
fn answer(
    engine: &Arc<Engine>,
    line: &Line,
    mut request: Request<Incoming>,
) -> Result<Response<String>, Refusal> {
    let refuse = |status, words: &str| Refusal { status, headers: Vec::new(), message: words.to_owned() };
    let Ok(place) = engine.streaming.sessions.clone().try_acquire_owned() else {
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open"));
    };
    let (kind, token) = request.uri().path().trim_start_matches('/').split_once('/').unwrap_or_default();
    let ticket = engine.streaming.tokens().take(token, Instant::now());
    let Some(ticket) = ticket.filter(|ticket| ticket.kind() == kind) else {
        return Err(refuse(StatusCode::NOT_FOUND, "404 page not found"));
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let (method, headers) = (request.method(), request.headers());
    let (session, line) = (engine.clone(), line.clone());
    let switch = match ticket {
        Ticket::Exec(ticket) => {
            let agreed = server::exec_upgrade(method, headers)?;
            engine.watch(async move {
                let _place = place;
                let Ok(io) = upgraded.await else { return };
                exec::run(session, (TokioIo::new(io), line), agreed.protocol, ticket).await;
            });
            agreed.headers
        }
        Ticket::Attach(ticket) => {
            let agreed = server::exec_upgrade(method, headers)?;
            engine.watch(async move {
                let _place = place;
                let Ok(io) = upgraded.await else { return };
                attach::run(session, (TokioIo::new(io), line), agreed.protocol, ticket).await;
            });
            agreed.headers
        }
        Ticket::PortForward(ticket) => {
            let agreed = server::forward_upgrade(method, headers)?;
            let ports = forward::ports(request.uri().query().unwrap_or_default(), &ticket);
            engine.watch(async move {
                let _place = place;
                let Ok(io) = upgraded.await else { return };
                forward::run(session, TokioIo::new(io), agreed.protocol, &ports, ticket).await;
            });
            agreed.headers
        }
    };
    Ok(response(StatusCode::SWITCHING_PROTOCOLS, switch, String::new()))
}

fn refusal(refusal: Refusal) -> Response<String> {
    let mut headers = HeaderMap::new();
    for (name, value) in refusal.headers {
        headers.append(name, value);
    }
    response(refusal.status, headers, refusal.message + "\n")
}

fn response(status: StatusCode, headers: HeaderMap, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
