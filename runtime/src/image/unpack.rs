//! Layers into folders: what runs in the confined unpack process.
//!
//! `apply` turns one tar stream into one overlay folder, `tree` resolves names in it, `job` does a whole layer:
//! decode, verify, list, sync, rename. Called by `worker::unpacker` alone, in a process that ends with the image.

use std::io;

use crate::image::digest::Digest;
use crate::image::error::FailureKind;

pub(crate) mod apply;
pub(crate) mod job;
pub(crate) mod metadata;
pub(crate) mod tree;

/// Bounds on what one image may take when unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Bytes of all files of a layer.
    pub bytes: u64,
    /// Files, folders and links of a layer.
    pub inodes: u64,
    /// Bytes of the file system that stay free.
    pub keep_free: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, inodes: 4_000_000, keep_free: 64 << 20 }
    }
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error("entry {path:?} of the layer climbs out of its root {how}; the image is refused")]
    Climbs { path: String, how: &'static str },
    #[error("entry {path:?} of the layer lies deeper than 256 folders")]
    TooDeep { path: String },
    #[error("entry {path:?} of the layer has a whiteout name that names nothing")]
    Whiteout { path: String },
    #[error("the layer unpacks past the limit of {limit} {what}; the image is refused")]
    Limit { limit: u64, what: &'static str },
    #[error(
        "no space left for images: less than {keep_free} bytes would stay free; remove unused images or make room"
    )]
    NoSpace { keep_free: u64 },
    #[error("cannot unpack {path:?}")]
    File { path: String, source: io::Error },
    #[error("cannot decode the layer")]
    Decode(#[source] io::Error),
    #[error("the layer unpacks to {found}, but the image's config says {wanted}")]
    DiffId { wanted: Digest, found: Digest },
    #[error("cannot store the layer")]
    Store(#[source] io::Error),
}

impl LayerError {
    fn climbs(path: &[u8]) -> Self {
        Self::Climbs { path: lossy(path), how: "by its name" }
    }

    fn climbs_by_link(path: &[u8]) -> Self {
        Self::Climbs { path: lossy(path), how: "through a symlink" }
    }

    fn too_deep(path: &[u8]) -> Self {
        Self::TooDeep { path: lossy(path) }
    }

    fn file(path: &[u8], source: io::Error) -> Self {
        Self::File { path: lossy(path), source }
    }

    fn about(self, path: &[u8]) -> Self {
        match self {
            Self::File { source, .. } => Self::file(path, source),
            other => other,
        }
    }

    /// What kind of failure the agent reports.
    pub(crate) fn kind(&self) -> FailureKind {
        match self {
            Self::NoSpace { .. } => FailureKind::NoSpace,
            Self::Limit { .. } => FailureKind::Refused,
            Self::Climbs { .. } | Self::TooDeep { .. } | Self::Whiteout { .. } => FailureKind::Refused,
            Self::DiffId { .. } => FailureKind::Digest,
            Self::File { source, .. } | Self::Store(source) | Self::Decode(source) => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::NoSpace,
                io::ErrorKind::FileTooLarge => FailureKind::Refused,
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => FailureKind::Corrupt,
                io::ErrorKind::Interrupted | io::ErrorKind::BrokenPipe => FailureKind::Cancelled,
                _ if matches!(self, Self::Decode(_)) => FailureKind::Corrupt,
                _ => FailureKind::Io,
            },
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
