//! The serving side: which protocol a request asks for and what to answer (pure), then the streams of a command
//! ([`exec`]) or of forwarded ports ([`forward`]) over the upgraded connection. Called by whoever serves HTTP, who
//! also decides who may ask.

mod exec;
mod forward;
#[cfg(test)]
mod tests;

use std::time::Duration;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::channel::{Encoding, PORT_FORWARD, PORT_FORWARD_TUNNEL, Version};
use crate::websocket::accept_key;

pub use exec::{ExecSession, Exit, Resizes, SessionError, exec};
pub use forward::{Forward, ForwardSession, forward, ports_from_query};

/// How long a client may take. The defaults are the kubelet's.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// To open the streams it needs: a command's at the beginning, the second of each forwarded connection.
    pub streams: Duration,
    /// With nothing to say and nothing said to it; measured coarsely, up to twice as long.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { streams: Duration::from_secs(30), idle: Duration::from_secs(4 * 60 * 60) }
    }
}

pub(crate) const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
pub(crate) const ACCEPTED_VERSIONS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");
pub(crate) const SPDY: HeaderValue = HeaderValue::from_static("SPDY/3.1");
pub(crate) const UPGRADE_VALUE: HeaderValue = HeaderValue::from_static("Upgrade");

/// How a command's streams travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecProtocol {
    /// As SPDY streams.
    Spdy(Version),
    /// As channels in WebSocket messages.
    WebSocket(Version, Encoding),
}

/// How forwarded connections travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardProtocol {
    /// As pairs of SPDY streams.
    Spdy,
    /// The same, within binary WebSocket messages.
    Tunnel,
    /// As pairs of channels in WebSocket messages, one per port that the request names.
    WebSocket(Encoding),
}

/// A request that is granted: answer with 101 and these headers, then hand on the connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Upgrade<P> {
    /// What was agreed on.
    pub protocol: P,
    /// The answer's headers.
    pub headers: HeaderMap,
}

/// A request that cannot be granted, and what to answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The answer's status.
    pub status: StatusCode,
    /// Headers to append to the answer.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The answer's body.
    pub message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, headers: Vec::new(), message: message.into() }
    }
}

/// What a request for a command or an attachment is to be answered.
///
/// ```
/// use coracle_streaming::{channel::Version, server};
/// use http::{HeaderMap, HeaderValue, Method};
///
/// let mut headers = HeaderMap::new();
/// headers.insert("connection", HeaderValue::from_static("Upgrade"));
/// headers.insert("upgrade", HeaderValue::from_static("SPDY/3.1"));
/// headers.insert("x-stream-protocol-version", HeaderValue::from_static("v4.channel.k8s.io"));
/// let upgrade = server::exec_upgrade(&Method::POST, &headers).unwrap();
/// assert_eq!(upgrade.protocol, server::ExecProtocol::Spdy(Version::V4));
/// ```
pub fn exec_upgrade(method: &Method, headers: &HeaderMap) -> Result<Upgrade<ExecProtocol>, Refusal> {
    match transport(headers)? {
        Transport::Spdy => {
            let names: Vec<&str> = Version::SPDY.into_iter().map(Version::name).collect();
            let (name, answer) = spdy(headers, &names)?;
            let version = Version::from_name(name).expect("a name of one of these versions");
            Ok(Upgrade { protocol: ExecProtocol::Spdy(version), headers: answer })
        }
        Transport::WebSocket => {
            let (choice, answer) = websocket(method, headers, &EXEC_SUBPROTOCOLS)?;
            let (version, encoding) = choice;
            Ok(Upgrade { protocol: ExecProtocol::WebSocket(version, encoding), headers: answer })
        }
    }
}

/// What a request for port-forward is to be answered.
pub fn forward_upgrade(method: &Method, headers: &HeaderMap) -> Result<Upgrade<ForwardProtocol>, Refusal> {
    match transport(headers)? {
        Transport::Spdy => {
            let (_, answer) = spdy(headers, &[PORT_FORWARD])?;
            Ok(Upgrade { protocol: ForwardProtocol::Spdy, headers: answer })
        }
        Transport::WebSocket => {
            let (protocol, answer) = websocket(method, headers, &FORWARD_SUBPROTOCOLS)?;
            Ok(Upgrade { protocol, headers: answer })
        }
    }
}

