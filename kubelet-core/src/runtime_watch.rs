//! Tells the dispatcher which pods the runtime did something with.
//!
//! One task owned by the dispatcher. It follows the runtime's container events; where the runtime has none, or
//! the stream is broken, it lists every second and compares. Even with events it lists once a minute, for what
//! a runtime may have dropped and for pods that nobody knows. What it tells is a hint: workers look themselves.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{
    Container, ContainerEventResponse, ContainerEventType, GetEventsRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandbox,
};
use coracle_cri::{Code, Status, Stream};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::pod::edges::Node;
use crate::pod::labels::POD_UID;
use crate::pod::rpc::bounded;

/// Between listings while events come.
const SLOW: Duration = Duration::from_secs(60);
/// Between listings while none come, as the kubelet lists.
const FAST: Duration = Duration::from_secs(1);
/// Tries to follow events again are at most so far apart.
const RECONNECT_MAX: Duration = Duration::from_secs(30);

/// What happened.
#[derive(Debug)]
pub(crate) enum Pulse {
    /// To a container or sandbox of this pod; `came_or_went` if the pod's worker may not know it.
    Pod { uid: Arc<str>, came_or_went: bool },
    /// Anything may have.
    Unknown,
    /// A full listing: pods that changed since the last one.
    Listed { listing: Listing, changed: Vec<Arc<str>> },
}

/// Everything the runtime has, by pod UID.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) pods: BTreeMap<Arc<str>, Listed>,
}

/// Sandboxes and containers of one pod.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    pub(crate) sandboxes: Vec<PodSandbox>,
    pub(crate) containers: Vec<Container>,
}

/// Lists the sandboxes and containers of pods; those without a pod's label belong to someone else.
pub(crate) async fn list(node: &Node) -> Result<Listing, Status> {
    let limit = node.deadlines.query;
    let call = node.runtime.list_pod_sandbox(ListPodSandboxRequest::default());
    let sandboxes = bounded("ListPodSandbox", limit, call).await?.items;
    let call = node.runtime.list_containers(ListContainersRequest::default());
    let containers = bounded("ListContainers", limit, call).await?.containers;
    let mut listing = Listing::default();
    for sandbox in sandboxes {
        if let Some(uid) = sandbox.labels.get(POD_UID) {
            listing.pods.entry(Arc::from(uid.as_str())).or_default().sandboxes.push(sandbox);
        }
    }
    for container in containers {
        if let Some(uid) = container.labels.get(POD_UID) {
            listing.pods.entry(Arc::from(uid.as_str())).or_default().containers.push(container);
        }
    }
    Ok(listing)
}

/// Watches the runtime until the dispatcher is gone.
pub(crate) struct RuntimeWatch {
    node: Arc<Node>,
    pulses: mpsc::Sender<Pulse>,
    /// Which pod a container or sandbox is of, for events that do not say.
    owners: HashMap<String, Arc<str>>,
    /// The last listing in short.
    digests: BTreeMap<Arc<str>, u64>,
    /// Whether it was told that the runtime does not answer.
    is_away: bool,
}

/// The dispatcher is gone.
struct Over;

impl RuntimeWatch {
    /// `listing` is where the dispatcher starts from.
    pub(crate) fn new(node: Arc<Node>, pulses: mpsc::Sender<Pulse>, listing: &Listing) -> Self {
        let mut watch =
            Self { node, pulses, owners: HashMap::new(), digests: BTreeMap::new(), is_away: false };
        watch.learn(listing);
        watch
    }

    /// Follows, lists and tells.
    pub(crate) async fn run(mut self) {
        // Ends only when nobody listens any more.
        let Err(Over) = self.follow_or_list().await;
    }

    async fn follow_or_list(&mut self) -> Result<std::convert::Infallible, Over> {
        let mut reconnect = FAST;
        loop {
            match self.node.runtime.get_container_events(GetEventsRequest {}).await {
                Ok(stream) => {
                    // What happened before the stream stood is unknown.
                    self.tell(Pulse::Unknown).await?;
                    self.follow(stream).await?;
                    reconnect = FAST;
                }
                Err(status) if status.code() == Code::Unimplemented => {
                    tracing::info!("the runtime sends no events; listing every second instead");
                    loop {
                        self.list_after(FAST).await?;
                    }
                }
                Err(error) => self.away(&error),
            }
            let until = tokio::time::Instant::now() + reconnect;
            while tokio::time::Instant::now() < until {
                self.list_after(FAST).await?;
            }
            reconnect = RECONNECT_MAX.min(reconnect * 2);
        }
    }

