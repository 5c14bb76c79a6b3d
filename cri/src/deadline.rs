//! How long calls may take: the client's limits, which are a stock kubelet's, and what a caller asks of the server.
//!
//! Pure: from a request to a duration. Read by the client and by the server for every call.

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

/// What the header `grpc-timeout` says: at most eight digits and a unit (gRPC's PROTOCOL-HTTP2.md).
pub(crate) fn of_caller(header: &str) -> Option<Duration> {
    let (count, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if count.len() > 8 || !count.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = count.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Seconds of a request; no more than gRPC's timeout header can say, and none when negative.
fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0).min(10 * 365 * 86_400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_says_its_limit_in_units_of_its_own() {
        for (header, wanted) in [("2H", 7200), ("3M", 180), ("99999999S", 99_999_999), ("4000m", 4)] {
            assert_eq!(of_caller(header), Some(Duration::from_secs(wanted)));
        }
        assert_eq!(of_caller("5u"), Some(Duration::from_micros(5)));
        assert_eq!(of_caller("5n"), Some(Duration::from_nanos(5)));
        for wrong in ["", "S", "5", "5s", "-5S", "100000000S", "5\u{b5}"] {
            assert_eq!(of_caller(wrong), None, "{wrong}");
        }
    }

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
