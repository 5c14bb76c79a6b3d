//! What a joined node keeps on disk of its cluster: the pods that the API server bound to it and what they refer to,
//! so that they start again after a reboot with no API server in reach.
//!
//! [`crate::joined`] starts [`keep`], one task that writes the file, and reads it back by [`Kept::read`] when no list
//! of pods came for a while after a start. The file holds Secrets and tokens, hence its mode 0600. It is written only
//! when what should run changes, or with a pause between two writes what that refers to: never for a status, and never
//! while nothing changes. A token is kept as it was when something else was written, since each of a pod's tokens is
//! replaced every hour; the API server, which alone accepts it, gives out a new one as soon as it answers.

use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::api::Pod;
use crate::kubelet::PodViews;
use crate::objects::{ApiObjects, KeptObject, KeptToken};
use crate::pod::status::is_terminal_phase;
use crate::source::{PodSet, is_static};

const VERSION: u32 = 1;
/// Changes that come together are written together.
const GATHER: Duration = Duration::from_secs(2);
/// Between two writes for the sake of objects alone: some change every few seconds, and flash wears out.
const OBJECTS_EVERY: Duration = Duration::from_secs(60);

/// Why there is nothing to start from, or nothing was kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeptError {
    #[error("{}: cannot be read", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: is not what this version wrote", path.display())]
    Decode { path: PathBuf, source: serde_json::Error },
    #[error("{}: is of version {version}, node {node:?}", path.display())]
    Foreign { path: PathBuf, version: u32, node: String },
    #[error("{}: cannot be written", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

/// The content of the file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Kept {
    version: u32,
    node: String,
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) objects: Vec<KeptObject>,
    pub(crate) tokens: Vec<KeptToken>,
}

impl Kept {
    /// What was kept of this node; `None` if nothing was. Blocks.
    pub(crate) fn read(path: &Path, node: &str) -> Result<Option<Self>, KeptError> {
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(KeptError::Read { path: path.to_owned(), source }),
        };
        let kept: Self = serde_json::from_reader(BufReader::new(file))
            .map_err(|source| KeptError::Decode { path: path.to_owned(), source })?;
        if kept.version != VERSION || kept.node != node {
            let (version, node) = (kept.version, kept.node);
            return Err(KeptError::Foreign { path: path.to_owned(), version, node });
        }
        Ok(Some(kept))
    }

    /// Replaces the file; a power loss leaves the one or the other. Blocks.
    fn write(&self, path: &Path) -> Result<(), KeptError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let draft = path.with_extension("draft");
        let folder = path.parent().unwrap_or(Path::new("/"));
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(folder)?;
            let _ = std::fs::remove_file(&draft);
            let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            let mut writer = BufWriter::new(file);
            serde_json::to_writer(&mut writer, self)?;
            writer.flush()?;
            writer.get_ref().sync_all()?;
            std::fs::rename(&draft, path)?;
            std::fs::File::open(folder)?.sync_all()
        };
        write().map_err(|source| KeptError::Write { path: path.to_owned(), source })
    }
}

/// What the task that writes the file works with.
pub(crate) struct Inputs {
    pub(crate) path: PathBuf,
    pub(crate) node_name: String,
    pub(crate) pods: watch::Receiver<PodSet>,
    /// Whether the API server's pods are among them.
    pub(crate) seen: watch::Receiver<bool>,
    pub(crate) statuses: watch::Receiver<PodViews>,
    pub(crate) objects: Arc<ApiObjects>,
}

/// Runs until the source of pods or the kubelet ends.
pub(crate) async fn keep(mut inputs: Inputs) {
    // What was kept is the last word until there is a newer one.
    if inputs.seen.wait_for(|seen| *seen).await.is_err() {
        return;
    }
    let mut changes = inputs.objects.kept_changes();
    let mut last = Kept::default();
    let mut written: Option<tokio::time::Instant> = None;
    let mut failing = false;
    loop {
        let pods = wanted(&inputs.pods.borrow_and_update().clone(), &inputs.statuses.borrow_and_update());
        changes.borrow_and_update();
        let same_pods = same(&last.pods, &pods);
        let (objects, tokens) = inputs.objects.keep(&pods);
        let same_tokens = last.tokens.iter().map(KeptToken::of).eq(tokens.iter().map(KeptToken::of));
        let mut pause = None;
        if written.is_none() || !same_pods || !same_tokens || last.objects != objects {
            let due = written.map_or(Duration::ZERO, |at| OBJECTS_EVERY.saturating_sub(at.elapsed()));
            if written.is_none() || !same_pods || !same_tokens || due.is_zero() {
                let now = Kept { version: VERSION, node: inputs.node_name.clone(), pods, objects, tokens };
                last = write(now, inputs.path.clone(), &mut failing).await;
                written = Some(tokio::time::Instant::now());
            } else {
                pause = Some(due);
            }
        }
        let timer = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        let lives = tokio::select! {
            // Watches keep that they changed while another arm wins; the timer is computed anew.
            changed = inputs.pods.changed() => changed.is_ok(),
            changed = inputs.statuses.changed() => changed.is_ok(),
            changed = changes.changed() => changed.is_ok(),
            () = timer => true,
        };
        if !lives {
            return;
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Writes in a thread of its own; a failure is told once and tried again with the next change.
async fn write(kept: Kept, path: PathBuf, failing: &mut bool) -> Kept {
    let written = tokio::task::spawn_blocking(move || {
        let result = kept.write(&path);
        (kept, result)
    });
    // It panics only when the process ends.
    let Ok((kept, result)) = written.await else { return Kept::default() };
    match result {
        Ok(()) => *failing = false,
        Err(error) if !std::mem::replace(failing, true) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "pods would not start again without the API server: make room, or the folder writable"
            );
        }
        Err(_) => {}
    }
    kept
}

/// The pods of the API that are to run again: what has ended here stays ended.
fn wanted(pods: &PodSet, statuses: &PodViews) -> Vec<Arc<Pod>> {
    let ended = |pod: &Pod| {
        let own = statuses.get(&pod.metadata.uid);
        is_terminal_phase(&pod.status.phase)
            || own.is_some_and(|view| view.ended || is_terminal_phase(&view.status.phase))
    };
    pods.values().filter(|pod| !is_static(pod) && !ended(pod)).cloned().collect()
}

fn same(before: &[Arc<Pod>], now: &[Arc<Pod>]) -> bool {
    before.len() == now.len() && before.iter().zip(now).all(|(a, b)| Arc::ptr_eq(a, b))
}

#[cfg(test)]
mod tests;
