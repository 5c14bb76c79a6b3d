//! The metrics that a CRI runtime tells of containers and pods: cAdvisor's names and labels, as containerd 2.4 has them.
//! Plain data, used by `metrics`.

use coracle_cri::v1::MetricDescriptor;

/// A metric.
pub(super) struct Described {
    pub(super) name: &'static str,
    help: &'static str,
    /// Labels after those that all have.
    further: &'static [&'static str],
    /// Whether it only grows.
    pub(super) counts: bool,
}

/// What every metric is labelled with.
const LABELS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];

const fn counter(name: &'static str, help: &'static str, further: &'static [&'static str]) -> Described {
    Described { name, help, further, counts: true }
}

const fn gauge(name: &'static str, help: &'static str, further: &'static [&'static str]) -> Described {
    Described { name, help, further, counts: false }
}

/// All of them.
pub(super) const METRICS: [Described; 49] = [
    counter("container_cpu_user_seconds_total", "Processor time in user space, in seconds.", &[]),
    counter("container_cpu_system_seconds_total", "Processor time in the kernel, in seconds.", &[]),
    counter("container_cpu_usage_seconds_total", "Processor time, in seconds.", &[]),
    counter("container_cpu_cfs_periods_total", "Periods of the processor quota that have passed.", &[]),
    counter("container_cpu_cfs_throttled_periods_total", "Periods in which the quota held it up.", &[]),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "How long the quota has held it up, in seconds.",
        &[],
    ),
    gauge("container_memory_cache", "Bytes of file cache.", &[]),
    gauge("container_memory_rss", "Bytes of anonymous memory.", &[]),
    gauge("container_memory_kernel_usage", "Bytes of kernel memory.", &[]),
    gauge("container_memory_mapped_file", "Bytes of mapped files.", &[]),
    gauge("container_memory_swap", "Bytes of swap.", &[]),
    counter("container_memory_failcnt", "How often the limit was hit; 0 on cgroup version 2.", &[]),
    gauge("container_memory_usage_bytes", "Bytes that are charged.", &[]),
    gauge("container_memory_max_usage_bytes", "Bytes that were charged at most.", &[]),
    gauge(
        "container_memory_working_set_bytes",
        "Bytes that are charged without long unused file cache.",
        &[],
    ),
    gauge("container_memory_total_active_file_bytes", "Bytes of file cache in use.", &[]),
    gauge("container_memory_total_inactive_file_bytes", "Bytes of file cache long unused.", &[]),
    counter("container_memory_failures_total", "Page faults.", &["failure_type", "scope"]),
    counter("container_oom_events_total", "Kills for want of memory.", &[]),
    counter("container_network_receive_bytes_total", "Bytes received.", INTERFACE),
    counter("container_network_receive_packets_total", "Packets received.", INTERFACE),
    counter("container_network_receive_packets_dropped_total", "Packets dropped on receipt.", INTERFACE),
    counter("container_network_receive_errors_total", "Errors on receipt.", INTERFACE),
    counter("container_network_transmit_bytes_total", "Bytes sent.", INTERFACE),
    counter("container_network_transmit_packets_total", "Packets sent.", INTERFACE),
    counter("container_network_transmit_packets_dropped_total", "Packets dropped on sending.", INTERFACE),
    counter("container_network_transmit_errors_total", "Errors on sending.", INTERFACE),
    gauge("container_fs_inodes_free", "Free inodes of the file system of writable layers.", DEVICE),
    gauge("container_fs_inodes_total", "Inodes of the file system of writable layers.", DEVICE),
    gauge("container_fs_limit_bytes", "Bytes of the file system of writable layers.", DEVICE),
    gauge("container_fs_usage_bytes", "Bytes of the writable layer.", DEVICE),
    counter("container_fs_reads_bytes_total", "Bytes read from a device.", DEVICE),
    counter("container_fs_reads_total", "Reads from a device.", DEVICE),
    counter("container_fs_writes_bytes_total", "Bytes written to a device.", DEVICE),
    counter("container_fs_writes_total", "Writes to a device.", DEVICE),
    counter(
        "container_blkio_device_usage_total",
        "Bytes to and from a device.",
        &["device", "major", "minor", "operation"],
    ),
    gauge("container_processes", "Processes.", &[]),
    gauge("container_file_descriptors", "Open file descriptors.", &[]),
    gauge("container_sockets", "Open sockets.", &[]),
    gauge("container_threads_max", "How many threads there may be; 0 without a limit.", &[]),
    gauge("container_threads", "Threads.", &[]),
    gauge("container_ulimits_soft", "Soft limits of the first process.", &["ulimit"]),
    gauge("container_last_seen", "When it was looked at, in seconds since 1970.", &[]),
    gauge("container_start_time_seconds", "When it was started, in seconds since 1970.", &[]),
    gauge("container_spec_cpu_period", "Period of the processor quota in microseconds.", &[]),
    gauge("container_spec_cpu_shares", "Share of the processors.", &[]),
    gauge("container_spec_memory_limit_bytes", "Limit of memory.", &[]),
    gauge("container_spec_memory_reservation_limit_bytes", "Reservation of memory.", &[]),
    gauge("container_spec_memory_swap_limit_bytes", "Limit of memory and swap.", &[]),
];

/// What the runtime answers to ListMetricDescriptors.
pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    let describe = |metric: &Described| MetricDescriptor {
        name: metric.name.into(),
        help: metric.help.into(),
        label_keys: LABELS.iter().chain(metric.further).map(|label| (*label).to_owned()).collect(),
    };
    METRICS.iter().map(describe).collect()
}
