//! What can go wrong with one request.

use std::time::Duration;

use kube::core::Status;

use crate::pool::TransportError;

/// Why a request brought no answer that could be used.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The API server said no.
    #[error("{what}: {} ({})", status.message, status.code)]
    Status {
        /// The request.
        what: String,
        /// What the server said.
        status: Box<Status>,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
    },
    /// No server could be reached, or the connection broke.
    #[error("{what}: no answer")]
    Transport {
        /// The request.
        what: String,
        /// Why.
        #[source]
        source: TransportError,
    },
    /// The answer did not come in time.
    #[error("{what}: no answer within {} s", after.as_secs())]
    Deadline {
        /// The request.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// The answer is not the object that was asked for.
    #[error("{what}: the answer cannot be read")]
    Decode {
        /// The request.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The answer is larger than any object can be.
    #[error("{what}: the answer is larger than {limit} bytes")]
    TooLarge {
        /// The request.
        what: String,
        /// The bound.
        limit: usize,
    },
    /// The request cannot be made, mostly because of a name that no object can have.
    #[error("{what}: the request cannot be made")]
    Request {
        /// The request.
        what: String,
        /// Why.
        #[source]
        source: kube::core::request::Error,
    },
}

impl ApiError {
    /// The HTTP status, if a server answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(status.code),
            _ => None,
        }
    }

    /// The reason the server gave, such as `NotFound` or `Conflict`; empty without one.
    pub fn reason(&self) -> &str {
        match self {
            Self::Status { status, .. } => &status.reason,
            _ => "",
        }
    }

    /// The server's own words, or an empty string.
    pub fn message(&self) -> &str {
        match self {
            Self::Status { status, .. } => &status.message,
            _ => "",
        }
    }

    /// There is no such object (or no such kind).
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// The object has changed since it was read, or a precondition did not hold.
    pub fn is_conflict(&self) -> bool {
        self.reason() == "Conflict"
    }

    /// An object of this name exists.
    pub fn is_already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }

    /// The credentials may not do this.
    pub fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }

    /// The credentials are not known.
    pub fn is_unauthorized(&self) -> bool {
        self.code() == Some(401)
    }

    /// The version asked for is no longer held by the server.
    pub fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }

    /// How long the server asked to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the same request may well succeed later without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => status.code == 429 || status.code >= 500,
            Self::Transport { .. } | Self::Deadline { .. } => true,
            Self::Decode { .. } | Self::TooLarge { .. } | Self::Request { .. } => false,
        }
    }
}
