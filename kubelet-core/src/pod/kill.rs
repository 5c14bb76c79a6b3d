//! Killing containers: event, preStop hook, order of sidecars, grace period, stop.
//!
//! Called by the worker for single containers that a plan gives up and for whole pods. Follows the kubelet's
//! `killContainer` and `terminationOrdering` (1.36).

use std::collections::HashMap;
use std::time::Duration;

use coracle_cri::Status;
use coracle_cri::v1::{StopContainerRequest, StopPodSandboxRequest};
use futures_util::future::join_all;
use tokio::sync::watch;

use crate::api::{Container, Pod, Probe};
use crate::events::{EventType, container_field_path};
use crate::hook;
use crate::pod::edges::Node;
use crate::pod::observation::{Instance, Observation};
use crate::pod::plan::KillReason;
use crate::pod::rpc::{bounded, gone_is_fine};

/// Containers always get this many seconds between signal and kill.
const MIN_GRACE: i64 = 2;

/// How one container is to be killed.
pub(crate) struct Order<'a> {
    pub(crate) instance: &'a Instance,
    /// Text of the `Killing` event; empty for the usual one.
    pub(crate) message: &'a str,
    pub(crate) reason: KillReason,
    /// Whether the container may be taken for known: an orphan's name is all there is.
    pub(crate) pod_ip: Option<&'a str>,
}

/// A grace period that someone may shorten while it runs; none means the pod's own.
pub(crate) type GraceLimit = watch::Receiver<Option<i64>>;

/// Kills one container and returns when it has ended.
pub(crate) async fn kill_container(
    node: &Node,
    pod: &Pod,
    order: &Order<'_>,
    grace: Option<i64>,
    turns: Option<&Turns>,
    limit: &mut GraceLimit,
) -> Result<(), Status> {
    let name = &order.instance.name;
    let unknown = Container { name: name.clone(), ..Container::default() };
    let container = pod.container(name).unwrap_or(&unknown);
    let message = if order.message.is_empty() {
        format!("Stopping container {name}")
    } else {
        order.message.to_owned()
    };
    let path = container_field_path(pod, name);
    node.events.pod(pod, Some(&path), EventType::Normal, "Killing", message);

    let whole = grace.unwrap_or_else(|| grace_of(pod, container, order.reason));
    let begun = node.clock.now().boot;
    let left = |limit: &GraceLimit| {
        let whole = limit.borrow().map_or(whole, |shorter| whole.min(shorter));
        let spent = node.clock.now().boot.saturating_sub(begun).as_secs();
        whole.saturating_sub(i64::try_from(spent).unwrap_or(i64::MAX))
    };
    run_pre_stop(node, pod, container, order, &left, limit).await;
    if let Some(turns) = turns {
        tokio::select! {
            // Both arms only wait; whichever ends, the stop below follows.
            () = turns.wait(name) => {}
            () = run_out(&left, limit) => {}
        }
    }
    stop(node, order.instance, &left, limit).await?;
    if let Some(turns) = turns {
        turns.ended(name);
    }
    Ok(())
}

/// Kills every container that runs or may run, sidecars after the others, and stops the sandboxes.
pub(crate) async fn kill_pod(
    node: &Node,
    pod: &Pod,
    observed: &Observation,
    grace: Option<i64>,
    limit: &GraceLimit,
) -> Result<(), Status> {
    let alive: Vec<&Instance> = observed.alive().collect();
    let ordered = pod.spec.init_containers.iter().any(Container::is_restartable_init);
    let turns = ordered.then(|| Turns::new(pod, &alive));
    let pod_ip = observed.ips().first().map(String::as_str);
    let kills = alive.iter().map(|instance| {
        let order = Order { instance, message: "", reason: KillReason::Other, pod_ip };
        let turns = turns.as_ref();
        let mut limit = limit.clone();
        async move { kill_container(node, pod, &order, grace, turns, &mut limit).await }
    });
    let mut result = Ok(());
    for killed in join_all(kills).await {
        result = result.and(killed);
    }
    for sandbox in &observed.sandboxes {
        let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.id.to_string() };
        let call = node.runtime.stop_pod_sandbox(request);
        let stopped = gone_is_fine(bounded("StopPodSandbox", node.deadlines.call, call).await);
        result = result.and(stopped);
    }
    result
}

