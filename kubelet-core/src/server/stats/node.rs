//! What the whole machine uses, from `/proc`.

use coracle_cri::v1;

use crate::clock::Now;
use crate::node::machine::{kibibytes, process_ids};
use crate::node::pressure::Observation;

/// The machine at one time.
#[derive(Debug, Default)]
pub(in crate::server) struct NodeUse {
    /// Nanoseconds since the Unix epoch.
    pub(in crate::server) timestamp: i64,
    pub(in crate::server) booted_at: i64,
    pub(in crate::server) cpu: v1::CpuUsage,
    pub(in crate::server) memory: v1::MemoryUsage,
    pub(in crate::server) swap: v1::SwapUsage,
    pub(in crate::server) network: v1::NetworkUsage,
    pub(in crate::server) process_ids: Option<Observation>,
}

/// Looks at the machine.
pub(super) fn measure(now: Now) -> NodeUse {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let timestamp = now.wall_nanos;
    let age = i64::try_from(now.boot.as_nanos()).unwrap_or(i64::MAX);
    NodeUse {
        timestamp,
        booted_at: timestamp.saturating_sub(age),
        cpu: cpu(&text("/proc/stat"), timestamp),
        memory: memory(&text("/proc/meminfo"), &text("/proc/vmstat"), timestamp),
        swap: swap(&text("/proc/meminfo"), timestamp),
        network: network(&text("/proc/net/dev"), timestamp),
        process_ids: process_ids(),
    }
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn bytes(meminfo: &str, name: &str) -> u64 {
    u64::try_from(kibibytes(meminfo, name)).unwrap_or(0)
}

/// The first line holds hundredths of a second: user, nice, system, idle, iowait, irq, softirq, steal. Guests' time is
/// in the user's already.
fn cpu(stat: &str, timestamp: i64) -> v1::CpuUsage {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map(|tick| tick.parse().unwrap_or(0)).collect();
    let used: u64 =
        ticks.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, t)| t).sum();
    v1::CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(used.saturating_mul(10_000_000)),
        ..v1::CpuUsage::default()
    }
}

/// As the root cgroup counts it: what is not free is used, and the inactive file cache is not worked with.
fn memory(meminfo: &str, vmstat: &str, timestamp: i64) -> v1::MemoryUsage {
    let total = bytes(meminfo, "MemTotal:");
    let used = total.saturating_sub(bytes(meminfo, "MemFree:"));
    let working_set = used.saturating_sub(bytes(meminfo, "Inactive(file):"));
    let counter = |name: &str| {
        let line = vmstat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.trim().parse().ok()).and_then(value)
    };
    v1::MemoryUsage {
        timestamp,
        available_bytes: value(total.saturating_sub(working_set)),
        usage_bytes: value(used),
        working_set_bytes: value(working_set),
        rss_bytes: value(bytes(meminfo, "AnonPages:")),
        page_faults: counter("pgfault"),
        major_page_faults: counter("pgmajfault"),
        ..v1::MemoryUsage::default()
    }
}

fn swap(meminfo: &str, timestamp: i64) -> v1::SwapUsage {
    let (total, free) = (bytes(meminfo, "SwapTotal:"), bytes(meminfo, "SwapFree:"));
    v1::SwapUsage {
        timestamp,
        swap_available_bytes: value(free),
        swap_usage_bytes: value(total.saturating_sub(free)),
    }
}

fn network(table: &str, timestamp: i64) -> v1::NetworkUsage {
    let interface = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<&str> = counters.split_whitespace().collect();
        let counter = |at: usize| counters.get(at).and_then(|count| count.parse().ok()).and_then(value);
        Some(v1::NetworkInterfaceUsage {
            name: name.trim().to_owned(),
            rx_bytes: counter(0),
            rx_errors: counter(2),
            tx_bytes: counter(8),
            tx_errors: counter(10),
        })
    };
    // Those of pods are told with the pods.
    let is_own =
        |interface: &v1::NetworkInterfaceUsage| interface.name != "lo" && !interface.name.starts_with("veth");
    let mut interfaces: Vec<_> = table.lines().filter_map(interface).filter(is_own).collect();
    let default = interfaces.iter().position(|interface| interface.name == "eth0");
    let default_interface = default.map(|at| interfaces.remove(at));
    v1::NetworkUsage { timestamp, default_interface, interfaces }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_the_kernel_are_read() {
        let cpu = cpu("cpu  1 2 3 1000 1000 4 5 6 1 0\ncpu0 9\n", 7);
        assert_eq!(cpu.usage_core_nano_seconds.unwrap().value, 210_000_000);
        let meminfo =
            "MemTotal: 100 kB\nMemFree: 40 kB\nInactive(file): 10 kB\nSwapTotal: 8 kB\nSwapFree: 6 kB\n";
        let memory = memory(meminfo, "pgfaultx 1\npgfault 12\n", 7);
        assert_eq!(memory.working_set_bytes.unwrap().value, 50 * 1024);
        assert_eq!(memory.available_bytes.unwrap().value, 50 * 1024);
        assert_eq!(memory.page_faults.unwrap().value, 12);
        assert_eq!(swap(meminfo, 7).swap_usage_bytes.unwrap().value, 2048);
        let table = "a\nb\nlo: 1 1 0 0 0 0 0 0 1 1 0\neth0: 5 1 2 0 0 0 0 0 6 1 3\nveth1: 1\n";
        let network = network(table, 7);
        assert_eq!(network.default_interface.unwrap().tx_errors.unwrap().value, 3);
        assert!(network.interfaces.is_empty());
    }
}
