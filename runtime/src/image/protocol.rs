//! What agent, worker and unpacker say to each other: one JSON object per line. The processes live for one request
//! and are executions of the same binary, so the protocol needs no version.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::Failure;
use super::platform::Platform;
use super::record::Record;
use super::registries::{Credentials, Registries};
use super::unpack::Limits;
use super::unpack::job::Job;

/// Agent to worker, its only line; the end of the worker's input means that nobody waits any more.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The store's folder.
    pub(crate) store: PathBuf,
    /// Prefix of the worker's names in `tmp`.
    pub(crate) worker: String,
    pub(crate) platform: Platform,
    pub(crate) limits: Limits,
    pub(crate) task: Task,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    Pull {
        reference: String,
        credentials: Option<Credentials>,
        registries: Box<Registries>,
        /// Seconds without a byte after which a connection counts as stalled.
        stall: f64,
    },
    Load {
        path: PathBuf,
    },
    Save {
        path: PathBuf,
        format: super::ArchiveFormat,
        compression: super::ArchiveCompression,
        images: Vec<Record>,
    },
}

/// How far a task is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// The image is known: its layers' digests and compressed sizes, bottom first.
    Layers {
        /// Digest of the blob, its size in bytes, whether it is here already.
        layers: Vec<(Digest, u64, bool)>,
    },
    /// Bytes of a layer's blob that are here.
    Fetched {
        /// Number of the layer, bottom first.
        layer: usize,
        /// Bytes.
        bytes: u64,
    },
    /// Bytes that a layer has unpacked to.
    Unpacked {
        /// Number of the layer, bottom first.
        layer: usize,
        /// Bytes.
        bytes: u64,
    },
    /// A layer is complete.
    Complete {
        /// Number of the layer, bottom first.
        layer: usize,
    },
    /// A problem that is tried again.
    Retry {
        /// What went wrong.
        message: String,
    },
}

/// Worker to agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    Progress(Progress),
    /// The last line: what was fetched or loaded.
    Done(Vec<Record>),
    Failed(Failure),
}

/// Worker to unpacker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Unpack this after what was ordered before.
    Job(Box<Job>),
    /// So many bytes of the layer's blob are there.
    Grown { layer: usize, bytes: u64 },
    /// The layer's blob is complete and verified.
    Verified { layer: usize },
    /// The layer is here already; report it complete.
    Skip { layer: usize },
}

/// Unpacker to worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Unpacked { layer: usize, bytes: u64 },
    Complete { layer: usize },
    Failed { layer: usize, failure: Failure },
}

/// Writes one message.
pub(crate) fn send(out: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

/// Reads one message, `None` at the end.
pub(crate) fn receive<T: DeserializeOwned>(input: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    if input.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}
