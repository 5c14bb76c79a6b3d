//! Events: what happened to which pod or to the node, with the kubelet's reasons.
//!
//! Every module of this crate records through a cloned [`EventRecorder`]; the agent reads a snapshot and
//! follows. Recording never waits: it takes one short lock on the ring (no await under it) and sends to a
//! broadcast whose slow readers lose events, not time. The same event again raises its count, and many
//! that differ in their text alone are folded into one, by the rules of client-go's event correlator.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::api::{Pod, Time};
use crate::clock::{Clock, Now};

/// Similar events within this time are folded (client-go: `defaultAggregateIntervalInSeconds`).
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// So many may stand side by side before they are folded (client-go: `defaultAggregateMaxEvents`).
const SIMILAR_LIMIT: usize = 10;
/// What a folded message starts with.
const SIMILAR_PREFIX: &str = "(combined from similar events): ";
/// Messages longer than the API allows are cut.
const MESSAGE_LIMIT: usize = 1024;

/// Whether things go as they should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventType {
    /// As planned.
    Normal,
    /// Someone may want to look.
    Warning,
}

/// One thing that happened, perhaps several times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Rises with every recording; a raised count gets a new number.
    pub sequence: u64,
    /// Normal or warning.
    pub r#type: EventType,
    /// Kind of the object: `Pod` or `Node`.
    pub kind: String,
    /// Its namespace; empty for a node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub uid: Arc<str>,
    /// The part it is about, such as `spec.containers{web}`; empty for the whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field_path: String,
    /// Why, in one CamelCase word.
    pub reason: String,
    /// What a person reads.
    pub message: String,
    /// How often.
    pub count: u32,
    /// First time, by the wall clock as it was then.
    pub first_timestamp: Time,
    /// Last time, by the wall clock as it was then.
    pub last_timestamp: Time,
}

/// Records events; clones share one ring.
#[derive(Clone)]
pub struct EventRecorder(Arc<Shared>);

struct Shared {
    clock: Clock,
    ring: Mutex<Ring>,
    live: broadcast::Sender<Arc<Event>>,
}

struct Ring {
    capacity: usize,
    next_sequence: u64,
    /// Oldest recording first.
    entries: VecDeque<Entry>,
}

struct Entry {
    event: Arc<Event>,
    /// Since boot, for the window of folding.
    last: Duration,
}

/// The object of an event and the part of it.
struct Subject<'a> {
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    uid: &'a Arc<str>,
    field_path: &'a str,
}

impl EventRecorder {
    /// A recorder that remembers the last `capacity` distinct events.
    ///
    /// ```
    /// use coracle_kubelet_core::{clock::Clock, events::{EventRecorder, EventType}};
    ///
    /// let recorder = EventRecorder::new(Clock::system(), 100);
    /// recorder.node("gateway-7", EventType::Normal, "Starting", "Starting kubelet.".into());
    /// let (past, _live) = recorder.follow();
    /// assert_eq!(past[0].reason, "Starting");
    /// ```
    pub fn new(clock: Clock, capacity: usize) -> Self {
        let (live, _) = broadcast::channel(256);
        let ring = Ring { capacity: capacity.max(1), next_sequence: 1, entries: VecDeque::new() };
        Self(Arc::new(Shared { clock, ring: Mutex::new(ring), live }))
    }

