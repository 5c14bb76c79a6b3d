//! Sends events to the API server as a kubelet does: each distinct one is created once, then its count is raised.
//!
//! One task, started by [`crate::joined`]. The recorder's ring is the queue: an event leaves it when newer ones push it
//! out, so an API server that is away costs no memory, and what still stands in the ring is sent when it is back. The
//! rate is bounded in all and per object, as client-go's spam filter does, so that a pod that fails in a loop neither
//! fills etcd nor hides the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_cluster::{ApiError, Backoff, Cluster, Connection, Object, Patch, Resource};
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
/// Between tries of one event, jittered, and how often it is tried (client-go: `maxTriesPerEvent`).
const RETRY: Duration = Duration::from_secs(10);
const TRIES: u32 = 12;

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
    let mut writer = Writer::new(cluster, node_name, clock);
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
    /// Between tries of one event.
    retry: Duration,
    /// All events up to this number were sent, or will not be.
    sent: u64,
    known: HashMap<Identity, Known>,
    buckets: HashMap<Arc<str>, Bucket>,
    /// Events that were lost since the server took one.
    lost: u64,
}

impl Writer {
    fn new(cluster: Cluster, node_name: String, clock: Clock) -> Self {
        let (known, buckets) = (HashMap::new(), HashMap::new());
        Self { cluster, node_name, clock, retry: RETRY, sent: 0, known, buckets, lost: 0 }
    }

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

    /// Sends one event. Others wait while no server answers; an event that an answer turns away is dropped, as
    /// client-go does it, so that what is wrong with one says nothing about the next.
    async fn send(&mut self, event: &Event, events: &EventRecorder) {
        let mut pauses = Backoff::new((self.retry, self.retry));
        let mut tries = 0;
        while let Err(error) = self.try_send(event).await {
            let is_answer = error.code().is_some() && error.retry_after().is_none();
            tries += u32::from(self.cluster.connection().borrow().is_up());
            if is_answer || !error.is_transient() || tries >= TRIES {
                // A refusal is mostly a namespace that ends.
                if error.code().is_some_and(|code| code < 500) {
                    tracing::debug!(reason = event.reason, %error, "the API server does not take an event");
                } else {
                    self.lose(event, &error);
                }
                return;
            }
            self.until_tried_again(pauses.fail(error.retry_after())).await;
            if !events.snapshot().iter().any(|other| other.sequence == event.sequence) {
                return;
            }
        }
        if self.lost > 0 {
            tracing::info!(dropped = self.lost, "the API server takes events again");
            self.lost = 0;
        }
    }

    /// Tells of the first event that is dropped; the others are counted.
    fn lose(&mut self, event: &Event, error: &ApiError) {
        self.lost += 1;
        if self.lost == 1 {
            let error = error as &dyn std::error::Error;
            let (reason, object) = (&event.reason, &event.name);
            tracing::warn!(reason, object, error, "events are dropped until the API server takes one again");
        }
    }

    async fn until_tried_again(&self, pause: Duration) {
        let mut connection = self.cluster.connection();
        if connection.borrow_and_update().is_up() {
            return tokio::time::sleep(pause).await;
        }
        // Nothing is asked for while nobody answers; others find out when somebody does.
        let up = connection.wait_for(Connection::is_up);
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

#[cfg(test)]
mod tests {
    use coracle_cluster::Scope;
    use coracle_cluster::testing::{FakeApi, Fault, Rule};

    use super::*;
    use crate::events::EventType;

    const EVENTS: &str = "/api/v1/events";

    /// The reasons of events that were written, of two that were sent while `fault` befell the first so often.
    async fn written(fault: Fault, times: usize) -> (Vec<String>, usize) {
        let api = FakeApi::start().await;
        api.add_rule(Rule::all(fault).path("/events").method(http::Method::POST).times(times));
        let clock = Clock::system();
        let events = EventRecorder::new(clock.clone(), 10);
        for reason in ["First", "Second"] {
            events.node("n", EventType::Normal, reason, "said".to_owned());
        }
        let cluster = api.cluster();
        // It is known to answer.
        let _: Vec<Written> = cluster.list(&Scope::all()).await.unwrap();
        let mut writer =
            Writer { retry: Duration::from_millis(1), ..Writer::new(cluster, "n".to_owned(), clock) };
        writer.send_all(&events.snapshot(), &events).await;
        assert_eq!(writer.lost, 0, "what was lost is forgotten once the server takes one");
        let written = api.objects(EVENTS).iter().map(|e| e["reason"].as_str().unwrap().to_owned()).collect();
        (written, api.seen().iter().filter(|seen| seen.method == http::Method::POST).count())
    }

    #[tokio::test]
    async fn an_event_that_is_turned_away_does_not_stop_the_next() {
        for (code, reason) in [(500, "InternalError"), (503, "ServiceUnavailable"), (403, "Forbidden")] {
            let (written, requests) = written(Fault::Status(code, reason, None), 1).await;
            assert_eq!((written, requests), (vec!["Second".to_owned()], 2), "{code}");
        }
    }

    #[tokio::test]
    async fn an_event_is_tried_again_a_bounded_number_of_times() {
        let both = vec!["First".to_owned(), "Second".to_owned()];
        assert_eq!(written(Fault::Status(429, "TooManyRequests", Some(0)), 2).await, (both.clone(), 4));
        assert_eq!(written(Fault::Close, 3).await, (both, 5));
        let tries = usize::try_from(TRIES).unwrap();
        assert_eq!(written(Fault::Close, tries).await, (vec!["Second".to_owned()], tries + 1));
    }
}
