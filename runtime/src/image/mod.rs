//! Images: pulled, unpacked, named, held by containers, removed.
//!
//! [`ImageStore`] is owned by the agent process and does the bookkeeping only: a journal of small JSON records and an
//! index of them in memory. Everything that allocates, decompresses or parses foreign bytes runs in a short-lived
//! worker process (see `worker`).
//!
//! Concurrency: the index is behind a mutex that is never held across an await or a system call; files of the
//! journal are written by one task at a time (`journal`); workers run side by side up to a bound, and layers are
//! removed only while none runs.

mod client;
mod confine;
mod decode;
mod digest;
mod error;
mod index;
mod layer;
mod layout;
mod manifest;
#[cfg(feature = "testing")]
pub mod parsers;
mod platform;
mod protocol;
mod recipe;
mod record;
mod recovery;
mod reference;
mod registries;
mod service;
mod store;
mod sys;
mod tar;
mod unpack;
mod worker;

use serde::{Deserialize, Serialize};

pub use digest::{Digest, InvalidDigest};
pub use error::{Failure, FailureKind, ImageError};
pub use platform::Platform;
pub use protocol::Progress;
pub use record::{Empty, Image, ImageConfig};
pub use reference::{InvalidReference, Reference};
pub use registries::{
    AuthEntry, Credentials, Endpoint, InvalidRewrite, Mirror, Registries, RegistryConfig, Tls,
};
pub use store::{ImageStore, Options, Usage};
pub use unpack::Limits;
pub use worker::worker_main;

/// The form in which images are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArchiveFormat {
    /// An OCI image layout in a tar.
    OciArchive,
    /// An OCI image layout in a folder.
    OciLayout,
    /// What `docker save` writes, which `docker load` and `ctr images import` read.
    DockerArchive,
}

/// How a saved tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArchiveCompression {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}
