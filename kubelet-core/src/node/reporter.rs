//! The task that registers the Node and keeps its status right.
//!
//! Owned by the [`super::NodeAgent`]. It looks at the machine and the runtime every ten seconds (twice a second
//! until it is ready), when nudged and when the Node changed, and sends a patch if what it sees differs from what
//! the API has, or if nothing was sent for five minutes. A failure is logged once and tried again with back-off.

mod runtime;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use coracle_cluster::{ApiError, Change, Cluster, Patch, Scope};
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::sync::watch;

use super::desired::{self, DEFAULT_LABELS, Inputs, RuntimeFacts};
use super::lease::{Lease, NAMESPACE};
use super::machine::{MachineFacts, Places, Readings};
use super::plan::{self, KEPT_LABELS};
use super::pressure::{Observations, Pressing, PressureHistory, Pressures, Threshold};
use super::{NodeConfig, NodeRuntime, Nudge};
use crate::api::{ContainerImage, Node};
use crate::events::{EventRecorder, EventType};

/// Between looks at a node that is ready, as the kubelet's `nodeStatusUpdateFrequency`.
const LOOK: Duration = Duration::from_secs(10);
/// Between looks at one that is not ready yet, so that it is told at once.
const LOOK_UNREADY: Duration = Duration::from_millis(250);
/// A node that is not ready for so long is looked at as seldom as any.
const IMPATIENT: Duration = Duration::from_secs(120);
/// A status without changes is sent again after so long (`nodeStatusReportFrequency`).
const REPORT: Duration = Duration::from_secs(300);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);

/// What a reporter works with.
pub(super) struct Parts {
    pub(super) config: Arc<NodeConfig>,
    pub(super) cluster: Cluster,
    pub(super) runtime: Option<NodeRuntime>,
    pub(super) events: EventRecorder,
    pub(super) nudge: Nudge,
    pub(super) publish: watch::Sender<Option<Arc<Node>>>,
    pub(super) pressing: watch::Sender<Arc<Pressing>>,
    pub(super) machine: MachineFacts,
    /// Another machine that lives renews its lease within this time.
    pub(super) twin_watch: Duration,
}

/// Keeps the Node right.
pub(super) struct Reporter {
    parts: Parts,
    machine: MachineFacts,
    places: Places,
    runtime: RuntimeFacts,
    images: Vec<ContainerImage>,
    images_listed: Option<Duration>,
    history: PressureHistory,
    /// Whether this process has registered or found the Node.
    registered: bool,
    /// When a status was last sent, since boot, and how much longer than usual the next may wait.
    reported: Option<Duration>,
    report_after: Duration,
    pod_cidrs: Vec<String>,
    started: Duration,
    failing: bool,
    was_unschedulable: bool,
}

/// Why the Node is not as it should be.
#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error("the API server did not take it")]
    Api(#[source] ApiError),
    #[error("another machine runs as node {0}; give this one another name with --hostname-override")]
    NameTaken(String),
    #[error("there is no Node {0}, and --register-node=false keeps it from being created")]
    NotRegistered(String),
}

impl Reporter {
    pub(super) fn new(parts: Parts) -> Self {
        let started = parts.config.clock.now().boot;
        let runtime = RuntimeFacts { is_absent: parts.runtime.is_none(), ..RuntimeFacts::default() };
        let places = Places {
            root_dir: parts.config.root_dir.clone(),
            image_dir: None,
            node_ips: parts.config.node_ips.clone(),
        };
        Self {
            machine: parts.machine.clone(),
            history: PressureHistory::new(&parts.config.eviction),
            parts,
            places,
            runtime,
            images: Vec::new(),
            images_listed: None,
            registered: false,
            reported: None,
            report_after: REPORT,
            pod_cidrs: Vec::new(),
            started,
            failing: false,
            was_unschedulable: false,
        }
    }

    /// Reports until dropped. A request that is cut off by that is repeated by the next start.
    pub(super) async fn run(mut self) {
        let scope = Scope::all().named(&self.parts.config.name);
        let mut changes = pin!(self.parts.cluster.watch::<Node>(scope));
        let nudge = self.parts.nudge.clone();
        let mut ips = self.places.node_ips.follow();
        let mut listed_any = false;
        let mut retry = RETRY_MIN;
        loop {
            let wait = match self.look().await {
                Ok(wait) => {
                    retry = RETRY_MIN;
                    self.told(None);
                    wait
                }
                Err(error) => {
                    self.told(Some(&error));
                    let wait = retry.mul_f64(0.5 + f64::from(random() % 1000) / 1000.0);
                    retry = RETRY_MAX.min(retry * 2);
                    wait
                }
            };
            let mut sleep = pin!(tokio::time::sleep(wait));
            loop {
                tokio::select! {
                    // Cancel-safe: a change is taken only once the arm is won.
                    Some(change) = changes.next() => {
                        if self.changed(change, &mut listed_any) {
                            break;
                        }
                    }
                    // Cancel-safe: a nudge that came meanwhile is stored.
                    () = nudge.0.notified() => {
                        self.images_listed = None;
                        break;
                    }
                    // Cancel-safe: a value not seen yet stays so. Given addresses never change.
                    Ok(()) = ips.changed() => break,
                    // Cancel-safe: a timer.
                    () = &mut sleep => break,
                }
            }
        }
    }

