//! `/metrics/cadvisor`: the families that dashboards of containers read, by their names and labels.
//!
//! What CRI measures comes with [`super::stats`]; the rest is read from the pods' cgroups and from `/proc` when somebody
//! asks, and nothing is kept. Only groups of pods that this node has are looked at.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_cri::v1;

use super::Shared;
use super::metrics::{Families, Sample, float};
use super::stats::{self, Measured, PodUse};
use crate::api::{Pod, PodStatus, Quantity};
use crate::kubelet::PodView;
use crate::pod_cgroup::{self, CgroupPlace};

/// One family: name, help, kind.
type Family = (&'static str, &'static str, &'static str);

/// Labels and value of one sample.
type Measure = (Vec<(&'static str, String)>, f64);

/// Samples by family, in the order of first use.
#[derive(Default)]
struct Table(Vec<(Family, Vec<Measure>)>);

impl Table {
    fn add(&mut self, family: Family, labels: &Labels<'_>, more: &[(&'static str, &str)], value: f64) {
        let position = self.0.iter().position(|(known, _)| known.0 == family.0);
        let position = position.unwrap_or_else(|| {
            self.0.push((family, Vec::new()));
            self.0.len() - 1
        });
        let mut all = labels.all();
        all.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        all.sort_unstable();
        self.0[position].1.push((all, value));
    }

    fn text(mut self) -> String {
        self.0.sort_unstable_by_key(|(family, _)| family.0);
        let mut families = Families::default();
        for ((name, help, kind), samples) in &self.0 {
            let samples: Vec<Sample<'_>> = samples
                .iter()
                .map(|(labels, value)| Sample {
                    labels: labels.iter().map(|(name, value)| (*name, value.as_str())).collect(),
                    value: *value,
                    timestamp: None,
                })
                .collect();
            families.add(name, help, kind, &samples);
        }
        families.0
    }
}

/// What every sample of a container, a pod or the machine says of whose it is.
#[derive(Clone, Copy, Default)]
struct Labels<'a> {
    container: &'a str,
    /// Its cgroup.
    id: &'a str,
    image: &'a str,
    /// The runtime's id of the container.
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
}

impl Labels<'_> {
    fn all(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("container", self.container),
            ("id", self.id),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ];
        all.map(|(name, value)| (name, value.to_owned())).to_vec()
    }
}

const CPU: Family =
    ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", "counter");
const USER: Family =
    ("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", "counter");
const SYSTEM: Family =
    ("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", "counter");
const MAPPED: Family = ("container_memory_mapped_file", "Size of memory mapped files in bytes.", "gauge");
const OOM: Family =
    ("container_oom_events_total", "Count of out of memory events observed for the container", "counter");
const WORKING_SET: Family = ("container_memory_working_set_bytes", "Current working set in bytes.", "gauge");
const USAGE: Family = (
    "container_memory_usage_bytes",
    "Current memory usage in bytes, including all memory regardless of when it was accessed",
    "gauge",
);
const RSS: Family = ("container_memory_rss", "Size of RSS in bytes.", "gauge");
const CACHE: Family = ("container_memory_cache", "Number of bytes of page cache memory.", "gauge");
const SWAP: Family = ("container_memory_swap", "Container swap usage in bytes.", "gauge");
const START: Family =
    ("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", "gauge");
const FS_USAGE: Family = (
    "container_fs_usage_bytes",
    "Number of bytes that are consumed by the container on this filesystem.",
    "gauge",
);
const PROCESSES: Family =
    ("container_processes", "Number of processes running inside the container.", "gauge");
const MEMORY_LIMIT: Family =
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", "gauge");
const CPU_QUOTA: Family = ("container_spec_cpu_quota", "CPU quota of the container.", "gauge");
const CPU_PERIOD: Family = ("container_spec_cpu_period", "CPU period of the container.", "gauge");
const CPU_SHARES: Family = ("container_spec_cpu_shares", "CPU share of the container.", "gauge");
const PERIODS: Family =
    ("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", "counter");
const THROTTLED: Family =
    ("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", "counter");
const THROTTLED_TIME: Family = (
    "container_cpu_cfs_throttled_seconds_total",
    "Total time duration the container has been throttled.",
    "counter",
);
const READS: Family = ("container_fs_reads_total", "Cumulative count of reads completed", "counter");
const WRITES: Family = ("container_fs_writes_total", "Cumulative count of writes completed", "counter");
const READ_BYTES: Family = ("container_fs_reads_bytes_total", "Cumulative count of bytes read", "counter");
const WRITTEN_BYTES: Family =
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written", "counter");
const CORES: Family = ("machine_cpu_cores", "Number of logical CPU cores.", "gauge");
const MACHINE_MEMORY: Family =
    ("machine_memory_bytes", "Amount of memory installed on the machine.", "gauge");

