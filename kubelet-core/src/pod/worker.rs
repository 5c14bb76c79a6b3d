//! The task that owns one pod from its first sync to its removal.
//!
//! Started by the dispatcher, one per UID. It is woken by a change of what is desired, the runtime's events
//! (through its [`Bell`]), probe results, changed objects and one timer; each wake leads to a look at the
//! runtime, a status and a plan. Only this task changes what is known of the pod. It ends when the pod is
//! gone from runtime and disk, or at once when the agent drains.

mod carrying;
mod ending;
mod resizing;
mod usage;
mod wake;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::api::{Pod, PodStatus, Time};
use crate::backoff::{Backoff, BackoffPolicy};
use crate::events::{EventType, container_field_path};
use crate::pod::edges::Node;
use crate::pod::execute::go_error;
use crate::pod::observation::Observation;
use crate::pod::observe::Observer;
use crate::pod::plan::{self, BackoffKey, ContainerKind, Plan};
use crate::pod::resize::{Resizing, Sizes};
use crate::pod::restart;
use crate::pod::start::describe;
use crate::pod::status::{self, Eviction, StartFailure, is_terminal_phase};
use crate::probe::ProbeResults;
use crate::probe::prober::{ProbeReport, Prober};

pub(crate) use wake::Bell;

/// What is wanted of a pod. A goal only moves down this list, so that what has begun to end does end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Goal {
    /// It should run.
    Run,
    /// It should end, and stay known.
    Terminate,
    /// It should end and be gone.
    Remove,
    /// The agent goes: leave the pod as it is.
    Leave,
}

/// What the dispatcher tells a worker; the latest counts.
#[derive(Clone, Debug)]
pub(crate) struct Desired {
    pub(crate) pod: Arc<Pod>,
    pub(crate) goal: Goal,
    /// Seconds that the pod may take to end, when not its own.
    pub(crate) grace: Option<i64>,
    /// Why the node ends it, if it does.
    pub(crate) eviction: Option<Eviction>,
}

/// What a worker tells about its pod.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    /// Its status changed.
    Status {
        pod: Arc<Pod>,
        status: Arc<PodStatus>,
        /// Nothing of it runs or is mounted, and nothing will be again.
        ended: bool,
    },
    /// Nothing of it is left.
    Gone { uid: Arc<str> },
}

/// What a worker starts from.
pub(crate) struct Setup {
    pub(crate) node: Arc<Node>,
    pub(crate) desired: watch::Receiver<Desired>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) reports: mpsc::UnboundedSender<Report>,
    /// Rises when configMaps or secrets change.
    pub(crate) objects: watch::Receiver<u64>,
    /// The runtime is known to have nothing of this pod.
    pub(crate) fresh: bool,
    /// Its status as the run before this one left it.
    pub(crate) last: Option<Arc<PodStatus>>,
}

/// State of one pod's task.
pub(crate) struct Worker {
    node: Arc<Node>,
    pod: Arc<Pod>,
    desired: watch::Receiver<Desired>,
    bell: Arc<Bell>,
    reports: mpsc::UnboundedSender<Report>,
    objects: watch::Receiver<u64>,
    observer: Observer,
    observed: Observation,
    failures: BTreeMap<String, StartFailure>,
    results: ProbeResults,
    prober: Prober,
    probe_reports: mpsc::UnboundedReceiver<ProbeReport>,
    crashes: Backoff<BackoffKey>,
    /// Steps that failed, by container; the empty name is the pod's own.
    retries: Backoff<String>,
    /// When each may be tried again.
    held: BTreeMap<String, Duration>,
    /// First sight of the pod: since boot, and as people read it.
    start: Option<(Duration, Time)>,
    eviction: Option<Eviction>,
    restarting_all: bool,
    status: Option<Arc<PodStatus>>,
    /// What stands in for `status` until there is one.
    last: Option<Arc<PodStatus>>,
    /// Whether the pod was torn down.
    ended: bool,
    last_plan: Option<Plan>,
    /// When to render configMaps, secrets and fields into the pod's volumes again (since boot).
    refresh_at: Option<Duration>,
    /// Of the objects that the pod refers to, when they were looked at last.
    revision: Option<u64>,
    /// When to look again at what the pod's volumes hold (since boot).
    usage_at: Duration,
    sizes: Sizes,
    resizing: Option<Resizing>,
}

