//! Carries out a plan: kills, removals, resizes, sandbox, starts, in that order.
//!
//! Runs inside the pod's worker, which meanwhile goes on observing. It changes no state of the worker: what
//! it learns goes back as [`Progress`]. It is never dropped inside a call that changes something; a pod that
//! is to end makes it stop before the next one ([`Halt`]).

mod resizing;

use std::sync::Arc;
use std::time::Duration;

use coracle_cri::Status;
use coracle_cri::v1::{
    PodSandboxConfig, PodSandboxStatusRequest, RemoveContainerRequest, RunPodSandboxRequest, StatusRequest,
};
use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};

use crate::api::Pod;
use crate::events::EventType;
use crate::pod::edges::{Node, StepError};
use crate::pod::kill::{self, Order};
use crate::pod::observation::Observation;
use crate::pod::plan::{ContainerKind, Kill, KillReason, Plan, Reset, Start};
use crate::pod::resize::Amounts;
use crate::pod::rpc::{bounded, gone_is_fine};
use crate::pod::start::{Failed, Started, Starting};
use crate::pod::status::StartFailure;
use crate::qos::PodCgroupLimits;

/// What execution learned.
#[derive(Debug)]
pub(crate) enum Progress {
    /// A sandbox serves now.
    SandboxReady { id: Arc<str> },
    /// A container was made.
    Created { id: Arc<str>, sandbox_id: Arc<str>, amounts: Amounts },
    /// A start is tried, after the back-off of its last end, if it had one.
    Trying { start: Start },
    /// A container runs.
    Started { name: String },
    /// A container could not be started.
    Failed { name: String, failure: StartFailure, retry_at: Option<Duration> },
    /// A container was removed.
    Removed { id: Arc<str> },
    /// A container goes on with other resources.
    Sized { id: Arc<str>, amounts: Amounts },
    /// The pod's cgroup has other limits.
    PodSized { limits: PodCgroupLimits },
    /// What was allocated could not be set.
    ResizeFailed { message: String },
    /// The runtime may have done more than it said.
    Relist,
}

/// Sends progress to the worker.
#[derive(Clone)]
pub(crate) struct Reporter(pub(crate) mpsc::UnboundedSender<Progress>);

impl Reporter {
    pub(crate) fn send(&self, progress: Progress) {
        // The worker holds the receiver for as long as it polls the execution.
        let _ = self.0.send(progress);
    }
}

/// Tells an execution that its pod is to end or the agent to stop.
#[derive(Clone)]
pub(crate) struct Halt(pub(crate) watch::Receiver<bool>);

impl Halt {
    /// Returns once it is told.
    pub(crate) async fn requested(&self) {
        // A sender that is gone belongs to a worker that is gone, which polls nothing any more.
        let _ = self.0.clone().wait_for(|halt| *halt).await;
    }

    pub(crate) fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

/// What to carry out, and for whom.
pub(crate) struct Execution {
    pub(crate) node: Arc<Node>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) observed: Observation,
    pub(crate) plan: Plan,
    pub(crate) report: Reporter,
    pub(crate) halt: Halt,
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is done, or waits for something that will wake the worker.
    Done,
    /// Something failed and must be tried again later.
    Retry,
}

impl Execution {
    /// Carries the plan out as far as it goes.
    pub(crate) async fn run(self) -> Outcome {
        let outcome = self.steps().await;
        // Tells the worker that everything is said.
        drop(self.report);
        outcome
    }

