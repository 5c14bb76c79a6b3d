//! Port-forward over SPDY: each forwarded connection is two streams, which this brings together. Called by `server`.

use std::collections::HashMap;

use crate::spdy::Headers;

use super::{PORT, REQUEST_ID, STREAM_TYPE};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardKind {
    /// The connection's bytes, both ways.
    Data,
    /// What went wrong, from the server.
    Error,
}

/// What a stream's headers ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardRequest {
    /// Which of the two it is.
    pub kind: ForwardKind,
    /// The pod's port.
    pub port: u16,
    /// The same for both.
    pub request: String,
}

/// Why a stream is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairingError {
    /// No port, or none that can be.
    #[error("stream has no valid {PORT} header")]
    Port,
    /// Neither data nor error.
    #[error("stream has no valid {STREAM_TYPE} header")]
    Type,
    /// The request has this stream already.
    #[error("request {0} has two streams of one type")]
    Twice(String),
    /// More than [`Pairing::MAX`] streams wait for their other half.
    #[error("too many requests without their other stream")]
    TooMany,
}

impl ForwardRequest {
    /// From a stream's headers. Clients older than the request header get one made of the streams' numbers, the data
    /// stream's being two after the error stream's.
    pub fn from_headers(stream: u32, headers: &Headers) -> Result<Self, PairingError> {
        let port = headers.get(PORT).and_then(|port| port.parse().ok()).filter(|port| *port != 0);
        let port = port.ok_or(PairingError::Port)?;
        let (kind, number) = match headers.get(STREAM_TYPE) {
            Some("data") => (ForwardKind::Data, stream.wrapping_sub(2)),
            Some("error") => (ForwardKind::Error, stream),
            _ => return Err(PairingError::Type),
        };
        let request = headers.get(REQUEST_ID).filter(|request| !request.is_empty());
        Ok(Self { kind, port, request: request.map_or_else(|| number.to_string(), str::to_owned) })
    }
}

/// Streams that wait for their other half. `T` is the stream, `I` when it came.
#[derive(Debug)]
pub struct Pairing<T, I> {
    waiting: HashMap<String, (ForwardRequest, T, I)>,
}

impl<T, I> Default for Pairing<T, I> {
    fn default() -> Self {
        Self { waiting: HashMap::new() }
    }
}

impl<T, I: Copy + Ord> Pairing<T, I> {
    /// How many streams may wait.
    pub const MAX: usize = 128;

    /// Takes a stream and returns port, data and error stream once both are there.
    pub fn add(
        &mut self,
        request: ForwardRequest,
        stream: T,
        now: I,
    ) -> Result<Option<(u16, T, T)>, PairingError> {
        match self.waiting.remove(&request.request) {
            None if self.waiting.len() >= Self::MAX => Err(PairingError::TooMany),
            None => {
                self.waiting.insert(request.request.clone(), (request, stream, now));
                Ok(None)
            }
            Some((first, other, since)) => match (first.kind, request.kind) {
                // The data stream's port counts, as with the kubelet.
                (ForwardKind::Data, ForwardKind::Error) => Ok(Some((first.port, other, stream))),
                (ForwardKind::Error, ForwardKind::Data) => Ok(Some((request.port, stream, other))),
                _ => {
                    let twice = PairingError::Twice(request.request);
                    self.waiting.insert(first.request.clone(), (first, other, since));
                    Err(twice)
                }
            },
        }
    }

    /// Takes out what has waited since before `instant`.
    pub fn expire(&mut self, instant: I) -> Vec<T> {
        let late = self.waiting.extract_if(|_, (_, _, since)| *since < instant);
        late.map(|(_, (_, stream, _))| stream).collect()
    }

    /// When the stream came that has waited longest.
    pub fn oldest(&self) -> Option<I> {
        self.waiting.values().map(|(_, _, since)| *since).min()
    }
}