/// The grace period of a container: given with the deletion, by the probe that failed, or by the pod.
fn grace_of(pod: &Pod, container: &Container, reason: KillReason) -> i64 {
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        return seconds;
    }
    let of = |probe: &Option<Box<Probe>>| probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
    let by_probe = match reason {
        KillReason::Other => None,
        KillReason::Startup => of(&container.startup_probe),
        KillReason::Liveness => of(&container.liveness_probe),
    };
    match pod.spec.termination_grace_period_seconds {
        Some(seconds) => by_probe.unwrap_or(seconds),
        None => MIN_GRACE,
    }
}

async fn run_pre_stop(
    node: &Node,
    pod: &Pod,
    container: &Container,
    order: &Order<'_>,
    left: &impl Fn(&GraceLimit) -> i64,
    limit: &mut GraceLimit,
) {
    let Some(pre_stop) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_deref()) else { return };
    if left(limit) <= 0 {
        return;
    }
    let hook = hook::run(node, pod, container, &order.instance.id, pre_stop, order.pod_ip);
    tokio::select! {
        // A hook that is dropped past its grace period is what the kubelet leaves behind, too.
        result = hook => if let Err(error) = result {
            let why = &error as &dyn std::error::Error;
            tracing::warn!(pod = %pod.full_name(), container = %container.name, error = why, "preStop hook failed");
            let path = container_field_path(pod, &container.name);
            // Its words stay out of the event, which more people may read than the pod.
            let text = "PreStopHook failed".to_owned();
            node.events.pod(pod, Some(&path), EventType::Warning, "FailedPreStopHook", text);
        },
        () = run_out(left, limit) => {
            tracing::warn!(pod = %pod.full_name(), container = %container.name, "preStop hook outlasted the grace period");
        }
    }
}

/// Returns when the grace period is over, however short it has become.
async fn run_out(left: &impl Fn(&GraceLimit) -> i64, limit: &mut GraceLimit) {
    loop {
        let seconds = left(limit);
        if seconds <= 0 {
            return;
        }
        let pause = tokio::time::sleep(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
        tokio::select! {
            // Both arms lead to another look at what is left.
            () = pause => {}
            changed = limit.changed() => if changed.is_err() {
                // Nobody can shorten it any more.
                tokio::time::sleep(Duration::from_secs(u64::try_from(left(limit)).unwrap_or(0))).await;
                return;
            }
        }
    }
}

/// Stops a container; when the grace period is shortened meanwhile, the stop is given again with the rest.
async fn stop(
    node: &Node,
    instance: &Instance,
    left: &impl Fn(&GraceLimit) -> i64,
    limit: &mut GraceLimit,
) -> Result<(), Status> {
    loop {
        limit.borrow_and_update();
        let timeout = left(limit).max(MIN_GRACE);
        let request = StopContainerRequest { container_id: instance.id.to_string(), timeout };
        let bound = node.deadlines.call + Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
        let call = bounded("StopContainer", bound, node.runtime.stop_container(request));
        tokio::pin!(call);
        loop {
            tokio::select! {
                answer = &mut call => return gone_is_fine(answer),
                // Dropping the call ends the wait for the container, not its stop.
                Ok(()) = limit.changed() => if left(limit).max(MIN_GRACE) < timeout { break },
            }
        }
    }
}

/// The order in which containers of a pod with sidecars end: regular ones at once, then sidecars from the
/// last to the first.
pub(crate) struct Turns {
    ended: HashMap<String, watch::Sender<bool>>,
    before: HashMap<String, Vec<String>>,
}

impl Turns {
    fn new(pod: &Pod, alive: &[&Instance]) -> Self {
        let mut turns = Self { ended: HashMap::new(), before: HashMap::new() };
        for container in pod.spec.containers.iter().chain(&pod.spec.init_containers) {
            let runs = alive.iter().any(|instance| instance.name == container.name);
            turns.ended.insert(container.name.clone(), watch::channel(!runs).0);
        }
        let regular: Vec<String> = pod.spec.containers.iter().map(|c| c.name.clone()).collect();
        let mut later: Option<&str> = None;
        for sidecar in pod.spec.init_containers.iter().rev().filter(|c| c.is_restartable_init()) {
            let mut before = regular.clone();
            before.extend(later.map(str::to_owned));
            turns.before.insert(sidecar.name.clone(), before);
            later = Some(&sidecar.name);
        }
        turns
    }

    /// Returns when all have ended that end before this one.
    async fn wait(&self, name: &str) {
        for before in self.before.get(name).into_iter().flatten() {
            if let Some(ended) = self.ended.get(before) {
                // The sender lives as long as `self`, so waiting cannot fail.
                let _ = ended.subscribe().wait_for(|ended| *ended).await;
            }
        }
    }

    fn ended(&self, name: &str) {
        if let Some(ended) = self.ended.get(name) {
            ended.send_replace(true);
        }
    }
}
