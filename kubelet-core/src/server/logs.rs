//! `/containerLogs`: the log of one container, whole or as it grows.
//!
//! Runs in the task of its connection. Answers as the kubelet's `getContainerLogs` does (1.36).

use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::ContainerStatusRequest;

use super::answer::{self, Answer, TEXT};
use super::follow::LogStreamer;
use super::log_options::{self, LogOptions, Refusal};
use super::{Shared, pods};
use crate::container_log::{LogError, LogFilter, LogReader};
use crate::kubelet::PodView;
use crate::pod::rpc::bounded;

const RUNTIME_DEADLINE: Duration = Duration::from_secs(30);

/// Answers a request for a log.
pub(super) async fn container_logs(
    shared: &Arc<Shared>,
    namespace: &str,
    name: &str,
    container: &str,
    query: &str,
) -> Answer {
    for (what, words) in [
        (name, r#"{"message": "Missing podID."}"#),
        (container, r#"{"message": "Missing container name."}"#),
        (namespace, r#"{"message": "Missing podNamespace."}"#),
    ] {
        if what.is_empty() {
            return answer::error(400, words);
        }
    }
    let options = match log_options::log_options(query, shared.config.clock.now().wall_nanos) {
        Ok(options) => options,
        Err(Refusal(status, words)) => return answer::error(status, words),
    };
    let Some(view) = pods::find(shared, namespace, name) else {
        return answer::error(404, format!("pod {name:?} does not exist"));
    };
    if view.pod.container(container).is_none() {
        return answer::error(404, format!("container {container:?} not found in pod {name:?}"));
    }
    match open(shared, &view, container, &options).await {
        Ok(streamer) => answer::streamed(TEXT, streamer.stream()),
        Err(words) => answer::error(400, words),
    }
}

/// Finds the container's file and goes to where the answer begins.
async fn open(
    shared: &Arc<Shared>,
    view: &PodView,
    container: &str,
    options: &LogOptions,
) -> Result<LogStreamer, String> {
    let pod = &view.pod.metadata;
    let id = log_options::instance(&pod.name, &view.status, container, options.previous)?;
    let request = ContainerStatusRequest { container_id: id.clone(), verbose: false };
    let call = shared.parts.runtime.container_status(request);
    let status = bounded("ContainerStatus", RUNTIME_DEADLINE, call).await;
    let status = status.map_err(|error| {
        tracing::debug!(%error, container = %id, "no log of this container");
        format!("unable to retrieve container logs for {}", with_runtime(view, &id))
    })?;
    let path = status.status.map(|status| status.log_path).unwrap_or_default();
    let tail = options.tail_lines;
    // The end of a long log on a slow disk is looked for beside the event loop.
    let opened = tokio::task::spawn_blocking(move || LogReader::open(path.as_ref(), tail)).await;
    let log = opened.map_err(|error| error.to_string())?.map_err(|error| words(&error))?;
    let filter = LogFilter {
        since: options.since,
        timestamps: options.timestamps,
        stream: options.stream,
        limit: options.limit_bytes,
        ..LogFilter::default()
    };
    Ok(LogStreamer::new(
        log,
        filter,
        options.follow.then(|| (shared.parts.pods.clone(), pod.uid.clone(), id)),
    ))
}

fn words(error: &LogError) -> String {
    format!("failed to {} log file {:?}: {}", error.operation, error.path, error.source)
}

/// The id as the status has it, with the runtime's name before it.
fn with_runtime(view: &PodView, id: &str) -> String {
    let status = &view.status;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses);
    let prefix = all.filter_map(|status| status.container_id.split_once("://")).map(|(name, _)| name).next();
    prefix.map_or_else(|| id.to_owned(), |name| format!("{name}://{id}"))
}
