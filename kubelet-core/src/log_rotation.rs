//! Rotation of container logs by size and count, as the kubelet's `container_log_manager.go` does it.
//!
//! The agent starts one [`LogRotation`] and tells it by [`LogTrigger`] that containers started or ended. One
//! task owns it. A kubelet reads the size of every log every ten seconds. Here a log that nobody writes costs
//! nothing: inotify is armed to tell of the first write, once, and only a log that is being written has a
//! next look, when it would be half full at its present rate, at most a minute away. So a log grows past its
//! limit by no more than what its container writes between two looks: one second's worth for a container
//! that writes steadily and fast (a kubelet: ten), a minute's worth for one that wrote slowly and bursts.
//!
//! A rotation renames `0.log` to `0.log.20060102-150405` and makes the runtime open a new one; the rotation
//! after that compresses it to `.gz`. A crash between rename and reopening leaves no `0.log`: the next look
//! finds that and has it opened.

mod files;
mod plan;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{
    ContainerFilter, ContainerState, ContainerStateValue, ContainerStatusRequest, ListContainersRequest,
    ReopenContainerLogRequest,
};
use coracle_cri::{Code, RuntimeService, Status};
use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::clock::Clock;
use plan::{Look, next_look};

pub use files::{LogFileError, all_logs};
pub use plan::LogPolicy;

/// How long to wait after a trigger, so that what starts together is looked at together.
const SETTLE: Duration = Duration::from_millis(500);
/// When what failed is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Why a log was not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The runtime refused a call.
    #[error("{call} of container {id}")]
    Runtime {
        /// Which call.
        call: &'static str,
        /// On which container; empty for lists.
        id: String,
        /// What it said.
        #[source]
        source: Status,
    },
    /// Its files could not be handled.
    #[error(transparent)]
    File(#[from] LogFileError),
}

/// Logs cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch container logs: no inotify instance; raise the sysctl fs.inotify.max_user_instances")]
pub struct WatchError(#[source] io::Error);

/// Tells that containers started or ended; clones tell the same rotation. Never waits.
#[derive(Clone, Debug, Default)]
pub struct LogTrigger(Arc<Notify>);

impl LogTrigger {
    /// Containers changed.
    pub fn kick(&self) {
        self.0.notify_one();
    }
}

/// Rotates logs.
pub struct LogRotation {
    runtime: Arc<dyn RuntimeService>,
    policy: LogPolicy,
    clock: Clock,
    call_timeout: Duration,
    trigger: LogTrigger,
    events: EventStream<Vec<u8>>,
    watches: Watches,
    logs: BTreeMap<String, Log>,
}

/// One running container's log.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    state: LogState,
}

#[derive(Debug)]
enum LogState {
    /// Looked at again at that time; the size and time of the last look.
    Timed { due: Instant, last: Option<(u64, Instant)> },
    /// Nobody writes; inotify tells of the first write.
    Quiet { watch: WatchDescriptor, size: u64 },
}

impl LogRotation {
    /// Watches nothing yet.
    pub fn new(
        runtime: Arc<dyn RuntimeService>,
        policy: LogPolicy,
        clock: Clock,
        call_timeout: Duration,
    ) -> Result<Self, WatchError> {
        let events = Inotify::init().and_then(|inotify| inotify.into_event_stream(vec![0; 4096]));
        let events = events.map_err(WatchError)?;
        let watches = events.watches();
        let trigger = LogTrigger::default();
        Ok(Self { runtime, policy, clock, call_timeout, trigger, events, watches, logs: BTreeMap::new() })
    }

    /// What tells it that containers changed.
    pub fn trigger(&self) -> LogTrigger {
        self.trigger.clone()
    }