    /// Takes in a change of the Node; says whether it needs a look.
    fn changed(&mut self, change: Change<Node>, listed_any: &mut bool) -> bool {
        match change {
            Change::Restart => {
                *listed_any = false;
                false
            }
            Change::Listed(node) | Change::Applied(node) => {
                *listed_any = true;
                // Until it is registered a Node of this name may be another machine's; a look finds out.
                if self.registered { self.learn(node) } else { true }
            }
            // A list without the Node: it was deleted while nobody looked.
            Change::Ready if !*listed_any => self.forget(),
            Change::Ready => false,
            Change::Deleted(node) => {
                // News of a Node whose successor is registered already are old.
                let known = self.parts.publish.borrow().clone();
                known.is_some_and(|known| known.metadata.uid == node.metadata.uid) && self.forget()
            }
        }
    }

    /// The Node as the API has it now; false if that is known or older than what is known.
    fn learn(&mut self, node: Node) -> bool {
        let is_news = match &*self.parts.publish.borrow() {
            Some(known) if known.metadata.uid == node.metadata.uid => {
                plan::is_newer(&node.metadata.resource_version, &known.metadata.resource_version)
            }
            _ => true,
        };
        if is_news {
            self.tell_schedulable(&node);
            self.parts.publish.send_replace(Some(Arc::new(node)));
        }
        is_news
    }

    fn forget(&mut self) -> bool {
        if self.parts.publish.send_replace(None).is_none() {
            return false;
        }
        tracing::warn!(node = %self.parts.config.name, "the Node was deleted; it is registered again");
        self.registered = false;
        true
    }

    fn tell_schedulable(&mut self, node: &Node) {
        let is_unschedulable = node.spec.unschedulable;
        if std::mem::replace(&mut self.was_unschedulable, is_unschedulable) != is_unschedulable {
            self.event(if is_unschedulable { "NodeNotSchedulable" } else { "NodeSchedulable" });
        }
    }

    fn event(&self, reason: &str) {
        let name = &self.parts.config.name;
        let message = format!("Node {name} status is now: {reason}");
        self.parts.events.node(name, EventType::Normal, reason, message);
    }

    fn told(&mut self, error: Option<&ReportError>) {
        let name = &self.parts.config.name;
        let failing = error.is_some();
        if std::mem::replace(&mut self.failing, failing) == failing {
            return;
        }
        match error {
            Some(error) => {
                tracing::error!(node = %name, error = error as &dyn std::error::Error, "node not reported");
            }
            None => tracing::info!(node = %name, "node reported again"),
        }
    }

