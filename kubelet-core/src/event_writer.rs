//! Sends events to the API server as a kubelet does: each distinct one is created once, then its count is raised.
//!
//! One task, started by [`crate::joined`]. The recorder's ring is the queue: an event leaves it when newer ones push it
//! out, so an API server that is away costs no memory, and what still stands in the ring is sent when it is back. The
//! rate is bounded in all and per object, as client-go's spam filter does, so that a pod that fails in a loop neither
//! fills etcd nor hides the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_cluster::{ApiError, Cluster, Connection, Object, Patch, Resource};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::clock::Clock;
use crate::events::{Event, EventRecorder};

/// Distinct events whose name in the API is remembered.
const REMEMBERED: usize = 1000;
/// Events of one object that are sent at once (client-go: `defaultSpamBurst`).
const BURST: f64 = 25.0;
/// One more event of the object is sent after each of these times (client-go: `defaultSpamQPS`).
const REFILL: Duration = Duration::from_secs(300);
/// Between two requests while there is much to send: the kubelet's `--event-qps` of 50.
const SPACING: Duration = Duration::from_millis(20);
/// Between tries when the server refuses.
const RETRY: Duration = Duration::from_secs(10);

/// What of an event's answer is read.
#[derive(Deserialize)]
struct Written {}

impl Object for Written {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "events", "Event");
}

/// What makes an event the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    uid: Arc<str>,
    name: String,
    field_path: String,
    reason: String,
    message: String,
}

impl Identity {
    fn of(event: &Event) -> Self {
        Self {
            uid: event.uid.clone(),
            name: event.name.clone(),
            field_path: event.field_path.clone(),
            reason: event.reason.clone(),
            message: event.message.clone(),
        }
    }
}

/// What is remembered of an event that was created.
struct Known {
    name: String,
    sequence: u64,
}

/// Tokens of one object.
struct Bucket {
    tokens: f64,
    filled: Duration,
}

/// Runs until it is dropped.
pub(crate) async fn run(cluster: Cluster, events: EventRecorder, node_name: String, clock: Clock) {
    let mut writer =
        Writer { cluster, node_name, clock, sent: 0, known: HashMap::new(), buckets: HashMap::new() };
    let (past, mut live) = events.follow();
    writer.send_all(&past, &events).await;
    while wait(&mut live).await {
        // Whatever was told meanwhile stands in the ring with its latest count.
        let pending: Vec<_> = events.snapshot().into_iter().filter(|e| e.sequence > writer.sent).collect();
        writer.send_all(&pending, &events).await;
    }
}

/// Returns when there is something new; false when there never will be.
async fn wait(live: &mut Receiver<Arc<Event>>) -> bool {
    match live.recv().await {
        Ok(_) | Err(RecvError::Lagged(_)) => {
            while live.try_recv().is_ok() {}
            true
        }
        Err(RecvError::Closed) => false,
    }
}

struct Writer {
    cluster: Cluster,
    node_name: String,
    clock: Clock,
    /// All events up to this number were sent, or will not be.
    sent: u64,
    known: HashMap<Identity, Known>,
    buckets: HashMap<Arc<str>, Bucket>,
}

impl Writer {
    async fn send_all(&mut self, pending: &[Arc<Event>], events: &EventRecorder) {
        for event in pending {
            if event.sequence <= self.sent {
                continue;
            }
            if self.may_send(event) {
                self.send(event, events).await;
                tokio::time::sleep(SPACING).await;
            }
            self.sent = event.sequence;
        }
    }

    /// Takes a token of the event's object, if there is one.
    fn may_send(&mut self, event: &Event) -> bool {
        let now = self.clock.now().boot;
        let refilled = |bucket: &Bucket| {
            let gained = now.saturating_sub(bucket.filled).as_secs_f64() / REFILL.as_secs_f64();
            (bucket.tokens + gained).min(BURST)
        };
        // A full bucket is as good as none.
        self.buckets.retain(|_, bucket| refilled(bucket) < BURST);
        let fresh = || Bucket { tokens: BURST, filled: now };
        let bucket = self.buckets.entry(event.uid.clone()).or_insert_with(fresh);
        bucket.tokens = refilled(bucket);
        bucket.filled = now;
        let may = bucket.tokens >= 1.0;
        if may {
            bucket.tokens -= 1.0;
        }
        may
    }

    /// Sends one event, as often as it takes while it stands in the ring.
    async fn send(&mut self, event: &Event, events: &EventRecorder) {
        loop {
            let Err(error) = self.try_send(event).await else { return };
            if !error.is_transient() {
                tracing::debug!(reason = event.reason, %error, "the API server does not take an event");
                return;
            }
            self.until_tried_again(&error).await;
            if !events.snapshot().iter().any(|other| other.sequence == event.sequence) {
                return;
            }
        }
    }

    async fn until_tried_again(&self, error: &ApiError) {
        let mut connection = self.cluster.connection();
        let pause = error.retry_after().unwrap_or(RETRY);
        if matches!(*connection.borrow_and_update(), Connection::Up { .. }) {
            return tokio::time::sleep(pause).await;
        }
        // Nothing is asked for while nobody answers; others find out when somebody does.
        let up = connection.wait_for(|connection| matches!(connection, Connection::Up { .. }));
        let _ = tokio::time::timeout(Duration::from_secs(60), up).await;
    }

    async fn try_send(&mut self, event: &Event) -> Result<(), ApiError> {
        let identity = Identity::of(event);
        let namespace = namespace_of(event);
        if event.count > 1
            && let Some(known) = self.known.get(&identity)
        {
            let patch = Patch::Strategic(count_patch(event));
            match self.cluster.patch::<Written>(Some(namespace), &known.name, None, &patch).await {
                // The API server keeps events for an hour.
                Err(error) if error.is_not_found() => {}
                answer => {
                    answer?;
                    if let Some(known) = self.known.get_mut(&identity) {
                        known.sequence = event.sequence;
                    }
                    return Ok(());
                }
            }
        }
        let name = format!("{}.{:x}", event.name, self.clock.now().wall_nanos);
        let body = body(event, &name, &self.node_name);
        self.cluster.create::<Written>(Some(namespace), None, &body).await?;
        self.known.insert(identity, Known { name, sequence: event.sequence });
        if self.known.len() > REMEMBERED {
            let mut sequences: Vec<u64> = self.known.values().map(|known| known.sequence).collect();
            sequences.sort_unstable();
            let oldest = sequences[REMEMBERED / 10];
            self.known.retain(|_, known| known.sequence > oldest);
        }
        Ok(())
    }
}

/// Events of objects without a namespace are kept in `default`.
fn namespace_of(event: &Event) -> &str {
    if event.namespace.is_empty() { "default" } else { &event.namespace }
}

fn count_patch(event: &Event) -> Value {
    json!({"count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message})
}

fn body(event: &Event, name: &str, node_name: &str) -> Value {
    let mut object = json!({"kind": event.kind, "name": event.name, "uid": &*event.uid});
    if event.kind == "Pod" {
        object["namespace"] = event.namespace.as_str().into();
        object["apiVersion"] = "v1".into();
    }
    if !event.field_path.is_empty() {
        object["fieldPath"] = event.field_path.as_str().into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace_of(event)},
        "involvedObject": object,
        "reason": event.reason,
        "message": event.message,
        "source": {"component": "kubelet", "host": node_name},
        "firstTimestamp": event.first_timestamp,
        "lastTimestamp": event.last_timestamp,
        "count": event.count,
        "type": event.r#type,
        "reportingComponent": "kubelet",
        "reportingInstance": node_name,
    })
}
