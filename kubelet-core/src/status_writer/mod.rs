//! Writes what the node observed of its pods to the API server, shows static pods there, and deletes pods that have
//! ended.
//!
//! One task, started by [`crate::joined`]. Statuses come by `watch` from the kubelet (latest wins: a pod that changes
//! while its last status is on the way is written once more, not as often as it changed), the API's pods by a channel
//! from their source. At most one request per pod and few altogether are under way; a failed one is tried again with
//! back-off, and at once when the API server answers again. Nothing here is durable: after a start the API's own
//! statuses are the base.

mod entry;
mod mirrors;
mod patch;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_cluster::{ApiError, Cluster, Connection, DeleteOptions, Object, Patch, Resource};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use self::entry::{Entry, Served, Step};
use self::mirrors::{MirrorStep, Mirrors};
use crate::admission::Rejection;
use crate::api::{Node, Pod, PodStatus};
use crate::backoff::{Backoff, BackoffPolicy};
use crate::clock::Clock;
use crate::events::{EventRecorder, EventType};
use crate::kubelet::{PodView, PodViews};
use crate::pod::status::is_terminal_phase;
use crate::qos::qos_class;
use crate::source::{News, Part, PodSet, is_static};

/// Requests that are under way at once.
const AT_ONCE: usize = 8;

/// What the writer works with.
pub(crate) struct Inputs {
    pub(crate) cluster: Cluster,
    pub(crate) clock: Clock,
    pub(crate) events: EventRecorder,
    pub(crate) news: mpsc::UnboundedReceiver<News>,
    pub(crate) statuses: watch::Receiver<PodViews>,
    /// Pods of this node alone, which are shown as mirrors.
    pub(crate) statics: watch::Receiver<PodSet>,
    pub(crate) node: watch::Receiver<Option<Arc<Node>>>,
    /// Gets the pods of which nothing runs here.
    pub(crate) idle: watch::Sender<PodViews>,
}

/// What a request is about: the UID of a pod in the API, or the name of a mirror that is to come or go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    Pod(Arc<str>),
    Mirror(String),
}

enum Answer {
    Patched { version: u64, result: Arc<PodStatus> },
    Deleted,
    Mirror,
}

type Request = BoxFuture<'static, (Key, Result<Answer, ApiError>)>;

/// Runs until the kubelet's statuses or the source of pods end.
pub(crate) async fn run(inputs: Inputs) {
    let mut writer = Writer {
        cluster: inputs.cluster,
        clock: inputs.clock,
        events: inputs.events,
        entries: HashMap::new(),
        mirrors: Mirrors::default(),
        complete: false,
        requests: FuturesUnordered::new(),
        failures: Backoff::new(BackoffPolicy::RETRY),
        held: HashMap::new(),
        failing: false,
        refused: HashMap::new(),
        idle: inputs.idle,
    };
    let (mut news, mut statuses) = (inputs.news, inputs.statuses);
    let (mut statics, mut node) = (inputs.statics, inputs.node);
    let mut connection = writer.cluster.connection();
    let (mut folder_lives, mut node_lives) = (true, true);
    loop {
        writer.read(&statuses.borrow_and_update());
        let uid = node
            .borrow_and_update()
            .as_ref()
            .map(|node| (node.metadata.name.clone(), node.metadata.uid.to_string()));
        let set = statics.borrow_and_update().clone();
        writer.launch(&set, uid.as_ref());
        let pause = writer.next_try();
        tokio::select! {
            // Channels and watches keep what comes while another arm wins; the timer is computed anew.
            heard = news.recv() => match heard {
                Some(heard) => {
                    writer.hear(heard);
                    while let Ok(heard) = news.try_recv() {
                        writer.hear(heard);
                    }
                }
                None => return,
            },
            changed = statuses.changed() => if changed.is_err() {
                return;
            },
            Some((key, answer)) = writer.requests.next(), if !writer.requests.is_empty() => {
                writer.answered(key, answer);
            }
            changed = statics.changed(), if folder_lives => folder_lives = changed.is_ok(),
            changed = node.changed(), if node_lives => node_lives = changed.is_ok(),
            Ok(()) = connection.changed() => {
                if matches!(*connection.borrow_and_update(), Connection::Up { .. }) {
                    writer.held.clear();
                }
            }
            () = pause => {}
        }
    }
}

struct Writer {
    cluster: Cluster,
    clock: Clock,
    events: EventRecorder,
    entries: HashMap<Arc<str>, Entry>,
    mirrors: Mirrors,
    /// All pods of the API were heard of once.
    complete: bool,
    requests: FuturesUnordered<Request>,
    failures: Backoff<Key>,
    /// Until when (since boot) a failed request waits.
    held: HashMap<Key, Duration>,
    /// Whether no request gets through, for one line per change.
    failing: bool,
    /// What the API server does not take, with its words.
    refused: HashMap<Key, String>,
    idle: watch::Sender<PodViews>,
}

