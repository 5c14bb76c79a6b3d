//! Output of containers that their log refuses: an event on the pod and a line in the agent's log, when it begins and
//! when it ends. One task while a kubelet lives.

use std::sync::Arc;

use coracle_kubelet_core::events::{EventType, container_field_path};
use coracle_runtime::LogLoss;
use tokio::sync::{Mutex, mpsc};

use super::Node;

/// News of the runtime, taken by one kubelet after the other.
pub(super) type Losses = Arc<Mutex<mpsc::Receiver<LogLoss>>>;

/// Tells of each loss until the runtime is gone. Cancel-safe.
pub(super) async fn tell(losses: Losses, node: Arc<Node>) {
    while let Some(loss) = losses.lock().await.recv().await {
        let pod = node.kubelet.statuses().borrow().get(loss.pod_uid.as_str()).map(|view| view.pod.clone());
        // A pod that is gone has nobody who misses its output.
        let Some(pod) = pod else { continue };
        let (name, container) = (pod.full_name(), loss.container.as_str());
        let (r#type, reason, message) = match &loss.error {
            Some(error) => {
                tracing::warn!(
                    pod = name,
                    container,
                    error,
                    "output of a container is lost: its log refuses it"
                );
                let message = format!(
                    "Output of container {container:?} is lost until its log can be written again: {error}"
                );
                (EventType::Warning, "LogOutputLost", message)
            }
            None => {
                let bytes = loss.bytes_dropped;
                tracing::info!(pod = name, container, bytes, "the log of a container takes output again");
                let message = format!(
                    "The log of container {container:?} takes output again; it lacks {bytes} bytes of it"
                );
                (EventType::Normal, "LogOutputResumed", message)
            }
        };
        let path = container_field_path(&pod, container);
        node.events.pod(&pod, Some(&path), r#type, reason, message);
    }
}
