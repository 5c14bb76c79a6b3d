//! What goes wrong with images, in the agent's terms. Kinds cross the worker's pipe as data; nobody matches on text.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::digest::InvalidDigest;
use super::reference::InvalidReference;

/// The class of a failure that a worker reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The registry knows no such image, or not for this platform.
    NotFound,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry cannot be reached, answers with an error or stalls.
    Network,
    /// Content is not what its digest says.
    Digest,
    /// Content is damaged or cut.
    Corrupt,
    /// Content is refused: it climbs out of its root or is past a limit.
    Refused,
    /// No room on the disk.
    NoSpace,
    /// Reading or writing files failed.
    Io,
    /// The request makes no sense.
    Invalid,
    /// The worker was told to end.
    Cancelled,
    /// The worker died.
    Died,
}

/// A failure that a worker reports.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its class.
    pub kind: FailureKind,
    /// One sentence with the subject, the cause chain joined by colons.
    pub message: String,
}

impl Failure {
    /// A failure of a kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: bounded(message.into()) }
    }

    /// A failure from an error and its sources.
    pub(crate) fn of(kind: FailureKind, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(kind, chain(error))
    }

    /// A failure of the disk, told apart by its cause.
    pub(crate) fn io(subject: &str, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::NoSpace,
            _ => FailureKind::Io,
        };
        Self::new(kind, format!("{subject}: {error}"))
    }
}

/// A failure quotes what a stranger sent, which may be a document's whole length.
fn bounded(message: String) -> String {
    const LONGEST: usize = 2048;
    if message.len() <= LONGEST {
        return message;
    }
    let head = message.floor_char_boundary(LONGEST / 2);
    let tail = message.ceil_char_boundary(message.len() - LONGEST / 4);
    format!("{}… {}", &message[..head], &message[tail..])
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        // Some libraries repeat their source in their own words.
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = source.source();
    }
    text
}

/// What an operation of the store fails with.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of the store.
    #[error("image store {path:?}")]
    Store {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The store belongs to another process.
    #[error("image store {path:?} is in use by another process")]
    InUse {
        /// The store's folder.
        path: PathBuf,
    },
    /// No such image here.
    #[error("image {name:?} not found")]
    NotFound {
        /// The name, ID or digest asked for.
        name: String,
    },
    /// The image is used by containers.
    #[error("image {name:?} is in use by {holders} containers")]
    Held {
        /// The name, ID or digest asked for.
        name: String,
        /// How many hold it.
        holders: usize,
    },
    /// Not a reference.
    #[error("invalid image name")]
    Reference(#[from] InvalidReference),
    /// Not a digest.
    #[error("invalid image digest")]
    Digest(#[from] InvalidDigest),
    /// The pull did not end well.
    #[error("failed to pull and unpack image {reference:?}")]
    Pull {
        /// The normalised reference.
        reference: String,
        /// The cause.
        #[source]
        source: Failure,
    },
    /// Loading an archive did not end well.
    #[error("failed to load images from {path:?}")]
    Load {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Failure,
    },
    /// Saving did not end well.
    #[error("failed to save images to {path:?}")]
    Save {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Failure,
    },
}

impl ImageError {
    /// The class of the failure where a worker told one.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Pull { source, .. } | Self::Load { source, .. } | Self::Save { source, .. } => {
                Some(source.kind)
            }
            Self::NotFound { .. } => Some(FailureKind::NotFound),
            Self::Reference(_) | Self::Digest(_) => Some(FailureKind::Invalid),
            _ => None,
        }
    }
}