/// What a sync leads to.
enum Next {
    /// Wait for a wake, at most until then (since boot).
    Wait(Option<Duration>),
    Again,
    Terminate,
    Leave,
}

impl Worker {
    pub(crate) fn new(setup: Setup) -> Self {
        let pod = setup.desired.borrow().pod.clone();
        let (sender, probe_reports) = mpsc::unbounded_channel();
        // What the API server was told last; after a reboot its containers are no more, but they counted.
        let told = Some(&pod.status).filter(|s| s.start_time.is_some() || !s.conditions.is_empty());
        let told = told.map(|status| Arc::new(status.clone()));
        let known = setup.last.as_deref().or(told.as_deref());
        let sizes = Sizes::found(&pod, known, |pod| setup.node.resources.limits(pod));
        let resizing = known.and_then(Resizing::of_status);
        let of_containers = setup.last.as_deref().or(told.as_deref().filter(|_| !setup.fresh));
        Self {
            prober: Prober::new(setup.node.clone(), sender),
            observer: Observer::new(pod.metadata.uid.clone(), setup.fresh),
            node: setup.node,
            pod,
            desired: setup.desired,
            bell: setup.bell,
            reports: setup.reports,
            objects: setup.objects,
            observed: Observation::default(),
            failures: BTreeMap::new(),
            results: of_containers.map(ProbeResults::of_status).unwrap_or_default(),
            probe_reports,
            crashes: Backoff::new(BackoffPolicy::CRASH_LOOP),
            retries: Backoff::new(BackoffPolicy::RETRY),
            held: BTreeMap::new(),
            start: None,
            eviction: None,
            restarting_all: false,
            status: None,
            last: setup.last.or(told),
            ended: false,
            last_plan: None,
            // What changed while no agent ran is rendered at once.
            refresh_at: (!setup.fresh).then_some(Duration::ZERO),
            revision: None,
            usage_at: Duration::ZERO,
            sizes,
            resizing,
        }
    }

    /// Runs until the pod is gone, or the agent drains.
    pub(crate) async fn run(mut self) {
        loop {
            match self.sync().await {
                Next::Wait(until) => self.wait(until).await,
                Next::Again => {}
                Next::Terminate => break,
                Next::Leave => return,
            }
        }
        Box::pin(self.end()).await;
    }

    async fn sync(&mut self) -> Next {
        match self.take_desired() {
            Goal::Run => {}
            Goal::Terminate | Goal::Remove => return Next::Terminate,
            Goal::Leave => return Next::Leave,
        }
        if let Err(status) = Box::pin(self.look()).await {
            let text = format!("error determining status: {}", go_error(&status));
            self.node.events.pod(&self.pod, None, EventType::Warning, "FailedSync", text);
            return Next::Wait(Some(self.hold("")));
        }
        self.check_deadline();
        self.check_usage().await;
        self.follow_resize();
        self.report(false);
        if self.status.as_ref().is_some_and(|s| is_terminal_phase(&s.phase)) {
            return Next::Terminate;
        }
        let plan = self.plan();
        if plan.is_idle() {
            self.last_plan = None;
            if self.held.is_empty() {
                self.retries.reset(&String::new());
            }
            return Next::Wait(self.next_deadline(&plan));
        }
        if self.last_plan.as_ref() == Some(&plan) {
            // It was carried out and nothing came of it: the runtime says one thing and does another.
            self.last_plan = None;
            self.observer.relist();
            return Next::Wait(Some(self.hold("")));
        }
        self.last_plan = Some(plan.clone());
        // On the heap while it lasts: a pod that rests should cost little memory.
        Box::pin(self.carry_out(plan)).await;
        Next::Again
    }