    async fn steps(&self) -> Outcome {
        let plan = &self.plan;
        if plan.create_sandbox && plan.sandbox.is_some() {
            let text = "Pod sandbox changed, it will be killed and re-created.".to_owned();
            self.node.events.pod(&self.pod, None, EventType::Normal, "SandboxChanged", text);
        }
        if plan.kill_pod {
            let limit = watch::channel(None).1;
            if let Err(status) = kill::kill_pod(&self.node, &self.pod, &self.observed, None, &limit).await {
                return self.kill_failed(&status);
            }
        } else {
            for killed in join_all(plan.kill.iter().map(|kill| self.kill(kill))).await {
                if let Err(status) = killed {
                    return self.kill_failed(&status);
                }
            }
            for reset in &plan.reset {
                if let Err(status) = self.reset(reset).await {
                    return self.kill_failed(&status);
                }
            }
        }
        for id in &plan.prune {
            // One that stays is tried again with the next sync, or left to garbage collection.
            let _ = self.remove(id).await;
        }
        if let Some(resize) = plan.resize.as_ref().filter(|_| !self.halt.is_requested()) {
            self.resize(resize).await;
        }
        if !plan.create_sandbox && plan.start.is_empty() {
            return Outcome::Done;
        }
        if self.halt.is_requested() {
            return Outcome::Done;
        }
        self.bring_up().await
    }

    async fn bring_up(&self) -> Outcome {
        if let Err(error) = self.node.resources.prepare(&self.pod).await {
            let StepError { reason, message } = error;
            self.node.events.pod(&self.pod, None, EventType::Warning, &reason, message);
            return Outcome::Retry;
        }
        let config = match self.node.resources.sandbox_config(&self.pod, self.plan.attempt) {
            Ok(config) => config,
            Err(error) => return self.sandbox_failed(&error.message),
        };
        let (sandbox_id, ips) = match (&self.plan.sandbox, self.plan.create_sandbox) {
            (Some(id), false) => (id.clone(), self.observed.ips().to_vec()),
            _ => match self.run_sandbox(&config).await {
                Ok(Some(made)) => made,
                Ok(None) => return Outcome::Done,
                Err(outcome) => return outcome,
            },
        };
        let ips = if self.pod.spec.host_network { self.node.facts().host_ips } else { ips };
        let starting = Starting {
            node: &self.node,
            pod: &self.pod,
            observed: &self.observed,
            sandbox_id,
            sandbox: &config,
            ips: &ips,
            report: &self.report,
            halt: &self.halt,
        };
        self.start_all(&starting).await
    }

    async fn start_all(&self, starting: &Starting<'_>) -> Outcome {
        let mut outcome = Outcome::Done;
        for start in &self.plan.start {
            if self.halt.is_requested() {
                return outcome;
            }
            let Some(container) = self.pod.container(&start.name) else { continue };
            self.report.send(Progress::Trying { start: start.clone() });
            match starting.start(container).await {
                Ok(Started::Yes) => {}
                Ok(Started::Halted) => return outcome,
                Err(Failed { failure, retry_at }) => {
                    // A hook that failed ended its container: its end wakes the worker, its back-off counts.
                    if failure.reason != "PostStartHookError" {
                        outcome = Outcome::Retry;
                    }
                    self.report.send(Progress::Failed { name: start.name.clone(), failure, retry_at });
                    if start.kind == ContainerKind::Init {
                        return outcome;
                    }
                }
            }
        }
        outcome
    }

