//! Usage of containers and sandboxes, read when somebody asks and never otherwise.
//!
//! Cgroup files are read at each call. Walking a writable layer costs much more, so its result is kept for a
//! few seconds; the walk runs off the async threads.

mod cgroup_files;
mod metric_names;
mod metrics;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_cri::v1;

use crate::container::Container;
use crate::record::ContainerPhase;
use crate::sandbox::Sandbox;
use crate::service::{Engine, wall_ns};
use crate::{netns, sys};

pub(crate) use metric_names::descriptors;
pub(crate) use metrics::sandbox as sandbox_metrics;

/// How long a walked layer's usage is told again.
const LAYER_USAGE_NS: u64 = 10_000_000_000;

/// What was measured before, per container or sandbox.
#[derive(Default)]
pub(crate) struct LayerUsage {
    layers: Mutex<HashMap<String, Usage>>,
    /// CPU time at the last question, to tell the rate since.
    cpu: Mutex<HashMap<String, (i64, u64)>>,
}

#[derive(Clone, Copy, Default)]
struct Usage {
    bytes: u64,
    inodes: u64,
    measured_at: u64,
}

impl LayerUsage {
    /// Forgets a container or sandbox.
    pub(crate) fn forget(&self, id: &str) {
        lock(&self.layers).remove(id);
        lock(&self.cpu).remove(id);
    }

    async fn of(&self, id: &str, path: PathBuf) -> Usage {
        let now = sys::boottime_ns();
        if let Some(known) = lock(&self.layers).get(id)
            && now.saturating_sub(known.measured_at) < LAYER_USAGE_NS
        {
            return *known;
        }
        let (bytes, inodes) = tokio::task::spawn_blocking(move || walk(&path)).await.unwrap_or_default();
        let usage = Usage { bytes, inodes, measured_at: now };
        lock(&self.layers).insert(id.to_owned(), usage);
        usage
    }

    /// Fills in the rate since the last question.
    fn rate(&self, id: &str, cpu: &mut v1::CpuUsage) {
        let Some(used) = cpu.usage_core_nano_seconds.as_ref().map(|used| used.value) else { return };
        let last = lock(&self.cpu).insert(id.to_owned(), (cpu.timestamp, used));
        if let Some((at, before)) = last
            && cpu.timestamp > at
        {
            let elapsed = (cpu.timestamp - at) as u128;
            let rate = u128::from(used.saturating_sub(before)) * 1_000_000_000 / elapsed;
            cpu.usage_nano_cores = Some(v1::UInt64Value { value: rate as u64 });
        }
    }
}

/// The maps are whole after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes and inodes of a tree, each inode once. What vanishes meanwhile counts nothing.
fn walk(root: &Path) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0, 0);
    let mut linked = std::collections::HashSet::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                pending.push(entry.path());
            } else if meta.nlink() > 1 && !linked.insert(meta.ino()) {
                continue;
            }
            bytes += meta.blocks() * 512;
            inodes += 1;
        }
    }
    (bytes, inodes)
}

/// Bytes and inodes of all writable layers together.
pub(crate) async fn layers(engine: &Engine) -> (u64, u64) {
    let ids: Vec<String> = engine.index().containers.keys().cloned().collect();
    let (mut bytes, mut inodes) = (0, 0);
    for id in ids {
        let usage = engine.layer_usage.of(&id, engine.layout.layer(&id).join("upper")).await;
        bytes += usage.bytes;
        inodes += usage.inodes;
    }
    (bytes, inodes)
}