    /// Takes over the latest wish and says what it is.
    fn take_desired(&mut self) -> Goal {
        let desired = self.desired.borrow_and_update().clone();
        if !Arc::ptr_eq(&self.pod, &desired.pod) {
            let before = std::mem::replace(&mut self.pod, desired.pod);
            self.held.clear();
            self.refresh_at = Some(Duration::ZERO);
            self.note_allocation(&before);
        }
        if self.eviction.is_none() {
            self.eviction = desired.eviction;
        }
        let deleted =
            self.pod.metadata.deletion_timestamp.is_some() || is_terminal_phase(&self.pod.status.phase);
        if desired.goal == Goal::Run && deleted { Goal::Terminate } else { desired.goal }
    }

    async fn look(&mut self) -> Result<(), coracle_cri::Status> {
        if self.bell.take_relist() {
            self.observer.relist();
        }
        if self.bell.take_retry() {
            self.held.clear();
        }
        let looked = self.observer.look(&self.node).await;
        let observed = looked.inspect_err(|_| self.observer.relist())?;
        self.observed = observed;
        let observed = &self.observed;
        self.results.retain(|id| observed.containers.iter().any(|c| *c.id == *id));
        if self.start.is_none() {
            let now = self.node.clock.now();
            let oldest = observed.sandboxes.iter().min_by_key(|s| s.created);
            let wall = |s: &crate::pod::observation::Sandbox| {
                Time::from_unix_nanos(s.created_nanos).unwrap_or_else(|| now.wall())
            };
            self.start = Some(oldest.map_or((now.boot, now.wall()), |s| (s.created, wall(s))));
        }
        Ok(())
    }

    /// A pod that was active for longer than it may be fails.
    fn check_deadline(&mut self) {
        let Some(until) = self.active_until().filter(|_| self.eviction.is_none()) else { return };
        if self.node.clock.now().boot < until {
            return;
        }
        let (reason, message) =
            ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline");
        self.node.events.pod(&self.pod, None, EventType::Normal, reason, message.to_owned());
        self.eviction =
            Some(Eviction { reason: reason.to_owned(), message: message.to_owned(), disruption: None });
    }

    fn active_until(&self) -> Option<Duration> {
        let seconds = u64::try_from(self.pod.spec.active_deadline_seconds?).unwrap_or(0);
        Some(self.start?.0 + Duration::from_secs(seconds))
    }

    /// Computes the status, tells it when it changed, and lets the prober follow.
    fn report(&mut self, terminal: bool) {
        let now = self.node.clock.now();
        self.restarting_all = !terminal
            && (restart::all_containers_restart(&self.pod, &self.observed)
                || (self.restarting_all && self.any_instance_left()));
        let status = status::status(&status::Inputs {
            pod: &self.pod,
            observed: &self.observed,
            old: self.status.as_deref().or(self.last.as_deref()),
            failures: &self.failures,
            probes: &self.results,
            eviction: self.eviction.as_ref(),
            terminal,
            restarting_all: self.restarting_all,
            sizes: &self.sizes,
            resizing: self.resizing.as_ref(),
            start_time: self.start.map_or_else(|| now.wall(), |start| start.1),
            node: &self.node.facts(),
            now,
        });
        self.tell_of_waiting(self.status.as_deref().or(self.last.as_deref()), &status);
        self.publish(status);
        if let Some(status) = &self.status {
            self.prober.follow(&self.pod, &self.observed, status);
        }
    }

    fn any_instance_left(&self) -> bool {
        let mut containers = self.pod.spec.init_containers.iter().chain(&self.pod.spec.containers);
        containers.any(|c| self.observed.latest(&c.name).is_some())
    }

    fn publish(&mut self, status: PodStatus) {
        if self.status.as_deref() == Some(&status) {
            return;
        }
        self.tell(Arc::new(status));
    }

