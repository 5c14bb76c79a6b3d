//! Requests of the worker: GET and POST over HTTP/1.1, with redirects and bounds on time and memory.
//!
//! hyper's client with its pool, and not reqwest, which cannot bound the read buffer of a connection: it grows to
//! 400 KiB and is held twice, so that three layers side by side were most of what a pull needed in memory.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, PROXY_AUTHORIZATION, USER_AGENT,
};
use hyper::{Method, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;

use super::connect::Connector;

/// What a connection reads at once, and the longest head of an answer.
const BUFFER: usize = 64 << 10;
/// As many as browsers follow in half; registries need one.
const REDIRECTS: usize = 10;

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("{url:?} is no URL")]
    Url { url: String, source: hyper::http::uri::InvalidUri },
    #[error("a header holds what no header may")]
    Header(#[from] hyper::header::InvalidHeaderValue),
    #[error("the request failed")]
    Send(#[from] legacy::Error),
    #[error("the answer broke off")]
    Body(#[from] hyper::Error),
    #[error("the registry stalls: no data within the time limit")]
    Stalled,
    #[error("it redirects more than ten times")]
    Redirects,
    #[error("it redirects to {0:?}, which is no place on the web")]
    Location(String),
}

/// The chain of causes below an error, whose own words only repeat that a request failed.
pub(super) fn reason(error: &HttpError) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.ends_with(&part) {
            text = if text.is_empty() { part } else { format!("{text}: {part}") };
        }
        next = source.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

/// Asks, of whom it trusts, within its patience.
pub(super) struct Client {
    inner: legacy::Client<Connector, Full<Bytes>>,
    proxies: Arc<Matcher>,
    stall: Duration,
}

/// A request that may be sent again elsewhere.
#[derive(Clone, Debug)]
struct Request {
    method: Method,
    url: Uri,
    headers: HeaderMap,
    body: Bytes,
}

/// An answer whose body has yet to come.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Incoming,
    stall: Duration,
}

impl Client {
    /// A client that goes through the proxies of the environment (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`). It gives
    /// up when no byte came for `stall`.
    pub(super) fn new(tls: ClientConfig, stall: Duration) -> Self {
        let proxies = Arc::new(Matcher::from_env());
        let inner = legacy::Client::builder(TokioExecutor::new())
            .http1_max_buf_size(BUFFER)
            .build(Connector::new(tls, proxies.clone()));
        Self { inner, proxies, stall }
    }

    pub(super) async fn get(&self, url: &str, headers: HeaderMap) -> Result<Response, HttpError> {
        self.send(Request { method: Method::GET, url: parse(url)?, headers, body: Bytes::new() }).await
    }

    /// Posts a form as HTML has it.
    pub(super) async fn post_form(&self, url: &str, form: String) -> Result<Response, HttpError> {
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, form_type)]);
        self.send(Request { method: Method::POST, url: parse(url)?, headers, body: form.into() }).await
    }

    async fn send(&self, mut request: Request) -> Result<Response, HttpError> {
        for _ in 0..=REDIRECTS {
            let answer = tokio::time::timeout(self.stall, self.inner.request(self.complete(&request)));
            let (head, body) = answer.await.map_err(|_| HttpError::Stalled)??.into_parts();
            match request.redirected(head.status, head.headers.get(LOCATION))? {
                Some(next) => request = next,
                None => {
                    return Ok(Response {
                        status: head.status,
                        headers: head.headers,
                        body,
                        stall: self.stall,
                    });
                }
            }
        }
        Err(HttpError::Redirects)
    }

    fn complete(&self, request: &Request) -> hyper::Request<Full<Bytes>> {
        let mut complete = hyper::Request::new(Full::new(request.body.clone()));
        *complete.method_mut() = request.method.clone();
        *complete.uri_mut() = request.url.clone();
        let headers = complete.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("coracle/", env!("CARGO_PKG_VERSION"))));
        headers.extend(request.headers.clone());
        if request.url.scheme_str() == Some("http")
            && let Some(proxy) = self.proxies.intercept(&request.url)
            && let Some(credentials) = proxy.basic_auth()
        {
            // A tunnel's credentials are given when it is dug.
            headers.insert(PROXY_AUTHORIZATION, credentials.clone());
        }
        complete
    }
}

