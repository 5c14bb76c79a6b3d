//! The dispatcher: one worker for each pod that should run or still does.
//!
//! One task, started by [`crate::kubelet::Kubelet`]. It compares the desired pods with its workers, starts and
//! tells them, rings them when the runtime did something, and takes up pods of the runtime that nobody wants.
//! It never waits for a worker: it speaks to them by watch, hears of their end through its task set. A worker
//! that panics is that pod's failure: it is told as an event, and begun again with back-off.

mod exits;
mod orphans;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinSet};

use crate::api::{Pod, PodStatus};
use crate::backoff::{Backoff, BackoffPolicy};
use crate::pod::edges::Node;
use crate::pod::status::Eviction;
use crate::pod::worker::{Bell, Desired, Goal, Report, Setup, Worker};
use crate::runtime_watch::{self, Listing, Pulse, RuntimeWatch};
use crate::source::PodSet;

/// Workers get this long to finish the step they are at when the agent drains.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Between tries to list at the start.
const LIST_RETRY: Duration = Duration::from_secs(1);

/// What the owner of a kubelet asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Stop the workers, leave the pods.
    Drain { done: oneshot::Sender<()> },
    /// End one pod for the node's sake.
    Evict { uid: Arc<str>, eviction: Eviction, grace: Option<i64> },
    /// Try again at once what failed.
    Retry,
    /// End all pods, start none any more.
    StopPods { grace: Option<i64>, done: oneshot::Sender<()> },
}

/// What the dispatcher starts from.
pub(crate) struct Inputs {
    pub(crate) node: Arc<Node>,
    pub(crate) pods: watch::Receiver<PodSet>,
    /// Whether `pods` holds what every source wants.
    pub(crate) sources_seen: watch::Receiver<bool>,
    pub(crate) objects: watch::Receiver<u64>,
    pub(crate) reports: mpsc::UnboundedSender<Report>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) last_statuses: BTreeMap<Arc<str>, Arc<PodStatus>>,
}

/// One worker, from the dispatcher's side.
struct Entry {
    desired: watch::Sender<Desired>,
    bell: Arc<Bell>,
    /// Its task; none while a failed worker waits to be begun again at that time (since boot).
    task: Result<Id, Duration>,
}

pub(crate) struct Dispatcher {
    node: Arc<Node>,
    pods: watch::Receiver<PodSet>,
    sources_seen: watch::Receiver<bool>,
    objects: watch::Receiver<u64>,
    reports: mpsc::UnboundedSender<Report>,
    commands: mpsc::Receiver<Command>,
    entries: HashMap<Arc<str>, Entry>,
    tasks: JoinSet<()>,
    by_task: HashMap<Id, Arc<str>>,
    panics: Backoff<Arc<str>>,
    /// Pods that the runtime had when the agent started and that have no worker yet.
    found: Listing,
    /// Statuses of the run before this one, until their pod has a worker.
    last_statuses: BTreeMap<Arc<str>, Arc<PodStatus>>,
    /// Pods that were told of while another of their name had not ended yet.
    waiting: BTreeSet<Arc<str>>,
    stopping: Option<(Option<i64>, Vec<oneshot::Sender<()>>)>,
}

impl Dispatcher {
    pub(crate) fn new(inputs: Inputs) -> Self {
        Self {
            node: inputs.node,
            pods: inputs.pods,
            sources_seen: inputs.sources_seen,
            objects: inputs.objects,
            reports: inputs.reports,
            commands: inputs.commands,
            entries: HashMap::new(),
            tasks: JoinSet::new(),
            by_task: HashMap::new(),
            panics: Backoff::new(BackoffPolicy::RETRY),
            found: Listing::default(),
            last_statuses: inputs.last_statuses,
            waiting: BTreeSet::new(),
            stopping: None,
        }
    }

