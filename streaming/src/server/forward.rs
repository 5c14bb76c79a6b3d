//! Forwarded connections on the serving side. One session per request; who reaches into the pod's network owns it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::{ForwardProtocol, Timeouts};
use crate::Stream;
use crate::channel::{ForwardRequest, Pairing};
use crate::mux::{ChannelWire, Connection, SpdyWire, TunnelWire};
use crate::websocket::Role;

/// One connection to a port of the pod.
#[derive(Debug)]
pub struct Forward {
    /// The pod's port.
    pub port: u16,
    /// The connection's bytes, both ways.
    pub data: Stream,
    error: Stream,
}

impl Forward {
    /// Ends it in order: all that was written reaches the client.
    pub async fn finish(mut self) -> io::Result<()> {
        let data = self.data.shutdown().await;
        self.error.shutdown().await.and(data)
    }

    /// Ends it with a reason that the client shows.
    pub async fn fail(mut self, message: &str) -> io::Result<()> {
        self.error.write_all(message.as_bytes()).await?;
        self.error.shutdown().await?;
        self.data.reset();
        Ok(())
    }
}

/// The connections that a client forwards. Dropping it ends them all.
pub struct ForwardSession {
    connection: Connection,
    pairing: Pairing<Stream, Instant>,
    /// The connections of a WebSocket client, which all begin with the session.
    ready: Vec<Forward>,
    timeout: Duration,
}

impl std::fmt::Debug for ForwardSession {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ForwardSession").finish_non_exhaustive()
    }
}

impl ForwardSession {
    /// The next connection; `None` once the client is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Forward> {
        if let Some(forward) = self.ready.pop() {
            return Some(forward);
        }
        loop {
            // A stream whose other half does not come is reset by being dropped.
            let late = self.pairing.oldest().map(|since| since + self.timeout);
            let accepted = match late {
                None => self.connection.accept().await,
                Some(late) => match tokio::time::timeout_at(late, self.connection.accept()).await {
                    Ok(accepted) => accepted,
                    Err(_) => {
                        self.pairing.expire(Instant::now() - self.timeout + Duration::from_millis(1));
                        continue;
                    }
                },
            };
            let (stream, headers) = accepted?;
            let paired = ForwardRequest::from_headers(stream.id(), &headers)
                .and_then(|request| self.pairing.add(request, stream, Instant::now()));
            // A stream that fits nowhere has been dropped, which resets it.
            if let Ok(Some((port, data, error))) = paired {
                return Some(Forward { port, data, error: error.write_only() });
            }
        }
    }

    /// Says goodbye and closes the connection; what was written before goes out first.
    pub async fn close(self) {
        self.connection.close().await;
    }

    /// Bytes of buffers that the connection holds, full or not; a bound that does not depend on what is sent.
    pub fn footprint(&self) -> usize {
        self.connection.footprint()
    }
}

/// Takes the upgraded connection of a granted request. `ports` are those that the request's query names
/// ([`ports_from_query`]), which only [`ForwardProtocol::WebSocket`] uses.
pub async fn forward<IO>(
    io: IO,
    protocol: ForwardProtocol,
    ports: &[u16],
    timeouts: &Timeouts,
) -> io::Result<ForwardSession>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (pairing, timeout, idle) = (Pairing::default(), timeouts.streams, Some(timeouts.idle));
    let encoding = match protocol {
        ForwardProtocol::Spdy => {
            let connection = Connection::new(io, Box::new(SpdyWire::new(Role::Server)), true, idle);
            return Ok(ForwardSession { connection, pairing, ready: Vec::new(), timeout });
        }
        ForwardProtocol::Tunnel => {
            let connection = Connection::new(io, Box::new(TunnelWire::new(Role::Server)), true, idle);
            return Ok(ForwardSession { connection, pairing, ready: Vec::new(), timeout });
        }
        ForwardProtocol::WebSocket(encoding) => encoding,
    };
    let mut streams = Vec::new();
    let channels = 0..2 * ports.len() as u32;
    let wire = ChannelWire::new(Role::Server, encoding, false);
    let connection = Connection::quiet(io, Box::new(wire), channels, |_, stream| streams.push(stream), idle);
    let mut ready = Vec::new();
    let mut streams = streams.into_iter();
    for port in ports {
        let (Some(mut data), Some(error)) = (streams.next(), streams.next()) else { break };
        let mut error = error.write_only();
        // Each channel begins with its port, so that clients can tell that it is open.
        data.write_all(&port.to_le_bytes()).await?;
        error.write_all(&port.to_le_bytes()).await?;
        ready.push(Forward { port: *port, data, error });
    }
    ready.reverse();
    Ok(ForwardSession { connection, pairing, ready, timeout })
}

/// The ports of a WebSocket request's query: `port` once or more, each one or several separated by commas. `None` if
/// one is no port, if there is none, or if there are more than channels.
pub fn ports_from_query(query: &str) -> Option<Vec<u16>> {
    let values = query.split('&').filter_map(|pair| pair.strip_prefix("port="));
    // A comma may come encoded.
    let values: Vec<String> = values.map(|value| value.replace("%2C", ",").replace("%2c", ",")).collect();
    let ports: Option<Vec<u16>> = values
        .iter()
        .flat_map(|value| value.split(','))
        .map(|port| port.parse().ok().filter(|port| *port != 0))
        .collect();
    ports.filter(|ports| !ports.is_empty() && ports.len() <= 100)
}