impl Writer {
    fn hear(&mut self, news: News) {
        match news {
            News::Complete => self.complete = true,
            News::Gone { uid } => {
                self.entries.remove(&uid);
                self.mirrors.gone(&uid);
                self.idle.send_if_modified(|idle| {
                    idle.contains_key(&uid) && Arc::make_mut(idle).remove(&uid).is_some()
                });
                let key = Key::Pod(uid);
                self.failures.reset(&key);
                self.refused.remove(&key);
                self.held.remove(&key);
            }
            News::Seen { pod, part } => {
                let uid = pod.metadata.uid.clone();
                let entry = self.entries.entry(uid).or_default();
                entry.see(&pod);
                match part {
                    Part::Mirror => self.mirrors.seen(&pod),
                    Part::Idle(rejection) if entry.own.is_none() => {
                        if let Some(rejection) = &rejection {
                            tell_rejection(&self.events, &pod, rejection);
                        }
                        let status = idle_status(&pod, rejection.as_ref(), &self.clock);
                        let status = Arc::new(status);
                        entry.observe(&status, true);
                        let view = PodView { pod: pod.clone(), status, ended: true };
                        self.idle.send_modify(|idle| {
                            Arc::make_mut(idle).insert(pod.metadata.uid.clone(), view);
                        });
                    }
                    Part::Idle(_) | Part::Runs => {}
                }
            }
        }
    }

    /// Takes over what the kubelet observed. A static pod's status is that of its mirror.
    fn read(&mut self, views: &PodViews) {
        for (uid, view) in views.iter() {
            let target = if is_static(&view.pod) { self.mirrors.of(&view.pod) } else { Some(uid.clone()) };
            let Some(entry) = target.and_then(|uid| self.entries.get_mut(&uid)) else { continue };
            entry.observe(&view.status, view.ended);
        }
        self.mirrors
            .set_known(views.values().filter(|view| is_static(&view.pod)).map(|view| view.pod.full_name()));
    }

    /// Starts the requests that are due.
    fn launch(&mut self, statics: &PodSet, node: Option<&(String, String)>) {
        let now = self.clock.now().boot;
        self.held.retain(|_, until| *until > now);
        let (held, room) = (&self.held, AT_ONCE.saturating_sub(self.requests.len()));
        let pods = self.entries.iter_mut();
        let due: Vec<(Arc<str>, Step)> = pods
            .filter(|(uid, _)| held.is_empty() || !held.contains_key(&Key::Pod((*uid).clone())))
            .filter_map(|(uid, entry)| Some((uid.clone(), entry.due()?)))
            .take(room)
            .collect();
        for (uid, step) in due {
            let Some(entry) = self.entries.get_mut(&uid) else { continue };
            let Some(served) = &entry.served else { continue };
            let request = pod_request(self.cluster.clone(), served, step);
            entry.busy = true;
            self.requests.push(request);
        }
        if !self.complete {
            return;
        }
        for step in self.mirrors.plan(statics, node.map(|(name, uid)| (name.as_str(), uid.as_str()))) {
            let key = Key::Mirror(step.name().to_owned());
            if self.requests.len() >= AT_ONCE || self.held.contains_key(&key) {
                continue;
            }
            self.mirrors.begin(step.name());
            self.requests.push(mirror_request(self.cluster.clone(), key, step));
        }
    }

    fn answered(&mut self, key: Key, answer: Result<Answer, ApiError>) {
        if let Key::Mirror(name) = &key {
            self.mirrors.end(name);
        }
        let served = match &key {
            Key::Pod(uid) => self.entries.get(uid).and_then(|entry| entry.served.clone()),
            Key::Mirror(_) => None,
        };
        let served = match answer {
            Ok(answer) => {
                self.succeeded(&key);
                served.map(|served| take(served, answer))
            }
            // The watch is about to tell the same.
            Err(error) if error.is_not_found() => None,
            Err(error) => {
                self.failed(key.clone(), &error);
                served
            }
        };
        if let Key::Pod(uid) = &key
            && let Some(entry) = self.entries.get_mut(uid)
        {
            entry.answered(served);
        }
    }

    fn succeeded(&mut self, key: &Key) {
        self.failures.reset(key);
        self.refused.remove(key);
        if std::mem::replace(&mut self.failing, false) {
            tracing::info!("pod statuses are written again");
        }
    }

