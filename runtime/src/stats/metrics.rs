//! The metrics of pods and their running containers, read when a kubelet asks for them in cAdvisor's place.
//!
//! What the kernel does not tell is left out rather than told as zero. Reads the kernel's own files; descriptors of
//! processes are counted off the async threads.

use std::fs;
use std::sync::Arc;

use coracle_cri::v1::{self, MetricType};
use oci_spec::runtime::Spec;

use super::cgroup_files::{field, is_v2, number, text};
use super::metric_names::METRICS;
use crate::cgroup::Cgroups;
use crate::container::Container;
use crate::netns;
use crate::record::ContainerPhase;
use crate::sandbox::Sandbox;
use crate::service::{Engine, wall_ns};

/// Clock ticks of `cpuacct.stat` per second, the same on every Linux that runs containers.
const TICKS: u64 = 100;

/// Metrics of one pod or container.
struct Metrics {
    labels: Vec<String>,
    timestamp: i64,
    list: Vec<v1::Metric>,
}

impl Metrics {
    fn new(labels: [&str; 5]) -> Self {
        let labels = labels.map(str::to_owned).into();
        Self { labels, timestamp: wall_ns(), list: Vec::new() }
    }

    fn add(&mut self, name: &'static str, value: u64) {
        self.add_with(name, &[], value);
    }

