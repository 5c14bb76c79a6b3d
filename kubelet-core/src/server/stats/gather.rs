//! Measures pods through CRI, disks by statfs.
//!
//! Called under the cache's lock. Works with runtimes that measure whole sandboxes and with those that measure
//! containers alone.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{
    self, ContainerFilter, ContainerState, ContainerStateValue, ImageFsInfoRequest,
    ListContainerStatsRequest, ListContainersRequest, ListPodSandboxRequest, ListPodSandboxStatsRequest,
    PodSandboxState,
};
use coracle_cri::{Code, Status};

use super::super::Shared;
use super::node::{self, NodeUse};
use crate::pod::rpc::bounded;

const RUNTIME_DEADLINE: Duration = Duration::from_secs(30);

/// Everything that was measured at one time.
#[derive(Debug, Default)]
pub(in crate::server) struct Measured {
    pub(in crate::server) node: NodeUse,
    pub(in crate::server) pods: Vec<PodUse>,
}

/// One pod.
#[derive(Debug, Default)]
pub(in crate::server) struct PodUse {
    pub(in crate::server) name: String,
    pub(in crate::server) namespace: String,
    pub(in crate::server) uid: String,
    /// Of its sandbox, in nanoseconds since the Unix epoch.
    pub(in crate::server) created_at: i64,
    pub(in crate::server) cpu: Option<v1::CpuUsage>,
    pub(in crate::server) memory: Option<v1::MemoryUsage>,
    pub(in crate::server) network: Option<v1::NetworkUsage>,
    pub(in crate::server) processes: Option<u64>,
    /// Containers that run, and when they were made.
    pub(in crate::server) containers: Vec<(v1::ContainerStats, i64)>,
    /// Bytes of log by container.
    pub(in crate::server) logs: HashMap<String, u64>,
}

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) available: u64,
    pub(super) capacity: u64,
    pub(super) inodes_free: u64,
    pub(super) inodes: u64,
}

impl Disk {
    pub(super) fn used(&self) -> u64 {
        self.capacity.saturating_sub(self.available)
    }

    fn of(path: &Path) -> Option<Self> {
        let found = path.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok())?;
        Some(Self {
            available: found.f_bavail.saturating_mul(found.f_frsize),
            capacity: found.f_blocks.saturating_mul(found.f_frsize),
            inodes_free: found.f_ffree,
            inodes: found.f_files,
        })
    }
}

/// The node's file systems; with what images and writable layers use of theirs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Disks {
    pub(super) root: Option<Disk>,
    pub(super) images: Option<(Disk, Option<u64>)>,
    pub(super) containers: Option<(Disk, Option<u64>)>,
}

/// Measures the disks.
pub(super) async fn disks(shared: &Arc<Shared>) -> Result<Disks, Status> {
    let call = shared.parts.images.image_fs_info(ImageFsInfoRequest {});
    let info = bounded("ImageFsInfo", RUNTIME_DEADLINE, call).await?;
    let of = |usages: Vec<v1::FilesystemUsage>| {
        let usage = usages.into_iter().next()?;
        let disk = Disk::of(Path::new(&usage.fs_id?.mountpoint))?;
        Some((disk, usage.used_bytes.map(|used| used.value)))
    };
    Ok(Disks {
        root: Disk::of(&shared.config.root_dir),
        images: of(info.image_filesystems),
        containers: of(info.container_filesystems),
    })
}

/// Measures the pods and the node.
pub(super) async fn gather(shared: &Arc<Shared>) -> Result<Measured, Status> {
    let runtime = &shared.parts.runtime;
    let call = runtime.list_pod_sandbox(ListPodSandboxRequest::default());
    let sandboxes = bounded("ListPodSandbox", RUNTIME_DEADLINE, call).await?.items;
    let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() });
    let filter = Some(ContainerFilter { state, ..ContainerFilter::default() });
    let call = runtime.list_containers(ListContainersRequest { filter });
    let containers = bounded("ListContainers", RUNTIME_DEADLINE, call).await?.containers;
    let created: HashMap<&str, (&str, i64)> = containers
        .iter()
        .map(|container| (container.id.as_str(), (container.pod_sandbox_id.as_str(), container.created_at)))
        .collect();
    let call = runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default());
    let mut pods = match bounded("ListPodSandboxStats", RUNTIME_DEADLINE, call).await {
        Ok(response) => from_sandboxes(response.stats, &present(sandboxes), &created),
        Err(error) if error.code() == Code::Unimplemented => {
            let call = runtime.list_container_stats(ListContainerStatsRequest::default());
            let stats = bounded("ListContainerStats", RUNTIME_DEADLINE, call).await?.stats;
            from_containers(stats, &present(sandboxes), &created)
        }
        Err(error) => return Err(error),
    };
    for pod in &mut pods {
        pod.logs = log_sizes(shared, pod);
    }
    Ok(Measured { node: node::measure(shared.config.clock.now()), pods })
}

/// The present sandbox of each pod, by id: the newest that is ready.
fn present(sandboxes: Vec<v1::PodSandbox>) -> HashMap<String, v1::PodSandbox> {
    let mut newest: BTreeMap<String, v1::PodSandbox> = BTreeMap::new();
    for sandbox in sandboxes.into_iter().filter(|each| each.state() == PodSandboxState::SandboxReady) {
        let uid = sandbox.metadata.as_ref().map(|metadata| metadata.uid.clone()).unwrap_or_default();
        match newest.get(&uid) {
            Some(known) if known.created_at >= sandbox.created_at => {}
            _ => {
                newest.insert(uid, sandbox);
            }
        }
    }
    newest.into_values().map(|sandbox| (sandbox.id.clone(), sandbox)).collect()
}

