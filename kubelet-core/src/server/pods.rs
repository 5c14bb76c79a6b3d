//! `/pods` and `/runningpods/`: what this node should run, and what its runtime says it has.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{
    ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest, ListPodSandboxRequest,
    PodSandboxFilter, PodSandboxState, PodSandboxStateValue,
};
use futures_util::stream;
use hyper::body::Bytes;
use serde_json::{Value, json};

use super::Shared;
use super::answer::{self, Answer, JSON};
use crate::api::Pod;
use crate::kubelet::PodView;
use crate::pod::rpc::bounded;

const RUNTIME_DEADLINE: Duration = Duration::from_secs(30);

/// The pod of that name.
pub(super) fn find(shared: &Shared, namespace: &str, name: &str) -> Option<PodView> {
    let views = shared.parts.pods.borrow();
    let is_it = |view: &&PodView| view.pod.metadata.name == name && view.pod.metadata.namespace == namespace;
    // Of a pod that ends and its successor the one that is not being deleted is meant.
    let found =
        views.values().filter(is_it).min_by_key(|view| view.pod.metadata.deletion_timestamp.is_some());
    found.cloned()
}

/// The pods with their statuses; written one after the other, so that a full node costs one pod's text.
pub(super) fn pods(shared: &Arc<Shared>) -> Answer {
    let mut views: Vec<PodView> = shared.parts.pods.borrow().values().cloned().collect();
    views.extend(shared.parts.idle.borrow().values().cloned());
    let head = br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#;
    let pieces = stream::unfold((views.into_iter(), 0_usize), move |(mut views, count)| async move {
        let piece = match views.next() {
            Some(view) => {
                let mut piece = if count == 0 { head.to_vec() } else { b",".to_vec() };
                let pod = Pod { status: (*view.status).clone(), ..(*view.pod).clone() };
                if let Err(error) = serde_json::to_writer(&mut piece, &pod) {
                    return Some((Err(io::Error::from(error)), (Vec::new().into_iter(), usize::MAX)));
                }
                piece
            }
            None if count == usize::MAX => return None,
            None => {
                let mut piece = if count == 0 { head.to_vec() } else { Vec::new() };
                piece.extend_from_slice(b"]}");
                return Some((Ok(Bytes::from(piece)), (views, usize::MAX)));
            }
        };
        Some((Ok(Bytes::from(piece)), (views, count + 1)))
    });
    answer::streamed(JSON, pieces)
}

/// What the runtime runs, in the little that it knows of pods.
pub(super) async fn running_pods(shared: &Arc<Shared>) -> Answer {
    match running(shared).await {
        Ok(items) => {
            answer::json(&json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
        }
        Err(error) => answer::error(500, error.message()),
    }
}

async fn running(shared: &Arc<Shared>) -> Result<Vec<Value>, coracle_cri::Status> {
    let state = Some(PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() });
    let filter = Some(PodSandboxFilter { state, ..PodSandboxFilter::default() });
    let call = shared.parts.runtime.list_pod_sandbox(ListPodSandboxRequest { filter });
    let sandboxes = bounded("ListPodSandbox", RUNTIME_DEADLINE, call).await?.items;
    let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() });
    let filter = Some(ContainerFilter { state, ..ContainerFilter::default() });
    let call = shared.parts.runtime.list_containers(ListContainersRequest { filter });
    let mut containers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for container in bounded("ListContainers", RUNTIME_DEADLINE, call).await?.containers {
        let name = container.metadata.map(|metadata| metadata.name).unwrap_or_default();
        let image = container.image.map(|image| image.image).unwrap_or_default();
        let shown = json!({ "name": name, "image": image, "resources": {} });
        containers.entry(container.pod_sandbox_id).or_default().push(shown);
    }
    let shown = |sandbox: coracle_cri::v1::PodSandbox| {
        let metadata = sandbox.metadata.unwrap_or_default();
        json!({
            "metadata": {
                "name": metadata.name,
                "namespace": metadata.namespace,
                "uid": metadata.uid,
                "creationTimestamp": null,
            },
            "spec": { "containers": containers.remove(&sandbox.id).unwrap_or_default() },
            "status": {},
        })
    };
    Ok(sandboxes.into_iter().map(shown).collect())
}