    /// Makes a sandbox; none when the pod is to end before it is its turn.
    async fn run_sandbox(
        &self,
        config: &PodSandboxConfig,
    ) -> Result<Option<(Arc<str>, Vec<String>)>, Outcome> {
        let turns = match self.pod.spec.host_network {
            true => &self.node.starts,
            false => &self.node.networks,
        };
        let permit = tokio::select! {
            permit = turns.acquire() => permit,
            () = self.halt.requested() => return Ok(None),
        };
        let _permit = permit.expect("invariant: the semaphore is never closed");
        if !self.pod.spec.host_network {
            self.network_ready().await?;
        }
        let handler = self.node.resources.runtime_handler(&self.pod).await;
        let runtime_handler = handler.map_err(|problem: String| self.sandbox_failed(&problem))?;
        let logs = &config.log_directory;
        if !logs.is_empty()
            && let Err(error) = tokio::fs::create_dir_all(logs).await
        {
            return Err(self.sandbox_failed(&format!("{logs}: {error}")));
        }
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler };
        let call = self.node.runtime.run_pod_sandbox(request);
        let id: Arc<str> = match bounded("RunPodSandbox", self.node.deadlines.sandbox, call).await {
            Ok(answer) => Arc::from(answer.pod_sandbox_id),
            Err(status) => {
                self.report.send(Progress::Relist);
                return Err(self.sandbox_failed(&go_error(&status)));
            }
        };
        self.report.send(Progress::SandboxReady { id: id.clone() });
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_string(), verbose: false };
        let call = self.node.runtime.pod_sandbox_status(request);
        let status = match bounded("PodSandboxStatus", self.node.deadlines.query, call).await {
            Ok(answer) => answer.status.unwrap_or_default(),
            Err(status) => {
                let text = format!("Unable to get pod sandbox status: {}", go_error(&status));
                self.node.events.pod(&self.pod, None, EventType::Warning, "FailedPodSandBoxStatus", text);
                return Err(Outcome::Retry);
            }
        };
        let network = status.network.unwrap_or_default();
        let additional = network.additional_ips.into_iter().map(|ip| ip.ip);
        let ips = std::iter::once(network.ip).chain(additional).filter(|ip| !ip.is_empty());
        Ok(Some((id, ips.collect())))
    }

    /// A pod with a network of its own is not begun while the runtime has none to give.
    async fn network_ready(&self) -> Result<(), Outcome> {
        let call = self.node.runtime.status(StatusRequest { verbose: false });
        let answer = match bounded("Status", self.node.deadlines.query, call).await {
            Ok(answer) => answer,
            Err(status) => return Err(self.sandbox_failed(&go_error(&status))),
        };
        let conditions = answer.status.map(|status| status.conditions).unwrap_or_default();
        let Some(missing) = conditions.iter().find(|c| c.r#type == "NetworkReady" && !c.status) else {
            return Ok(());
        };
        let text = format!(
            "network is not ready: container runtime network not ready: NetworkReady=false reason:{} message:{}",
            missing.reason, missing.message
        );
        self.node.events.pod(&self.pod, None, EventType::Warning, "NetworkNotReady", text);
        Err(Outcome::Retry)
    }

    async fn kill(&self, kill: &Kill) -> Result<(), Status> {
        let instance = self.observed.containers.iter().find(|c| c.id == kill.id);
        let Some(instance) = instance else { return Ok(()) };
        let pod_ip = self.observed.ips().first().map(String::as_str);
        let order = Order { instance, message: &kill.message, reason: kill.reason, pod_ip };
        let mut limit = watch::channel(None).1;
        kill::kill_container(&self.node, &self.pod, &order, None, None, &mut limit).await
    }

    async fn reset(&self, reset: &Reset) -> Result<(), Status> {
        let instance = self.observed.containers.iter().find(|c| c.id == reset.id && reset.kill);
        if let Some(instance) = instance {
            let order = Order { instance, message: "killing", reason: KillReason::Other, pod_ip: None };
            let mut limit = watch::channel(None).1;
            kill::kill_container(&self.node, &self.pod, &order, Some(0), None, &mut limit).await?;
        }
        self.remove(&reset.id).await
    }

    async fn remove(&self, id: &Arc<str>) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: id.to_string() };
        let call = self.node.runtime.remove_container(request);
        gone_is_fine(bounded("RemoveContainer", self.node.deadlines.call, call).await)?;
        self.report.send(Progress::Removed { id: id.clone() });
        Ok(())
    }

    fn kill_failed(&self, status: &Status) -> Outcome {
        self.report.send(Progress::Relist);
        let text = format!("error killing pod: {}", go_error(status));
        self.node.events.pod(&self.pod, None, EventType::Warning, "FailedKillPod", text);
        Outcome::Retry
    }

    fn sandbox_failed(&self, message: &str) -> Outcome {
        let text = format!("Failed to create pod sandbox: {message}");
        self.node.events.pod(&self.pod, None, EventType::Warning, "FailedCreatePodSandBox", text);
        Outcome::Retry
    }
}

/// A gRPC status as the kubelet prints it in its events.
pub(crate) fn go_error(status: &Status) -> String {
    let code = match status.code() {
        // The one name that Go spells otherwise.
        coracle_cri::Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}
