//! Pods from the API server and from the manifest folder as one set.
//!
//! One task, started and owned by [`ApiPods`]. It reads one filtered watch of pods, and publishes:
//!
//! | channel | from | to |
//! |---|---|---|
//! | `watch<PodSet>` | this task | dispatcher |
//! | `watch<bool>`: all sources were seen | this task | dispatcher, garbage collector |
//! | [`News`] | this task | writer of statuses |
//! | `watch<Vec<Arc<Pod>>>`: pods that have to end | this task | preemption |
//!
//! Until the first list came, pods of the folder run and nothing is removed: the API server may want it. While the
//! API server is away the last word stands; after a start without it, the word that was kept on disk.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use coracle_cluster::{Cluster, Scope};
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::PodSet;
use super::api_pod::ApiPod;
use super::api_table::{News, Table};
use crate::admission::HostRules;
use crate::api::{Node, Pod};
use crate::clock::Clock;
use crate::kept::Kept;
use crate::objects::ApiObjects;

/// An API server that has not listed the pods within this time after a start is taken for away.
const LIST_PATIENCE: Duration = Duration::from_secs(5);

/// UIDs of pods of which nothing runs and nothing will run again, as their workers told it.
pub(crate) type Ended = Arc<BTreeSet<Arc<str>>>;

/// What the source reads.
pub(crate) struct Inputs {
    pub(crate) cluster: Cluster,
    pub(crate) node_name: String,
    /// Pods of this node alone.
    pub(crate) statics: watch::Receiver<PodSet>,
    /// Those that take no room any more.
    pub(crate) ended: watch::Receiver<Ended>,
    /// The node as the API has it, once known.
    pub(crate) node: watch::Receiver<Option<Arc<Node>>>,
    pub(crate) clock: Clock,
    /// What the host lets pods ask of its kernel.
    pub(crate) host: HostRules,
    /// Where to find what was kept over a reboot, and who takes the objects of it.
    pub(crate) kept: Option<(PathBuf, Arc<ApiObjects>)>,
}

/// A running source. Dropping it ends its task; the pods run on.
#[derive(Debug)]
pub(crate) struct ApiPods {
    pub(crate) pods: watch::Receiver<PodSet>,
    pub(crate) seen: watch::Receiver<bool>,
    /// Pods that have to end so that critical ones fit.
    pub(crate) preempted: watch::Receiver<Vec<Arc<Pod>>>,
    task: JoinHandle<()>,
}

impl ApiPods {
    /// Starts reading; the pods of the folder are there at once.
    pub(crate) fn start(inputs: Inputs) -> (Self, mpsc::UnboundedReceiver<News>) {
        let (pods, pods_receiver) = watch::channel(inputs.statics.borrow().clone());
        let (seen, seen_receiver) = watch::channel(false);
        let (news, news_receiver) = mpsc::unbounded_channel();
        let (preempted, preempted_receiver) = watch::channel(Vec::new());
        let statics = inputs.statics.clone();
        let task = Task { table: Table::new(inputs.host.clone()), statics, pods, seen, preempted, news };
        let task = tokio::spawn(task.run(inputs));
        let api_pods = Self { pods: pods_receiver, seen: seen_receiver, preempted: preempted_receiver, task };
        (api_pods, news_receiver)
    }
}

impl Drop for ApiPods {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    table: Table,
    statics: watch::Receiver<PodSet>,
    pods: watch::Sender<PodSet>,
    seen: watch::Sender<bool>,
    preempted: watch::Sender<Vec<Arc<Pod>>>,
    news: mpsc::UnboundedSender<News>,
}

