//! `/metrics`, `/metrics/resource` and `/metrics/probes` in Prometheus' text form.
//!
//! metrics-server and with it `kubectl top` read `/metrics/resource`. Names, labels and help texts are those of the
//! kubelet's collectors (1.36); of the kubelet's own metrics those are told that mean the same here.

use std::fmt::Write as _;
use std::sync::Arc;

use coracle_cri::v1;

use super::Shared;
use super::stats::{self, Measured};
use crate::kubelet::PodViews;
use crate::node::machine::kibibytes;

/// Text that grows family by family.
#[derive(Default)]
pub(super) struct Families(pub(super) String);

/// One line: labels, value, milliseconds since the Unix epoch.
pub(super) struct Sample<'a> {
    pub(super) labels: Vec<(&'static str, &'a str)>,
    pub(super) value: f64,
    pub(super) timestamp: Option<i64>,
}

impl Families {
    /// Adds a family; one without samples is left out.
    pub(super) fn add(&mut self, name: &str, help: &str, kind: &str, samples: &[Sample<'_>]) {
        if samples.is_empty() {
            return;
        }
        let out = &mut self.0;
        // Writing to a string cannot fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for sample in samples {
            out.push_str(name);
            for (at, (label, value)) in sample.labels.iter().enumerate() {
                out.push(if at == 0 { '{' } else { ',' });
                let _ = write!(out, "{label}=\"");
                for character in value.chars() {
                    match character {
                        '\\' => out.push_str("\\\\"),
                        '"' => out.push_str("\\\""),
                        '\n' => out.push_str("\\n"),
                        other => out.push(other),
                    }
                }
                out.push('"');
            }
            if !sample.labels.is_empty() {
                out.push('}');
            }
            let _ = write!(out, " {}", sample.value);
            if let Some(timestamp) = sample.timestamp {
                let _ = write!(out, " {timestamp}");
            }
            out.push('\n');
        }
    }
}

fn plain(value: f64) -> Vec<Sample<'static>> {
    vec![Sample { labels: Vec::new(), value, timestamp: None }]
}

#[allow(clippy::cast_precision_loss, reason = "metrics are floats")]
pub(super) fn float(value: u64) -> f64 {
    value as f64
}

fn at_time<'a>(labels: Vec<(&'static str, &'a str)>, value: f64, nanos: i64) -> Sample<'a> {
    Sample { labels, value, timestamp: Some(nanos / 1_000_000) }
}

/// Answers `/metrics/resource`.
pub(super) async fn resource(shared: &Arc<Shared>) -> String {
    let mut families = Families::default();
    let measured = stats::measured(shared).await;
    if let Ok(measured) = &measured {
        resources(&mut families, measured);
    }
    let failed = if measured.is_ok() { 0.0 } else { 1.0 };
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    families.add("resource_scrape_error", help, "gauge", &plain(failed));
    families.0
}

fn seconds(cpu: &v1::CpuUsage) -> Option<f64> {
    cpu.usage_core_nano_seconds.map(|used| float(used.value) / 1e9)
}

/// The families of the kubelet's resource metrics collector, by name.
fn resources(families: &mut Families, measured: &Measured) {
    containers(families, measured);
    node(families, measured);
    pods(families, measured);
}