    fn add_known(&mut self, name: &'static str, value: Option<u64>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    fn add_with(&mut self, name: &'static str, further: &[&str], value: u64) {
        let counts = METRICS.iter().find(|metric| metric.name == name).is_some_and(|metric| metric.counts);
        let kind = if counts { MetricType::Counter } else { MetricType::Gauge };
        self.list.push(v1::Metric {
            name: name.into(),
            timestamp: self.timestamp,
            metric_type: kind.into(),
            label_values: self
                .labels
                .iter()
                .cloned()
                .chain(further.iter().map(|label| (*label).into()))
                .collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }
}

/// The metrics of a pod.
pub(crate) async fn sandbox(engine: &Arc<Engine>, sandbox: &Arc<Sandbox>) -> v1::PodSandboxMetrics {
    let metadata = sandbox.record().config.metadata.clone().unwrap_or_default();
    let mut pod = Metrics::new([&metadata.name, &metadata.namespace, "", &sandbox.id, ""]);
    if let Some(pin) = crate::sandbox::pin(&engine.layout, sandbox, "net") {
        let table = netns::within_network(pin, || fs::read_to_string("/proc/thread-self/net/dev")).await;
        if let Ok(Ok(table)) = table {
            network(&mut pod, &table);
        }
    }
    let mut containers = Vec::new();
    for each in engine.containers_of(&sandbox.id) {
        let ContainerPhase::Running { started_at, .. } = each.record().phase.clone() else { continue };
        containers.push(container(engine, sandbox, &each, started_at).await);
    }
    v1::PodSandboxMetrics {
        pod_sandbox_id: sandbox.id.clone(),
        metrics: pod.list,
        container_metrics: containers,
    }
}

/// The counters of the pod's own interface.
fn network(pod: &mut Metrics, table: &str) {
    const INTERFACE: &str = "eth0";
    const COLUMNS: [(&str, usize); 8] = [
        ("container_network_receive_bytes_total", 0),
        ("container_network_receive_packets_total", 1),
        ("container_network_receive_packets_dropped_total", 3),
        ("container_network_receive_errors_total", 2),
        ("container_network_transmit_bytes_total", 8),
        ("container_network_transmit_packets_total", 9),
        ("container_network_transmit_packets_dropped_total", 11),
        ("container_network_transmit_errors_total", 10),
    ];
    let lines = table.lines().filter_map(|line| line.split_once(':'));
    let Some((_, counters)) = lines.into_iter().find(|(name, _)| name.trim() == INTERFACE) else { return };
    let counters: Vec<u64> = counters.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    for (name, column) in COLUMNS {
        pod.add_with(name, &[INTERFACE], counters.get(column).copied().unwrap_or(0));
    }
}

async fn container(
    engine: &Arc<Engine>,
    sandbox: &Sandbox,
    container: &Arc<Container>,
    started_at: i64,
) -> v1::ContainerMetrics {
    let pod = sandbox.record().config.metadata.clone().unwrap_or_default();
    let (name, image) = {
        let config = &container.record().config;
        let name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
        (name, config.image.as_ref().map(|image| image.user_specified_image.clone()).unwrap_or_default())
    };
    let mut metrics = Metrics::new([&pod.name, &pod.namespace, &name, &container.id, &image]);
    let seconds = |ns: i64| u64::try_from(ns / 1_000_000_000).unwrap_or(0);
    metrics.add("container_last_seen", seconds(metrics.timestamp));
    metrics.add("container_start_time_seconds", seconds(started_at));
    let path = engine.container_cgroup(container, sandbox);
    cpu(&mut metrics, &engine.cgroups, &path);
    memory(&mut metrics, &engine.cgroups, &path);
    disk(&mut metrics, &engine.cgroups, &path);
    let layer = engine.layout.layer(&container.id).join("upper");
    let used = engine.layer_usage.of(&container.id, layer).await.bytes;
    metrics.add_with("container_fs_usage_bytes", &["/"], used);
    if let Ok(all) = rustix::fs::statvfs(engine.layout.layers()) {
        metrics.add_with("container_fs_limit_bytes", &["/"], all.f_blocks * all.f_frsize);
        metrics.add_with("container_fs_inodes_total", &["/"], all.f_files);
        metrics.add_with("container_fs_inodes_free", &["/"], all.f_ffree);
    }
    processes(&mut metrics, &engine.cgroups, &path);
    let pids = engine.cgroups.members(&path);
    if let Ok((descriptors, sockets)) = tokio::task::spawn_blocking(move || descriptors(&pids)).await {
        metrics.add("container_file_descriptors", descriptors);
        metrics.add("container_sockets", sockets);
    }
    if let Ok(spec) = engine.read_spec(container) {
        limits(&mut metrics, &spec);
    }
    v1::ContainerMetrics { container_id: container.id.clone(), metrics: metrics.list }
}

fn cpu(metrics: &mut Metrics, cgroups: &Cgroups, path: &str) {
    let Some(stat) = text(cgroups, "cpu", path, "cpu.stat") else { return };
    let stat = |name: &str| field(&stat, name);
    let (used, user, system, throttled) = if is_v2(cgroups) {
        let seconds = |name: &str| stat(name).map(|microseconds| microseconds / 1_000_000);
        (seconds("usage_usec"), seconds("user_usec"), seconds("system_usec"), seconds("throttled_usec"))
    } else {
        let times = text(cgroups, "cpuacct", path, "cpuacct.stat").unwrap_or_default();
        let ticks = |name: &str| field(&times, name).map(|ticks| ticks / TICKS);
        let ns = |ns: u64| ns / 1_000_000_000;
        let used = number(cgroups, "cpuacct", path, "cpuacct.usage").map(ns);
        (used, ticks("user"), ticks("system"), stat("throttled_time").map(ns))
    };
    metrics.add_known("container_cpu_usage_seconds_total", used);
    metrics.add_known("container_cpu_user_seconds_total", user);
    metrics.add_known("container_cpu_system_seconds_total", system);
    metrics.add_known("container_cpu_cfs_periods_total", stat("nr_periods"));
    metrics.add_known("container_cpu_cfs_throttled_periods_total", stat("nr_throttled"));
    metrics.add_known("container_cpu_cfs_throttled_seconds_total", throttled);
}

fn memory(metrics: &mut Metrics, cgroups: &Cgroups, path: &str) {
    let Some(stat) = text(cgroups, "memory", path, "memory.stat") else { return };
    let v2 = is_v2(cgroups);
    let file = |name: &str| number(cgroups, "memory", path, name);
    let stat_of = |old: &str, new: &str| field(&stat, if v2 { new } else { old });
    let (usage, highest, swap, failures) = if v2 {
        (file("memory.current"), file("memory.peak"), file("memory.swap.current"), Some(0))
    } else {
        let usage = file("memory.usage_in_bytes");
        let swap = file("memory.memsw.usage_in_bytes");
        (usage, file("memory.max_usage_in_bytes"), swap, file("memory.failcnt"))
    };
    let inactive = stat_of("total_inactive_file", "inactive_file");
    metrics.add_known("container_memory_usage_bytes", usage);
    let working_set = usage.map(|usage| usage.saturating_sub(inactive.unwrap_or(0)));
    metrics.add_known("container_memory_working_set_bytes", working_set);
    metrics.add_known("container_memory_max_usage_bytes", highest);
    metrics.add_known("container_memory_rss", stat_of("total_rss", "anon"));
    metrics.add_known("container_memory_cache", stat_of("total_cache", "file"));
    metrics.add_known("container_memory_mapped_file", stat_of("total_mapped_file", "file_mapped"));
    metrics
        .add_known("container_memory_total_active_file_bytes", stat_of("total_active_file", "active_file"));
    metrics.add_known("container_memory_total_inactive_file_bytes", inactive);
    let kernel = if v2 { field(&stat, "kernel_stack") } else { file("memory.kmem.usage_in_bytes") };
    metrics.add_known("container_memory_kernel_usage", kernel);
    metrics.add_known("container_memory_swap", swap);
    metrics.add_known("container_memory_failcnt", failures);
    for kind in ["pgfault", "pgmajfault"] {
        if let Some(faults) = field(&stat, kind) {
            metrics.add_with("container_memory_failures_total", &[kind, "container"], faults);
        }
    }
    let events = if v2 { "memory.events" } else { "memory.oom_control" };
    let events = text(cgroups, "memory", path, events).unwrap_or_default();
    metrics.add_known("container_oom_events_total", field(&events, "oom_kill"));
}

fn disk(metrics: &mut Metrics, cgroups: &Cgroups, path: &str) {
    if is_v2(cgroups) {
        let stat = text(cgroups, "io", path, "io.stat").unwrap_or_default();
        for line in stat.lines() {
            let mut words = line.split_whitespace();
            let Some(device) = words.next() else { continue };
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let name = match key {
                    "rbytes" => "container_fs_reads_bytes_total",
                    "wbytes" => "container_fs_writes_bytes_total",
                    "rios" => "container_fs_reads_total",
                    "wios" => "container_fs_writes_total",
                    _ => continue,
                };
                metrics.add_with(name, &[device], value.parse().unwrap_or(0));
            }
        }
        return;
    }
    let read = |file: &str| {
        let recursive = text(cgroups, "blkio", path, &format!("{file}_recursive"));
        recursive.or_else(|| text(cgroups, "blkio", path, file)).unwrap_or_default()
    };
    for (number, operation, bytes) in blkio_lines(&read("blkio.throttle.io_service_bytes")) {
        let device = device_name(number);
        let (major, minor) = number.split_once(':').unwrap_or((number, ""));
        metrics.add_with("container_blkio_device_usage_total", &[&device, major, minor, operation], bytes);
        match operation {
            "Read" => metrics.add_with("container_fs_reads_bytes_total", &[&device], bytes),
            "Write" => metrics.add_with("container_fs_writes_bytes_total", &[&device], bytes),
            _ => {}
        }
    }
    for (number, operation, count) in blkio_lines(&read("blkio.throttle.io_serviced")) {
        let device = device_name(number);
        match operation {
            "Read" => metrics.add_with("container_fs_reads_total", &[&device], count),
            "Write" => metrics.add_with("container_fs_writes_total", &[&device], count),
            _ => {}
        }
    }
}

/// Lines `8:0 Read 4096`, but for sums.
fn blkio_lines(text: &str) -> impl Iterator<Item = (&str, &str, u64)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (device, operation, value) = (words.next()?, words.next()?, words.next()?);
        device.contains(':').then_some(())?;
        Some((device, operation, value.parse().ok()?))
    })
}