/// Fields of `/proc/net/dev` after the interface's name.
const NETWORK: [(usize, Family); 8] = [
    (0, ("container_network_receive_bytes_total", "Cumulative count of bytes received", "counter")),
    (1, ("container_network_receive_packets_total", "Cumulative count of packets received", "counter")),
    (
        2,
        (
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
            "counter",
        ),
    ),
    (
        3,
        (
            "container_network_receive_packets_dropped_total",
            "Cumulative count of packets dropped while receiving",
            "counter",
        ),
    ),
    (8, ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", "counter")),
    (9, ("container_network_transmit_packets_total", "Cumulative count of packets transmitted", "counter")),
    (
        10,
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
            "counter",
        ),
    ),
    (
        11,
        (
            "container_network_transmit_packets_dropped_total",
            "Cumulative count of packets dropped while transmitting",
            "counter",
        ),
    ),
];

/// Answers `/metrics/cadvisor`.
pub(super) async fn metrics(shared: &Arc<Shared>) -> String {
    let Ok(measured) = stats::measured(shared).await else { return String::new() };
    let views: HashMap<Arc<str>, PodView> =
        shared.parts.pods.borrow().iter().map(|(uid, view)| (uid.clone(), view.clone())).collect();
    let place = shared.config.cgroups.clone();
    // Hundreds of small files: not on the event loop.
    let told = tokio::task::spawn_blocking(move || tell(&measured, &views, &place));
    told.await.unwrap_or_default()
}

fn tell(measured: &Measured, views: &HashMap<Arc<str>, PodView>, place: &CgroupPlace) -> String {
    let mut table = Table::default();
    machine(&mut table, measured);
    for pod in &measured.pods {
        let Some(view) = views.get(pod.uid.as_str()) else { continue };
        of_pod(&mut table, pod, view, place);
    }
    table.text()
}

fn machine(table: &mut Table, measured: &Measured) {
    let (none, root) = (Labels::default(), Labels { id: "/", ..Labels::default() });
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    table.add(CORES, &none, &[], float(cores as u64));
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = crate::node::machine::kibibytes(&meminfo, "MemTotal:");
    table.add(MACHINE_MEMORY, &none, &[], float(total.unsigned_abs()));
    processor(table, &root, Some(&measured.node.cpu));
    memory(table, &root, Some(&measured.node.memory));
}

fn processor(table: &mut Table, labels: &Labels<'_>, cpu: Option<&v1::CpuUsage>) {
    if let Some(used) = cpu.and_then(|cpu| cpu.usage_core_nano_seconds) {
        table.add(CPU, labels, &[("cpu", "total")], float(used.value) / 1e9);
    }
}

fn memory(table: &mut Table, labels: &Labels<'_>, memory: Option<&v1::MemoryUsage>) {
    let Some(memory) = memory else { return };
    for (family, value) in
        [(WORKING_SET, memory.working_set_bytes), (USAGE, memory.usage_bytes), (RSS, memory.rss_bytes)]
    {
        if let Some(value) = value {
            table.add(family, labels, &[], float(value.value));
        }
    }
}

fn of_pod(table: &mut Table, measured: &PodUse, view: &PodView, place: &CgroupPlace) {
    let group = pod_cgroup::group_of(place, &view.pod);
    let labels =
        Labels { id: &group, namespace: &measured.namespace, pod: &measured.name, ..Labels::default() };
    processor(table, &labels, measured.cpu.as_ref());
    memory(table, &labels, measured.memory.as_ref());
    let folders = pod_cgroup::folders_of(&group);
    throttling(table, &labels, &folders);
    if let Some(processes) = measured.processes {
        table.add(PROCESSES, &labels, &[], float(processes));
    }
    let mut in_network = None;
    for (stats, created_at) in &measured.containers {
        let Some(attributes) = &stats.attributes else { continue };
        let name = attributes.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
        let own: Vec<PathBuf> = folders.iter().filter_map(|folder| below(folder, &attributes.id)).collect();
        let id =
            own.first().and_then(|path| path.file_name()).map(|part| part.to_string_lossy().into_owned());
        let id = format!("{group}/{}", id.as_deref().unwrap_or(&attributes.id));
        let image = image_of(&view.status, name);
        let labels = Labels { container: name, id: &id, image: &image, name: &attributes.id, ..labels };
        of_container(table, &labels, (stats, *created_at), &own, &view.pod);
        in_network = in_network.or_else(|| own.iter().find_map(|folder| first_process(folder)));
    }
    if let Some(pid) = in_network.filter(|_| !view.pod.spec.host_network) {
        network(table, &labels, &std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default());
    }
}

