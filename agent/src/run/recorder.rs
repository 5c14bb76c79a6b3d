//! Writes what commands read when no agent runs: a record per pod and the events, in the state folder.
//!
//! One task, woken by changes alone. It writes to the memory file system, so that nothing reaches flash.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_kubelet_core::api::PodStatus;
use tokio::sync::broadcast::error::RecvError;

use super::Node;
use crate::{events_file, pod_files};

/// Changes within this time are written together.
const TOGETHER: Duration = Duration::from_millis(200);
/// So long after the last change the burst is over, and what it needed goes back to the kernel.
const QUIET: Duration = Duration::from_secs(10);

/// Runs until it is dropped.
pub(super) async fn record(state_dir: PathBuf, node: Arc<Node>) {
    let mut statuses = node.kubelet.statuses();
    let (_, mut live) = node.events.follow();
    let mut written: BTreeMap<Arc<str>, Arc<PodStatus>> = BTreeMap::new();
    let mut told = false;
    let mut trim = false;
    statuses.mark_changed();
    loop {
        let result = tokio::select! {
            // Cancel-safe: a change that is not taken here is still marked.
            changed = statuses.changed() => {
                if changed.is_err() {
                    return;
                }
                trim = true;
                let views = statuses.borrow_and_update().clone();
                let result = write_pods(&state_dir, &node, &views, &mut written);
                drop(views);
                // The first change is written at once, those that follow close upon it together.
                tokio::time::sleep(TOGETHER).await;
                result
            }
            // Cancel-safe: an event is either received or stays in the channel.
            event = live.recv() => match event {
                Ok(event) => {
                    trim = true;
                    events_file::append(&state_dir, &event, || node.events.snapshot())
                }
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            },
            // Cancel-safe: a timer; armed once after a burst, so an idle node has none.
            () = tokio::time::sleep(QUIET), if trim => {
                trim = false;
                coracle_runtime::memory::give_back();
                continue;
            }
        };
        if let Err(error) = result
            && !std::mem::replace(&mut told, true)
        {
            tracing::warn!(error = format!("{error:#}"), "records for commands cannot be written");
        }
    }
}

fn write_pods(
    state_dir: &std::path::Path,
    node: &Node,
    views: &BTreeMap<Arc<str>, coracle_kubelet_core::kubelet::PodView>,
    written: &mut BTreeMap<Arc<str>, Arc<PodStatus>>,
) -> anyhow::Result<()> {
    for (uid, view) in views {
        let is_same = written.get(uid).is_some_and(|status| Arc::ptr_eq(status, &view.status));
        if !is_same {
            pod_files::write(state_dir, &node.record(view))?;
            written.insert(uid.clone(), view.status.clone());
        }
    }
    written.retain(|uid, _| views.contains_key(uid));
    let uids: BTreeSet<&str> = views.keys().map(|uid| &**uid).collect();
    pod_files::retain(state_dir, &uids)
}
