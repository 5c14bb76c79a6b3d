//! Usage that the fake tells: zero unless a test sets it, stamped with the fake's time.

use std::collections::HashMap;

use tonic::Status;

use super::FakeRuntime;
use super::state::{Container, Sandbox, State};
use crate::v1::*;

impl FakeRuntime {
    /// Sets what stats tell of a container, found by ID, name or `pod/name`. Attributes and timestamps are
    /// the fake's to fill.
    pub fn set_container_stats(&self, container: &str, stats: ContainerStats) {
        let mut state = self.lock();
        if let Some(id) = state.find_container(container).map(|container| container.id.clone()) {
            state.stats.insert(id, stats);
        }
    }

    /// Sets what `ImageFsInfo` answers.
    pub fn set_image_fs_info(&self, info: ImageFsInfoResponse) {
        self.lock().fs_info = info;
    }

    /// Sets the metrics that the metric calls answer.
    pub fn set_metrics(&self, descriptors: Vec<MetricDescriptor>, metrics: Vec<PodSandboxMetrics>) {
        let mut state = self.lock();
        state.metric_descriptors = descriptors;
        state.metrics = metrics;
    }

    /// The pod CIDR that `UpdateRuntimeConfig` told last.
    pub fn pod_cidr(&self) -> String {
        self.lock().pod_cidr.clone()
    }

    /// The last `UpdatePodSandboxResources` of a sandbox, found by ID or pod name.
    pub fn sandbox_resources(&self, sandbox: &str) -> Option<UpdatePodSandboxResourcesRequest> {
        self.lock().find_sandbox(sandbox).and_then(|sandbox| sandbox.resources.clone())
    }
}

impl State {
    /// Usage of a running container.
    pub(super) fn container_stats(&self, container: &Container) -> ContainerStats {
        let timestamp = self.clock.unix_nanos();
        let zero = || Some(UInt64Value { value: 0 });
        let mut stats = self.stats.get(&container.id).cloned().unwrap_or_else(|| ContainerStats {
            cpu: Some(CpuUsage {
                usage_core_nano_seconds: zero(),
                usage_nano_cores: zero(),
                ..Default::default()
            }),
            memory: Some(MemoryUsage {
                working_set_bytes: zero(),
                usage_bytes: zero(),
                ..Default::default()
            }),
            writable_layer: Some(FilesystemUsage {
                used_bytes: zero(),
                inodes_used: zero(),
                ..Default::default()
            }),
            ..ContainerStats::default()
        });
        stats.attributes = Some(ContainerAttributes {
            id: container.id.clone(),
            metadata: container.config.metadata.clone(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
        });
        stats.cpu.iter_mut().for_each(|usage| usage.timestamp = timestamp);
        stats.memory.iter_mut().for_each(|usage| usage.timestamp = timestamp);
        stats.writable_layer.iter_mut().for_each(|usage| usage.timestamp = timestamp);
        stats
    }

    pub(super) fn list_container_stats(&self, filter: Option<&ContainerStatsFilter>) -> Vec<ContainerStats> {
        let running = self.containers.values().filter(|c| c.state == ContainerState::ContainerRunning);
        running
            .filter(|container| {
                filter.is_none_or(|filter| {
                    (filter.id.is_empty() || filter.id == container.id)
                        && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == container.sandbox_id)
                        && labels_match(&filter.label_selector, &container.config.labels)
                })
            })
            .map(|container| self.container_stats(container))
            .collect()
    }

    /// Usage of a sandbox: the sum over its running containers.
    pub(super) fn sandbox_stats(&self, sandbox: &Sandbox) -> Result<PodSandboxStats, Status> {
        if sandbox.state != PodSandboxState::SandboxReady {
            let id = &sandbox.id;
            return Err(Status::unavailable(format!(
                "failed to decode pod sandbox metrics {id}: failed to get pod sandbox stats since sandbox \
                 container \"{id}\" is not in ready state: unavailable"
            )));
        }
        let filter = ContainerStatsFilter { pod_sandbox_id: sandbox.id.clone(), ..Default::default() };
        let containers = self.list_container_stats(Some(&filter));
        let timestamp = self.clock.unix_nanos();
        let sum = |of: fn(&ContainerStats) -> Option<UInt64Value>| {
            Some(UInt64Value { value: containers.iter().filter_map(of).map(|value| value.value).sum() })
        };
        let cpu = CpuUsage {
            timestamp,
            usage_core_nano_seconds: sum(|stats| stats.cpu.as_ref()?.usage_core_nano_seconds),
            usage_nano_cores: sum(|stats| stats.cpu.as_ref()?.usage_nano_cores),
            psi: None,
        };
        let memory = MemoryUsage {
            timestamp,
            working_set_bytes: sum(|stats| stats.memory.as_ref()?.working_set_bytes),
            usage_bytes: sum(|stats| stats.memory.as_ref()?.usage_bytes),
            ..MemoryUsage::default()
        };
        let count = containers.len() as u64;
        let process = ProcessUsage { timestamp, process_count: Some(UInt64Value { value: count }) };
        let linux = LinuxPodSandboxStats {
            cpu: Some(cpu),
            memory: Some(memory),
            process: Some(process),
            containers,
            ..LinuxPodSandboxStats::default()
        };
        let attributes = PodSandboxAttributes {
            id: sandbox.id.clone(),
            metadata: sandbox.config.metadata.clone(),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
        };
        Ok(PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None })
    }

    pub(super) fn list_sandbox_stats(&self, filter: Option<&PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
        let wanted = self.sandboxes.values().filter(|sandbox| {
            filter.is_none_or(|filter| {
                (filter.id.is_empty() || filter.id == sandbox.id)
                    && labels_match(&filter.label_selector, &sandbox.config.labels)
            })
        });
        wanted.filter_map(|sandbox| self.sandbox_stats(sandbox).ok()).collect()
    }
}

/// One file system for images and containers, nothing used.
pub(super) fn empty_file_systems() -> ImageFsInfoResponse {
    let usage = FilesystemUsage {
        timestamp: 0,
        fs_id: Some(FilesystemIdentifier { mountpoint: "/var/lib/fake".to_owned() }),
        used_bytes: Some(UInt64Value { value: 0 }),
        inodes_used: Some(UInt64Value { value: 0 }),
    };
    ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] }
}

pub(super) fn labels_match(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