    /// Records an event of a pod or, with a field path such as `spec.containers{web}`, of a part of it.
    pub fn pod(&self, pod: &Pod, field_path: Option<&str>, r#type: EventType, reason: &str, message: String) {
        let subject = Subject {
            kind: "Pod",
            namespace: &pod.metadata.namespace,
            name: &pod.metadata.name,
            uid: &pod.metadata.uid,
            field_path: field_path.unwrap_or(""),
        };
        self.record(&subject, r#type, reason, message);
    }

    /// Records an event of the node.
    pub fn node(&self, node: &str, r#type: EventType, reason: &str, message: String) {
        // The kubelet puts the node's name where the UID goes, and so do tools that look for it.
        let uid = Arc::from(node);
        let subject = Subject { kind: "Node", namespace: "", name: node, uid: &uid, field_path: "" };
        self.record(&subject, r#type, reason, message);
    }

    /// All events remembered, oldest recording first.
    pub fn snapshot(&self) -> Vec<Arc<Event>> {
        self.ring().entries.iter().map(|entry| entry.event.clone()).collect()
    }

    /// The events remembered and a stream of those to come, with none between lost or doubled.
    pub fn follow(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let ring = self.ring();
        let live = self.0.live.subscribe();
        (ring.entries.iter().map(|entry| entry.event.clone()).collect(), live)
    }

    fn record(&self, subject: &Subject<'_>, r#type: EventType, reason: &str, mut message: String) {
        truncate(&mut message);
        let now = self.0.clock.now();
        let mut ring = self.ring();
        let event = ring.add(subject, r#type, reason, message, now);
        // Sent under the lock, so that `follow` neither misses nor repeats it. Nobody listening is fine.
        let _ = self.0.live.send(event);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // The ring is consistent between any two statements, so a panic under the lock leaves it usable.
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for EventRecorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventRecorder").field("events", &self.ring().entries.len()).finish()
    }
}

impl Ring {
    fn add(
        &mut self,
        subject: &Subject<'_>,
        r#type: EventType,
        reason: &str,
        message: String,
        now: Now,
    ) -> Arc<Event> {
        let message = self.fold(subject, r#type, reason, message, now);
        let same = self
            .entries
            .iter()
            .rposition(|entry| subject.is_of(&entry.event, r#type, reason) && entry.event.message == message);
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let event = match same.and_then(|at| self.entries.remove(at)) {
            Some(entry) => Event {
                sequence,
                count: entry.event.count.saturating_add(1),
                last_timestamp: now.wall(),
                ..Arc::unwrap_or_clone(entry.event)
            },
            None => subject.event(sequence, r#type, reason, message, now.wall()),
        };
        if self.entries.len() == self.capacity {
            self.entries.pop_front();
        }
        let event = Arc::new(event);
        self.entries.push_back(Entry { event: event.clone(), last: now.boot });
        event
    }

    /// The message under which to record: its own, or the folded one when many alike stand in the window.
    fn fold(
        &self,
        subject: &Subject<'_>,
        r#type: EventType,
        reason: &str,
        message: String,
        now: Now,
    ) -> String {
        let alike = || {
            self.entries.iter().filter(|entry| {
                subject.is_of(&entry.event, r#type, reason)
                    && now.boot.saturating_sub(entry.last) < SIMILAR_WINDOW
            })
        };
        let known = alike().any(|entry| entry.event.message == message);
        if known || alike().count() < SIMILAR_LIMIT {
            return message;
        }
        // One folded entry stands for all further ones; it shows the first text that went into it.
        let folded = alike().find(|entry| entry.event.message.starts_with(SIMILAR_PREFIX));
        let mut text =
            folded.map_or_else(|| format!("{SIMILAR_PREFIX}{message}"), |e| e.event.message.clone());
        truncate(&mut text);
        text
    }
}

impl Subject<'_> {
    fn is_of(&self, event: &Event, r#type: EventType, reason: &str) -> bool {
        event.r#type == r#type
            && event.reason == reason
            && *event.uid == **self.uid
            && event.name == self.name
            && event.namespace == self.namespace
            && event.field_path == self.field_path
            && event.kind == self.kind
    }

    fn event(&self, sequence: u64, r#type: EventType, reason: &str, message: String, wall: Time) -> Event {
        Event {
            sequence,
            r#type,
            kind: self.kind.to_owned(),
            namespace: self.namespace.to_owned(),
            name: self.name.to_owned(),
            uid: self.uid.clone(),
            field_path: self.field_path.to_owned(),
            reason: reason.to_owned(),
            message,
            count: 1,
            first_timestamp: wall,
            last_timestamp: wall,
        }
    }
}

/// Cuts at the API's limit, on a character boundary.
fn truncate(message: &mut String) {
    if message.len() > MESSAGE_LIMIT {
        let end = (0..=MESSAGE_LIMIT).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
    }
}

/// The field path of a container: `spec.containers{web}` and its like for init and ephemeral containers.
pub fn container_field_path(pod: &Pod, container: &str) -> String {
    let kind = if pod.spec.init_containers.iter().any(|c| c.name == container) {
        "initContainers"
    } else if pod.spec.ephemeral_containers.iter().any(|c| c.name == container) {
        "ephemeralContainers"
    } else {
        "containers"
    };
    format!("spec.{kind}{{{container}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = name.into();
        pod.metadata.namespace = "default".into();
        pod.metadata.uid = Arc::from(format!("uid-{name}"));
        pod
    }

    #[tokio::test]
    async fn the_same_event_is_counted_and_followers_see_each_recording() {
        let recorder = EventRecorder::new(Clock::system(), 8);
        let web = pod("web");
        recorder.pod(&web, None, EventType::Normal, "Pulled", "a".into());
        let (past, mut live) = recorder.follow();
        assert_eq!(past.len(), 1);
        recorder.pod(&web, None, EventType::Normal, "Pulled", "a".into());
        recorder.pod(&pod("db"), None, EventType::Normal, "Pulled", "a".into());
        assert_eq!(live.recv().await.unwrap().count, 2);
        assert_eq!(live.recv().await.unwrap().name, "db");
        let counts: Vec<_> = recorder.snapshot().iter().map(|e| (e.name.clone(), e.count)).collect();
        assert_eq!(counts, [("web".to_owned(), 2), ("db".to_owned(), 1)]);
    }

    #[test]
    fn many_alike_are_folded_and_the_ring_is_bounded() {
        let recorder = EventRecorder::new(Clock::system(), 30);
        for n in 0..50 {
            recorder.pod(&pod("web"), None, EventType::Warning, "Failed", format!("try {n}"));
        }
        let events = recorder.snapshot();
        assert_eq!(events.len(), SIMILAR_LIMIT + 1);
        assert_eq!(events.last().unwrap().count, 40);
        assert!(events.last().unwrap().message.starts_with(SIMILAR_PREFIX));
        for n in 0..50 {
            recorder.pod(&pod(&n.to_string()), None, EventType::Normal, "Started", "x".into());
        }
        assert_eq!(recorder.snapshot().len(), 30);
    }

    #[test]
    fn long_messages_are_cut_on_a_character() {
        let recorder = EventRecorder::new(Clock::system(), 3);
        recorder.node("n", EventType::Normal, "Long", "é".repeat(1000));
        assert_eq!(recorder.snapshot()[0].message.len(), 1024);
    }
}
