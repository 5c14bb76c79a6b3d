//! Opens one connection to one API server: TCP, TLS, HTTP. Called by the pool.

use std::io;
use std::sync::Arc;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::Body;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::access::{Access, Server};
use crate::gather::Gather;
use crate::patience::Patience;

/// How much one stream may send ahead of its reader, and all together. Nothing of it is reserved.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Why there is no connection to a server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its name or address cannot be reached.
    #[error("{server}: cannot connect")]
    Tcp {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS failed: mostly certificates that do not match.
    #[error("{server}: no TLS")]
    Tls {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Our clock is before its certificate.
    #[error(
        "{server}: the clock says {now}, before its certificate's notBefore {not_before}: set the clock (NTP)"
    )]
    ClockBehind {
        /// The server.
        server: String,
        /// Our clock.
        now: String,
        /// When the certificate begins to count.
        not_before: String,
    },
    /// Our clock is after its certificate.
    #[error(
        "{server}: its certificate ended at {not_after}, and the clock says {now}: set the clock if it is wrong, or renew the certificate on the control plane"
    )]
    Ended {
        /// The server.
        server: String,
        /// Our clock.
        now: String,
        /// When the certificate ceases to count.
        not_after: String,
    },
    /// Its certificate is not by an authority that we trust.
    #[error(
        "{server}: its certificate is not signed by the cluster's certificate authority: check the server's address, and that the authority is this cluster's"
    )]
    Untrusted {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// Its certificate is for other names.
    #[error("{server}: its certificate is for {names}: use one of these as its address, or tls-server-name")]
    WrongName {
        /// The server.
        server: String,
        /// What the certificate vouches for.
        names: String,
    },
    /// It does not speak TLS.
    #[error("{server}: what answers does not speak TLS: check the port (mostly 6443)")]
    NotTls {
        /// The server.
        server: String,
    },
    /// Its name cannot stand in a certificate.
    #[error("{server}: {name:?} is no name that a certificate can hold")]
    Name {
        /// The server.
        server: String,
        /// The name.
        name: String,
    },
    /// It speaks TLS and nothing is known to trust.
    #[error("{server}: there is no certificate authority to trust")]
    NoTrust {
        /// The server.
        server: String,
    },
    /// HTTP failed at its very start.
    #[error("{server}: no HTTP")]
    Http {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// It took too long.
    #[error("{server}: no connection within {} s", after.as_secs())]
    Deadline {
        /// The server.
        server: String,
        /// How long was waited.
        after: std::time::Duration,
    },
}

impl ConnectError {
    /// Whether a server was reached and is not the one it should be, or the clock is wrong: waiting does not help.
    pub fn is_distrust(&self) -> bool {
        matches!(
            self,
            Self::ClockBehind { .. }
                | Self::Ended { .. }
                | Self::Untrusted { .. }
                | Self::WrongName { .. }
                | Self::NotTls { .. }
                | Self::NoTrust { .. }
                | Self::Name { .. }
        )
    }
}

/// Sends requests on one connection.
pub(crate) enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

pub(crate) async fn connect(
    access: &Access,
    server: &Server,
    patience: &Patience,
) -> Result<Sender, ConnectError> {
    let after = patience.connect;
    match tokio::time::timeout(after, open(access, server, patience)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Deadline { server: server.to_string(), after }),
    }
}

async fn open(access: &Access, server: &Server, patience: &Patience) -> Result<Sender, ConnectError> {
    let failed = |source| ConnectError::Tcp { server: server.to_string(), source };
    let tcp = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(failed)?;
    set_options(&tcp, patience).map_err(failed)?;
    if !server.tls {
        return handshake(tcp, server, patience, false).await;
    }
    let tls = access.tls.clone().ok_or_else(|| ConnectError::NoTrust { server: server.to_string() })?;
    let name = server.tls_name.as_ref().unwrap_or(&server.host);
    let server_name = ServerName::try_from(name.clone())
        .map_err(|_| ConnectError::Name { server: server.to_string(), name: name.clone() })?;
    let stream = tokio_rustls::TlsConnector::from(Arc::clone(&tls))
        .connect(server_name, tcp)
        .await
        .map_err(|error| explain(server, error))?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    handshake(stream, server, patience, http2).await
}

/// What a failed handshake means, and what to do.
fn explain(server: &Server, error: io::Error) -> ConnectError {
    use rustls::CertificateError as Wrong;
    let server = server.to_string();
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return ConnectError::Tls { server, source: error };
    };
    match tls {
        rustls::Error::InvalidCertificate(wrong) => match wrong {
            Wrong::NotValidYetContext { time, not_before } => {
                ConnectError::ClockBehind { server, now: show(*time), not_before: show(*not_before) }
            }
            Wrong::ExpiredContext { time, not_after } => {
                ConnectError::Ended { server, now: show(*time), not_after: show(*not_after) }
            }
            Wrong::NotValidForNameContext { presented, .. } => {
                ConnectError::WrongName { server, names: presented.join(", ") }
            }
            _ => ConnectError::Untrusted { server, source: tls.clone() },
        },
        rustls::Error::InvalidMessage(_) => ConnectError::NotTls { server },
        _ => ConnectError::Tls { server, source: error },
    }
}

fn show(at: rustls::pki_types::UnixTime) -> String {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "a time out of range".to_owned(), |at| at.to_string())
}

/// A peer that vanished is found by the kernel too: HTTP/1.1 has no ping.
fn set_options(tcp: &TcpStream, patience: &Patience) -> io::Result<()> {
    use rustix::net::sockopt;
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, patience.read_idle)?;
    sockopt::set_tcp_keepintvl(tcp, patience.ping_answer)?;
    sockopt::set_tcp_keepcnt(tcp, 2)?;
    sockopt::set_tcp_user_timeout(tcp, patience.unacknowledged.as_millis() as u32)?;
    Ok(())
}

async fn handshake<S>(
    stream: S,
    server: &Server,
    patience: &Patience,
    http2: bool,
) -> Result<Sender, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |source| ConnectError::Http { server: server.to_string(), source };
    if http2 {
        let io = TokioIo::new(Gather::new(stream));
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(patience.read_idle)
            .keep_alive_timeout(patience.ping_answer)
            .keep_alive_while_idle(false)
            .handshake(io)
            .await
            .map_err(failed)?;
        tokio::spawn(drive(connection, server.to_string()));
        return Ok(Sender::Http2(sender));
    }
    let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(drive(connection, server.to_string()));
    Ok(Sender::Http1(sender))
}

/// Ends with the connection, which ends when its sender and its last stream are gone.
async fn drive(connection: impl Future<Output = hyper::Result<()>>, server: String) {
    if let Err(error) = connection.await {
        tracing::debug!(%server, error = &error as &dyn std::error::Error, "connection to the API server ended");
    }
}