    fn tell(&mut self, status: Arc<PodStatus>) {
        self.status = Some(status.clone());
        self.last = None;
        if self.pod.metadata.name.is_empty() {
            // Left on disk by a pod that nobody knows any more.
            return;
        }
        // The publisher outlives the workers; while the agent goes down nobody needs the status.
        let ended = self.ended;
        let _ = self.reports.send(Report::Status { pod: self.pod.clone(), status, ended });
    }

    /// Plans, notes which containers wait, and holds back what failed a moment ago.
    fn plan(&mut self) -> Plan {
        let now = self.node.clock.now();
        let mut plan = plan::plan(&plan::Inputs {
            pod: &self.pod,
            observed: &self.observed,
            probes: &self.results,
            backoff: &self.crashes,
            restarting_all: self.restarting_all,
            sizes: &self.sizes,
            now,
        });
        self.note_waits(&plan);
        self.held.retain(|_, until| *until > now.boot);
        if self.held.contains_key("") {
            // The pod as a whole has to wait; what it waits for is in `held`.
            return Plan { waits: plan.waits, ..Plan::default() };
        }
        if self.held.contains_key(resizing::RESIZE) {
            plan.resize = None;
        }
        let held = &self.held;
        let blocked = plan
            .start
            .iter()
            .position(|start| start.kind == ContainerKind::Init && held.contains_key(&start.name));
        plan.start.truncate(blocked.unwrap_or(usize::MAX));
        plan.start.retain(|start| !held.contains_key(&start.name));
        plan
    }

    fn note_waits(&mut self, plan: &Plan) {
        let mut news = false;
        for wait in &plan.waits {
            let message = format!(
                "back-off {} restarting failed container={} pod={}",
                go_duration(wait.delay),
                wait.name,
                describe(&self.pod)
            );
            let failure = StartFailure { reason: "CrashLoopBackOff".to_owned(), message };
            if self.failures.get(&wait.name) == Some(&failure) {
                continue;
            }
            news = true;
            let text =
                format!("Back-off restarting failed container {} in pod {}", wait.name, describe(&self.pod));
            let path = container_field_path(&self.pod, &wait.name);
            self.node.events.pod(&self.pod, Some(&path), EventType::Warning, "BackOff", text);
            self.failures.insert(wait.name.clone(), failure);
        }
        if news {
            self.report(false);
        }
    }

    /// When to look again if nothing happens (since boot).
    fn next_deadline(&self, plan: &Plan) -> Option<Duration> {
        let waits = plan.waits.iter().map(|wait| wait.until);
        let active = self.active_until().filter(|_| self.eviction.is_none());
        let usage = (self.eviction.is_none() && self.has_bounded_storage()).then_some(self.usage_at);
        waits.chain(self.held.values().copied()).chain(active).chain(usage).min()
    }

    /// Counts a failure of a container, or of the pod, and says when to try again.
    fn hold(&mut self, name: &str) -> Duration {
        let now = self.node.clock.now().boot;
        let until = self.retries.fail(name.to_owned(), now, random());
        self.held.insert(name.to_owned(), until);
        until
    }

    async fn look_and_report(&mut self) {
        // A look that fails here is made again with the next sync, which tells of it.
        if self.look().await.is_ok() {
            self.report(false);
        }
    }

    fn apply_probe(&mut self, report: &ProbeReport) {
        if self.results.set(report.id.clone(), report.kind, report.success) {
            self.report(false);
        }
    }
}

/// A delay as Go prints it: `10s`, `1m20s`, `5m0s`.
fn go_duration(delay: Duration) -> String {
    let seconds = delay.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

/// Picks a jitter; nothing secret depends on it.
fn random() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
    u32::try_from(hash >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task that waits holds no more than this; what it needs to act is on the heap while it acts.
    #[test]
    fn a_resting_worker_is_small() {
        fn size<T>(_: impl FnOnce(Worker) -> T) -> usize {
            size_of::<T>()
        }
        let worker = size_of::<Worker>();
        let task = size(Worker::run);
        assert!(task < 6 * 1024, "a worker takes {worker} bytes, its task {task}");
    }
}
