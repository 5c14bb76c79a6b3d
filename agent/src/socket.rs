//! How commands and the agent talk: JSON lines over a root-only unix socket in the state folder.
//!
//! A connection carries one request line and then answer lines, the last of which is [`Answer::Done`] or
//! [`Answer::Failed`]; after [`Answer::Streams`] it carries the streams of a container instead, as the runtime speaks
//! them. The server half is in `run/serve.rs`; the client half here is blocking, for commands.
//! Both sides are the same executable, yet a command of the next release may meet the agent of the last:
//! the request carries [`VERSION`].

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use coracle_kubelet_core::api::Pod;
use coracle_kubelet_core::events::Event;
use coracle_runtime::image::Image;
use serde::{Deserialize, Serialize};

/// Raised when a request or an answer changes its meaning.
pub(crate) const VERSION: u32 = 1;

/// The longest request line; paths and references are short.
pub(crate) const REQUEST_LIMIT: usize = 64 * 1024;

const NOT_UNDERSTOOD: &str = "the agent's answer is not understood; is it of another release?";

/// A request and the version of the protocol it is written in.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub version: u32,
    pub request: Request,
}

/// What a command asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    Pods,
    Events { follow: bool },
    Images,
    Pull { image: String, auth_file: Option<PathBuf> },
    Load { path: PathBuf },
    Save { path: PathBuf, images: Vec<String> },
    Remove { image: String },
    Prune { all: bool },
    StopPods { timeout_seconds: u64 },
    Exec { uid: String, container: String, command: Vec<String>, streams: Streams },
    Attach { uid: String, container: String, streams: Streams },
    PortForward { uid: String },
}

/// Which streams of a command are wanted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// One line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Pod(Box<PodRecord>),
    Event(Box<Event>),
    Image(Box<ImageRecord>),
    Progress(Progress),
    Message(String),
    /// The connection is a stream now; by the name of the protocol that is spoken over SPDY.
    Streams(String),
    Failed(String),
    Done,
}

/// A pod as a command shows it; also the form of its record in the state folder.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub version: u32,
    /// Specification and status.
    pub pod: Pod,
    /// Folder of its logs; one folder per container below.
    pub log_directory: PathBuf,
}

/// An image as a command shows it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// `sha256:` and the digest of its configuration.
    pub id: String,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    pub size_bytes: u64,
}

impl From<&Image> for ImageRecord {
    fn from(image: &Image) -> Self {
        Self {
            id: image.id.clone(),
            tags: image.repo_tags.clone(),
            digests: image.repo_digests.clone(),
            size_bytes: image.size_bytes,
        }
    }
}

/// How far a transfer is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// What is transferred: a layer's short digest, or a step.
    pub item: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 if not known.
    pub total: u64,
}

/// Where the socket lies.
pub(crate) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("coracle.sock")
}

/// A running agent, as a command sees it.
pub(crate) struct Agent {
    stream: UnixStream,
}

impl Agent {
    /// Connects; `None` if no agent runs with that state folder.
    pub(crate) fn connect(state_dir: &Path) -> Result<Option<Self>> {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        let path = path(state_dir);
        match UnixStream::connect(&path) {
            Ok(stream) => Ok(Some(Self { stream })),
            Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot reach the agent at {}", path.display())),
        }
    }

    /// Connects, or fails with what to do.
    pub(crate) fn require(state_dir: &Path) -> Result<Self> {
        Self::connect(state_dir)?.with_context(|| {
            format!("no agent runs with state folder {}; start one with `coracle run`", state_dir.display())
        })
    }

    /// Sends a request for streams and returns the connection that they travel over, with their protocol's name.
    pub(crate) fn open(mut self, request: Request) -> Result<(UnixStream, String)> {
        self.send(request)?;
        // One byte at a time: what follows the line belongs to the streams.
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') && line.len() < REQUEST_LIMIT {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).context("the connection to the agent broke")?;
            line.extend(byte);
        }
        match serde_json::from_slice(&line).context(NOT_UNDERSTOOD)? {
            Answer::Streams(protocol) => Ok((self.stream, protocol)),
            Answer::Failed(message) => bail!(message),
            _ => bail!(NOT_UNDERSTOOD),
        }
    }

    fn send(&mut self, request: Request) -> Result<()> {
        let mut line = serde_json::to_vec(&Envelope { version: VERSION, request })?;
        line.push(b'\n');
        self.stream.write_all(&line).context("cannot send the request to the agent")
    }

    /// Sends a request and hands each answer to `each` until the last.
    pub(crate) fn ask(mut self, request: Request, mut each: impl FnMut(Answer) -> Result<()>) -> Result<()> {
        self.send(request)?;
        for line in BufReader::new(self.stream).lines() {
            let line = line.context("the connection to the agent broke")?;
            let answer = serde_json::from_str(&line).context(NOT_UNDERSTOOD)?;
            match answer {
                Answer::Done => return Ok(()),
                Answer::Failed(message) => bail!(message),
                answer => each(answer)?,
            }
        }
        bail!("the agent ended before it answered")
    }
}