/// Usage of one container. An ended one uses only its layer.
pub(crate) async fn container(engine: &Arc<Engine>, container: &Arc<Container>) -> v1::ContainerStats {
    let record = container.record().clone();
    let now = wall_ns();
    let mut stats = v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: container.id.clone(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        ..Default::default()
    };
    if let ContainerPhase::Running { .. } = record.phase
        && let Ok(sandbox) = engine.sandbox(&container.sandbox_id)
    {
        let path = engine.container_cgroup(container, &sandbox);
        stats.cpu = cgroup_files::cpu(&engine.cgroups, &path, now);
        if let Some(cpu) = &mut stats.cpu {
            engine.layer_usage.rate(&container.id, cpu);
        }
        stats.memory = cgroup_files::memory(&engine.cgroups, &path, now);
        stats.swap = cgroup_files::swap(&engine.cgroups, &path, now);
        stats.io = cgroup_files::io(&engine.cgroups, &path, now);
    }
    let layer = engine.layout.layer(&container.id);
    let usage = engine.layer_usage.of(&container.id, layer.join("upper")).await;
    stats.writable_layer = Some(v1::FilesystemUsage {
        timestamp: now,
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: engine.layout.layers().to_string_lossy().into_owned(),
        }),
        used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
        inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
    });
    stats
}

/// Usage of one sandbox with its running containers.
pub(crate) async fn sandbox(engine: &Arc<Engine>, sandbox: &Arc<Sandbox>) -> v1::PodSandboxStats {
    let config = sandbox.record().config.clone();
    let now = wall_ns();
    let path = engine.cgroups.parent_path(&sandbox.cgroup_parent());
    let mut cpu = cgroup_files::cpu(&engine.cgroups, &path, now);
    if let Some(cpu) = &mut cpu {
        engine.layer_usage.rate(&sandbox.id, cpu);
    }
    let mut containers = Vec::new();
    for each in engine.containers_of(&sandbox.id) {
        if each.state() == v1::ContainerState::ContainerRunning {
            containers.push(container(engine, &each).await);
        }
    }
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: sandbox.id.clone(),
            metadata: config.metadata,
            labels: config.labels,
            annotations: config.annotations,
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu,
            memory: cgroup_files::memory(&engine.cgroups, &path, now),
            network: network(engine, sandbox, now).await,
            process: cgroup_files::processes(&engine.cgroups, &path, now),
            containers,
            io: cgroup_files::io(&engine.cgroups, &path, now),
        }),
        windows: None,
    }
}

/// Traffic of the pod's own interfaces; a pod on the host's network has none of its own.
async fn network(engine: &Engine, sandbox: &Sandbox, now: i64) -> Option<v1::NetworkUsage> {
    let pin = crate::sandbox::pin(&engine.layout, sandbox, "net")?;
    let table =
        netns::within_network(pin, || fs::read_to_string("/proc/thread-self/net/dev")).await.ok()?.ok()?;
    let mut interfaces = interfaces(&table);
    let default =
        interfaces.iter().position(|interface| interface.name == "eth0").map(|at| interfaces.remove(at));
    Some(v1::NetworkUsage { timestamp: now, default_interface: default, interfaces })
}

/// The counters of every interface but loopback.
fn interfaces(table: &str) -> Vec<v1::NetworkInterfaceUsage> {
    let value = |text: Option<&&str>| {
        let value = text.and_then(|text| text.parse().ok()).unwrap_or(0);
        Some(v1::UInt64Value { value })
    };
    table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, counters)| (name.trim(), counters.split_whitespace().collect::<Vec<_>>()))
        .filter(|(name, _)| *name != "lo")
        .map(|(name, counters)| v1::NetworkInterfaceUsage {
            name: name.into(),
            rx_bytes: value(counters.first()),
            rx_errors: value(counters.get(2)),
            tx_bytes: value(counters.get(8)),
            tx_errors: value(counters.get(10)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_counters_are_read_by_column() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop\n\
                     lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                     eth0: 100 2 3 0 0 0 0 0 200 4 5 0 0 0 0 0\n";
        let found = interfaces(table);
        assert_eq!(found.len(), 1);
        let eth0 = &found[0];
        assert_eq!(
            (eth0.name.as_str(), eth0.rx_bytes.unwrap().value, eth0.tx_errors.unwrap().value),
            ("eth0", 100, 5)
        );
    }

    #[test]
    fn a_tree_is_walked_with_each_hard_link_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/a"), vec![1; 8192]).unwrap();
        fs::hard_link(dir.path().join("d/a"), dir.path().join("b")).unwrap();
        let (bytes, inodes) = walk(dir.path());
        assert_eq!(inodes, 2);
        assert!(bytes >= 8192);
    }
}