/// Subprotocols by name; the empty one is a client that names none.
const EXEC_SUBPROTOCOLS: [(&str, (Version, Encoding)); 6] = [
    ("v5.channel.k8s.io", (Version::V5, Encoding::Binary)),
    ("v4.channel.k8s.io", (Version::V4, Encoding::Binary)),
    ("v4.base64.channel.k8s.io", (Version::V4, Encoding::Base64)),
    ("channel.k8s.io", (Version::V1, Encoding::Binary)),
    ("base64.channel.k8s.io", (Version::V1, Encoding::Base64)),
    ("", (Version::V1, Encoding::Binary)),
];

const FORWARD_SUBPROTOCOLS: [(&str, ForwardProtocol); 4] = [
    (PORT_FORWARD_TUNNEL, ForwardProtocol::Tunnel),
    ("v4.channel.k8s.io", ForwardProtocol::WebSocket(Encoding::Binary)),
    ("v4.base64.channel.k8s.io", ForwardProtocol::WebSocket(Encoding::Base64)),
    ("", ForwardProtocol::WebSocket(Encoding::Binary)),
];

enum Transport {
    Spdy,
    WebSocket,
}

/// The entries of a header that may come more than once and hold several, separated by commas.
pub(crate) fn entries<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|entry| !entry.is_empty())
}

fn transport(headers: &HeaderMap) -> Result<Transport, Refusal> {
    let upgrades = entries(headers, &CONNECTION).any(|entry| entry.eq_ignore_ascii_case("upgrade"));
    let to =
        |name: &str| upgrades && entries(headers, &UPGRADE).any(|entry| entry.eq_ignore_ascii_case(name));
    if to("websocket") {
        Ok(Transport::WebSocket)
    } else if to("spdy/3.1") {
        Ok(Transport::Spdy)
    } else {
        Err(Refusal::new(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request"))
    }
}

/// The client's first choice that is ours too.
fn spdy<'a>(headers: &HeaderMap, names: &[&'a str]) -> Result<(&'a str, HeaderMap), Refusal> {
    let wanted: Vec<&str> = entries(headers, &PROTOCOL_VERSION).collect();
    if wanted.is_empty() {
        let message = format!("unable to upgrade: header {PROTOCOL_VERSION} names no protocol");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    }
    let Some(chosen) = wanted.iter().find_map(|wanted| names.iter().find(|name| *name == wanted)) else {
        let message =
            format!("unable to negotiate protocol: client supports {wanted:?}, server accepts {names:?}");
        let mut refusal = Refusal::new(StatusCode::FORBIDDEN, message);
        for name in names {
            refusal
                .headers
                .push((ACCEPTED_VERSIONS, HeaderValue::from_str(name).expect("a protocol's name")));
        }
        return Err(refusal);
    };
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, UPGRADE_VALUE);
    answer.insert(UPGRADE, SPDY);
    answer.insert(PROTOCOL_VERSION, HeaderValue::from_str(chosen).expect("a protocol's name"));
    Ok((chosen, answer))
}

fn websocket<P: Copy>(
    method: &Method,
    headers: &HeaderMap,
    subprotocols: &[(&'static str, P)],
) -> Result<(P, HeaderMap), Refusal> {
    use http::header::{
        SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    };
    let bad = |message: &str| Refusal::new(StatusCode::BAD_REQUEST, format!("unable to upgrade: {message}"));
    if method != Method::GET {
        return Err(bad("a WebSocket request is a GET"));
    }
    if !entries(headers, &SEC_WEBSOCKET_VERSION).any(|version| version == "13") {
        let mut refusal = bad("only version 13 of WebSocket is spoken");
        refusal.status = StatusCode::UPGRADE_REQUIRED;
        refusal.headers.push((SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
        return Err(refusal);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    let key = key.filter(|key| key.len() == 24).ok_or_else(|| bad("no Sec-WebSocket-Key"))?;
    let mut wanted: Vec<&str> = entries(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
    if wanted.is_empty() {
        wanted.push("");
    }
    let known = |wanted: &&str| subprotocols.iter().find(|(name, _)| name == wanted);
    let Some((name, protocol)) = wanted.iter().find_map(known) else {
        let message = format!("requested protocols are not supported: {wanted:?}");
        return Err(Refusal::new(StatusCode::FORBIDDEN, message));
    };
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, UPGRADE_VALUE);
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept_key(key)).expect("base64"));
    if !name.is_empty() {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((*protocol, answer))
}