fn of_container(
    table: &mut Table,
    labels: &Labels<'_>,
    (stats, created_at): (&v1::ContainerStats, i64),
    folders: &[PathBuf],
    pod: &Pod,
) {
    processor(table, labels, stats.cpu.as_ref());
    memory(table, labels, stats.memory.as_ref());
    let swap = stats.swap.as_ref().and_then(|swap| swap.swap_usage_bytes);
    table.add(SWAP, labels, &[], swap.map_or(0.0, |used| float(used.value)));
    if created_at > 0 {
        table.add(START, labels, &[], float(created_at.unsigned_abs()) / 1e9);
    }
    if let Some(layer) = &stats.writable_layer {
        let device = layer.fs_id.as_ref().map_or("", |id| id.mountpoint.as_str());
        let used = layer.used_bytes.map_or(0.0, |used| float(used.value));
        table.add(FS_USAGE, labels, &[("device", device)], used);
    }
    throttling(table, labels, folders);
    modes(table, labels, folders);
    page_cache(table, labels, folders);
    traffic(table, labels, folders);
    limits(table, labels, pod);
}

fn limits(table: &mut Table, labels: &Labels<'_>, pod: &Pod) {
    let Some(container) = pod.container(labels.container) else { return };
    let limit = |name: &str| container.resources.limits.get(name);
    let bytes = limit("memory").map_or(0, Quantity::value);
    table.add(MEMORY_LIMIT, labels, &[], float(bytes.unsigned_abs()));
    let requested = container.resources.requests.get("cpu").or(limit("cpu"));
    let shares = crate::qos::milli_cpu_to_shares(requested.map_or(0, Quantity::milli_value));
    table.add(CPU_SHARES, labels, &[], float(shares));
    table.add(CPU_PERIOD, labels, &[], 100_000.0);
    if let Some(limit) = limit("cpu") {
        table.add(CPU_QUOTA, labels, &[], float(limit.milli_value().unsigned_abs() * 100));
    }
}

fn throttling(table: &mut Table, labels: &Labels<'_>, folders: &[PathBuf]) {
    let Some(text) = first_file(folders, "cpu.stat") else { return };
    let field = |name: &str| number(&text, name);
    // cgroup v2 counts microseconds, v1 nanoseconds.
    let seconds = field("throttled_usec").map(|time| float(time) / 1e6);
    let seconds = seconds.or_else(|| field("throttled_time").map(|time| float(time) / 1e9));
    for (family, value) in [
        (PERIODS, field("nr_periods").map(float)),
        (THROTTLED, field("nr_throttled").map(float)),
        (THROTTLED_TIME, seconds),
    ] {
        if let Some(value) = value {
            table.add(family, labels, &[], value);
        }
    }
}

/// Processor time by who used it.
fn modes(table: &mut Table, labels: &Labels<'_>, folders: &[PathBuf]) {
    // cgroup v2 counts microseconds, v1 hundredths of a second.
    let unified = first_file(folders, "cpu.stat").unwrap_or_default();
    let apart = first_file(folders, "cpuacct.stat").unwrap_or_default();
    for (family, name) in [(USER, "user"), (SYSTEM, "system")] {
        let seconds = number(&unified, &format!("{name}_usec")).map(|time| float(time) / 1e6);
        if let Some(seconds) = seconds.or_else(|| number(&apart, name).map(|time| float(time) / 100.0)) {
            table.add(family, labels, &[], seconds);
        }
    }
}

fn page_cache(table: &mut Table, labels: &Labels<'_>, folders: &[PathBuf]) {
    let Some(text) = first_file(folders, "memory.stat") else { return };
    if let Some(bytes) = number(&text, "total_cache").or_else(|| number(&text, "file")) {
        table.add(CACHE, labels, &[], float(bytes));
    }
    if let Some(bytes) = number(&text, "total_mapped_file").or_else(|| number(&text, "file_mapped")) {
        table.add(MAPPED, labels, &[], float(bytes));
    }
    let events = first_file(folders, "memory.events").or_else(|| first_file(folders, "memory.oom_control"));
    if let Some(kills) = events.and_then(|text| number(&text, "oom_kill")) {
        table.add(OOM, labels, &[], float(kills));
    }
}