fn parse(url: &str) -> Result<Uri, HttpError> {
    url.parse().map_err(|source| HttpError::Url { url: url.to_owned(), source })
}

impl Request {
    /// Where the answer sends the request on to, if it does. Another server gets no credentials.
    fn redirected(
        &self,
        status: StatusCode,
        location: Option<&HeaderValue>,
    ) -> Result<Option<Request>, HttpError> {
        let (true, Some(location)) = (matches!(status.as_u16(), 301..=303 | 307 | 308), location) else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(location.as_bytes()).into_owned();
        let url = resolve(&self.url, &text).ok_or(HttpError::Location(text))?;
        let mut next = Request { url, ..self.clone() };
        if next.method == Method::POST && status.as_u16() <= 303 {
            next.method = Method::GET;
            next.body = Bytes::new();
            next.headers.remove(CONTENT_TYPE);
        }
        if server(&next.url) != server(&self.url) {
            next.headers.remove(AUTHORIZATION);
        }
        Ok(Some(next))
    }
}

/// What a reference of a Location header means beside the URL that was asked (RFC 3986 section 5.2, without the dots
/// that no server sends).
fn resolve(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next().unwrap_or_default();
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let url = if reference.contains("://") && !reference.starts_with('/') {
        reference.to_owned()
    } else if reference.starts_with("//") {
        format!("{scheme}:{reference}")
    } else if reference.starts_with('/') {
        format!("{scheme}://{authority}{reference}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{reference}")
    };
    let url: Uri = url.parse().ok()?;
    matches!(url.scheme_str(), Some("http" | "https")).then_some(url)
}

fn server(url: &Uri) -> (Option<&str>, Option<u16>) {
    let default = if url.scheme_str() == Some("https") { 443 } else { 80 };
    (url.host(), url.port_u16().or(Some(default)))
}

impl Response {
    /// The next piece of the body, `None` at its end. Cancel-safe.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::time::timeout(self.stall, self.body.frame());
            let Some(frame) = frame.await.map_err(|_| HttpError::Stalled)? else { return Ok(None) };
            // What is no data are trailers.
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let base: Uri = "https://r.example:5000/v2/a/blobs/sha256:1?ns=x".parse().unwrap();
        for (reference, wanted) in [
            ("https://cdn.example/b?sig=%2F", Some("https://cdn.example/b?sig=%2F")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("/b?c=http://d", Some("https://r.example:5000/b?c=http://d")),
            ("b#part", Some("https://r.example:5000/v2/a/blobs/b")),
            ("ftp://r.example/b", None),
            ("https://", None),
        ] {
            assert_eq!(resolve(&base, reference), wanted.map(|url| url.parse().unwrap()), "{reference}");
        }
    }

    #[test]
    fn only_the_same_server_sees_credentials() {
        let headers = HeaderMap::from_iter([
            (AUTHORIZATION, HeaderValue::from_static("Bearer x")),
            (CONTENT_TYPE, HeaderValue::from_static("x")),
        ]);
        let url = "https://r.example/v2/".parse().unwrap();
        let request = Request { method: Method::POST, url, headers, body: Bytes::from_static(b"body") };
        let to = |status: u16, place: &'static str| {
            let status = StatusCode::from_u16(status).unwrap();
            request.redirected(status, Some(&HeaderValue::from_static(place))).unwrap()
        };
        let same = to(307, "https://r.example:443/other").unwrap();
        assert!(same.headers.contains_key(AUTHORIZATION) && same.method == Method::POST);
        for elsewhere in ["https://cdn.example/", "http://r.example/", "https://r.example:5000/"] {
            let next = to(302, elsewhere).unwrap();
            assert!(!next.headers.contains_key(AUTHORIZATION), "{elsewhere}");
            assert!(next.method == Method::GET && next.body.is_empty());
            assert!(!next.headers.contains_key(CONTENT_TYPE));
        }
        assert!(to(200, "https://cdn.example/").is_none());
        assert!(to(304, "https://cdn.example/").is_none());
    }
}