fn containers(families: &mut Families, measured: &Measured) {
    let mut cpu = Vec::new();
    let mut memory = Vec::new();
    let mut start = Vec::new();
    let (mut swap_limit, mut swap_usage) = (Vec::new(), Vec::new());
    for pod in &measured.pods {
        for (stats, created_at) in &pod.containers {
            let metadata = stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
            let name = metadata.map_or("", |metadata| metadata.name.as_str());
            let labels = || {
                vec![("container", name), ("namespace", pod.namespace.as_str()), ("pod", pod.name.as_str())]
            };
            if let Some(usage) = &stats.cpu {
                cpu.extend(seconds(usage).map(|value| at_time(labels(), value, usage.timestamp)));
            }
            if let Some(usage) = &stats.memory {
                let used = usage.working_set_bytes;
                memory.extend(used.map(|used| at_time(labels(), float(used.value), usage.timestamp)));
            }
            if *created_at > 0 {
                let value = float(created_at.unsigned_abs()) / 1e9;
                start.push(Sample { labels: labels(), value, timestamp: None });
            }
            if let Some(swap) = &stats.swap {
                let used = swap.swap_usage_bytes.map(|used| float(used.value));
                swap_usage.extend(used.map(|used| at_time(labels(), used, swap.timestamp)));
                let limit = swap.swap_available_bytes.map(|left| float(left.value) + used.unwrap_or(0.0));
                swap_limit.extend(limit.map(|limit| at_time(labels(), limit, swap.timestamp)));
            }
        }
    }
    let help = "[STABLE] Cumulative cpu time consumed by the container in core-seconds";
    families.add("container_cpu_usage_seconds_total", help, "counter", &cpu);
    let help = "[STABLE] Current working set of the container in bytes";
    families.add("container_memory_working_set_bytes", help, "gauge", &memory);
    let help = "[STABLE] Start time of the container since unix epoch in seconds";
    families.add("container_start_time_seconds", help, "gauge", &start);
    let help =
        "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems";
    families.add("container_swap_limit_bytes", help, "gauge", &swap_limit);
    let help =
        "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems";
    families.add("container_swap_usage_bytes", help, "gauge", &swap_usage);
}

fn node(families: &mut Families, measured: &Measured) {
    let node = &measured.node;
    let value = |used: Option<v1::UInt64Value>| used.map_or(0.0, |used| float(used.value));
    let one = |value: f64| [at_time(Vec::new(), value, node.timestamp)];
    let help = "[STABLE] Cumulative cpu time consumed by the node in core-seconds";
    families.add("node_cpu_usage_seconds_total", help, "counter", &one(seconds(&node.cpu).unwrap_or(0.0)));
    let help = "[STABLE] Current working set of the node in bytes";
    families.add("node_memory_working_set_bytes", help, "gauge", &one(value(node.memory.working_set_bytes)));
    let help = "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems";
    families.add("node_swap_usage_bytes", help, "gauge", &one(value(node.swap.swap_usage_bytes)));
}

fn pods(families: &mut Families, measured: &Measured) {
    let (mut cpu, mut memory, mut swap) = (Vec::new(), Vec::new(), Vec::new());
    for pod in &measured.pods {
        let labels = || vec![("namespace", pod.namespace.as_str()), ("pod", pod.name.as_str())];
        if let Some(usage) = &pod.cpu {
            cpu.extend(seconds(usage).map(|value| at_time(labels(), value, usage.timestamp)));
        }
        if let Some(usage) = &pod.memory {
            let used = usage.working_set_bytes;
            memory.extend(used.map(|used| at_time(labels(), float(used.value), usage.timestamp)));
        }
        let swaps = || pod.containers.iter().filter_map(|(stats, _)| stats.swap.as_ref());
        if let Some(last) = swaps().next_back() {
            let used = swaps().filter_map(|swap| swap.swap_usage_bytes).map(|used| used.value).sum();
            swap.push(at_time(labels(), float(used), last.timestamp));
        }
    }
    let help = "[STABLE] Cumulative cpu time consumed by the pod in core-seconds";
    families.add("pod_cpu_usage_seconds_total", help, "counter", &cpu);
    let help = "[STABLE] Current working set of the pod in bytes";
    families.add("pod_memory_working_set_bytes", help, "gauge", &memory);
    let help = "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems";
    families.add("pod_swap_usage_bytes", help, "gauge", &swap);
}

/// Answers `/metrics/probes`.
pub(super) fn probes(shared: &Arc<Shared>) -> String {
    let mut families = Families::default();
    let counts = shared.parts.probes.all();
    let kinds: Vec<String> = counts.iter().map(|count| count.kind.to_string()).collect();
    let mut samples = Vec::new();
    for (count, kind) in counts.iter().zip(&kinds) {
        for (result, number) in count.results().into_iter().filter(|(_, number)| *number > 0) {
            let labels = vec![
                ("container", &*count.container),
                ("namespace", &*count.namespace),
                ("pod", &*count.pod),
                ("pod_uid", &*count.uid),
                ("probe_type", kind.as_str()),
                ("result", result),
            ];
            samples.push(Sample { labels, value: float(number), timestamp: None });
        }
    }
    let help =
        "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
    families.add("prober_probe_total", help, "counter", &samples);
    started(&mut families, shared);
    families.0
}