fn pod_of(sandbox: &v1::PodSandbox) -> PodUse {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    PodUse {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        created_at: sandbox.created_at,
        ..PodUse::default()
    }
}

fn id_of(stats: &v1::ContainerStats) -> &str {
    stats.attributes.as_ref().map_or("", |attributes| &attributes.id)
}

fn from_sandboxes(
    stats: Vec<v1::PodSandboxStats>,
    present: &HashMap<String, v1::PodSandbox>,
    created: &HashMap<&str, (&str, i64)>,
) -> Vec<PodUse> {
    let one = |stats: v1::PodSandboxStats| {
        let sandbox = present.get(&stats.attributes?.id)?;
        let linux = stats.linux.unwrap_or_default();
        let time_of = |stats: &v1::ContainerStats| created.get(id_of(stats)).map(|(_, at)| *at);
        let containers = linux.containers.into_iter().filter_map(|stats| {
            let at = time_of(&stats)?;
            Some((stats, at))
        });
        Some(PodUse {
            cpu: linux.cpu,
            memory: linux.memory,
            network: linux.network,
            processes: linux.process.and_then(|process| process.process_count).map(|count| count.value),
            containers: containers.collect(),
            ..pod_of(sandbox)
        })
    };
    stats.into_iter().filter_map(one).collect()
}

/// For runtimes that do not measure sandboxes: a pod uses what its containers use.
fn from_containers(
    stats: Vec<v1::ContainerStats>,
    present: &HashMap<String, v1::PodSandbox>,
    created: &HashMap<&str, (&str, i64)>,
) -> Vec<PodUse> {
    let mut pods: BTreeMap<&str, PodUse> = BTreeMap::new();
    for stats in stats {
        let Some((sandbox_id, at)) = created.get(id_of(&stats)) else { continue };
        let Some(sandbox) = present.get(*sandbox_id) else { continue };
        let pod = pods.entry(sandbox_id).or_insert_with(|| pod_of(sandbox));
        add_cpu(&mut pod.cpu, stats.cpu.as_ref());
        add_memory(&mut pod.memory, stats.memory.as_ref());
        pod.containers.push((stats, *at));
    }
    pods.into_values().collect()
}

fn add(sum: &mut Option<v1::UInt64Value>, more: Option<v1::UInt64Value>) {
    if let Some(more) = more {
        sum.get_or_insert_default().value += more.value;
    }
}

fn add_cpu(sum: &mut Option<v1::CpuUsage>, more: Option<&v1::CpuUsage>) {
    let Some(more) = more else { return };
    let sum = sum.get_or_insert_default();
    sum.timestamp = sum.timestamp.max(more.timestamp);
    add(&mut sum.usage_core_nano_seconds, more.usage_core_nano_seconds);
    add(&mut sum.usage_nano_cores, more.usage_nano_cores);
}

fn add_memory(sum: &mut Option<v1::MemoryUsage>, more: Option<&v1::MemoryUsage>) {
    let Some(more) = more else { return };
    let sum = sum.get_or_insert_default();
    sum.timestamp = sum.timestamp.max(more.timestamp);
    add(&mut sum.working_set_bytes, more.working_set_bytes);
    add(&mut sum.usage_bytes, more.usage_bytes);
    add(&mut sum.rss_bytes, more.rss_bytes);
}

/// Bytes of each container's log files, rotated ones too.
fn log_sizes(shared: &Arc<Shared>, pod: &PodUse) -> HashMap<String, u64> {
    let name = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
    let folder = shared.config.log_root.join(name);
    let size = |container: &str| -> u64 {
        let Ok(entries) = std::fs::read_dir(folder.join(container)) else { return 0 };
        entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|metadata| metadata.len()).sum()
    };
    let names = pod
        .containers
        .iter()
        .filter_map(|(stats, _)| Some(stats.attributes.as_ref()?.metadata.as_ref()?.name.clone()));
    names.map(|name| (name.clone(), size(&name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, uid: &str, created_at: i64, state: PodSandboxState) -> v1::PodSandbox {
        let metadata = v1::PodSandboxMetadata { name: uid.into(), uid: uid.into(), ..Default::default() };
        v1::PodSandbox {
            id: id.into(),
            metadata: Some(metadata),
            state: state.into(),
            created_at,
            ..Default::default()
        }
    }

    #[test]
    fn containers_add_up_to_their_pod() {
        let sandboxes = vec![
            sandbox("s1", "u1", 1, PodSandboxState::SandboxReady),
            sandbox("s2", "u1", 2, PodSandboxState::SandboxReady),
            sandbox("s3", "u2", 3, PodSandboxState::SandboxNotready),
        ];
        let present = present(sandboxes);
        assert_eq!(present.keys().collect::<Vec<_>>(), ["s2"]);
        let stats = |id: &str, bytes: u64| v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes { id: id.into(), ..Default::default() }),
            memory: Some(v1::MemoryUsage {
                timestamp: 9,
                working_set_bytes: Some(v1::UInt64Value { value: bytes }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let created = HashMap::from([("c1", ("s2", 5)), ("c2", ("s2", 6)), ("c3", ("s1", 4))]);
        let all = vec![stats("c1", 10), stats("c2", 32), stats("c3", 99), stats("unknown", 99)];
        let pods = from_containers(all, &present, &created);
        assert_eq!(pods.len(), 1);
        assert_eq!(pods[0].memory.as_ref().unwrap().working_set_bytes.unwrap().value, 42);
        assert_eq!(pods[0].containers.iter().map(|(_, at)| *at).collect::<Vec<_>>(), [5, 6]);
    }
}
