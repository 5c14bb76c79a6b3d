//! While a plan is carried out: what is told of the pod meanwhile, and what comes of each step.
//!
//! Part of the worker, whose task drives the plan's steps and hears of everything else between them.

use tokio::sync::{mpsc, watch};

use super::{Goal, Worker};
use crate::pod::execute::{Execution, Halt, Outcome, Progress, Reporter};
use crate::pod::observation::ContainerPhase;
use crate::pod::plan::{BackoffKey, Plan};

impl Worker {
    /// Carries a plan out while status and probes go on.
    pub(super) async fn carry_out(&mut self, plan: Plan) {
        let replaces = !plan.kill.is_empty();
        let (halt, halted) = watch::channel(false);
        let (progress, mut news) = mpsc::unbounded_channel();
        let execution = Execution {
            node: self.node.clone(),
            pod: self.pod.clone(),
            observed: self.observed.clone(),
            plan,
            report: Reporter(progress),
            halt: Halt(halted),
        };
        let mut execution = std::pin::pin!(execution.run());
        let bell = self.bell.clone();
        let outcome = loop {
            tokio::select! {
                // Polled by reference and never dropped before its end.
                outcome = &mut execution => break outcome,
                // Receivers, a notify and a watch lose nothing when another arm comes first.
                Some(progress) = news.recv() => self.apply(progress).await,
                () = bell.rung() => if !replaces {
                    self.look_amid().await;
                },
                Some(report) = self.probe_reports.recv() => self.apply_probe(&report),
                Ok(()) = self.desired.changed() => {
                    if self.take_desired() != Goal::Run {
                        halt.send_replace(true);
                    }
                }
            }
        };
        while let Ok(progress) = news.try_recv() {
            self.apply(progress).await;
        }
        match outcome {
            Outcome::Retry if self.held.is_empty() => {
                self.hold("");
            }
            Outcome::Retry => {}
            Outcome::Done => self.retries.reset(&String::new()),
        }
    }

    /// Tells what the runtime told while a plan is carried out. As with a kubelet, whose statuses are made before it
    /// acts, people see a container that is replaced before and after, and one that is made when it has started.
    async fn look_amid(&mut self) {
        if self.look().await.is_ok() {
            self.observed.containers.retain(|container| container.phase != ContainerPhase::Created);
            self.report(false);
        }
    }

    async fn apply(&mut self, progress: Progress) {
        match progress {
            Progress::SandboxReady { id } => {
                self.observer.add_sandbox(id);
                self.look_and_report().await;
            }
            Progress::Created { id, sandbox_id, amounts } => {
                self.sizes.containers.insert(id.clone(), amounts);
                self.observer.add_container(id, sandbox_id);
            }
            Progress::Sized { id, amounts } => {
                self.sizes.containers.insert(id, amounts);
            }
            Progress::PodSized { limits } => self.sizes.pod = limits,
            Progress::ResizeFailed { message } => self.resize_failed(message),
            Progress::Trying { start } => {
                let key = self.pod.container(&start.name).map(BackoffKey::of);
                if let (Some(key), Some(ended)) = (key, start.after_end) {
                    self.crashes.advance(key, ended, self.node.clock.now().boot);
                }
            }
            Progress::Started { name } => {
                self.failures.remove(&name);
                self.retries.reset(&name);
            }
            Progress::Failed { name, failure, retry_at } => {
                match retry_at {
                    Some(until) => {
                        self.held.insert(name.clone(), until);
                    }
                    // The back-off of a container whose hook failed is that of its end.
                    None if failure.reason == "PostStartHookError" => {}
                    None => {
                        self.hold(&name);
                    }
                }
                self.failures.insert(name, failure);
                self.look_and_report().await;
            }
            Progress::Removed { id } => self.observer.forget_container(&id),
            Progress::Relist => self.observer.relist(),
        }
    }
}