impl Task {
    async fn run(mut self, inputs: Inputs) {
        let scope = Scope::all().fields(format!("spec.nodeName={}", inputs.node_name));
        let mut changes = pin!(inputs.cluster.watch::<ApiPod>(scope));
        let mut node = inputs.node;
        let (mut statics, mut ended) = (inputs.statics, inputs.ended);
        let (mut folder_lives, mut workers_live, mut node_lives) = (true, true, true);
        let patience = tokio::time::sleep(LIST_PATIENCE);
        let mut patience = pin!(patience);
        let mut kept = inputs.kept;
        loop {
            tokio::select! {
                // The stream keeps its place and watches keep their last value while another arm wins.
                change = changes.next() => match change {
                    Some(change) => {
                        let seen = jiff_now(&inputs.clock);
                        let news = self.table.apply(change, &seen);
                        self.tell(news);
                    }
                    None => return,
                },
                // Cancel-safe: a timer.
                () = &mut patience, if kept.is_some() => if let Some((path, objects)) = kept.take() {
                    self.restore(&path, &inputs.node_name, &objects).await;
                },
                changed = statics.changed(), if folder_lives => folder_lives = changed.is_ok(),
                changed = ended.changed(), if workers_live => workers_live = changed.is_ok(),
                changed = node.changed(), if node_lives => node_lives = changed.is_ok(),
            }
            let view = node.borrow_and_update().clone();
            let lasting = lasting(&statics.borrow_and_update(), &ended.borrow_and_update());
            let admitted = self.table.admit(view.as_deref(), &lasting);
            self.tell(admitted);
            self.publish();
        }
    }

    /// Nobody says what should run: what was wanted before the start is wanted still.
    async fn restore(&mut self, path: &Path, node: &str, objects: &ApiObjects) {
        if self.table.is_complete() {
            return;
        }
        let (path, node) = (path.to_owned(), node.to_owned());
        let read = tokio::task::spawn_blocking(move || Kept::read(&path, &node)).await;
        let kept = match read {
            Ok(Ok(Some(kept))) => kept,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "pods of the cluster wait for the API server: what was kept of them cannot be used"
                );
                return;
            }
        };
        tracing::warn!(
            pods = kept.pods.len(),
            "the API server does not say what should run here; what it wanted last runs meanwhile"
        );
        objects.restore(kept.objects, kept.tokens);
        self.table.restore(kept.pods);
    }

    fn tell(&self, news: Vec<News>) {
        for news in news {
            // Without a writer, as while the agent goes, nobody needs to know.
            let _ = self.news.send(news);
        }
    }

    fn publish(&self) {
        let desired = self.table.desired(&self.statics.borrow().clone());
        self.pods.send_if_modified(|pods| {
            let same = pods.len() == desired.len()
                && pods.iter().zip(&desired).all(|((a, pod), (b, other))| a == b && Arc::ptr_eq(pod, other));
            if !same {
                *pods = Arc::new(desired);
            }
            !same
        });
        self.preempted.send_if_modified(|preempted| {
            let now = self.table.preempted();
            let is_news =
                !preempted.iter().map(|pod| &pod.metadata.uid).eq(now.iter().map(|pod| &pod.metadata.uid));
            *preempted = now;
            is_news
        });
        // After the pods, so that whoever hears of it finds them.
        let settled = self.table.is_settled();
        self.seen.send_if_modified(|seen| !std::mem::replace(seen, *seen || settled) && *seen);
    }
}

/// The pods that have not ended: a manifest says nothing of it.
fn lasting(statics: &PodSet, ended: &Ended) -> PodSet {
    if statics.keys().all(|uid| !ended.contains(uid)) {
        return statics.clone();
    }
    let lasting = statics.iter().filter(|(uid, _)| !ended.contains(*uid));
    Arc::new(lasting.map(|(uid, pod)| (uid.clone(), pod.clone())).collect())
}

/// Now as `kubernetes.io/config.seen` has it.
fn jiff_now(clock: &Clock) -> String {
    let nanos = i128::from(clock.now().wall_nanos);
    jiff::Timestamp::from_nanosecond(nanos).map(|time| time.to_string()).unwrap_or_default()
}