/// The path of a block device by its number.
fn device_name(number: &str) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{number}")).unwrap_or_default();
    link.file_name().map_or_else(String::new, |name| format!("/dev/{}", name.to_string_lossy()))
}

fn processes(metrics: &mut Metrics, cgroups: &Cgroups, path: &str) {
    let Some(current) = number(cgroups, "pids", path, "pids.current") else { return };
    metrics.add("container_processes", current);
    metrics.add("container_threads", current);
    // Without a limit the file has a word.
    let limit = number(cgroups, "pids", path, "pids.max").unwrap_or(0);
    metrics.add("container_threads_max", limit);
}

/// Open descriptors of processes, and how many of them are sockets. What ends meanwhile counts nothing.
fn descriptors(pids: &[u32]) -> (u64, u64) {
    let (mut all, mut sockets) = (0, 0);
    for pid in pids {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in entries.flatten() {
            all += 1;
            let is_socket =
                fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with("socket"));
            sockets += u64::from(is_socket);
        }
    }
    (all, sockets)
}

fn limits(metrics: &mut Metrics, spec: &Spec) {
    let rlimits = spec.process().as_ref().and_then(|process| process.rlimits().clone());
    for limit in rlimits.unwrap_or_default() {
        metrics.add_with("container_ulimits_soft", &[&limit.typ().to_string()], limit.soft());
    }
    let Some(resources) = spec.linux().as_ref().and_then(|linux| linux.resources().clone()) else { return };
    if let Some(cpu) = resources.cpu() {
        metrics.add_known("container_spec_cpu_period", cpu.period());
        metrics.add_known("container_spec_cpu_shares", cpu.shares());
    }
    if let Some(memory) = resources.memory() {
        let bytes = |value: Option<i64>| value.map(i64::cast_unsigned);
        metrics.add_known("container_spec_memory_limit_bytes", bytes(memory.limit()));
        let reservation = bytes(memory.reservation());
        metrics.add_known("container_spec_memory_reservation_limit_bytes", reservation);
        metrics.add_known("container_spec_memory_swap_limit_bytes", bytes(memory.swap()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::descriptors as described;

    #[test]
    fn every_metric_has_the_labels_that_its_descriptor_says() {
        let mut metrics = Metrics::new(["p", "n", "", "id", ""]);
        network(&mut metrics, "lo: 1 1 1 1 0 0 0 0 1 1 1 1\n eth0: 100 2 3 4 0 0 0 0 200 5 6 7 0 0 0 0\n");
        metrics.add_with("container_memory_failures_total", &["pgfault", "container"], 1);
        metrics.add("container_processes", 1);
        let descriptors = described();
        for metric in &metrics.list {
            let descriptor = descriptors.iter().find(|descriptor| descriptor.name == metric.name).unwrap();
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{metric:?}");
        }
        let value = |name: &str| metrics.list.iter().find(|m| m.name == name).unwrap().value.unwrap().value;
        assert_eq!(value("container_network_receive_packets_dropped_total"), 4);
        assert_eq!(value("container_network_transmit_errors_total"), 6);
        let mut names: Vec<&str> = descriptors.iter().map(|descriptor| descriptor.name.as_str()).collect();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
    }

    #[test]
    fn lines_of_block_devices_are_read_without_their_sum() {
        let lines: Vec<_> = blkio_lines("8:0 Read 4096\n8:0 Write 1\nTotal 4097\n").collect();
        assert_eq!(lines, [("8:0", "Read", 4096), ("8:0", "Write", 1)]);
    }
}
