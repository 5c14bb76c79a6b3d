//! The list of all calls, for the code that is the same for each of them.
//!
//! `runtime_calls!(callback, args…)` hands the callback its arguments and then
//! `unary { name(Request) -> Response; … } streams { name(Request) -> stream Item as AssociatedType; … }
//! events { … }`, the last for the one stream without an end; `image_calls!` does the same for images. The client and the server are made from these lists.

macro_rules! runtime_calls {
    ($callback:ident! $($args:tt)*) => {
        $callback! { $($args)*
            unary {
                version(VersionRequest) -> VersionResponse;
                run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
                stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
                remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
                pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
                list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
                create_container(CreateContainerRequest) -> CreateContainerResponse;
                start_container(StartContainerRequest) -> StartContainerResponse;
                stop_container(StopContainerRequest) -> StopContainerResponse;
                remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
                list_containers(ListContainersRequest) -> ListContainersResponse;
                container_status(ContainerStatusRequest) -> ContainerStatusResponse;
                update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
                reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
                exec_sync(ExecSyncRequest) -> ExecSyncResponse;
                exec(ExecRequest) -> ExecResponse;
                attach(AttachRequest) -> AttachResponse;
                port_forward(PortForwardRequest) -> PortForwardResponse;
                container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
                list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
                pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
                list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
                update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
                status(StatusRequest) -> StatusResponse;
                checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
                list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
                list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
                runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
                update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest)
                    -> UpdatePodSandboxResourcesResponse;
            }
            streams {
                stream_pod_sandboxes(StreamPodSandboxesRequest)
                    -> stream StreamPodSandboxesResponse as StreamPodSandboxesStream;
                stream_containers(StreamContainersRequest)
                    -> stream StreamContainersResponse as StreamContainersStream;
                stream_container_stats(StreamContainerStatsRequest)
                    -> stream StreamContainerStatsResponse as StreamContainerStatsStream;
                stream_pod_sandbox_stats(StreamPodSandboxStatsRequest)
                    -> stream StreamPodSandboxStatsResponse as StreamPodSandboxStatsStream;
                stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest)
                    -> stream StreamPodSandboxMetricsResponse as StreamPodSandboxMetricsStream;
            }
            events {
                get_container_events(GetEventsRequest)
                    -> stream ContainerEventResponse as GetContainerEventsStream;
            }
        }
    };
}

macro_rules! image_calls {
    ($callback:ident! $($args:tt)*) => {
        $callback! { $($args)*
            unary {
                list_images(ListImagesRequest) -> ListImagesResponse;
                image_status(ImageStatusRequest) -> ImageStatusResponse;
                pull_image(PullImageRequest) -> PullImageResponse;
                remove_image(RemoveImageRequest) -> RemoveImageResponse;
                image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
            }
            streams {
                stream_images(StreamImagesRequest) -> stream StreamImagesResponse as StreamImagesStream;
            }
            events {}
        }
    };
}

pub(crate) use {image_calls, runtime_calls};