    /// Follows a stream to its end.
    async fn follow(&mut self, mut stream: Stream<ContainerEventResponse>) -> Result<(), Over> {
        let mut due = tokio::time::Instant::now() + SLOW;
        loop {
            tokio::select! {
                // `next` and the timer lose nothing when the other comes first.
                event = stream.next() => match event {
                    Some(Ok(event)) => self.event(event).await?,
                    Some(Err(error)) => {
                        tracing::debug!(%error, "the runtime's events broke off");
                        return Ok(());
                    }
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(due) => {
                    self.list_after(Duration::ZERO).await?;
                    due = tokio::time::Instant::now() + SLOW;
                }
                () = self.pulses.closed() => return Err(Over),
            }
        }
    }

    async fn event(&mut self, event: ContainerEventResponse) -> Result<(), Over> {
        let kind = event.container_event_type();
        let sandbox = event.pod_sandbox_status.as_ref();
        let labels = event.containers_statuses.iter().map(|status| &status.labels);
        let said = sandbox.map(|s| &s.labels).into_iter().chain(labels).find_map(|l| l.get(POD_UID));
        let uid = match said {
            Some(uid) => Some(Arc::from(uid.as_str())),
            None => self.owners.get(&event.container_id).cloned(),
        };
        match (&uid, kind) {
            (_, ContainerEventType::ContainerDeletedEvent) => {
                self.owners.remove(&event.container_id);
            }
            (Some(uid), _) => {
                self.owners.insert(event.container_id, uid.clone());
            }
            (None, _) => {}
        }
        let came_or_went = kind == ContainerEventType::ContainerDeletedEvent;
        match uid {
            Some(uid) => self.tell(Pulse::Pod { uid, came_or_went }).await,
            // What was deleted belonged to nobody we know; anything else may be anyone's.
            None if came_or_went => Ok(()),
            None => self.tell(Pulse::Unknown).await,
        }
    }

    async fn list_after(&mut self, pause: Duration) -> Result<(), Over> {
        tokio::select! {
            // Both only wait.
            () = tokio::time::sleep(pause) => {}
            () = self.pulses.closed() => return Err(Over),
        }
        match list(&self.node).await {
            Ok(listing) => {
                if std::mem::take(&mut self.is_away) {
                    tracing::info!("the runtime answers again");
                }
                let changed = self.learn(&listing);
                self.tell(Pulse::Listed { listing, changed }).await
            }
            Err(error) => {
                self.away(&error);
                Ok(())
            }
        }
    }

    /// Tells once that the runtime does not answer.
    fn away(&mut self, error: &Status) {
        if !std::mem::replace(&mut self.is_away, true) {
            tracing::warn!(error = error.message(), "the runtime does not answer; pods run on without care");
        }
    }

    /// Remembers a listing; the pods that differ from the one before.
    fn learn(&mut self, listing: &Listing) -> Vec<Arc<str>> {
        let digests: BTreeMap<Arc<str>, u64> =
            listing.pods.iter().map(|(uid, listed)| (uid.clone(), listed.digest())).collect();
        let gone = self.digests.keys().filter(|uid| !digests.contains_key(*uid));
        let new = digests.iter().filter(|(uid, digest)| self.digests.get(*uid) != Some(digest));
        let changed: Vec<Arc<str>> = gone.chain(new.map(|(uid, _)| uid)).cloned().collect();
        self.owners.clear();
        for (uid, listed) in &listing.pods {
            let sandboxes = listed.sandboxes.iter().map(|s| &s.id);
            for id in sandboxes.chain(listed.containers.iter().map(|c| &c.id)) {
                self.owners.insert(id.clone(), uid.clone());
            }
        }
        self.digests = digests;
        changed
    }

    async fn tell(&self, pulse: Pulse) -> Result<(), Over> {
        self.pulses.send(pulse).await.map_err(|_| Over)
    }
}

impl Listed {
    /// Differs when anything came, went or changed its state.
    fn digest(&self) -> u64 {
        let sandboxes = self.sandboxes.iter().map(|s| (s.id.as_str(), s.state));
        let mut all: Vec<(&str, i32)> =
            sandboxes.chain(self.containers.iter().map(|c| (c.id.as_str(), c.state))).collect();
        all.sort_unstable();
        let mut hasher = DefaultHasher::new();
        all.hash(&mut hasher);
        hasher.finish()
    }
}
