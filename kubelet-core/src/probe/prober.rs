//! The tasks that probe the containers of one pod.
//!
//! Owned by the pod's worker: dropping the prober ends all its tasks. A task exists for each probe of a
//! container from the container's first run on; the worker tells it by watch which run there is now, it tells
//! the worker each verdict. Between checks it sleeps; without a run it waits for the watch alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::ProbeKind;
use super::check::{Checked, Subject, check};
use super::counts::ProbeCount;
use super::schedule::Schedule;
use crate::api::{Container, Pod, PodStatus, Probe};
use crate::events::{EventType, container_field_path};
use crate::pod::edges::Node;
use crate::pod::observation::{ContainerPhase, Observation};

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbeReport {
    pub(crate) id: Arc<str>,
    pub(crate) kind: ProbeKind,
    pub(crate) success: bool,
}

/// What a task must know of its container.
#[derive(Clone, Debug)]
struct Target {
    pod: Arc<Pod>,
    run: Option<Run>,
    pod_ip: String,
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pod, &other.pod) && self.run == other.run && self.pod_ip == other.pod_ip
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Run {
    id: Arc<str>,
    since: Duration,
    started: bool,
}

/// Probes the containers of one pod.
pub(crate) struct Prober {
    node: Arc<Node>,
    reports: mpsc::UnboundedSender<ProbeReport>,
    targets: HashMap<String, watch::Sender<Target>>,
    tasks: JoinSet<()>,
    /// When the pod was first seen, since boot.
    first_seen: Duration,
    scope: Scope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    All,
    Readiness,
    Nothing,
}

impl Prober {
    pub(crate) fn new(node: Arc<Node>, reports: mpsc::UnboundedSender<ProbeReport>) -> Self {
        let first_seen = node.clock.now().boot;
        let (targets, tasks) = (HashMap::new(), JoinSet::new());
        Self { node, reports, targets, tasks, first_seen, scope: Scope::All }
    }

    /// Follows the pod: starts the probes of containers that run, tells all of them what runs now.
    pub(crate) fn follow(&mut self, pod: &Arc<Pod>, observed: &Observation, status: &PodStatus) {
        if self.scope == Scope::Nothing {
            return;
        }
        while self.tasks.try_join_next().is_some() {}
        let sidecars = pod.spec.init_containers.iter().filter(|c| c.is_restartable_init());
        for container in sidecars.chain(&pod.spec.containers) {
            if kinds(container).next().is_none() {
                continue;
            }
            let run = observed.latest(&container.name).filter(|last| last.phase == ContainerPhase::Running);
            let statuses = status.container_statuses.iter().chain(&status.init_container_statuses);
            let started = statuses.filter(|s| s.name == container.name).any(|s| s.started == Some(true));
            let run = run.map(|last| Run { id: last.id.clone(), since: last.started, started });
            let target = Target { pod: pod.clone(), run, pod_ip: status.pod_ip.clone() };
            self.tell(container, target);
        }
    }

    fn tell(&mut self, container: &Container, target: Target) {
        if let Some(sender) = self.targets.get(&container.name) {
            sender.send_if_modified(|known| {
                let news = *known != target;
                if news {
                    *known = target;
                }
                news
            });
            return;
        }
        if target.run.is_none() {
            return;
        }
        let (sender, receiver) = watch::channel(target);
        let wanted = |kind| self.scope == Scope::All || kind == ProbeKind::Readiness;
        for (kind, probe) in kinds(container).filter(|(kind, _)| wanted(*kind)) {
            let task = Task {
                node: self.node.clone(),
                container: container.clone(),
                kind,
                probe: probe.clone(),
                target: receiver.clone(),
                reports: self.reports.clone(),
                schedule: Schedule::new(kind, probe, self.first_tick(probe)),
                count: self.node.probe_counts.begin(&receiver.borrow().pod, &container.name, kind),
            };
            self.tasks.spawn(task.run());
        }
        self.targets.insert(container.name.clone(), sender);
    }

    /// Ticks count from the pod's first sight; just after the agent's start they are spread, so that the
    /// probes of all pods do not come at once.
    fn first_tick(&self, probe: &Probe) -> Duration {
        let period = Duration::from_secs(u64::try_from(probe.period_seconds.max(1)).unwrap_or(1));
        if period <= self.first_seen.saturating_sub(self.node.started) {
            return self.first_seen;
        }
        self.first_seen + period.mul_f64(fraction())
    }

