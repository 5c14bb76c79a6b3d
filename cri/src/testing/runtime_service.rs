//! The fake as a [`RuntimeService`]: each call logs itself, meets its faults, then acts as containerd does.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::calls::Method;
use super::images;
use super::script::{ExecScript, Exit, Script};
use super::state::{Container, Exec, Sandbox, State};
use super::{FakeRuntime, Subject, unavailable};
use crate::service::{RuntimeService, Stream};
use crate::v1::{self, *};

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
            Ok(ExecResponse { url: format!("http://fake.invalid/exec/{}", request.container_id) })
        })
        .await
    }

    async fn attach(&self, request: AttachRequest) -> Result<AttachResponse, Status> {
        self.call(Method::Attach, &request.container_id, |state| {
            running(state, &request.container_id)?;
            Ok(AttachResponse { url: format!("http://fake.invalid/attach/{}", request.container_id) })
        })
        .await
    }

    async fn port_forward(&self, request: PortForwardRequest) -> Result<PortForwardResponse, Status> {
        self.call(Method::PortForward, &request.pod_sandbox_id, |state| {
            state.sandbox(&request.pod_sandbox_id)?;
            Ok(PortForwardResponse {
                url: format!("http://fake.invalid/portforward/{}", request.pod_sandbox_id),
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

fn run_sandbox(state: &mut State, request: RunPodSandboxRequest) -> Result<String, Status> {
    let config = request.config.unwrap_or_default();
    let Some(metadata) = config.metadata.as_ref() else {
        return Err(Status::unknown("sandbox config must include metadata"));
    };
    if let Some(holder) = state.sandboxes.values().find(|s| s.config.metadata.as_ref() == Some(metadata)) {
        let name = format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt);
        let holder = &holder.id;
        return Err(Status::unknown(format!(
            "failed to reserve sandbox name \"{name}\": name \"{name}\" is reserved for \"{holder}\""
        )));
    }
    let pod = metadata.name.clone();
    let id = state.next_id();
    let default_ip = format!("10.244.{}.{}", state.serial / 250, state.serial % 250 + 2);
    let mut sandbox = Sandbox {
        id: id.clone(),
        config,
        runtime_handler: request.runtime_handler,
        state: PodSandboxState::SandboxReady,
        created_at: state.creation_time(),
        ips: Vec::new(),
        resources: None,
    };
    if !sandbox.host_network() {
        sandbox.ips = state.pod_ips.get(&pod).cloned().unwrap_or_else(|| vec![default_ip]);
    }
    state.sandboxes.insert(id.clone(), sandbox);
    state.emit(&id, &id, ContainerEventType::ContainerCreatedEvent);
    state.emit(&id, &id, ContainerEventType::ContainerStartedEvent);
    Ok(id)
}

fn create_container(state: &mut State, request: CreateContainerRequest) -> Result<String, Status> {
    let config = request.config.ok_or_else(|| Status::unknown("container config must include metadata"))?;
    let sandbox = state.sandboxes.get(&request.pod_sandbox_id).ok_or_else(|| {
        Status::not_found(format!("failed to find sandbox id \"{}\": not found", request.pod_sandbox_id))
    })?;
    if sandbox.state != PodSandboxState::SandboxReady {
        return Err(not_running(&sandbox.id));
    }
    let (sandbox_id, pod) = (sandbox.id.clone(), sandbox.pod().to_owned());
    let given = request.sandbox_config.as_ref().unwrap_or(&sandbox.config);
    let log_path = Path::new(&given.log_directory).join(&config.log_path);
    let log_path = if config.log_path.is_empty() { String::new() } else { log_path.display().to_string() };
    let reserved_name = reserve_container_name(state, &config, given)?;
    let reference = config.image.as_ref().map_or("", |image| &image.image);
    let image = state
        .images
        .resolve(reference)
        .ok_or_else(|| Status::not_found(format!("failed to resolve image \"{reference}\": not found")))?;
    let image_id = image.id.clone();
    let script = next_script(state, &config, &pod, &image_id);
    let id = state.next_id();
    let container = Container {
        id: id.clone(),
        sandbox_id: sandbox_id.clone(),
        pod,
        reserved_name,
        image_id,
        log_path,
        state: ContainerState::ContainerCreated,
        created_at: state.creation_time(),
        started_at: 0,
        finished_at: 0,
        exit: Exit::default(),
        resources: config.linux.as_ref().and_then(|linux| linux.resources.clone()),
        config,
        log_reopened: 0,
        script,
        ended: watch::Sender::new(false),
        timer: None,
    };
    state.containers.insert(id.clone(), container);
    state.emit(&id, &sandbox_id, ContainerEventType::ContainerCreatedEvent);
    Ok(id)
}

/// containerd's name of a container, which no other container may have.
fn reserve_container_name(
    state: &State,
    config: &ContainerConfig,
    sandbox: &PodSandboxConfig,
) -> Result<String, Status> {
    let metadata =
        config.metadata.as_ref().ok_or_else(|| Status::unknown("container config must include metadata"))?;
    let pod = sandbox
        .metadata
        .as_ref()
        .ok_or_else(|| Status::unknown("pod sandbox config must include metadata"))?;
    let (name, attempt) = (&metadata.name, metadata.attempt);
    let reserved = format!("{name}_{}_{}_{}_{attempt}", pod.name, pod.namespace, pod.uid);
    match state.containers.values().find(|container| container.reserved_name == reserved) {
        Some(holder) => Err(Status::unknown(format!(
            "failed to reserve container name \"{reserved}\"; check if another CreateContainer request is in \
             progress: name \"{reserved}\" is reserved for \"{}\"",
            holder.id
        ))),
        None => Ok(reserved),
    }
}

fn next_script(state: &mut State, config: &ContainerConfig, pod: &str, image_id: &str) -> Script {
    let name = config.metadata.as_ref().map_or("", |metadata| &metadata.name);
    let mut keys = vec![format!("{pod}/{name}"), name.to_owned()];
    if let Some(image) = &config.image {
        keys.extend(
            [&image.user_specified_image, &image.image].map(|reference| images::normalize(reference)),
        );
    }
    keys.extend(state.images.resolve(image_id).map(|image| image.repo_tags.clone()).unwrap_or_default());
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    state.scripts.next(&keys).unwrap_or_else(Script::runs)
}

/// Starts a container; what is to become of it by itself.
fn start_container(state: &mut State, id: &str) -> Result<Option<(Duration, Exit)>, Status> {
    let (now, creates) = (state.clock.unix_nanos(), state.creates_log_files);
    let sandbox_id = state.container(id)?.sandbox_id.clone();
    let ready = state.sandboxes.get(&sandbox_id).is_some_and(|s| s.state == PodSandboxState::SandboxReady);
    let container = state.container_mut(id)?;
    if container.state != ContainerState::ContainerCreated {
        let text = container.state.as_str_name();
        return Err(Status::unknown(format!(
            "failed to set starting state for container \"{id}\": container is in {text} state"
        )));
    }
    let log = if creates { create_log(&container.log_path) } else { Ok(()) };
    let refused = if ready { log.err() } else { Some(not_running(&sandbox_id)) };
    if let Some(status) = refused.or_else(|| container.script.start_error.take()) {
        container.state = ContainerState::ContainerExited;
        container.finished_at = now;
        container.exit = Exit::from(128).reason("StartError").message(status.message());
        container.ended.send_replace(true);
        return Err(status);
    }
    container.state = ContainerState::ContainerRunning;
    container.started_at = now;
    let exit = container.script.exit.clone();
    state.emit(id, &sandbox_id, ContainerEventType::ContainerStartedEvent);
    Ok(exit)
}

fn running<'a>(state: &'a State, id: &str) -> Result<&'a Container, Status> {
    let container = state.container(id)?;
    if container.state == ContainerState::ContainerRunning {
        return Ok(container);
    }
    Err(Status::unknown(format!("container is in {} state", container.state.as_str_name())))
}

fn not_running(sandbox: &str) -> Status {
    Status::unknown(format!("sandbox container \"{sandbox}\" is not running"))
}

fn create_log(path: &str) -> Result<(), Status> {
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
    opened.map(drop).map_err(|error| Status::unknown(format!("failed to create and open log file: {error}")))
}

/// Only what an update names replaces what is set; zero and empty mean "leave it".
fn merge_resources(now: LinuxContainerResources, update: LinuxContainerResources) -> LinuxContainerResources {
    let number = |new: i64, old: i64| if new == 0 { old } else { new };
    let text = |new: String, old: String| if new.is_empty() { old } else { new };
    let mut unified = now.unified;
    unified.extend(update.unified);
    let hugepage_limits =
        if update.hugepage_limits.is_empty() { now.hugepage_limits } else { update.hugepage_limits };
    LinuxContainerResources {
        cpu_period: number(update.cpu_period, now.cpu_period),
        cpu_quota: number(update.cpu_quota, now.cpu_quota),
        cpu_shares: number(update.cpu_shares, now.cpu_shares),
        memory_limit_in_bytes: number(update.memory_limit_in_bytes, now.memory_limit_in_bytes),
        oom_score_adj: number(update.oom_score_adj, now.oom_score_adj),
        cpuset_cpus: text(update.cpuset_cpus, now.cpuset_cpus),
        cpuset_mems: text(update.cpuset_mems, now.cpuset_mems),
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes: number(update.memory_swap_limit_in_bytes, now.memory_swap_limit_in_bytes),
    }
}

fn sandboxes(state: &State, filter: Option<&PodSandboxFilter>) -> Vec<PodSandbox> {
    let items = state.sandboxes.values().map(Sandbox::item);
    let Some(filter) = filter else { return items.collect() };
    items
        .filter(|item| filter.id.is_empty() || filter.id == item.id)
        .filter(|item| filter.state.is_none_or(|wanted| wanted.state == item.state))
        .filter(|item| super::stats::labels_match(&filter.label_selector, &item.labels))
        .collect()
}

fn containers(state: &State, filter: Option<&ContainerFilter>) -> Vec<v1::Container> {
    let items = state.containers.values().map(Container::item);
    let Some(filter) = filter else { return items.collect() };
    items
        .filter(|item| filter.id.is_empty() || filter.id == item.id)
        .filter(|item| filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == item.pod_sandbox_id)
        .filter(|item| filter.state.is_none_or(|wanted| wanted.state == item.state))
        .filter(|item| super::stats::labels_match(&filter.label_selector, &item.labels))
        .collect()
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
