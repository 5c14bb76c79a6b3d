//! The asking side: the headers of a request and what its answer means (pure), then the streams of a command
//! ([`exec`]) or forwarded connections ([`Forwarder`]) over the upgraded connection. Called by whoever speaks HTTP to
//! an API server, a kubelet or a runtime's streaming server.

mod exec;
mod forward;

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::channel::{Encoding, PORT_FORWARD, PORT_FORWARD_TUNNEL, Version};
use crate::mux::random;
use crate::server::{ExecProtocol, ForwardProtocol, PROTOCOL_VERSION, SPDY, UPGRADE_VALUE, entries};
use crate::websocket::{accept_key, request_key};

pub use exec::{ClientExec, ExitStatus, ResizeSender, exec};
pub use forward::{Forwarded, Forwarder};

/// What carries the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// SPDY/3.1: every kubelet and runtime speaks it. To be asked for by POST.
    Spdy,
    /// WebSocket: API servers since 1.30 speak it. To be asked for by GET.
    WebSocket,
}

/// A request that has been or is to be made.
#[derive(Debug, Clone)]
pub struct Ask {
    transport: Transport,
    key: String,
    headers: HeaderMap,
}

/// Why an answer is none to go on with.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The server did not switch protocols; its body says why.
    #[error("server answered {0} instead of switching protocols")]
    Status(StatusCode),
    /// It switched to something else.
    #[error("server switched to another protocol than asked for")]
    Upgrade,
    /// It chose a subprotocol that was not offered.
    #[error("server chose the protocol {0:?}, which was not asked for")]
    Protocol(String),
}

impl Ask {
    /// A request for a command or an attachment.
    pub fn exec(transport: Transport) -> Self {
        match transport {
            Transport::Spdy => Self::spdy(&Version::SPDY.map(Version::name)),
            Transport::WebSocket => Self::websocket("v5.channel.k8s.io, v4.channel.k8s.io"),
        }
    }

    /// A request for port-forward; WebSocket carries SPDY.
    pub fn port_forward(transport: Transport) -> Self {
        match transport {
            Transport::Spdy => Self::spdy(&[PORT_FORWARD]),
            Transport::WebSocket => Self::websocket(PORT_FORWARD_TUNNEL),
        }
    }

    fn spdy(protocols: &[&'static str]) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, UPGRADE_VALUE);
        headers.insert(UPGRADE, SPDY);
        for protocol in protocols {
            headers.append(PROTOCOL_VERSION, HeaderValue::from_static(protocol));
        }
        Self { transport: Transport::Spdy, key: String::new(), headers }
    }

    fn websocket(protocols: &'static str) -> Self {
        let key = request_key(random());
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, UPGRADE_VALUE);
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).expect("base64"));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
        Self { transport: Transport::WebSocket, key, headers }
    }

    /// The request's headers, beside those that say who asks.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// How a command's streams travel after this answer.
    pub fn exec_answer(&self, status: StatusCode, headers: &HeaderMap) -> Result<ExecProtocol, AnswerError> {
        let name = self.agreed(status, headers)?;
        // Who agrees on nothing speaks the first version, as servers before negotiation did.
        let version = if name.is_empty() { Some(Version::V1) } else { Version::from_name(name) };
        let version = version.ok_or_else(|| AnswerError::Protocol(name.to_owned()))?;
        Ok(match self.transport {
            Transport::Spdy => ExecProtocol::Spdy(version),
            Transport::WebSocket => ExecProtocol::WebSocket(version, Encoding::Binary),
        })
    }

    /// How forwarded connections travel after this answer.
    pub fn port_forward_answer(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<ForwardProtocol, AnswerError> {
        match (self.transport, self.agreed(status, headers)?) {
            (Transport::Spdy, "" | PORT_FORWARD) => Ok(ForwardProtocol::Spdy),
            (Transport::WebSocket, PORT_FORWARD_TUNNEL) => Ok(ForwardProtocol::Tunnel),
            (_, name) => Err(AnswerError::Protocol(name.to_owned())),
        }
    }

    fn agreed<'a>(&self, status: StatusCode, headers: &'a HeaderMap) -> Result<&'a str, AnswerError> {
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(AnswerError::Status(status));
        }
        let upgraded = |name: &str| entries(headers, &UPGRADE).any(|entry| entry.eq_ignore_ascii_case(name));
        let (switched, header) = match self.transport {
            Transport::Spdy => (upgraded("spdy/3.1"), &PROTOCOL_VERSION),
            Transport::WebSocket => {
                let proof = headers.get(SEC_WEBSOCKET_ACCEPT).and_then(|proof| proof.to_str().ok());
                (upgraded("websocket") && proof == Some(&accept_key(&self.key)), &SEC_WEBSOCKET_PROTOCOL)
            }
        };
        if !switched {
            return Err(AnswerError::Upgrade);
        }
        Ok(entries(headers, header).next().unwrap_or(""))
    }
}
