//! A minimal HTTP/1.1 GET for probes and hooks: one request, one answer, no proxy, no verified TLS.
//!
//! Called by checks and hooks; each call makes its own connection, which ends with it. Header and body are
//! bounded, redirects to the same host are followed as the kubelet follows them.

mod url;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::check::{OUTPUT_LIMIT, go_io_error, join_host_port};

pub(crate) use url::HttpTarget;

const HEADER_LIMIT: usize = 64 * 1024;
const REDIRECTS: usize = 10;

/// An answer.
#[derive(Debug)]
pub(crate) struct HttpAnswer {
    pub(crate) status: u16,
    /// The first 10 KiB.
    pub(crate) body: String,
}

/// Why there is no answer; worded as Go's client words it after `Get "URL": `.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("dial tcp {address}: connect: {text}")]
    Connect { address: String, text: String },
    #[error("dial tcp: lookup {host}: {text}")]
    Lookup { host: String, text: String },
    #[error("{0}")]
    Tls(String),
    #[error("http: server gave HTTP response to HTTPS client")]
    PlainAnswer,
    #[error("{0}")]
    Io(String),
    #[error("EOF")]
    Eof,
    #[error("net/http: HTTP/1.x transport connection broken: malformed HTTP response {0:?}")]
    Malformed(String),
    #[error("net/http: server response headers exceeded {HEADER_LIMIT} bytes; aborted")]
    HeaderTooLong,
    #[error("stopped after {REDIRECTS} redirects")]
    Redirects,
    #[error("context deadline exceeded (Client.Timeout exceeded while awaiting headers)")]
    Timeout,
}

/// Gets `target` within `timeout`, following redirects to the same host.
pub(crate) async fn get(target: &HttpTarget, timeout: Duration) -> Result<HttpAnswer, HttpError> {
    tokio::time::timeout(timeout, follow(target)).await.unwrap_or(Err(HttpError::Timeout))
}

async fn follow(first: &HttpTarget) -> Result<HttpAnswer, HttpError> {
    let mut target = first.clone();
    for _ in 0..REDIRECTS {
        let answer = once(&target).await?;
        let location =
            answer.location.as_deref().filter(|_| matches!(answer.status, 301 | 302 | 303 | 307 | 308));
        let next = location.and_then(|location| target.redirected(location));
        match next {
            Some(next) if next.host == first.host => target = next,
            _ => return Ok(HttpAnswer { status: answer.status, body: answer.body }),
        }
    }
    Err(HttpError::Redirects)
}

struct Raw {
    status: u16,
    location: Option<String>,
    body: String,
}

async fn once(target: &HttpTarget) -> Result<Raw, HttpError> {
    let address = join_host_port(&target.host, target.port);
    let tcp = TcpStream::connect(&address).await.map_err(|error| match error.raw_os_error() {
        Some(_) => HttpError::Connect { address: address.clone(), text: go_io_error(&error) },
        None => HttpError::Lookup { host: target.host.clone(), text: go_io_error(&error) },
    })?;
    if !target.tls {
        return exchange(tcp, target).await;
    }
    let name = rustls::pki_types::ServerName::try_from(target.host.clone())
        .map_err(|error| HttpError::Tls(error.to_string()))?;
    let connector = TlsConnector::from(tls_config());
    match connector.connect(name, tcp).await {
        Ok(stream) => exchange(stream, target).await,
        Err(error) => {
            let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
            // `HTTP/` read as the head of a TLS record is what a plain server sends.
            Err(match inner {
                Some(rustls::Error::InvalidMessage(_)) => HttpError::PlainAnswer,
                Some(other) => HttpError::Tls(format!("tls: {other}")),
                None => HttpError::Io(go_io_error(&error)),
            })
        }
    }
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    target: &HttpTarget,
) -> Result<Raw, HttpError> {
    let io = |error: std::io::Error| HttpError::Io(format!("read tcp: {}", go_io_error(&error)));
    stream.write_all(target.request().as_bytes()).await.map_err(io)?;
    stream.flush().await.map_err(io)?;
    let mut bytes = Vec::with_capacity(1024);
    let head = loop {
        if let Some(at) = find(&bytes, b"\r\n\r\n") {
            break at;
        }
        if bytes.len() > HEADER_LIMIT {
            return Err(HttpError::HeaderTooLong);
        }
        if stream.read_buf(&mut bytes).await.map_err(io)? == 0 {
            return Err(if bytes.is_empty() { HttpError::Eof } else { malformed(&bytes) });
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let status = parse_status(&text).ok_or_else(|| malformed(&bytes))?;
    let header = |name: &str| {
        let lines = text.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines
            .into_iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
    };
    if (100..200).contains(&status) && status != 101 {
        // An interim answer; the real one follows. Probes send no `Expect`, so none is due: treat it as broken.
        return Err(malformed(&bytes));
    }
    let length = header("content-length").and_then(|text| text.parse::<usize>().ok());
    let wanted = length.unwrap_or(OUTPUT_LIMIT).min(OUTPUT_LIMIT);
    let mut body = bytes.split_off(head + 4);
    // The body is read so that the server is not cut off; what fails here says nothing about the status.
    while body.len() < wanted {
        match stream.read_buf(&mut body).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    body.truncate(OUTPUT_LIMIT);
    let chunked = header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    let body = if chunked { dechunk(&body) } else { body };
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Raw { status, location: header("location"), body })
}

fn parse_status(head: &str) -> Option<u16> {
    let mut parts = head.lines().next()?.split(' ');
    parts.next()?.strip_prefix("HTTP/1.")?;
    parts.next()?.parse().ok().filter(|status| (100..600).contains(status))
}

fn malformed(bytes: &[u8]) -> HttpError {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
    HttpError::Malformed(text.lines().next().unwrap_or("").to_owned())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The content of as many chunks as are there.
fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(end) = find(bytes, b"\r\n") {
        let size = std::str::from_utf8(&bytes[..end]).ok().and_then(|line| line.split(';').next());
        let size = size.and_then(|text| usize::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
        let from = end + 2;
        if size == 0 || from >= bytes.len() {
            break;
        }
        let to = from.saturating_add(size).min(bytes.len());
        content.extend_from_slice(&bytes[from..to]);
        bytes = bytes.get(to + 2..).unwrap_or_default();
    }
    content
}

/// Any certificate will do: a probe asks whether the server lives, not who it is.
fn tls_config() -> Arc<rustls::ClientConfig> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    let make = || {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("invariant: ring supports the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        Arc::new(config)
    };
    CONFIG.get_or_init(make).clone()
}

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
