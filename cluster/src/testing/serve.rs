//! The sockets of the fake API server: connections, streams of watches, and faults on the wire.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::fault::Fault;
use super::freezable::Freezable;
use super::route::{self, Answer, Watch};
use super::{Seen, Shared, lock};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves until it is dropped, and every connection with it.
pub(super) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tls: Option<Arc<rustls::ServerConfig>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let _ = socket.set_nodelay(true);
        let number = {
            let mut count = lock(&shared.connections);
            *count += 1;
            *count - 1
        };
        let socket = Freezable::new(socket, shared.frozen.subscribe());
        let (shared, tls) = (shared.clone(), tls.clone());
        connections.spawn(async move {
            let Some(tls) = tls else { return speak(socket, shared, number, None, false).await };
            let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(socket).await else { return };
            let session = stream.get_ref().1;
            let certificate =
                session.peer_certificates().and_then(|chain| chain.first()).map(|der| der.to_vec());
            let http2 = session.alpn_protocol() == Some(b"h2");
            speak(stream, shared, number, certificate, http2).await;
        });
    }
}

async fn speak<S>(stream: S, shared: Arc<Shared>, number: usize, certificate: Option<Vec<u8>>, http2: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| handle(request, shared.clone(), number, certificate.clone()));
    let io = TokioIo::new(stream);
    let _ = if http2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
    };
}

async fn handle(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    connection: usize,
    certificate: Option<Vec<u8>>,
) -> Result<Response<Body>, io::Error> {
    let (parts, body) = request.into_parts();
    let header =
        |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let content_type = header("content-type").unwrap_or_default();
    let authorization = header("authorization");
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let seen = Seen {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        authorization,
        certificate,
        connection,
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    };
    lock(&shared.seen).push(seen.clone());
    let fault =
        lock(&shared.rules).iter_mut().find_map(|rule| rule.strike(&seen.method, &seen.path, &seen.query));
    match fault {
        Some(Fault::Status(code, reason, pause)) => {
            let mut response = json(code, &route::status(code, reason, "scripted"));
            if let Some(pause) = pause {
                response.headers_mut().insert("retry-after", pause.into());
            }
            return Ok(response);
        }
        Some(Fault::Stall) => std::future::pending().await,
        Some(Fault::Close) => return Err(io::Error::other("scripted")),
        Some(Fault::Html) => return Ok(html()),
        Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
        Some(Fault::Cut(after)) => return Ok(shortened(respond(&shared, &seen, &content_type), after, true)),
        Some(Fault::Silent(after)) => {
            return Ok(shortened(respond(&shared, &seen, &content_type), after, false));
        }
        None => {}
    }
    Ok(respond(&shared, &seen, &content_type))
}

fn respond(shared: &Arc<Shared>, seen: &Seen, content_type: &str) -> Response<Body> {
    let responder = lock(&shared.responders)
        .iter()
        .find(|(method, path, _)| *method == seen.method && seen.path.starts_with(path.as_str()))
        .map(|(_, _, responder)| responder.clone());
    if let Some(responder) = responder {
        let (code, body) = responder(seen);
        return json(code, &body);
    }
    let answer = {
        let mut objects = lock(&shared.objects);
        if seen.method == Method::PATCH {
            route::patched(&mut objects, seen, content_type)
        } else {
            let watch_list = *lock(&shared.watch_list);
            route::answer(&mut objects, seen, watch_list)
        }
    };
    if seen.method != Method::GET {
        shared.wake();
    }
    match answer {
        Answer::Object(code, body) => json(code, &body),
        Answer::Watch(watch) => {
            let frames = watch_lines(shared.clone(), watch).map(|line| Ok(Frame::data(line)));
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
    }
}

fn json(code: u16, body: &Value) -> Response<Body> {
    let mut response =
        Response::new(Full::from(body.to_string()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = http::StatusCode::from_u16(code).expect("tests use real status codes");
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

fn html() -> Response<Body> {
    let page = "<!DOCTYPE html><html><title>Router</title></html>";
    let mut response = Response::new(Full::from(page).map_err(|never| match never {}).boxed_unsync());
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/html"));
    response
}

/// The answer's first bytes, then its end or silence.
fn shortened(response: Response<Body>, after: usize, cut: bool) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let frames = stream::unfold((body, after, cut), async |(mut body, left, cut)| {
        if left == 0 {
            if !cut {
                std::future::pending::<()>().await;
            }
            // What came before the cut is to arrive.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            return Some((Err(io::Error::other("scripted")), (body, 0, cut)));
        }
        let frame = body.frame().await?.ok()?.into_data().ok()?;
        let part = frame.slice(..frame.len().min(left));
        let left = left - part.len();
        Some((Ok(Frame::data(part)), (body, left, cut)))
    });
    Response::from_parts(parts, StreamBody::new(frames).boxed_unsync())
}

/// The lines of one watch, until the watches expire.
fn watch_lines(shared: Arc<Shared>, watch: Watch) -> impl Stream<Item = Bytes> + Send {
    let changed = shared.changed.subscribe();
    let expired = shared.watches.subscribe();
    stream::unfold(Some((shared, watch, changed, expired)), async |state| {
        let (shared, mut watch, mut changed, mut expired) = state?;
        loop {
            changed.mark_unchanged();
            let mut events = std::mem::take(&mut watch.first);
            let (more, version) =
                lock(&shared.objects).events(&watch.collection, &watch.selection, watch.since);
            events.extend(more);
            watch.since = version;
            if !events.is_empty() {
                let text: String = events.iter().map(|event| format!("{event}\n")).collect();
                return Some((Bytes::from(text), Some((shared, watch, changed, expired))));
            }
            let interval = *lock(&shared.bookmarks);
            tokio::select! {
                // All arms only wait for what stays noted.
                _ = changed.changed() => {}
                _ = expired.changed() => {
                    let status = route::status(410, "Expired", "too old resource version");
                    let event = serde_json::json!({"type": "ERROR", "object": status});
                    return Some((Bytes::from(format!("{event}\n")), None));
                }
                () = tokio::time::sleep(interval) => {
                    let event = route::bookmark(watch.since, false);
                    return Some((Bytes::from(format!("{event}\n")), Some((shared, watch, changed, expired))));
                }
            }
        }
    })
}