    /// Tries again later. Told once: that no request gets through, or that this one is refused.
    fn failed(&mut self, key: Key, error: &ApiError) {
        let now = self.clock.now().boot;
        let until = self.failures.fail(key.clone(), now, jitter());
        let asked = now + error.retry_after().unwrap_or(Duration::ZERO);
        let cause = error as &dyn std::error::Error;
        if error.is_transient() {
            if !std::mem::replace(&mut self.failing, true) {
                tracing::warn!(error = cause, "pod statuses cannot be written; trying again");
            }
        } else if self.refused.get(&key).is_none_or(|text| *text != error.to_string()) {
            tracing::error!(error = cause, "the API server refuses what is told of a pod; trying again");
            self.refused.insert(key.clone(), error.to_string());
        }
        self.held.insert(key, until.max(asked));
    }

    /// Ends when the first of the failed requests may be made again.
    fn next_try(&self) -> impl Future<Output = ()> + use<> {
        let now = self.clock.now().boot;
        let first = self.held.values().min().map(|until| until.saturating_sub(now));
        async move {
            match first {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        }
    }
}

/// What the API has after an answer; a watch may have told of something newer.
fn take(mut served: Served, answer: Answer) -> Served {
    match answer {
        Answer::Patched { version, result } => {
            if version >= served.version {
                served.status = result;
                served.version = version;
            }
        }
        Answer::Deleted => served.delete_sent = true,
        Answer::Mirror => {}
    }
    served
}

/// Picks a jitter; nothing secret depends on it.
fn jitter() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
    u32::try_from(hash >> 32).unwrap_or(0)
}

fn tell_rejection(events: &EventRecorder, pod: &Pod, rejection: &Rejection) {
    tracing::info!(pod = %pod.full_name(), reason = rejection.reason, "pod is not taken");
    events.pod(pod, None, EventType::Warning, &rejection.reason, rejection.message.clone());
}

/// The status of a pod that never runs here.
fn idle_status(pod: &Pod, rejection: Option<&Rejection>, clock: &Clock) -> PodStatus {
    let mut status = pod.status.clone();
    if let Some(rejection) = rejection {
        status = PodStatus {
            observed_generation: pod.metadata.generation,
            phase: "Failed".to_owned(),
            reason: rejection.reason.clone(),
            message: format!("Pod was rejected: {}", rejection.message),
            qos_class: qos_class(pod).as_str().to_owned(),
            start_time: Some(clock.now().wall()),
            ..PodStatus::default()
        };
    } else if is_terminal_phase(&status.phase) {
        status.start_time = status.start_time.or_else(|| Some(clock.now().wall()));
    }
    status
}

/// What is read of the answer to a write.
#[derive(Deserialize)]
struct Written {
    metadata: WrittenMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMetadata {
    #[serde(default)]
    resource_version: String,
}

impl Object for Written {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "pods", "Pod");
}

fn pod_request(cluster: Cluster, served: &Served, step: Step) -> Request {
    let (namespace, name, uid) = (served.namespace.clone(), served.name.clone(), served.uid.clone());
    Box::pin(async move {
        let answer = match step {
            Step::Patch { status, result } => {
                // Only this very pod: under its name may be another by now.
                let patch = json!({"metadata": {"uid": &*uid}, "status": status});
                let patch = Patch::Strategic(patch);
                let written = cluster.patch::<Written>(Some(&namespace), &name, Some("status"), &patch).await;
                written.map(|written| Answer::Patched {
                    version: entry::version(&written.metadata.resource_version),
                    result,
                })
            }
            Step::Delete => delete(&cluster, &namespace, &name, &uid).await.map(|()| Answer::Deleted),
        };
        (Key::Pod(uid), answer)
    })
}

fn mirror_request(cluster: Cluster, key: Key, step: MirrorStep) -> Request {
    Box::pin(async move {
        let answer = match step {
            MirrorStep::Create { namespace, body, .. } => {
                match cluster.create::<Written>(Some(&namespace), None, &body).await {
                    // Written before, and the watch is about to tell; or another's, which is deleted then.
                    Err(error) if error.is_already_exists() => Ok(Answer::Mirror),
                    created => created.map(|_| Answer::Mirror),
                }
            }
            MirrorStep::Delete { namespace, name, uid, .. } => {
                delete(&cluster, &namespace, &name, &uid).await.map(|()| Answer::Mirror)
            }
        };
        (key, answer)
    })
}

async fn delete(cluster: &Cluster, namespace: &str, name: &str, uid: &str) -> Result<(), ApiError> {
    let options = DeleteOptions { grace_period_seconds: Some(0), uid: Some(uid.to_owned()) };
    cluster.delete::<Written>(Some(namespace), name, &options).await
}