    /// The pod ends: from the next status on only readiness is probed.
    pub(crate) fn only_readiness(&mut self) {
        self.scope = Scope::Readiness;
        self.targets.clear();
        self.tasks.abort_all();
    }

    /// Nothing of the pod runs any more.
    pub(crate) fn stop(&mut self) {
        self.scope = Scope::Nothing;
        self.targets.clear();
        self.tasks.abort_all();
    }
}

/// The probes of a container.
fn kinds(container: &Container) -> impl Iterator<Item = (ProbeKind, &Probe)> {
    let startup = container.startup_probe.as_deref().map(|p| (ProbeKind::Startup, p));
    let readiness = container.readiness_probe.as_deref().map(|p| (ProbeKind::Readiness, p));
    let liveness = container.liveness_probe.as_deref().map(|p| (ProbeKind::Liveness, p));
    [startup, readiness, liveness].into_iter().flatten()
}

/// Something between 0 and 1; nothing secret depends on it.
fn fraction() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(hash >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

/// One probe of one container.
struct Task {
    node: Arc<Node>,
    container: Container,
    kind: ProbeKind,
    probe: Probe,
    target: watch::Receiver<Target>,
    reports: mpsc::UnboundedSender<ProbeReport>,
    schedule: Schedule,
    count: Arc<ProbeCount>,
}

impl Task {
    /// Probes until the prober forgets the container or goes itself.
    async fn run(mut self) {
        let mut current: Option<Run> = None;
        loop {
            let target = self.target.borrow_and_update().clone();
            self.note(&target, &mut current);
            let due = match &target.run {
                Some(run) => self.schedule.next(run.started, self.node.clock.now().boot),
                None => None,
            };
            let Some(due) = due else {
                if self.target.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let pause = due.saturating_sub(self.node.clock.now().boot);
            tokio::select! {
                // A changed target is looked at first; the pause is computed anew.
                changed = self.target.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => if let Some(run) = &target.run {
                    // On the heap while it lasts: a probe that waits should cost little memory.
                    Box::pin(self.probe_once(&target, run)).await;
                },
            }
        }
    }

    /// Takes note of a new run, and of one that has become usable.
    fn note(&mut self, target: &Target, current: &mut Option<Run>) {
        let before = current.take();
        if let Some(run) = &target.run {
            let same = before.as_ref().is_some_and(|b| b.id == run.id);
            if !same {
                self.schedule.begin(run.since);
            }
            let was_started = same && before.as_ref().is_some_and(|b| b.started);
            if run.started && !was_started {
                self.schedule.hurry();
            }
            *current = Some(run.clone());
        }
    }

    async fn probe_once(&mut self, target: &Target, run: &Run) {
        let subject =
            Subject { node: &self.node, container: &self.container, id: &run.id, pod_ip: &target.pod_ip };
        let mut watched = self.target.clone();
        let checked = tokio::select! {
            checked = check(&subject, &self.probe) => checked,
            // A check of a run that is over says nothing of the next one.
            _ = watched.wait_for(|t| t.run.as_ref().is_none_or(|now| now.id != run.id)) => return,
        };
        let now = self.node.clock.now().boot;
        let success = match &checked {
            Checked::Success | Checked::Warning(_) => true,
            Checked::Failure(_) => false,
            Checked::Error(_) => {
                self.count.add(None);
                self.tell(target, &checked);
                self.schedule.passed(now);
                return;
            }
        };
        self.count.add(Some(success));
        self.tell(target, &checked);
        if let Some(success) = self.schedule.record(success, now) {
            // The worker that listens owns this task; if it is gone, so is the task in a moment.
            let _ = self.reports.send(ProbeReport { id: run.id.clone(), kind: self.kind, success });
        }
    }

    fn tell(&self, target: &Target, checked: &Checked) {
        let kind = self.kind;
        let (reason, text) = match checked {
            Checked::Success => return,
            Checked::Warning(text) => ("ProbeWarning", format!("{kind} probe warning: {text}")),
            Checked::Failure(text) => ("Unhealthy", format!("{kind} probe failed: {text}")),
            Checked::Error(text) => {
                ("Unhealthy", format!("{kind} probe errored and resulted in unknown state: {text}"))
            }
        };
        let path = container_field_path(&target.pod, &self.container.name);
        self.node.events.pod(&target.pod, Some(&path), EventType::Warning, reason, text);
    }
}
