//! The executable as containerd calls it, under the name `containerd-shim-coracle-v1`: the commands `start` and
//! `delete` and the question `-info`, and what a shim that was started so does beyond one of our own runtime: it
//! publishes events and leaves a record for `delete`.
//!
//! `start` prints where the shim of the pod listens, and starts it when there is none. Containers of a pod share a shim
//! by their annotation `io.kubernetes.cri.sandbox-id`. `delete` cleans up after a shim that is gone, in a process of
//! its own. Contract: containerd's `docs/runtime-v2.md`, `core/runtime/v2/command.go`.

mod delete;
mod info;
pub(crate) mod options;
pub(crate) mod publisher;
mod start;

use std::error::Error;
use std::path::{Path, PathBuf};

use options::Record;
use publisher::Publisher;

/// The type that a runtime handler of containerd's settings names.
const RUNTIME_TYPE: &str = "io.containerd.coracle.v1";

/// What containerd asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A shim for a container.
    Start,
    /// The end of what a dead shim left.
    Delete,
    /// What this is.
    Info,
}

/// containerd's command line.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) action: Action,
    pub(crate) namespace: String,
    pub(crate) id: String,
    /// containerd's socket.
    pub(crate) address: String,
    /// Where the bundle is; the working folder when not told.
    pub(crate) bundle: Option<PathBuf>,
}

/// What a shim knows of the containerd that started it.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) publisher: Publisher,
    /// What `delete` has to know, for each bundle.
    pub(crate) record: Record,
}

/// Does what containerd asks for.
pub(crate) fn run(command: &Command) -> Result<(), Box<dyn Error>> {
    match command.action {
        Action::Start => start::start(command).map_err(Into::into),
        Action::Delete => delete::delete(command).map_err(Into::into),
        Action::Info => info::info().map_err(Into::into),
    }
}

/// The root that a shim mounts for a container, below its bundle.
pub(crate) fn rootfs(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}