fn started(families: &mut Families, shared: &Arc<Shared>) {
    let help = "[STABLE] Start time of the process since unix epoch in seconds.";
    let value = float(shared.started.unsigned_abs()) / 1e9;
    families.add("process_start_time_seconds", help, "gauge", &plain(value));
}

/// Answers `/metrics`: what this process is and has.
pub(super) fn own(shared: &Arc<Shared>) -> String {
    let mut families = Families::default();
    let views = shared.parts.pods.borrow().clone();
    let name = shared.config.node_name.as_str();
    let node = [Sample { labels: vec![("node", name)], value: 1.0, timestamp: None }];
    families.add("kubelet_node_name", "[ALPHA] The node's name. The count is always 1.", "gauge", &node);
    let help = "[ALPHA] Number of containers currently running";
    let containers = [Sample {
        labels: vec![("container_state", "running")],
        value: running_containers(&views),
        timestamp: None,
    }];
    families.add("kubelet_running_containers", help, "gauge", &containers);
    let running = views.values().filter(|view| view.status.phase == "Running").count();
    let help = "[ALPHA] Number of pods that have a running pod sandbox";
    families.add("kubelet_running_pods", help, "gauge", &plain(float(running as u64)));
    let version = crate::node::kubelet_version();
    let build = [Sample { labels: vec![("git_version", &version)], value: 1.0, timestamp: None }];
    let help = "[ALPHA] A metric with a constant '1' value labeled by the version this binary was built as.";
    families.add("kubernetes_build_info", help, "gauge", &build);
    process(&mut families);
    started(&mut families, shared);
    families.0
}

fn running_containers(views: &PodViews) -> f64 {
    let statuses = views
        .values()
        .flat_map(|view| view.status.container_statuses.iter().chain(&view.status.init_container_statuses));
    float(statuses.filter(|status| status.state.running.is_some()).count() as u64)
}

/// Processor time, memory and files of this process.
fn process(families: &mut Families) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold spaces; what follows it does not.
    let fields: Vec<u64> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .map(|field| field.trim().parse().unwrap_or(0))
        .collect();
    let field = |number: usize| float(fields.get(number - 3).copied().unwrap_or(0));
    let help = "Total user and system CPU time spent in seconds.";
    families.add("process_cpu_seconds_total", help, "counter", &plain((field(14) + field(15)) / 100.0));
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    families.add("process_open_fds", "Number of open file descriptors.", "gauge", &plain(float(open as u64)));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |name: &str| float(kibibytes(&status, name).unsigned_abs());
    let help = "Resident memory size in bytes.";
    families.add("process_resident_memory_bytes", help, "gauge", &plain(bytes("VmRSS:")));
    let help = "Virtual memory size in bytes.";
    families.add("process_virtual_memory_bytes", help, "gauge", &plain(bytes("VmSize:")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_what_prometheus_reads() {
        let mut families = Families::default();
        let labels = vec![("container", "a\"b\\"), ("pod", "p")];
        families.add("x_total", "[STABLE] help", "counter", &[at_time(labels, 1.5, 7_000_000_000)]);
        families.add("empty", "", "gauge", &[]);
        let expected = "# HELP x_total [STABLE] help\n# TYPE x_total counter\nx_total{container=\"a\\\"b\\\\\",pod=\"p\"} 1.5 7000\n";
        assert_eq!(families.0, expected);
    }

    #[test]
    fn this_process_has_memory() {
        let mut families = Families::default();
        process(&mut families);
        let line =
            families.0.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes ")).unwrap();
        assert!(line.parse::<f64>().unwrap() > 100_000.0, "{line}");
    }
}
