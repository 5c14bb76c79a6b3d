//! Connections of the worker: TCP or TLS, straight or through the proxy that the environment names.
//!
//! One per pooled connection of [`super::http`]. A proxy may itself be spoken to by TLS; https goes through it as a
//! tunnel, http as requests with whole URLs.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tower::Service;

type BoxError = Box<dyn Error + Send + Sync>;

/// From the first packet to the end of the TLS handshake, through a proxy too.
const PATIENCE: Duration = Duration::from_secs(15);

/// Connects to where a URL points.
#[derive(Clone)]
pub(super) struct Connector {
    dial: Dial,
    proxies: Arc<Matcher>,
}

impl Connector {
    pub(super) fn new(tls: ClientConfig, proxies: Arc<Matcher>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        Self { dial: Dial { tcp, tls: TlsConnector::from(Arc::new(tls)) }, proxies }
    }

    async fn connect(mut self, uri: Uri) -> Result<Stream, BoxError> {
        let Some(proxy) = self.proxies.intercept(&uri) else { return self.dial.call(uri).await };
        if !is_https(&uri) {
            let stream = self.dial.call(proxy.uri().clone()).await?;
            return Ok(Stream { to_proxy: true, ..stream });
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.dial.clone());
        if let Some(credentials) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(credentials.clone());
        }
        secure(&self.dial.tls, &uri, tunnel.call(uri.clone()).await?).await
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Stream, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connect = tokio::time::timeout(PATIENCE, self.clone().connect(uri));
        let late = || BoxError::from(io::Error::new(io::ErrorKind::TimedOut, "no connection within 15 s"));
        Box::pin(async move { connect.await.unwrap_or_else(|_| Err(late())) })
    }
}

/// Connects straight: TCP, and TLS over it for https.
#[derive(Clone)]
struct Dial {
    tcp: HttpConnector,
    tls: TlsConnector,
}

impl Service<Uri> for Dial {
    type Response = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Stream, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, tls) = (self.tcp.call(uri.clone()), self.tls.clone());
        Box::pin(async move {
            let tcp = connecting.await?;
            if is_https(&uri) { secure(&tls, &uri, tcp).await } else { Ok(Stream::new(tcp)) }
        })
    }
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

async fn secure(
    tls: &TlsConnector,
    uri: &Uri,
    io: impl Read + Write + Unpin + Send + 'static,
) -> Result<Stream, BoxError> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned())?;
    Ok(Stream::new(TokioIo::new(tls.connect(name, TokioIo::new(io)).await?)))
}

trait Transport: Read + Write + Send {}

impl<T: Read + Write + Send> Transport for T {}

/// A connection.
pub(super) struct Stream {
    io: Pin<Box<dyn Transport>>,
    /// A proxy reads the requests, which must name their server.
    to_proxy: bool,
}

impl Stream {
    fn new(io: impl Transport + 'static) -> Self {
        Self { io: Box::pin(io), to_proxy: false }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.to_proxy)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(context)
    }
}
