//! The calls of CRI's RuntimeService, each turned into an act of the engine.

use std::time::Duration;

use async_trait::async_trait;
use coracle_cri::v1::*;
use coracle_cri::{RuntimeService, Status, Stream};

use super::Runtime;
use super::status::{container_item, container_status, labels_match, sandbox_item, sandbox_status};
use crate::config::CgroupDriver as Driver;
use crate::service_error::ServiceError;
use crate::stats;
use crate::streaming::{Ticket, check_streams};

/// Containers or sandboxes in one piece of a streamed list: far below gRPC's message bound.
const PIECE: usize = 200;

fn missing(field: &'static str) -> Status {
    ServiceError::Missing { field }.into()
}

fn pieces<T: Send + 'static, R: Send + 'static>(items: Vec<T>, wrap: fn(Vec<T>) -> R) -> Stream<R> {
    use futures_util::StreamExt as _;
    let mut pieces = Vec::new();
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        pieces.push(Ok(wrap(items.by_ref().take(PIECE).collect())));
    }
    futures_util::stream::iter(pieces).boxed()
}

#[async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _request: VersionRequest) -> Result<VersionResponse, Status> {
        Ok(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "coracle".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(&self, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status> {
        let config = request.config.ok_or_else(|| missing("the configuration of the sandbox"))?;
        let engine = self.engine.clone();
        let act = async move { engine.run_sandbox(config, request.runtime_handler).await };
        Ok(RunPodSandboxResponse { pod_sandbox_id: self.engine.whole(act).await? })
    }

    async fn stop_pod_sandbox(
        &self,
        request: StopPodSandboxRequest,
    ) -> Result<StopPodSandboxResponse, Status> {
        if let Ok(sandbox) = self.engine.sandbox(&request.pod_sandbox_id) {
            let engine = self.engine.clone();
            self.engine.whole(async move { engine.stop_sandbox(&sandbox).await }).await?;
        }
        Ok(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: RemovePodSandboxRequest,
    ) -> Result<RemovePodSandboxResponse, Status> {
        if let Ok(sandbox) = self.engine.sandbox(&request.pod_sandbox_id) {
            let engine = self.engine.clone();
            self.engine.whole(async move { engine.remove_sandbox(&sandbox).await }).await?;
        }
        Ok(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, Status> {
        let sandbox = self.engine.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.is_visible() {
            return Err(ServiceError::NoSandbox { id: request.pod_sandbox_id }.into());
        }
        let info = if request.verbose { self.engine.sandbox_info(&sandbox) } else { Default::default() };
        Ok(PodSandboxStatusResponse {
            status: Some(sandbox_status(&sandbox.record())),
            info,
            containers_statuses: self.engine.statuses_of(&sandbox.id),
            timestamp: super::wall_ns(),
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: ListPodSandboxRequest,
    ) -> Result<ListPodSandboxResponse, Status> {
        Ok(ListPodSandboxResponse { items: self.sandbox_items(request.filter) })
    }

    async fn stream_pod_sandboxes(
        &self,
        request: StreamPodSandboxesRequest,
    ) -> Result<Stream<StreamPodSandboxesResponse>, Status> {
        let items = self.sandbox_items(request.filter);
        Ok(pieces(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Status> {
        let config = request.config.ok_or_else(|| missing("the configuration of the container"))?;
        let engine = self.engine.clone();
        let act = async move { engine.create_container(&request.pod_sandbox_id, config).await };
        Ok(CreateContainerResponse { container_id: self.engine.whole(act).await? })
    }

    async fn start_container(
        &self,
        request: StartContainerRequest,
    ) -> Result<StartContainerResponse, Status> {
        let container = self.engine.container(&request.container_id)?;
        let engine = self.engine.clone();
        self.engine.whole(async move { engine.start_container(&container).await }).await?;
        Ok(StartContainerResponse {})
    }

    async fn stop_container(&self, request: StopContainerRequest) -> Result<StopContainerResponse, Status> {
        if let Ok(container) = self.engine.container(&request.container_id) {
            let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
            // A caller that goes away stops the waiting, and nothing else needs undoing.
            self.engine.stop_container(&container, grace).await?;
        }
        Ok(StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: RemoveContainerRequest,
    ) -> Result<RemoveContainerResponse, Status> {
        if let Ok(container) = self.engine.container(&request.container_id) {
            let engine = self.engine.clone();
            self.engine.whole(async move { engine.remove_container(&container).await }).await?;
        }
        Ok(RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: ListContainersRequest,
    ) -> Result<ListContainersResponse, Status> {
        Ok(ListContainersResponse { containers: self.container_items(request.filter) })
    }

    async fn stream_containers(
        &self,
        request: StreamContainersRequest,
    ) -> Result<Stream<StreamContainersResponse>, Status> {
        let items = self.container_items(request.filter);
        Ok(pieces(items, |containers| StreamContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, Status> {
        let container = self.engine.container(&request.container_id)?;
        if !container.is_visible() {
            return Err(ServiceError::NoContainer { id: request.container_id }.into());
        }
        let info = if request.verbose { self.engine.container_info(&container) } else { Default::default() };
        Ok(ContainerStatusResponse { status: Some(container_status(&container.record())), info })
    }

    async fn update_container_resources(
        &self,
        request: UpdateContainerResourcesRequest,
    ) -> Result<UpdateContainerResourcesResponse, Status> {
        let container = self.engine.container(&request.container_id)?;
        let resources = request.linux.ok_or_else(|| missing("resources"))?;
        let engine = self.engine.clone();
        self.engine.whole(async move { engine.update_container(&container, resources).await }).await?;
        Ok(UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: ReopenContainerLogRequest,
    ) -> Result<ReopenContainerLogResponse, Status> {
        let container = self.engine.container(&request.container_id)?;
        self.engine.reopen_log(&container).await?;
        Ok(ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
        let container = self.engine.container(&request.container_id)?;
        Ok(self.engine.exec_sync(&container, request.cmd, request.timeout).await?)
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecResponse, Status> {
        check_streams(request.stdin, request.stdout, request.stderr, request.tty)?;
        let container = self.engine.container(&request.container_id)?;
        self.engine.expect_running(&container)?;
        Ok(ExecResponse { url: self.engine.streaming_url(Ticket::Exec(request)).await? })
    }

    async fn attach(&self, request: AttachRequest) -> Result<AttachResponse, Status> {
        check_streams(request.stdin, request.stdout, request.stderr, request.tty)?;
        let container = self.engine.container(&request.container_id)?;
        self.engine.expect_running(&container)?;
        Ok(AttachResponse { url: self.engine.streaming_url(Ticket::Attach(request)).await? })
    }

    async fn port_forward(&self, request: PortForwardRequest) -> Result<PortForwardResponse, Status> {
        let sandbox = self.engine.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.is_ready() {
            return Err(ServiceError::SandboxNotReady { id: sandbox.id.clone() }.into());
        }
        Ok(PortForwardResponse { url: self.engine.streaming_url(Ticket::PortForward(request)).await? })
    }

    async fn container_stats(
        &self,
        request: ContainerStatsRequest,
    ) -> Result<ContainerStatsResponse, Status> {
        let container = self.engine.container(&request.container_id)?;
        Ok(ContainerStatsResponse { stats: Some(stats::container(&self.engine, &container).await) })
    }

    async fn list_container_stats(
        &self,
        request: ListContainerStatsRequest,
    ) -> Result<ListContainerStatsResponse, Status> {
        Ok(ListContainerStatsResponse { stats: self.container_stats_of(request.filter).await })
    }

    async fn stream_container_stats(
        &self,
        request: StreamContainerStatsRequest,
    ) -> Result<Stream<StreamContainerStatsResponse>, Status> {
        let items = self.container_stats_of(request.filter).await;
        Ok(pieces(items, |container_stats| StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: PodSandboxStatsRequest,
    ) -> Result<PodSandboxStatsResponse, Status> {
        let sandbox = self.engine.sandbox(&request.pod_sandbox_id)?;
        Ok(PodSandboxStatsResponse { stats: Some(stats::sandbox(&self.engine, &sandbox).await) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: ListPodSandboxStatsRequest,
    ) -> Result<ListPodSandboxStatsResponse, Status> {
        Ok(ListPodSandboxStatsResponse { stats: self.sandbox_stats_of(request.filter).await })
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: StreamPodSandboxStatsRequest,
    ) -> Result<Stream<StreamPodSandboxStatsResponse>, Status> {
        let items = self.sandbox_stats_of(request.filter).await;
        Ok(pieces(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn list_metric_descriptors(
        &self,
        _request: ListMetricDescriptorsRequest,
    ) -> Result<ListMetricDescriptorsResponse, Status> {
        Ok(ListMetricDescriptorsResponse { descriptors: stats::descriptors() })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: ListPodSandboxMetricsRequest,
    ) -> Result<ListPodSandboxMetricsResponse, Status> {
        Ok(ListPodSandboxMetricsResponse { pod_metrics: self.sandbox_metrics().await })
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _request: StreamPodSandboxMetricsRequest,
    ) -> Result<Stream<StreamPodSandboxMetricsResponse>, Status> {
        let items = self.sandbox_metrics().await;
        Ok(pieces(items, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn update_runtime_config(
        &self,
        request: UpdateRuntimeConfigRequest,
    ) -> Result<UpdateRuntimeConfigResponse, Status> {
        let network = request.runtime_config.and_then(|config| config.network_config);
        // Of two families the default bridge takes the first.
        if let Some(cidr) = network.and_then(|network| network.pod_cidr.split(',').next().map(str::to_owned))
            && !cidr.is_empty()
            && !self.engine.cni.set_pod_cidr(&cidr)
        {
            return Err(ServiceError::Invalid { what: format!("pod_cidr {cidr:?} is not a subnet") }.into());
        }
        Ok(UpdateRuntimeConfigResponse {})
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<UpdatePodSandboxResourcesResponse, Status> {
        let sandbox = self.engine.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.is_ready() {
            return Err(ServiceError::SandboxNotReady { id: sandbox.id.clone() }.into());
        }
        let _act = sandbox.operation.lock().await;
        // As with every CRI runtime, what is to be remembered: the pod's cgroup is the caller's, who has set it.
        let changed = sandbox.change(&self.engine.layout, |record| {
            let linux = record.config.linux.get_or_insert_default();
            linux.overhead = request.overhead.or(linux.overhead.take());
            linux.resources = request.resources.or(linux.resources.take());
        });
        changed.map_err(ServiceError::from)?;
        Ok(UpdatePodSandboxResourcesResponse {})
    }

    async fn status(&self, request: StatusRequest) -> Result<StatusResponse, Status> {
        Ok(self.engine.runtime_status(request.verbose))
    }

    async fn get_container_events(
        &self,
        _request: GetEventsRequest,
    ) -> Result<Stream<ContainerEventResponse>, Status> {
        Ok(self.engine.events.subscribe())
    }

    async fn runtime_config(&self, _request: RuntimeConfigRequest) -> Result<RuntimeConfigResponse, Status> {
        let driver = match self.engine.config.cgroup_driver {
            Driver::Cgroupfs => CgroupDriver::Cgroupfs,
            Driver::Systemd => CgroupDriver::Systemd,
        };
        Ok(RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) })
    }
}

impl Runtime {
    fn sandbox_items(&self, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
        let filter = filter.unwrap_or_default();
        let sandboxes: Vec<_> = self.engine.index().sandboxes.values().cloned().collect();
        let mut items: Vec<PodSandbox> = sandboxes
            .iter()
            .filter(|sandbox| sandbox.is_visible() && sandbox.id.starts_with(&filter.id))
            .map(|sandbox| sandbox_item(&sandbox.record()))
            .filter(|item| filter.state.is_none_or(|wanted| wanted.state == item.state))
            .filter(|item| labels_match(&filter.label_selector, &item.labels))
            .collect();
        items.sort_by_key(|item| std::cmp::Reverse(item.created_at));
        items
    }

    fn container_items(&self, filter: Option<ContainerFilter>) -> Vec<Container> {
        let filter = filter.unwrap_or_default();
        let containers: Vec<_> = self.engine.index().containers.values().cloned().collect();
        let mut items: Vec<Container> = containers
            .iter()
            .filter(|container| container.is_visible() && container.id.starts_with(&filter.id))
            .filter(|container| container.sandbox_id.starts_with(&filter.pod_sandbox_id))
            .map(|container| container_item(&container.record()))
            .filter(|item| filter.state.is_none_or(|wanted| wanted.state == item.state))
            .filter(|item| labels_match(&filter.label_selector, &item.labels))
            .collect();
        items.sort_by_key(|item| std::cmp::Reverse(item.created_at));
        items
    }

    async fn container_stats_of(&self, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
        let filter = filter.unwrap_or_default();
        let wanted = ContainerFilter {
            id: filter.id,
            // As containerd: usage is told of what runs.
            state: Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() }),
            pod_sandbox_id: filter.pod_sandbox_id,
            label_selector: filter.label_selector,
        };
        let mut all = Vec::new();
        for item in self.container_items(Some(wanted)) {
            if let Ok(container) = self.engine.container(&item.id) {
                all.push(stats::container(&self.engine, &container).await);
            }
        }
        all
    }

    async fn sandbox_metrics(&self) -> Vec<PodSandboxMetrics> {
        let sandboxes: Vec<_> = self.engine.index().sandboxes.values().cloned().collect();
        let mut all = Vec::new();
        for sandbox in sandboxes.iter().filter(|sandbox| sandbox.is_ready()) {
            all.push(stats::sandbox_metrics(&self.engine, sandbox).await);
        }
        all
    }

    async fn sandbox_stats_of(&self, filter: Option<PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
        let filter = filter.unwrap_or_default();
        let wanted = PodSandboxFilter {
            id: filter.id,
            state: Some(PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() }),
            label_selector: filter.label_selector,
        };
        let mut all = Vec::new();
        for item in self.sandbox_items(Some(wanted)) {
            if let Ok(sandbox) = self.engine.sandbox(&item.id) {
                all.push(stats::sandbox(&self.engine, &sandbox).await);
            }
        }
        all
    }
}
