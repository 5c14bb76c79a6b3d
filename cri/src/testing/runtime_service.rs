//! The fake as a [`RuntimeService`]: each call logs itself, meets its faults, then acts as containerd does.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::calls::Method;
use super::requests::*;
use super::script::{ExecScript, Exit};
use super::state::Exec;
use super::{FakeRuntime, Subject, unavailable};
use crate::service::{RuntimeService, Stream};
use crate::v1::*;

/// How many items one message of a list stream carries; small, so that tests see several.
const BATCH: usize = 2;

#[async_trait]
impl RuntimeService for FakeRuntime {
    async fn version(&self, _request: VersionRequest) -> Result<VersionResponse, Status> {
        self.call(Method::Version, "", |_| {
            Ok(VersionResponse {
                version: "0.1.0".to_owned(),
                runtime_name: "fake".to_owned(),
                runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
                runtime_api_version: "v1".to_owned(),
            })
        })
        .await
    }

    async fn run_pod_sandbox(&self, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status> {
        let pod = request.config.as_ref().and_then(|c| c.metadata.as_ref()).map(|m| m.name.clone());
        let subject = Subject { id: "", name: pod.as_deref() };
        self.call(Method::RunPodSandbox, subject, |state| {
            run_sandbox(state, request).map(|pod_sandbox_id| RunPodSandboxResponse { pod_sandbox_id })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: StopPodSandboxRequest,
    ) -> Result<StopPodSandboxResponse, Status> {
        self.call(Method::StopPodSandbox, &request.pod_sandbox_id, |state| {
            state.stop_sandbox(&request.pod_sandbox_id);
            Ok(StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: RemovePodSandboxRequest,
    ) -> Result<RemovePodSandboxResponse, Status> {
        self.call(Method::RemovePodSandbox, &request.pod_sandbox_id, |state| {
            state.remove_sandbox(&request.pod_sandbox_id);
            Ok(RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, Status> {
        self.call(Method::PodSandboxStatus, &request.pod_sandbox_id, |state| {
            let sandbox = state.sandbox(&request.pod_sandbox_id)?;
            Ok(PodSandboxStatusResponse { status: Some(sandbox.status()), ..Default::default() })
        })
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: ListPodSandboxRequest,
    ) -> Result<ListPodSandboxResponse, Status> {
        self.call(Method::ListPodSandbox, "", |state| {
            Ok(ListPodSandboxResponse { items: sandboxes(state, request.filter.as_ref()) })
        })
        .await
    }

    async fn stream_pod_sandboxes(
        &self,
        request: StreamPodSandboxesRequest,
    ) -> Result<Stream<StreamPodSandboxesResponse>, Status> {
        self.call(Method::StreamPodSandboxes, "", |state| {
            let found = sandboxes(state, request.filter.as_ref());
            Ok(batches(found, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
        })
        .await
    }

    async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Status> {
        let name = request.config.as_ref().and_then(|c| c.metadata.as_ref()).map(|m| m.name.clone());
        let sandbox = request.pod_sandbox_id.clone();
        let subject = Subject { id: &sandbox, name: name.as_deref() };
        self.call(Method::CreateContainer, subject, |state| {
            create_container(state, request).map(|container_id| CreateContainerResponse { container_id })
        })
        .await
    }

    async fn start_container(
        &self,
        request: StartContainerRequest,
    ) -> Result<StartContainerResponse, Status> {
        self.call(Method::StartContainer, &request.container_id, |state| {
            let exit = start_container(state, &request.container_id)?;
            match exit {
                Some((Duration::ZERO, exit)) => {
                    state.finish(&request.container_id, exit);
                }
                Some((after, exit)) => self.schedule_exit(state, &request.container_id, after, exit),
                None => {}
            }
            Ok(StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(&self, request: StopContainerRequest) -> Result<StopContainerResponse, Status> {
        let told = self.arrive(Method::StopContainer, (&request.container_id).into()).await?;
        if let Some(mut ended) = self.signal_stop(&request) {
            let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
            let gone = async {
                // A closed channel is a removed container, which has ended as well.
                let _ = ended.wait_for(|ended| *ended).await;
            };
            if tokio::time::timeout(grace, gone).await.is_err() {
                self.lock().finish(&request.container_id, Exit::from(137));
            }
        }
        self.note_change();
        told.map_or(Ok(StopContainerResponse {}), Err)
    }

    async fn remove_container(
        &self,
        request: RemoveContainerRequest,
    ) -> Result<RemoveContainerResponse, Status> {
        self.call(Method::RemoveContainer, &request.container_id, |state| {
            state.remove_container(&request.container_id);
            Ok(RemoveContainerResponse {})
        })
        .await
    }

    async fn list_containers(
        &self,
        request: ListContainersRequest,
    ) -> Result<ListContainersResponse, Status> {
        self.call(Method::ListContainers, "", |state| {
            Ok(ListContainersResponse { containers: containers(state, request.filter.as_ref()) })
        })
        .await
    }

    async fn stream_containers(
        &self,
        request: StreamContainersRequest,
    ) -> Result<Stream<StreamContainersResponse>, Status> {
        self.call(Method::StreamContainers, "", |state| {
            let found = containers(state, request.filter.as_ref());
            Ok(batches(found, |containers| StreamContainersResponse { containers }))
        })
        .await
    }

    async fn container_status(
        &self,
        request: ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, Status> {
        self.call(Method::ContainerStatus, &request.container_id, |state| {
            let status = state.container_status(state.container(&request.container_id)?);
            Ok(ContainerStatusResponse { status: Some(status), ..Default::default() })
        })
        .await
    }

    async fn update_container_resources(
        &self,
        request: UpdateContainerResourcesRequest,
    ) -> Result<UpdateContainerResourcesResponse, Status> {
        self.call(Method::UpdateContainerResources, &request.container_id, |state| {
            let container = state.container_mut(&request.container_id)?;
            if let Some(update) = request.linux {
                let now = container.resources.take().unwrap_or_default();
                container.resources = Some(merge_resources(now, update));
            }
            Ok(UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: ReopenContainerLogRequest,
    ) -> Result<ReopenContainerLogResponse, Status> {
        self.call(Method::ReopenContainerLog, &request.container_id, |state| {
            let creates = state.creates_log_files;
            let container = state.container_mut(&request.container_id)?;
            if container.state != ContainerState::ContainerRunning {
                return Err(Status::unknown("container is not running"));
            }
            container.log_reopened += 1;
            if creates {
                create_log(&container.log_path).map(|()| ReopenContainerLogResponse {})
            } else {
                Ok(ReopenContainerLogResponse {})
            }
        })
        .await
    }

    async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
        let told = self.arrive(Method::ExecSync, (&request.container_id).into()).await?;
        let (script, mut ended) = self.begin_exec(&request)?;
        if let Some(status) = script.error {
            return Err(status);
        }
        let limit = match u64::try_from(request.timeout) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => Duration::MAX,
        };
        // Every arm is cancel-safe: sleeps and a watch.
        let exit_code = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => 137,
            () = tokio::time::sleep(script.takes.min(limit)) => script.exit_code,
        };
        if script.takes > limit {
            let text = format!("timeout {}s exceeded: context deadline exceeded", request.timeout);
            return Err(Status::deadline_exceeded(text));
        }
        let response = ExecSyncResponse { stdout: script.stdout, stderr: script.stderr, exit_code };
        told.map_or(Ok(response), Err)
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecResponse, Status> {
        self.call(Method::Exec, &request.container_id, |state| {
            running(state, &request.container_id)?;
            let command = request.cmd.iter().map(|word| format!("&command={word}")).collect::<String>();
            let ExecRequest { container_id, stdin, stdout, stderr, tty, .. } = &request;
            let streams = format!("stdin={stdin}&stdout={stdout}&stderr={stderr}&tty={tty}");
            let url = format!("{}/exec/{container_id}?{streams}{command}", state.streaming_server);
            Ok(ExecResponse { url })
        })
        .await
    }

    async fn attach(&self, request: AttachRequest) -> Result<AttachResponse, Status> {
        self.call(Method::Attach, &request.container_id, |state| {
            running(state, &request.container_id)?;
            let AttachRequest { container_id, stdin, stdout, stderr, tty } = &request;
            let streams = format!("stdin={stdin}&stdout={stdout}&stderr={stderr}&tty={tty}");
            let url = format!("{}/attach/{container_id}?{streams}", state.streaming_server);
            Ok(AttachResponse { url })
        })
        .await
    }

    async fn port_forward(&self, request: PortForwardRequest) -> Result<PortForwardResponse, Status> {
        self.call(Method::PortForward, &request.pod_sandbox_id, |state| {
            state.sandbox(&request.pod_sandbox_id)?;
            Ok(PortForwardResponse {
                url: format!("{}/portforward/{}", state.streaming_server, request.pod_sandbox_id),
            })
        })
        .await
    }

    async fn container_stats(
        &self,
        request: ContainerStatsRequest,
    ) -> Result<ContainerStatsResponse, Status> {
        self.call(Method::ContainerStats, &request.container_id, |state| {
            running(state, &request.container_id)?;
            let stats = state.container_stats(state.container(&request.container_id)?);
            Ok(ContainerStatsResponse { stats: Some(stats) })
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: ListContainerStatsRequest,
    ) -> Result<ListContainerStatsResponse, Status> {
        self.call(Method::ListContainerStats, "", |state| {
            Ok(ListContainerStatsResponse { stats: state.list_container_stats(request.filter.as_ref()) })
        })
        .await
    }

    async fn stream_container_stats(
        &self,
        request: StreamContainerStatsRequest,
    ) -> Result<Stream<StreamContainerStatsResponse>, Status> {
        self.call(Method::StreamContainerStats, "", |state| {
            let found = state.list_container_stats(request.filter.as_ref());
            Ok(batches(found, |container_stats| StreamContainerStatsResponse { container_stats }))
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: PodSandboxStatsRequest,
    ) -> Result<PodSandboxStatsResponse, Status> {
        self.call(Method::PodSandboxStats, &request.pod_sandbox_id, |state| {
            let sandbox = state.sandbox(&request.pod_sandbox_id)?;
            Ok(PodSandboxStatsResponse { stats: Some(state.sandbox_stats(sandbox)?) })
        })
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: ListPodSandboxStatsRequest,
    ) -> Result<ListPodSandboxStatsResponse, Status> {
        self.call(Method::ListPodSandboxStats, "", |state| {
            Ok(ListPodSandboxStatsResponse { stats: state.list_sandbox_stats(request.filter.as_ref()) })
        })
        .await
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: StreamPodSandboxStatsRequest,
    ) -> Result<Stream<StreamPodSandboxStatsResponse>, Status> {
        self.call(Method::StreamPodSandboxStats, "", |state| {
            let found = state.list_sandbox_stats(request.filter.as_ref());
            Ok(batches(found, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
        })
        .await
    }

    async fn update_runtime_config(
        &self,
        request: UpdateRuntimeConfigRequest,
    ) -> Result<UpdateRuntimeConfigResponse, Status> {
        let network = request.runtime_config.and_then(|config| config.network_config);
        self.call(Method::UpdateRuntimeConfig, "", |state| {
            state.pod_cidr = network.map(|network| network.pod_cidr).unwrap_or_default();
            Ok(UpdateRuntimeConfigResponse {})
        })
        .await
    }

    async fn status(&self, _request: StatusRequest) -> Result<StatusResponse, Status> {
        self.call(Method::Status, "", |state| {
            Ok(StatusResponse {
                status: Some(RuntimeStatus { conditions: state.conditions.clone() }),
                runtime_handlers: vec![RuntimeHandler::default()],
                features: Some(RuntimeFeatures::default()),
                ..Default::default()
            })
        })
        .await
    }

    async fn checkpoint_container(
        &self,
        request: CheckpointContainerRequest,
    ) -> Result<CheckpointContainerResponse, Status> {
        self.call(Method::CheckpointContainer, &request.container_id, |state| {
            running(state, &request.container_id).map(|_| CheckpointContainerResponse {})
        })
        .await
    }

    async fn get_container_events(
        &self,
        _request: GetEventsRequest,
    ) -> Result<Stream<ContainerEventResponse>, Status> {
        self.call(Method::GetContainerEvents, "", |state| {
            let (sender, receiver) = mpsc::unbounded_channel();
            state.subscribers.push(sender);
            // What a broken connection looks like: the fake drops its senders, the reader gets an error.
            let broken = futures_util::stream::once(async { Err(unavailable()) });
            Ok(UnboundedReceiverStream::new(receiver).chain(broken).boxed())
        })
        .await
    }

    async fn list_metric_descriptors(
        &self,
        _request: ListMetricDescriptorsRequest,
    ) -> Result<ListMetricDescriptorsResponse, Status> {
        self.call(Method::ListMetricDescriptors, "", |state| {
            Ok(ListMetricDescriptorsResponse { descriptors: state.metric_descriptors.clone() })
        })
        .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: ListPodSandboxMetricsRequest,
    ) -> Result<ListPodSandboxMetricsResponse, Status> {
        self.call(Method::ListPodSandboxMetrics, "", |state| {
            Ok(ListPodSandboxMetricsResponse { pod_metrics: state.metrics.clone() })
        })
        .await
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _request: StreamPodSandboxMetricsRequest,
    ) -> Result<Stream<StreamPodSandboxMetricsResponse>, Status> {
        self.call(Method::StreamPodSandboxMetrics, "", |state| {
            let wrap = |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
            Ok(batches(state.metrics.clone(), wrap))
        })
        .await
    }

    async fn runtime_config(&self, _request: RuntimeConfigRequest) -> Result<RuntimeConfigResponse, Status> {
        self.call(Method::RuntimeConfig, "", |state| {
            let linux = LinuxRuntimeConfiguration { cgroup_driver: state.cgroup_driver.into() };
            Ok(RuntimeConfigResponse { linux: Some(linux) })
        })
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<UpdatePodSandboxResourcesResponse, Status> {
        self.call(Method::UpdatePodSandboxResources, &request.pod_sandbox_id.clone(), |state| {
            let sandbox = state.sandboxes.get_mut(&request.pod_sandbox_id);
            sandbox.ok_or_else(|| Status::not_found("failed to find sandbox: not found"))?.resources =
                Some(request);
            Ok(UpdatePodSandboxResourcesResponse {})
        })
        .await
    }
}

impl FakeRuntime {
    /// Sends the stop signal, or SIGKILL without a grace period. `None` when there is nothing to wait for.
    fn signal_stop(&self, request: &StopContainerRequest) -> Option<watch::Receiver<bool>> {
        let mut state = self.lock();
        let container = state.containers.get(&request.container_id)?;
        if container.state != ContainerState::ContainerRunning {
            return None;
        }
        let (ended, stop) = (container.ended.subscribe(), container.script.stop);
        if request.timeout <= 0 {
            state.finish(&request.container_id, Exit::from(137));
            return None;
        }
        match stop {
            Some((Duration::ZERO, code)) => {
                state.finish(&request.container_id, Exit::from(code));
                return None;
            }
            // A program that got its signal ends, whether or not the caller still waits for it.
            Some((after, code)) => {
                self.schedule_exit(&mut state, &request.container_id, after, Exit::from(code))
            }
            None => {}
        }
        Some(ended)
    }

    fn begin_exec(&self, request: &ExecSyncRequest) -> Result<(ExecScript, watch::Receiver<bool>), Status> {
        let mut state = self.lock();
        let state = &mut *state;
        let container = running(state, &request.container_id)?;
        let ended = container.ended.subscribe();
        let (name, qualified) = (container.name().to_owned(), container.qualified_name());
        let script = state.exec_scripts.next(&[&qualified, &name]).unwrap_or_default();
        state.execs.push(Exec {
            container: name,
            container_id: request.container_id.clone(),
            command: request.cmd.clone(),
            timeout: request.timeout,
        });
        Ok((script, ended))
    }
}

/// A list in pieces, as a stream that ends.
pub(super) fn batches<T: Send + 'static, R: Send + 'static>(
    items: Vec<T>,
    wrap: impl Fn(Vec<T>) -> R,
) -> Stream<R> {
    let mut messages = Vec::new();
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        messages.push(Ok(wrap(items.by_ref().take(BATCH).collect())));
    }
    futures_util::stream::iter(messages).boxed()
}