    /// Runs until the kubelet drains or is dropped.
    pub(crate) async fn run(mut self) {
        let Some(listing) = self.first_listing().await else { return };
        let (sender, mut pulses) = mpsc::channel(256);
        let watch = RuntimeWatch::new(self.node.clone(), sender, &listing);
        let mut watching = JoinSet::new();
        watching.spawn(watch.run());
        self.found = listing;
        let mut swept = self.adopt_and_sweep().await;
        let mut source_lives = true;
        let mut ips = self.node.ips.follow();
        loop {
            self.reconcile();
            let restart = until(self.node.clone(), self.next_restart());
            tokio::select! {
                // Watches and channels keep what comes while another arm wins; the timer is computed anew.
                // A source that is gone wants no changes: its last word stands.
                changed = self.pods.changed(), if source_lives => source_lives = changed.is_ok(),
                () = all_seen(&mut self.sources_seen), if !swept => swept = self.adopt_and_sweep().await,
                // Every pod's status names them.
                Ok(()) = ips.changed() => self.entries.values().for_each(|entry| entry.bell.ring()),
                Some(pulse) = pulses.recv() => self.pulse(pulse),
                Some(exit) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.exited(exit),
                command = self.commands.recv() => match command {
                    Some(Command::Drain { done }) => {
                        self.drain().await;
                        let _ = done.send(());
                        return;
                    }
                    Some(Command::StopPods { grace, done }) => self.stop_pods(grace, done),
                    Some(Command::Evict { uid, eviction, grace }) => self.evict(&uid, eviction, grace),
                    Some(Command::Retry) => self.entries.values().for_each(|entry| entry.bell.ring_for_retry()),
                    None => return self.drain().await,
                },
                () = restart => self.restart_failed(),
            }
        }
    }

    /// What the runtime has at the start; none when the kubelet is dropped before it answers.
    async fn first_listing(&mut self) -> Option<Listing> {
        loop {
            match runtime_watch::list(&self.node).await {
                Ok(listing) => return Some(listing),
                Err(error) => tracing::warn!(%error, "could not list the runtime's pods"),
            }
            tokio::select! {
                // Both only wait.
                () = tokio::time::sleep(LIST_RETRY) => {}
                command = self.commands.recv() => match command {
                    Some(Command::Drain { done } | Command::StopPods { done, .. }) => {
                        let _ = done.send(());
                        return None;
                    }
                    // Nothing runs yet that could be ended or tried again.
                    Some(Command::Evict { .. } | Command::Retry) => {}
                    None => return None,
                },
            }
        }
    }

    /// Makes workers and wishes agree with the desired pods.
    fn reconcile(&mut self) {
        let desired = self.pods.borrow_and_update().clone();
        for (uid, entry) in &self.entries {
            match desired.get(uid).filter(|_| self.stopping.is_none()) {
                Some(pod) => entry.want(pod),
                None => entry.remove(self.stopping.as_ref().and_then(|(grace, _)| *grace)),
            }
        }
        self.forget_waiting(&desired);
        if self.stopping.is_some() {
            self.tell_if_stopped();
            return;
        }
        for (uid, pod) in desired.iter() {
            if self.entries.contains_key(uid) {
                continue;
            }
            if self.entries.values().any(|entry| entry.has_name_of(pod)) {
                // The pod of that name before it has not ended yet; its end leads here again.
                self.report_waiting(pod);
                continue;
            }
            self.spawn(pod.clone(), Goal::Run);
        }
    }

    fn spawn(&mut self, pod: Arc<Pod>, goal: Goal) {
        let uid = pod.metadata.uid.clone();
        self.waiting.remove(&uid);
        let fresh = self.found.pods.remove(&uid).is_none();
        let (desired, receiver) = watch::channel(Desired { pod, goal, grace: None, eviction: None });
        let bell = Arc::new(Bell::default());
        // After a reboot the runtime knows nothing of the pod, and what was known of its containers is no more.
        let last = self.last_statuses.remove(&uid).filter(|_| !fresh);
        let task = self.start(&uid, receiver, bell.clone(), fresh, last);
        self.entries.insert(uid, Entry { desired, bell, task: Ok(task) });
    }

    fn start(
        &mut self,
        uid: &Arc<str>,
        desired: watch::Receiver<Desired>,
        bell: Arc<Bell>,
        fresh: bool,
        last: Option<Arc<PodStatus>>,
    ) -> Id {
        let setup = Setup {
            node: self.node.clone(),
            desired,
            bell,
            reports: self.reports.clone(),
            objects: self.objects.clone(),
            fresh,
            last,
        };
        let task = self.tasks.spawn(Worker::new(setup).run()).id();
        self.by_task.insert(task, uid.clone());
        task
    }

