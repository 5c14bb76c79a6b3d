//! Carrying out a resize: the pod's cgroup gives first, then the containers change, then the pod's cgroup takes.
//!
//! Part of an execution. Follows the kubelet's `doPodResizeAction` (1.36), but for CPU and memory at once. What was
//! done is told step by step, so that what fails is begun again where it stopped.

use coracle_cri::v1::{
    ContainerStatsRequest, UpdateContainerResourcesRequest, UpdatePodSandboxResourcesRequest,
};
use coracle_cri::{Code, Status};

use super::{Execution, Progress, go_error};
use crate::pod::resize::{ContainerResize, Resize};
use crate::pod::rpc::bounded;
use crate::pod_cgroup::Extent;

impl Execution {
    /// Does what the plan says of resources; a failure is the pod's condition until it succeeds.
    pub(super) async fn resize(&self, resize: &Resize) {
        if let Err(message) = self.try_resize(resize).await {
            self.report.send(Progress::ResizeFailed { message });
        }
    }

    async fn try_resize(&self, resize: &Resize) -> Result<(), String> {
        let Resize { from, to, containers } = resize;
        self.check_memory(resize).await?;
        let resources = &self.node.resources;
        if from != to {
            self.tell_sandbox().await?;
            resources.resize(&self.pod, from, Extent::Raise).await.map_err(|error| error.message)?;
        }
        for container in containers {
            self.update(container).await?;
            self.report.send(Progress::Sized { id: container.id.clone(), amounts: container.to });
        }
        if from != to {
            let raised = to.at_least(from);
            resources.resize(&self.pod, &raised, Extent::All).await.map_err(|error| error.message)?;
            self.report.send(Progress::PodSized { limits: to.clone() });
        }
        Ok(())
    }

    /// No limit may become less than what is used: the kernel would kill.
    async fn check_memory(&self, resize: &Resize) -> Result<(), String> {
        let mut errors = Vec::new();
        let below = |what: &str, limit: i64, used: Option<u64>| match used {
            Some(used) if used < limit.unsigned_abs() => None,
            Some(used) => {
                Some(format!("attempting to set {what} memory limit ({limit}) below current usage ({used})"))
            }
            None => Some(format!("missing {what} memory usage")),
        };
        if resize.lowers_memory() {
            let used = self.node.resources.memory_use(&self.pod).await;
            errors.extend(below("pod", resize.to.memory.unwrap_or(0), used));
        }
        for container in resize.containers.iter().filter(|c| c.to.lowers_memory(&c.from)) {
            let request = ContainerStatsRequest { container_id: container.id.to_string() };
            let call = self.node.runtime.container_stats(request);
            let stats = bounded("ContainerStats", self.node.deadlines.query, call).await;
            let memory = stats.ok().and_then(|answer| answer.stats?.memory?.usage_bytes);
            let what = format!("container {:?}", container.name);
            errors.extend(below(&what, container.to.memory_limit, memory.map(|used| used.value)));
        }
        match &errors[..] {
            [] => Ok(()),
            [error] => Err(format!("cannot decrease memory limits: {error}")),
            errors => Err(format!("cannot decrease memory limits: [{}]", errors.join(", "))),
        }
    }

    /// A runtime that sizes sandboxes itself has to know first, and may refuse.
    async fn tell_sandbox(&self) -> Result<(), String> {
        let Some(id) = &self.plan.sandbox else { return Ok(()) };
        let [overhead, resources] = self.node.resources.sandbox_size(&self.pod);
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.to_string(),
            overhead: Some(overhead),
            resources: Some(resources),
        };
        let call = self.node.runtime.update_pod_sandbox_resources(request);
        match bounded("UpdatePodSandboxResources", self.node.deadlines.call, call).await {
            Err(status) if !is_unimplemented(&status) => {
                Err(format!("updatePodSandboxResources failed for sandboxID {id:?}: {}", go_error(&status)))
            }
            _ => Ok(()),
        }
    }

    async fn update(&self, resize: &ContainerResize) -> Result<(), String> {
        let Some(container) = self.pod.container(&resize.name) else { return Ok(()) };
        let request = UpdateContainerResourcesRequest {
            container_id: resize.id.to_string(),
            linux: Some(self.node.resources.container_size(&self.pod, container)),
            ..UpdateContainerResourcesRequest::default()
        };
        let call = self.node.runtime.update_container_resources(request);
        let updated = bounded("UpdateContainerResources", self.node.deadlines.call, call).await;
        updated.map(|_| ()).map_err(|status| go_error(&status))
    }
}

/// containerd 2.2 says so in words.
fn is_unimplemented(status: &Status) -> bool {
    status.code() == Code::Unimplemented
        || (status.code() == Code::Unknown && status.message().contains("not implemented"))
}
