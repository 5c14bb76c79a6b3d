//! The two services of CRI as object-safe traits, one method per call.
//!
//! Implemented by every runtime (the gRPC client, the embedded runtime, the fake) and called by
//! kubelet-core and the gRPC server. Methods take `&self` and may run side by side. Calls that not every
//! runtime has answer `Unimplemented` unless overridden, as gRPC does.

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tonic::Status;

use crate::v1::*;

/// A stream of messages that ends with the call.
pub type Stream<T> = BoxStream<'static, Result<T, Status>>;

/// Sandboxes and containers.
#[async_trait]
pub trait RuntimeService: Send + Sync + 'static {
    /// Name and version of the runtime.
    async fn version(&self, request: VersionRequest) -> Result<VersionResponse, Status>;

    /// Creates and starts a sandbox; it is ready when this returns.
    async fn run_pod_sandbox(&self, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status>;

    /// Stops every process of a sandbox and gives back its network. Idempotent.
    async fn stop_pod_sandbox(
        &self,
        request: StopPodSandboxRequest,
    ) -> Result<StopPodSandboxResponse, Status>;

    /// Removes a sandbox and its containers. Idempotent.
    async fn remove_pod_sandbox(
        &self,
        request: RemovePodSandboxRequest,
    ) -> Result<RemovePodSandboxResponse, Status>;

    /// Status of one sandbox; `NotFound` when there is none.
    async fn pod_sandbox_status(
        &self,
        request: PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, Status>;

    /// Sandboxes that match a filter.
    async fn list_pod_sandbox(
        &self,
        request: ListPodSandboxRequest,
    ) -> Result<ListPodSandboxResponse, Status>;

    /// Like `list_pod_sandbox`, in bounded pieces.
    async fn stream_pod_sandboxes(
        &self,
        _request: StreamPodSandboxesRequest,
    ) -> Result<Stream<StreamPodSandboxesResponse>, Status> {
        Err(Status::unimplemented("StreamPodSandboxes"))
    }

    /// Creates a container in a ready sandbox without starting it.
    async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Status>;

    /// Starts a created container.
    async fn start_container(&self, request: StartContainerRequest)
    -> Result<StartContainerResponse, Status>;

    /// Stops a container: its stop signal, after `timeout` seconds SIGKILL. Idempotent.
    async fn stop_container(&self, request: StopContainerRequest) -> Result<StopContainerResponse, Status>;

    /// Removes a container, killing it first when it runs. Idempotent.
    async fn remove_container(
        &self,
        request: RemoveContainerRequest,
    ) -> Result<RemoveContainerResponse, Status>;

    /// Containers that match a filter.
    async fn list_containers(&self, request: ListContainersRequest)
    -> Result<ListContainersResponse, Status>;

    /// Like `list_containers`, in bounded pieces.
    async fn stream_containers(
        &self,
        _request: StreamContainersRequest,
    ) -> Result<Stream<StreamContainersResponse>, Status> {
        Err(Status::unimplemented("StreamContainers"))
    }

    /// Status of one container; `NotFound` when there is none.
    async fn container_status(
        &self,
        request: ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, Status>;

    /// Changes the cgroup limits of a container.
    async fn update_container_resources(
        &self,
        request: UpdateContainerResourcesRequest,
    ) -> Result<UpdateContainerResourcesResponse, Status>;

    /// Makes the writer of a log open its path anew, after a rotation.
    async fn reopen_container_log(
        &self,
        request: ReopenContainerLogRequest,
    ) -> Result<ReopenContainerLogResponse, Status>;

    /// Runs a command in a container; waits at most `timeout` seconds (0: no limit).
    async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status>;

    /// URL of a streaming server that runs a command in a container.
    async fn exec(&self, _request: ExecRequest) -> Result<ExecResponse, Status> {
        Err(Status::unimplemented("Exec"))
    }

    /// URL of a streaming server attached to a container.
    async fn attach(&self, _request: AttachRequest) -> Result<AttachResponse, Status> {
        Err(Status::unimplemented("Attach"))
    }

    /// URL of a streaming server that forwards ports of a sandbox.
    async fn port_forward(&self, _request: PortForwardRequest) -> Result<PortForwardResponse, Status> {
        Err(Status::unimplemented("PortForward"))
    }

    /// Usage of one container.
    async fn container_stats(&self, request: ContainerStatsRequest)
    -> Result<ContainerStatsResponse, Status>;

    /// Usage of the containers that match a filter.
    async fn list_container_stats(
        &self,
        request: ListContainerStatsRequest,
    ) -> Result<ListContainerStatsResponse, Status>;

    /// Like `list_container_stats`, in bounded pieces.
    async fn stream_container_stats(
        &self,
        _request: StreamContainerStatsRequest,
    ) -> Result<Stream<StreamContainerStatsResponse>, Status> {
        Err(Status::unimplemented("StreamContainerStats"))
    }

    /// Usage of one sandbox.
    async fn pod_sandbox_stats(
        &self,
        request: PodSandboxStatsRequest,
    ) -> Result<PodSandboxStatsResponse, Status>;

    /// Usage of the sandboxes that match a filter.
    async fn list_pod_sandbox_stats(
        &self,
        request: ListPodSandboxStatsRequest,
    ) -> Result<ListPodSandboxStatsResponse, Status>;

    /// Like `list_pod_sandbox_stats`, in bounded pieces.
    async fn stream_pod_sandbox_stats(
        &self,
        _request: StreamPodSandboxStatsRequest,
    ) -> Result<Stream<StreamPodSandboxStatsResponse>, Status> {
        Err(Status::unimplemented("StreamPodSandboxStats"))
    }

    /// Tells the runtime the pod CIDR.
    async fn update_runtime_config(
        &self,
        request: UpdateRuntimeConfigRequest,
    ) -> Result<UpdateRuntimeConfigResponse, Status>;

    /// Conditions, handlers and features of the runtime.
    async fn status(&self, request: StatusRequest) -> Result<StatusResponse, Status>;

    /// Writes a checkpoint of a container.
    async fn checkpoint_container(
        &self,
        _request: CheckpointContainerRequest,
    ) -> Result<CheckpointContainerResponse, Status> {
        Err(Status::unimplemented("CheckpointContainer"))
    }

    /// Every state change of a container or sandbox from now on. A runtime behind a socket that goes away ends
    /// the stream with an error; one that cannot tell events says so here or in the first item.
    async fn get_container_events(
        &self,
        request: GetEventsRequest,
    ) -> Result<Stream<ContainerEventResponse>, Status>;

    /// Descriptors of what `list_pod_sandbox_metrics` returns.
    async fn list_metric_descriptors(
        &self,
        _request: ListMetricDescriptorsRequest,
    ) -> Result<ListMetricDescriptorsResponse, Status> {
        Err(Status::unimplemented("ListMetricDescriptors"))
    }

    /// Metrics of every sandbox.
    async fn list_pod_sandbox_metrics(
        &self,
        _request: ListPodSandboxMetricsRequest,
    ) -> Result<ListPodSandboxMetricsResponse, Status> {
        Err(Status::unimplemented("ListPodSandboxMetrics"))
    }

    /// Like `list_pod_sandbox_metrics`, in bounded pieces.
    async fn stream_pod_sandbox_metrics(
        &self,
        _request: StreamPodSandboxMetricsRequest,
    ) -> Result<Stream<StreamPodSandboxMetricsResponse>, Status> {
        Err(Status::unimplemented("StreamPodSandboxMetrics"))
    }

    /// What a kubelet must know of the runtime: its cgroup driver.
    async fn runtime_config(&self, request: RuntimeConfigRequest) -> Result<RuntimeConfigResponse, Status>;

    /// Changes the limits of a sandbox.
    async fn update_pod_sandbox_resources(
        &self,
        _request: UpdatePodSandboxResourcesRequest,
    ) -> Result<UpdatePodSandboxResourcesResponse, Status> {
        Err(Status::unimplemented("UpdatePodSandboxResources"))
    }
}

/// Images.
#[async_trait]
pub trait ImageService: Send + Sync + 'static {
    /// Images that match a filter.
    async fn list_images(&self, request: ListImagesRequest) -> Result<ListImagesResponse, Status>;

    /// Like `list_images`, in bounded pieces.
    async fn stream_images(
        &self,
        _request: StreamImagesRequest,
    ) -> Result<Stream<StreamImagesResponse>, Status> {
        Err(Status::unimplemented("StreamImages"))
    }

    /// Status of one image; an empty response when there is none.
    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status>;

    /// Pulls an image with the given credentials.
    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, Status>;

    /// Removes an image. Idempotent.
    async fn remove_image(&self, request: RemoveImageRequest) -> Result<RemoveImageResponse, Status>;

    /// Usage of the file systems that hold images and containers.
    async fn image_fs_info(&self, request: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, Status>;
}