    /// Rotates until dropped. Dropped between two steps, the next start goes on where this one stopped.
    pub async fn run(mut self) {
        let mut relist = Some(Instant::now());
        loop {
            if relist.is_some_and(|due| due <= Instant::now()) {
                relist = self.relist().await.err().map(|error| {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot list container logs");
                    Instant::now() + RETRY
                });
            }
            self.look_at_due().await;
            let trigger = self.trigger.clone();
            let due = self.due().into_iter().chain(relist).min();
            tokio::select! {
                // Cancel-safe: a kick that came meanwhile is stored.
                () = trigger.0.notified() => relist = Some(relist.unwrap_or(Instant::now() + SETTLE)),
                // Cancel-safe: an event is taken only once the arm is won.
                event = self.events.next() => self.written(event),
                // Cancel-safe: a timer.
                () = wait_until(due) => {}
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        let due = self.logs.values().filter_map(|log| match log.state {
            LogState::Timed { due, .. } => Some(due),
            LogState::Quiet { .. } => None,
        });
        due.min()
    }

    /// Learns which containers run and where their logs are.
    async fn relist(&mut self) -> Result<(), RotationError> {
        let running = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
        let filter = ContainerFilter { state: Some(running), ..ContainerFilter::default() };
        let call = self.runtime.list_containers(ListContainersRequest { filter: Some(filter) });
        let containers = within(self.call_timeout, "ListContainers", "", call).await?.containers;
        let ended: Vec<String> =
            self.logs.keys().filter(|id| containers.iter().all(|c| c.id != **id)).cloned().collect();
        for id in ended {
            self.forget(&id);
        }
        for container in containers {
            if self.logs.contains_key(&container.id) {
                continue;
            }
            let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
            let call = self.runtime.container_status(request);
            match within(self.call_timeout, "ContainerStatus", &container.id, call).await {
                Ok(response) => {
                    let path = response.status.map(|status| status.log_path).unwrap_or_default();
                    // A container without a log has none to rotate.
                    if !path.is_empty() {
                        let state = LogState::Timed { due: Instant::now(), last: None };
                        self.logs.insert(container.id, Log { path: path.into(), state });
                    }
                }
                // It ended meanwhile, and that comes as a trigger of its own.
                Err(RotationError::Runtime { source, .. }) if source.code() == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn forget(&mut self, id: &str) {
        if let Some(Log { state: LogState::Quiet { watch, .. }, .. }) = self.logs.remove(id) {
            // Gone with its file, perhaps.
            let _ = self.watches.remove(watch);
        }
    }

    /// A log that was quiet is written again.
    fn written(&mut self, event: Option<io::Result<inotify::EventOwned>>) {
        let mut next = event;
        while let Some(Ok(event)) = next {
            let lost = event.mask.contains(EventMask::Q_OVERFLOW);
            for log in self.logs.values_mut() {
                if let LogState::Quiet { watch, size } = &log.state
                    && (lost || *watch == event.wd)
                {
                    // One second in which to see how fast it grows.
                    let now = Instant::now();
                    log.state = LogState::Timed { due: now + plan::MIN_WAIT, last: Some((*size, now)) };
                }
            }
            next = self.events.next().now_or_never().flatten();
        }
    }

    async fn look_at_due(&mut self) {
        let now = Instant::now();
        let due: Vec<String> = self
            .logs
            .iter()
            .filter(|(_, log)| matches!(log.state, LogState::Timed { due, .. } if due <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            if let Err(error) = self.look(&id).await {
                tracing::warn!(container = id, error = &error as &dyn std::error::Error, "log not rotated");
                if let Some(log) = self.logs.get_mut(&id) {
                    log.state = LogState::Timed { due: Instant::now() + RETRY, last: None };
                }
            }
        }
    }

    /// Looks at one log, rotates it if it is full, and decides when to look again.
    async fn look(&mut self, id: &str) -> Result<(), RotationError> {
        let Some(log) = self.logs.get(id) else { return Ok(()) };
        let (path, LogState::Timed { last, .. }) = (log.path.clone(), &log.state) else { return Ok(()) };
        let last = *last;
        let size = match files::size(&path)? {
            Some(size) => size,
            None => {
                // A rotation was cut in two.
                self.reopen(id).await?;
                files::size(&path)?.unwrap_or(0)
            }
        };
        let now = Instant::now();
        let state = if self.policy.is_full(size) {
            self.rotate(id, &path).await?;
            LogState::Timed { due: now + plan::MIN_WAIT, last: Some((0, now)) }
        } else {
            match next_look(size, last.map(|(size, at)| (size, now - at)), &self.policy) {
                Look::After(wait) => LogState::Timed { due: now + wait, last: Some((size, now)) },
                Look::WhenWritten => self.quiet(&path, size, now)?,
            }
        };
        if let Some(log) = self.logs.get_mut(id) {
            log.state = state;
        }
        Ok(())
    }

    /// Arms inotify, unless the log grew in the meantime.
    fn quiet(&self, path: &PathBuf, size: u64, now: Instant) -> Result<LogState, RotationError> {
        let timed = LogState::Timed { due: now + plan::MAX_WAIT, last: Some((size, now)) };
        let Ok(watch) = self.watches.clone().add(path, WatchMask::MODIFY | WatchMask::ONESHOT) else {
            // No watch is to be had (fs.inotify.max_user_watches): look once a minute instead.
            return Ok(timed);
        };
        if files::size(path)? == Some(size) {
            return Ok(LogState::Quiet { watch, size });
        }
        let _ = self.watches.clone().remove(watch);
        Ok(LogState::Timed { due: now + plan::MIN_WAIT, last: Some((size, now)) })
    }

    async fn rotate(&self, id: &str, path: &std::path::Path) -> Result<(), RotationError> {
        let (owned, policy) = (path.to_owned(), self.policy);
        // Compression of some megabytes takes a while and must not hold up the other tasks.
        let tidy = tokio::task::spawn_blocking(move || files::tidy(&owned, &policy));
        tidy.await.unwrap_or_else(|error| Err(LogFileError::interrupted(path, &error)))?;
        let rotated = files::rename_aside(path, self.clock.now().wall().0)?;
        if let Err(error) = self.reopen(id).await {
            // Back to where the writer still writes, so that the next look finds it full again.
            files::rename_back(&rotated, path)?;
            return Err(error);
        }
        tracing::debug!(container = id, log = %path.display(), "log rotated");
        Ok(())
    }

    async fn reopen(&self, id: &str) -> Result<(), RotationError> {
        let request = ReopenContainerLogRequest { container_id: id.to_owned() };
        let call = self.runtime.reopen_container_log(request);
        within(self.call_timeout, "ReopenContainerLog", id, call).await.map(|_| ())
    }
}

impl std::fmt::Debug for LogRotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogRotation").field("policy", &self.policy).field("logs", &self.logs.len()).finish()
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// A call that ends in time.
async fn within<T>(
    limit: Duration,
    call: &'static str,
    id: &str,
    future: impl Future<Output = Result<T, Status>>,
) -> Result<T, RotationError> {
    let late = || Err(Status::new(Code::DeadlineExceeded, format!("no answer within {limit:?}")));
    let result = tokio::time::timeout(limit, future).await.unwrap_or_else(|_| late());
    result.map_err(|source| RotationError::Runtime { call, id: id.to_owned(), source })
}

#[cfg(test)]
mod tests;