    fn pulse(&mut self, pulse: Pulse) {
        match pulse {
            Pulse::Pod { uid, came_or_went } => {
                if let Some(entry) = self.entries.get(&uid) {
                    if came_or_went { entry.bell.ring_for_relist() } else { entry.bell.ring() }
                }
            }
            Pulse::Unknown => self.entries.values().for_each(|entry| entry.bell.ring_for_relist()),
            Pulse::Listed { listing, changed } => {
                for uid in changed {
                    if let Some(entry) = self.entries.get(&uid) {
                        entry.bell.ring_for_relist();
                    }
                }
                self.found = listing;
                self.found.pods.retain(|uid, _| !self.entries.contains_key(uid));
                self.adopt();
            }
        }
    }

    /// A pod that waited for its name and is not wanted any more never had a worker that could tell of its end.
    fn forget_waiting(&mut self, desired: &PodSet) {
        let is_wanted = |uid: &Arc<str>| self.stopping.is_none() && desired.contains_key(uid);
        let gone: Vec<Arc<str>> = self.waiting.iter().filter(|uid| !is_wanted(uid)).cloned().collect();
        for uid in gone {
            self.waiting.remove(&uid);
            let _ = self.reports.send(Report::Gone { uid });
        }
    }

    fn report_waiting(&mut self, pod: &Arc<Pod>) {
        self.waiting.insert(pod.metadata.uid.clone());
        let status = Arc::new(PodStatus { phase: "Pending".to_owned(), ..PodStatus::default() });
        // The publisher outlives the dispatcher.
        let _ = self.reports.send(Report::Status { pod: pod.clone(), status, ended: false });
    }

    fn stop_pods(&mut self, grace: Option<i64>, done: oneshot::Sender<()>) {
        let (known, waiting) = self.stopping.get_or_insert_with(|| (grace, Vec::new()));
        *known = match (*known, grace) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        waiting.push(done);
    }

    fn evict(&self, uid: &Arc<str>, eviction: Eviction, grace: Option<i64>) {
        let Some(entry) = self.entries.get(uid) else { return };
        entry.desired.send_if_modified(|desired| {
            let shorter = [desired.grace, grace].into_iter().flatten().min();
            let is_news = desired.eviction.is_none() || desired.grace != shorter;
            desired.grace = shorter;
            desired.eviction.get_or_insert(eviction);
            is_news
        });
    }

    fn tell_if_stopped(&mut self) {
        if !self.entries.is_empty() {
            return;
        }
        if let Some((_, waiting)) = &mut self.stopping {
            for done in waiting.drain(..) {
                // Whoever asked may have given up.
                let _ = done.send(());
            }
        }
    }

    /// Lets every worker finish its step and ends it.
    async fn drain(&mut self) {
        for entry in self.entries.values() {
            entry.desired.send_modify(|desired| desired.goal = Goal::Leave);
        }
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_LIMIT, all).await.is_err() {
            tracing::warn!(workers = self.tasks.len(), "workers did not end in time; giving them up");
            self.tasks.shutdown().await;
        }
    }
}

impl Entry {
    /// The pod should run, as it is described now. One that has begun to end goes on ending.
    fn want(&self, pod: &Arc<Pod>) {
        self.desired.send_if_modified(|desired| {
            let news = desired.goal < Goal::Remove && !Arc::ptr_eq(&desired.pod, pod);
            if news {
                desired.pod = pod.clone();
            }
            news
        });
    }

    fn remove(&self, grace: Option<i64>) {
        self.desired.send_if_modified(|desired| {
            let news = desired.goal < Goal::Remove || (grace.is_some() && desired.grace != grace);
            desired.goal = desired.goal.max(Goal::Remove);
            desired.grace = grace.or(desired.grace);
            news
        });
    }

    fn has_name_of(&self, pod: &Pod) -> bool {
        let mine = &self.desired.borrow().pod.metadata;
        mine.name == pod.metadata.name && mine.namespace == pod.metadata.namespace
    }
}

/// Returns once every source has told what it wants; never if they are gone before.
async fn all_seen(sources: &mut watch::Receiver<bool>) {
    if sources.wait_for(|seen| *seen).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Returns at a time since boot, or never.
async fn until(node: Arc<Node>, time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time.saturating_sub(node.clock.now().boot)).await,
        None => std::future::pending().await,
    }
}
