//! The end of a pod: kill, final status, teardown, removal.
//!
//! Part of the worker. Every step is idempotent and tried again with back-off until it succeeds; a restarted
//! agent begins here again for pods that nobody wants.

use std::sync::Arc;
use std::time::Duration;

use coracle_cri::Status;
use coracle_cri::v1::{RemoveContainerRequest, RemovePodSandboxRequest};
use tokio::sync::watch;

use super::{Desired, Goal, Report, Worker};
use crate::events::EventType;
use crate::pod::execute::go_error;
use crate::pod::kill;
use crate::pod::rpc::{bounded, gone_is_fine};
use crate::pod::status;

/// The agent goes; the pod is left as it is.
struct Leaving;

impl Worker {
    /// Ends the pod, then waits until it is to be removed, then removes it.
    pub(super) async fn end(mut self) {
        if self.end_until_gone().await.is_ok() {
            let _ = self.reports.send(Report::Gone { uid: self.pod.metadata.uid.clone() });
        }
    }

    async fn end_until_gone(&mut self) -> Result<(), Leaving> {
        self.prober.only_readiness();
        self.kill_all().await?;
        self.prober.stop();
        self.report(true);
        self.tear_down().await?;
        if let Some(status) = self.status.as_deref() {
            let mut last = status.clone();
            status::finish(&self.pod, &mut last);
            self.ended = true;
            self.tell(Arc::new(last));
        }
        self.until_removed().await?;
        self.remove_all().await
    }

    async fn kill_all(&mut self) -> Result<(), Leaving> {
        let (shorten, limit) = watch::channel(None);
        loop {
            let whole = self.grace();
            let killed = match self.look().await {
                Ok(()) => {
                    self.report(false);
                    self.kill_once(whole, &shorten, &limit).await?
                }
                Err(status) => Err(status),
            };
            self.observer.relist();
            let looked = match killed {
                Ok(()) => self.look().await,
                Err(status) => Err(status),
            };
            match looked {
                Ok(()) if self.observed.alive().next().is_none() => return Ok(()),
                Ok(()) => {
                    tracing::warn!(pod = %self.pod.full_name(), "containers run on after they were killed")
                }
                Err(status) => {
                    let text = format!("error killing pod: {}", go_error(&status));
                    self.node.events.pod(&self.pod, None, EventType::Warning, "FailedKillPod", text);
                }
            }
            self.pause().await?;
        }
    }

    /// Kills once, while status goes on and the grace period may be shortened.
    async fn kill_once(
        &mut self,
        whole: i64,
        shorten: &watch::Sender<Option<i64>>,
        limit: &kill::GraceLimit,
    ) -> Result<Result<(), Status>, Leaving> {
        let (node, pod, observed) = (self.node.clone(), self.pod.clone(), self.observed.clone());
        let mut kill = std::pin::pin!(kill::kill_pod(&node, &pod, &observed, Some(whole), limit));
        let bell = self.bell.clone();
        loop {
            tokio::select! {
                // Polled by reference; dropped only when the agent goes, and then begun anew by the next one.
                killed = &mut kill => return Ok(killed),
                () = bell.rung() => self.look_and_report().await,
                Some(report) = self.probe_reports.recv() => self.apply_probe(&report),
                Ok(()) = self.desired.changed() => {
                    if self.take_desired() == Goal::Leave {
                        return Err(Leaving);
                    }
                    let seconds = self.grace();
                    shorten.send_if_modified(|limit| {
                        let shorter = seconds < limit.unwrap_or(whole);
                        if shorter {
                            *limit = Some(seconds);
                        }
                        shorter
                    });
                }
            }
        }
    }

    /// Seconds that the pod may take to end; at least one.
    fn grace(&self) -> i64 {
        let Desired { pod, grace, .. } = &*self.desired.borrow();
        let asked = [pod.metadata.deletion_grace_period_seconds, *grace];
        let shortest = asked.into_iter().flatten().min();
        shortest.or(pod.spec.termination_grace_period_seconds).unwrap_or(0).max(1)
    }

    async fn tear_down(&mut self) -> Result<(), Leaving> {
        while let Err(error) = self.node.resources.teardown(&self.pod.metadata.uid).await {
            tracing::warn!(pod = %self.pod.full_name(), %error, "could not tear down pod");
            self.pause().await?;
        }
        Ok(())
    }

    async fn until_removed(&mut self) -> Result<(), Leaving> {
        loop {
            match self.take_desired() {
                Goal::Remove => return Ok(()),
                Goal::Leave => return Err(Leaving),
                Goal::Run | Goal::Terminate => {}
            }
            if self.desired.changed().await.is_err() {
                return Err(Leaving);
            }
        }
    }

    async fn remove_all(&mut self) -> Result<(), Leaving> {
        loop {
            match self.remove_once().await {
                Ok(()) => return Ok(()),
                Err(status) => {
                    tracing::warn!(pod = %self.pod.full_name(), error = %status, "could not remove pod");
                    self.observer.relist();
                }
            }
            self.pause().await?;
        }
    }

    async fn remove_once(&mut self) -> Result<(), Status> {
        self.look().await?;
        let node = self.node.clone();
        let limit = node.deadlines.call;
        let mut result = Ok(());
        for container in &self.observed.containers {
            let request = RemoveContainerRequest { container_id: container.id.to_string() };
            let removed = bounded("RemoveContainer", limit, node.runtime.remove_container(request)).await;
            result = result.and(gone_is_fine(removed));
        }
        result?;
        let mut result = Ok(());
        for sandbox in &self.observed.sandboxes {
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.to_string() };
            let removed = bounded("RemovePodSandbox", limit, node.runtime.remove_pod_sandbox(request)).await;
            result = result.and(gone_is_fine(removed));
        }
        result
    }

    /// Waits for the next try of a step that failed.
    async fn pause(&mut self) -> Result<(), Leaving> {
        let until = self.hold("");
        let pause = until.saturating_sub(self.node.clock.now().boot).max(Duration::from_millis(1));
        let mut desired = self.desired.clone();
        tokio::select! {
            // Both only wait.
            () = tokio::time::sleep(pause) => Ok(()),
            left = desired.wait_for(|d| d.goal == Goal::Leave) => {
                drop(left);
                Err(Leaving)
            }
        }
    }
}

/// Keeps the compiler's word that a report can be sent from any thread.
const _: fn() = || {
    fn send<T: Send>() {}
    send::<Arc<Report>>();
};
