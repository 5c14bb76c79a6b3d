//! The families of `/metrics/cadvisor`: names, help and kinds as cAdvisor has them. Data only.

use super::table::Family;

pub(super) const CPU: Family =
    ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", "counter");
pub(super) const USER: Family =
    ("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", "counter");
pub(super) const SYSTEM: Family =
    ("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", "counter");
pub(super) const MAPPED: Family =
    ("container_memory_mapped_file", "Size of memory mapped files in bytes.", "gauge");
pub(super) const OOM: Family =
    ("container_oom_events_total", "Count of out of memory events observed for the container", "counter");
pub(super) const WORKING_SET: Family =
    ("container_memory_working_set_bytes", "Current working set in bytes.", "gauge");
pub(super) const USAGE: Family = (
    "container_memory_usage_bytes",
    "Current memory usage in bytes, including all memory regardless of when it was accessed",
    "gauge",
);
pub(super) const RSS: Family = ("container_memory_rss", "Size of RSS in bytes.", "gauge");
pub(super) const CACHE: Family = ("container_memory_cache", "Number of bytes of page cache memory.", "gauge");
pub(super) const SWAP: Family = ("container_memory_swap", "Container swap usage in bytes.", "gauge");
pub(super) const START: Family =
    ("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", "gauge");
pub(super) const FS_USAGE: Family = (
    "container_fs_usage_bytes",
    "Number of bytes that are consumed by the container on this filesystem.",
    "gauge",
);
pub(super) const PROCESSES: Family =
    ("container_processes", "Number of processes running inside the container.", "gauge");
pub(super) const MEMORY_LIMIT: Family =
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", "gauge");
pub(super) const CPU_QUOTA: Family = ("container_spec_cpu_quota", "CPU quota of the container.", "gauge");
pub(super) const CPU_PERIOD: Family = ("container_spec_cpu_period", "CPU period of the container.", "gauge");
pub(super) const CPU_SHARES: Family = ("container_spec_cpu_shares", "CPU share of the container.", "gauge");
pub(super) const PERIODS: Family =
    ("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", "counter");
pub(super) const THROTTLED: Family =
    ("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", "counter");
pub(super) const THROTTLED_TIME: Family = (
    "container_cpu_cfs_throttled_seconds_total",
    "Total time duration the container has been throttled.",
    "counter",
);
pub(super) const READS: Family =
    ("container_fs_reads_total", "Cumulative count of reads completed", "counter");
pub(super) const WRITES: Family =
    ("container_fs_writes_total", "Cumulative count of writes completed", "counter");
pub(super) const READ_BYTES: Family =
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read", "counter");
pub(super) const WRITTEN_BYTES: Family =
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written", "counter");
pub(super) const CORES: Family = ("machine_cpu_cores", "Number of logical CPU cores.", "gauge");
pub(super) const MACHINE_MEMORY: Family =
    ("machine_memory_bytes", "Amount of memory installed on the machine.", "gauge");

pub(super) const LAST_SEEN: Family =
    ("container_last_seen", "Last time a container was seen by the exporter", "gauge");
pub(super) const FAILURES: Family =
    ("container_memory_failures_total", "Cumulative count of memory allocation failures.", "counter");
pub(super) const MAX_USAGE: Family =
    ("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", "gauge");
pub(super) const FAILCNT: Family =
    ("container_memory_failcnt", "Number of memory usage hits limits", "counter");
pub(super) const KERNEL: Family =
    ("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", "gauge");
pub(super) const ACTIVE_FILE: Family =
    ("container_memory_total_active_file_bytes", "Current total active file in bytes.", "gauge");
pub(super) const INACTIVE_FILE: Family =
    ("container_memory_total_inactive_file_bytes", "Current total inactive file in bytes.", "gauge");
pub(super) const THREADS: Family =
    ("container_threads", "Number of threads running inside the container", "gauge");
pub(super) const THREADS_MAX: Family = (
    "container_threads_max",
    "Maximum number of threads allowed inside the container, infinity if value is zero",
    "gauge",
);
pub(super) const SWAP_LIMIT: Family =
    ("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", "gauge");
pub(super) const RESERVATION: Family =
    ("container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container.", "gauge");

/// What congestion cost: while no task went on, and while some waited.
pub(super) type Pressure = (Family, Family);

pub(super) const CPU_PRESSURE: Pressure = (
    (
        "container_pressure_cpu_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
        "counter",
    ),
    (
        "container_pressure_cpu_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to CPU congestion.",
        "counter",
    ),
);
pub(super) const MEMORY_PRESSURE: Pressure = (
    (
        "container_pressure_memory_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to memory congestion.",
        "counter",
    ),
    (
        "container_pressure_memory_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to memory congestion.",
        "counter",
    ),
);
pub(super) const IO_PRESSURE: Pressure = (
    (
        "container_pressure_io_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to IO congestion.",
        "counter",
    ),
    (
        "container_pressure_io_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to IO congestion.",
        "counter",
    ),
);

/// Fields of `/proc/net/dev` after the interface's name.
pub(super) const NETWORK: [(usize, Family); 8] = [
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
