//! Output that a log refused, such as on a full disk: what the shims tell of it, for whoever embeds the runtime.
//!
//! One call waits at each shim, beside the watch for its death, and is asked anew after each answer. What a shim told
//! an earlier runtime it tells again.

use std::sync::{Arc, Mutex, PoisonError};

use coracle_shim::protocol::{method, shim};
use tokio::sync::mpsc;

use crate::sandbox::Sandbox;
use crate::service::{Engine, Runtime};
use crate::shim_client::{ShimClient, ShimError};

/// News that nobody has taken yet; who is slower misses the latest.
const KEPT: usize = 32;

/// The log of a container has begun to refuse output, or takes it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLoss {
    /// The pod, by the UID that its sandbox was made with.
    pub pod_uid: String,
    /// The container's name in the pod.
    pub container: String,
    /// Why output is being dropped; `None` once it is taken again.
    pub error: Option<String>,
    /// Bytes of output that the log lacks, since the container was created.
    pub bytes_dropped: u64,
}

/// Where the news comes together.
pub(crate) struct LogLosses {
    sender: mpsc::Sender<LogLoss>,
    receiver: Mutex<Option<mpsc::Receiver<LogLoss>>>,
}

impl LogLosses {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(KEPT);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }
}

impl Runtime {
    /// News of output that logs refuse, since the start; `None` for all but the first who asks.
    pub fn take_log_losses(&self) -> Option<mpsc::Receiver<LogLoss>> {
        self.engine.log_losses.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Engine {
    /// Passes on what a shim tells of its logs, as long as it lives.
    pub(crate) async fn follow_logs(self: Arc<Self>, shim: ShimClient, sandbox: Arc<Sandbox>) {
        let mut known = shim::WatchLogsRequest::default();
        loop {
            let news = match shim.call_unbounded::<method::WatchLogs>(&known).await {
                Ok(news) => news,
                Err(ShimError::Gone { .. }) => return,
                Err(error) => {
                    // One of a release that does not tell runs on until its pod ends.
                    tracing::debug!(sandbox = %sandbox.id, %error, "the shim tells nothing of lost output");
                    return;
                }
            };
            let is_fresh = |log: &&shim::LogState| !known.refusing.contains(&log.id);
            for log in news.refusing.iter().filter(is_fresh).chain(&news.resumed) {
                self.tell_of_log(&sandbox, log);
            }
            known.refusing = news.refusing.into_iter().map(|log| log.id).collect();
        }
    }

    fn tell_of_log(&self, sandbox: &Sandbox, log: &shim::LogState) {
        let metadata = sandbox.record().config.metadata.clone().unwrap_or_default();
        // One that is being removed has no name any more, and nobody who reads its log.
        let Ok(container) = self.container(&log.id) else { return };
        let container = container.record().config.metadata.clone().unwrap_or_default().name;
        let loss = LogLoss {
            pod_uid: metadata.uid,
            container,
            error: (!log.error.is_empty()).then(|| log.error.clone()),
            bytes_dropped: log.bytes_dropped,
        };
        // The log itself says later how much it lacks.
        let _ = self.log_losses.sender.try_send(loss);
    }
}
