//! How long the client waits for each call: a stock kubelet's limits.
//!
//! Pure: from a request to a duration. Read by the client for every call.

use std::time::Duration;

use crate::v1::*;

/// The client's limits. [`Default`] is a stock kubelet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Any call; `RunPodSandbox` has twice as long, `StopContainer`, `ExecSync` and `CheckpointContainer` have
    /// it on top of the time that their request grants. A list that comes as a stream ends within it. 2 min,
    /// as the kubelet's `runtimeRequestTimeout`.
    pub request: Duration,
    /// `PullImage`. The runtime ends a stalled pull by itself much earlier; this only bounds a runtime that
    /// does not answer. 12 h.
    pub pull: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines { request: Duration::from_secs(120), pull: Duration::from_secs(12 * 3600) }
    }
}

/// A request that knows its limit; `None` is for calls that the caller bounds.
pub(crate) trait Bounded {
    fn limit(&self, deadlines: &Deadlines) -> Option<Duration> {
        Some(deadlines.request)
    }
}

macro_rules! plain {
    ($($request:ident)*) => { $(impl Bounded for $request {})* };
}

plain! {
    VersionRequest StopPodSandboxRequest RemovePodSandboxRequest PodSandboxStatusRequest ListPodSandboxRequest
    StreamPodSandboxesRequest CreateContainerRequest StartContainerRequest RemoveContainerRequest
    ListContainersRequest StreamContainersRequest ContainerStatusRequest UpdateContainerResourcesRequest
    ReopenContainerLogRequest ExecRequest AttachRequest PortForwardRequest ContainerStatsRequest
    ListContainerStatsRequest StreamContainerStatsRequest PodSandboxStatsRequest ListPodSandboxStatsRequest
    StreamPodSandboxStatsRequest UpdateRuntimeConfigRequest StatusRequest ListMetricDescriptorsRequest
    ListPodSandboxMetricsRequest StreamPodSandboxMetricsRequest RuntimeConfigRequest
    UpdatePodSandboxResourcesRequest ListImagesRequest StreamImagesRequest ImageStatusRequest RemoveImageRequest
    ImageFsInfoRequest
}

impl Bounded for RunPodSandboxRequest {
    fn limit(&self, deadlines: &Deadlines) -> Option<Duration> {
        Some(deadlines.request * 2)
    }
}

impl Bounded for StopContainerRequest {
    fn limit(&self, deadlines: &Deadlines) -> Option<Duration> {
        Some(deadlines.request + seconds(self.timeout))
    }
}

impl Bounded for CheckpointContainerRequest {
    fn limit(&self, deadlines: &Deadlines) -> Option<Duration> {
        Some(deadlines.request + seconds(self.timeout))
    }
}

impl Bounded for ExecSyncRequest {
    /// A command without a timeout runs as long as it likes, such as a postStart hook.
    fn limit(&self, deadlines: &Deadlines) -> Option<Duration> {
        (self.timeout > 0).then(|| deadlines.request + seconds(self.timeout))
    }
}

impl Bounded for PullImageRequest {
    fn limit(&self, deadlines: &Deadlines) -> Option<Duration> {
        Some(deadlines.pull)
    }
}

impl Bounded for GetEventsRequest {
    /// Events come for as long as the runtime lives.
    fn limit(&self, _deadlines: &Deadlines) -> Option<Duration> {
        None
    }
}

/// Seconds of a request; no more than gRPC's timeout header can say, and none when negative.
fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0).min(10 * 365 * 86_400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_a_kubelets() {
        let deadlines = Deadlines::default();
        let limit = |request: &dyn Bounded| request.limit(&deadlines).map(|limit| limit.as_secs());
        assert_eq!(limit(&VersionRequest::default()), Some(120));
        assert_eq!(limit(&RunPodSandboxRequest::default()), Some(240));
        assert_eq!(limit(&StopContainerRequest { timeout: 30, ..Default::default() }), Some(150));
        assert_eq!(limit(&StopContainerRequest { timeout: -1, ..Default::default() }), Some(120));
        assert_eq!(limit(&ExecSyncRequest { timeout: 5, ..Default::default() }), Some(125));
        assert_eq!(limit(&ExecSyncRequest::default()), None);
        assert_eq!(limit(&GetEventsRequest {}), None);
        assert_eq!(limit(&PullImageRequest::default()), Some(12 * 3600));
    }
}