/// Block devices, summed: which they are differs with every machine.
fn traffic(table: &mut Table, labels: &Labels<'_>, folders: &[PathBuf]) {
    let (mut reads, mut writes, mut read, mut written) = (0, 0, 0, 0);
    if let Some(text) = first_file(folders, "io.stat") {
        for (name, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
            let value: u64 = value.parse().unwrap_or(0);
            match name {
                "rios" => reads += value,
                "wios" => writes += value,
                "rbytes" => read += value,
                "wbytes" => written += value,
                _ => {}
            }
        }
    } else if let (Some(count), Some(bytes)) = (
        first_file(folders, "blkio.throttle.io_serviced"),
        first_file(folders, "blkio.throttle.io_service_bytes"),
    ) {
        (reads, writes) = (of_devices(&count, "Read"), of_devices(&count, "Write"));
        (read, written) = (of_devices(&bytes, "Read"), of_devices(&bytes, "Write"));
    } else {
        return;
    }
    for (family, value) in [(READS, reads), (WRITES, writes), (READ_BYTES, read), (WRITTEN_BYTES, written)] {
        table.add(family, labels, &[("device", "")], float(value));
    }
}

/// The sum of the lines `8:0 Read 123`.
fn of_devices(text: &str, kind: &str) -> u64 {
    let of_line = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        (words.next()? == kind).then(|| words.next()?.parse::<u64>().ok()).flatten()
    };
    text.lines().filter_map(of_line).sum()
}

/// The counters of each interface but loopback.
fn network(table: &mut Table, labels: &Labels<'_>, text: &str) {
    for line in text.lines() {
        let Some((interface, counters)) = line.split_once(':') else { continue };
        let interface = interface.trim();
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if interface == "lo" || counters.len() < 16 {
            continue;
        }
        for (at, family) in NETWORK {
            table.add(family, labels, &[("interface", interface)], float(counters[at]));
        }
    }
}

/// The group of a container below its pod's: whatever the runtime puts around the id.
fn below(folder: &Path, id: &str) -> Option<PathBuf> {
    let exact = folder.join(id);
    if exact.is_dir() {
        return Some(exact);
    }
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let mut own = entries.filter(|entry| entry.file_name().to_string_lossy().contains(id));
    own.next().map(|entry| entry.path())
}

fn first_process(folder: &Path) -> Option<u32> {
    std::fs::read_to_string(folder.join("cgroup.procs")).ok()?.lines().next()?.parse().ok()
}

fn first_file(folders: &[PathBuf], name: &str) -> Option<String> {
    folders.iter().find_map(|folder| std::fs::read_to_string(folder.join(name)).ok())
}

/// The number of the line `name 123`.
fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn image_of(status: &PodStatus, name: &str) -> String {
    let all = status.container_statuses.iter().chain(&status.init_container_statuses);
    let mut own = all.chain(&status.ephemeral_container_statuses).filter(|container| container.name == name);
    own.next().map(|container| container.image.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_every_kernel_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let folders = vec![folder.path().to_owned()];
        put("cpu.stat", "nr_periods 10\nnr_throttled 2\nthrottled_time 1500000000\n");
        put("memory.stat", "cache 1\ntotal_cache 4096\n");
        put("blkio.throttle.io_serviced", "8:0 Read 3\n8:0 Write 4\n8:16 Read 5\nTotal 12\n");
        put("blkio.throttle.io_service_bytes", "8:0 Read 300\n8:0 Write 400\nTotal 700\n");
        let labels = Labels { container: "c", pod: "p", namespace: "n", id: "/x", ..Labels::default() };
        let mut table = Table::default();
        throttling(&mut table, &labels, &folders);
        page_cache(&mut table, &labels, &folders);
        traffic(&mut table, &labels, &folders);
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                   \u{20} eth0: 11 12 13 14 0 0 0 0 21 22 23 24 0 0 0 0\n";
        network(&mut table, &labels, dev);
        let text = table.text();
        let whose = r#"container="c",id="/x",image="",name="",namespace="n",pod="p""#;
        for line in [
            format!("container_cpu_cfs_throttled_seconds_total{{{whose}}} 1.5"),
            format!("container_memory_cache{{{whose}}} 4096"),
            r#"container_fs_reads_total{container="c",device="",id="/x",image="",name="",namespace="n",pod="p"} 8"#.to_owned(),
            r#"container_network_transmit_packets_total{container="c",id="/x",image="",interface="eth0",name="",namespace="n",pod="p"} 22"#.to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("interface=\"lo\""), "{text}");
        put("cpu.stat", "usage_usec 5\nnr_periods 1\nnr_throttled 0\nthrottled_usec 250000\n");
        put("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n");
        let mut table = Table::default();
        throttling(&mut table, &labels, &folders);
        traffic(&mut table, &labels, &folders);
        let text = table.text();
        assert!(text.contains("throttled_seconds_total{container=\"c\",id=\"/x\",image=\"\",name=\"\",namespace=\"n\",pod=\"p\"} 0.25"), "{text}");
        assert!(text.contains("container_fs_writes_bytes_total"), "{text}");
    }
}
