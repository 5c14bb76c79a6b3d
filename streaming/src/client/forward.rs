//! Forwarded connections on the asking side: any number over one upgraded connection.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::Stream;
use crate::channel::{MAX_OUTCOME, PORT, REQUEST_ID, STREAM_TYPE};
use crate::mux::{Connection, SpdyWire, TunnelWire, Wire};
use crate::server::ForwardProtocol;
use crate::spdy::Headers;
use crate::websocket::Role;

/// Opens connections to a pod's ports. Dropping it ends them all.
pub struct Forwarder {
    connection: Connection,
    requests: AtomicU64,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Forwarder").finish_non_exhaustive()
    }
}

/// One forwarded connection.
#[derive(Debug)]
pub struct Forwarded {
    /// The connection's bytes, both ways.
    pub data: Stream,
    error: Stream,
}

impl Forwarded {
    /// What went wrong, once the server is done with the connection; `None` if nothing did.
    pub async fn error(self) -> io::Result<Option<String>> {
        // The data stream lives as long: dropping it would end the connection.
        let (_data, error) = self.into_parts();
        error.await
    }

    /// The data and, by itself, what [`Forwarded::error`] tells.
    pub fn into_parts(self) -> (Stream, impl Future<Output = io::Result<Option<String>>> + Send) {
        let error = async {
            let mut said = Vec::new();
            self.error.take(MAX_OUTCOME as u64).read_to_end(&mut said).await?;
            Ok((!said.is_empty()).then(|| String::from_utf8_lossy(&said).into_owned()))
        };
        (self.data, error)
    }
}

impl Forwarder {
    /// Takes the upgraded connection of an answered request. Only what [`super::Ask::port_forward_answer`] can answer
    /// is spoken here: ports as WebSocket channels are for clients in browsers.
    pub fn new<IO>(io: IO, protocol: ForwardProtocol) -> io::Result<Self>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let wire: Box<dyn Wire> = match protocol {
            ForwardProtocol::Spdy => Box::new(SpdyWire::new(Role::Client)),
            ForwardProtocol::Tunnel => Box::new(TunnelWire::new(Role::Client)),
            ForwardProtocol::WebSocket(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(Self { connection: Connection::new(io, wire, false, None), requests: AtomicU64::new(0) })
    }

    /// Opens a connection to a port. Whether the pod listens there shows later, in [`Forwarded::error`].
    pub async fn connect(&self, port: u16) -> io::Result<Forwarded> {
        let request = self.requests.fetch_add(1, Ordering::Relaxed).to_string();
        let headers = |kind: &str| {
            Headers::new()
                .with(STREAM_TYPE, kind)
                .with(PORT, port.to_string())
                .with(REQUEST_ID, request.as_str())
        };
        let mut error = self.connection.open(&headers("error")).await?;
        // Nothing is ever said on it from this side.
        error.shutdown().await?;
        let data = self.connection.open(&headers("data")).await?;
        Ok(Forwarded { data, error })
    }

    /// Says goodbye and closes the connection; what was written before goes out first.
    pub async fn close(self) {
        self.connection.close().await;
    }

    /// Bytes of buffers that the connection holds, full or not.
    pub fn footprint(&self) -> usize {
        self.connection.footprint()
    }
}