    /// Looks at everything, and sends what the API does not have. Says when to look again.
    async fn look(&mut self) -> Result<Duration, ReportError> {
        self.observe_runtime().await;
        let readings = Readings::read(&self.places);
        let now = self.parts.config.clock.now();
        let (pressures, met) = self.history.update(&readings.observations, now.boot);
        self.tell_pressing(met, &readings.observations);
        if !self.registered {
            self.register(&readings, pressures).await?;
            self.registered = true;
        }
        let observed = self.parts.publish.borrow().clone();
        let Some(observed) = observed else { return Ok(LOOK_UNREADY) };
        if self.tell_pod_cidrs(&observed).await {
            // The network may be ready because of it.
            self.observe_runtime().await;
        }
        let (node, conditions) = self.desired(&observed, &readings, pressures);
        let update = plan::update(&observed, &node, &conditions, &KEPT_LABELS, now.wall());
        self.tell_reboot(&observed);
        let is_due = self.reported.is_none_or(|at| now.boot.saturating_sub(at) >= self.report_after);
        if update.is_change || is_due {
            let was_first = self.reported.is_none();
            self.send(update.patch).await?;
            // Nodes that changed together do not report together five minutes later.
            let is_random = update.is_change || was_first;
            self.report_after =
                if is_random { REPORT.mul_f64(0.5 + f64::from(random() % 1000) / 1000.0) } else { REPORT };
            self.reported = Some(now.boot);
            for reason in update.events {
                self.event(reason);
            }
        }
        let is_ready = conditions.iter().any(|c| c.r#type == "Ready" && c.is_true);
        let is_impatient = !is_ready && now.boot.saturating_sub(self.started) < IMPATIENT;
        Ok(if is_impatient { LOOK_UNREADY } else { LOOK })
    }

    /// Each look at a node under pressure is news, and so is its end.
    fn tell_pressing(&self, met: Vec<Threshold>, observations: &Observations) {
        if met.is_empty() && self.parts.pressing.borrow().met.is_empty() {
            return;
        }
        self.parts.pressing.send_replace(Arc::new(Pressing { met, observations: observations.clone() }));
    }

    fn inputs<'a>(&'a self, readings: &'a Readings, pressures: Pressures) -> Inputs<'a> {
        Inputs {
            config: &self.parts.config,
            machine: &self.machine,
            readings,
            runtime: &self.runtime,
            images: &self.images,
            pressures,
            problems: &[],
        }
    }

    fn desired(
        &self,
        observed: &Node,
        readings: &Readings,
        pressures: Pressures,
    ) -> (Node, Vec<desired::Wanted>) {
        let inputs = self.inputs(readings, pressures);
        let mut node = desired::node(&inputs);
        node.status = desired::status(&inputs, &observed.status);
        let conditions = desired::conditions(&inputs, &node.status);
        (node, conditions)
    }

    /// Sends a patch and learns the Node that came of it.
    async fn send(&mut self, patch: serde_json::Value) -> Result<(), ReportError> {
        let name = &self.parts.config.name;
        let patch = Patch::Strategic(patch);
        let sent = self.parts.cluster.patch::<Node>(None, name, Some("status"), &patch).await;
        match sent {
            Ok(node) => {
                self.learn(node);
                Ok(())
            }
            Err(error) => {
                if error.is_not_found() {
                    self.forget();
                }
                Err(ReportError::Api(error))
            }
        }
    }

    /// Creates the Node, or makes an existing one right.
    async fn register(&mut self, readings: &Readings, pressures: Pressures) -> Result<(), ReportError> {
        let name = self.parts.config.name.clone();
        let now = self.parts.config.clock.now().wall();
        let (mut node, conditions) = self.desired(&Node::default(), readings, pressures);
        let (conditions, _, events) = plan::merge_conditions(&node.status, &conditions, now);
        node.status.conditions = conditions;
        let mut refused = None;
        if self.parts.config.register {
            let mut body = json!(node);
            body["apiVersion"] = json!("v1");
            body["kind"] = json!("Node");
            match self.parts.cluster.create::<Node>(None, None, &body).await {
                Ok(created) => {
                    tracing::info!(node = %name, "node registered");
                    self.learn(created);
                    events.into_iter().for_each(|reason| self.event(reason));
                    self.reported = Some(self.parts.config.clock.now().boot);
                    return Ok(());
                }
                Err(error) if error.is_already_exists() => {}
                // A node that may not create its Node may still use one that somebody else made.
                Err(error) if error.is_forbidden() => refused = Some(error),
                Err(error) => return Err(ReportError::Api(error)),
            }
        }
        let existing = match self.parts.cluster.get::<Node>(None, &name).await {
            Ok(existing) => existing,
            Err(error) if error.is_not_found() && refused.is_some() => {
                return Err(ReportError::Api(refused.unwrap_or(error)));
            }
            Err(error) if error.is_not_found() && !self.parts.config.register => {
                return Err(ReportError::NotRegistered(name));
            }
            Err(error) => return Err(ReportError::Api(error)),
        };
        if existing.status.is_ready() && plan::is_of_another_machine(&existing, &self.machine) {
            self.wait_for_other_machine(&name).await?;
        }
        self.tell_reboot(&existing);
        // A restart must not look like a network that went away.
        if self.tell_pod_cidrs(&existing).await {
            self.observe_runtime().await;
        }
        let (node, conditions) = self.desired(&existing, readings, pressures);
        let update = plan::update(&existing, &node, &conditions, &DEFAULT_LABELS, now);
        self.learn(existing);
        if update.is_change {
            self.send(update.patch).await?;
            self.reported = Some(self.parts.config.clock.now().boot);
            for reason in update.events {
                self.event(reason);
            }
        }
        tracing::info!(node = %name, "node was registered before");
        Ok(())
    }

    /// A Node that another machine wrote is taken over only if that machine does not renew its lease any more.
    async fn wait_for_other_machine(&self, name: &str) -> Result<(), ReportError> {
        let version = |lease: Result<Lease, ApiError>| match lease {
            Ok(lease) => Ok(Some((lease.metadata.resource_version, lease.spec.renew_time))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(ReportError::Api(error)),
        };
        let before = version(self.parts.cluster.get::<Lease>(Some(NAMESPACE), name).await)?;
        tracing::info!(node = %name, "the Node was written by another machine; looking whether that one lives");
        tokio::time::sleep(self.parts.twin_watch).await;
        let after = version(self.parts.cluster.get::<Lease>(Some(NAMESPACE), name).await)?;
        if before == after { Ok(()) } else { Err(ReportError::NameTaken(name.to_owned())) }
    }

    fn tell_reboot(&self, existing: &Node) {
        if plan::has_rebooted(existing, &self.machine) {
            let (name, id) = (&self.parts.config.name, &self.machine.boot_id);
            let message = format!("Node {name} has been rebooted, boot id: {id}");
            self.parts.events.node(name, EventType::Warning, "Rebooted", message);
        }
    }
}

/// For jitter; nothing secret depends on it.
pub(super) fn random() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    (std::hash::RandomState::new().build_hasher().finish() >> 32) as u32
}
