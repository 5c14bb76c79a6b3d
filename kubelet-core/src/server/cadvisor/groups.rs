//! What `/metrics/cadvisor` reads of cgroups of either version, and of a pod's network. Blocking; keeps nothing.

use std::path::{Path, PathBuf};

use super::families::*;
use super::table::{Labels, Table};
use crate::server::metrics::float;

/// cgroup v1 says so much, rounded to pages, where there is no bound.
const NO_BOUND: u64 = 1 << 62;

/// What is read of every container.
pub(super) fn of_container(table: &mut Table, labels: &Labels<'_>, folders: &[PathBuf]) {
    throttling(table, labels, folders);
    modes(table, labels, folders);
    memory(table, labels, folders);
    threads(table, labels, folders);
    traffic(table, labels, folders);
}

pub(super) fn throttling(table: &mut Table, labels: &Labels<'_>, folders: &[PathBuf]) {
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

fn memory(table: &mut Table, labels: &Labels<'_>, folders: &[PathBuf]) {
    let Some(text) = first_file(folders, "memory.stat") else { return };
    let events = first_file(folders, "memory.events").or_else(|| first_file(folders, "memory.oom_control"));
    let events = events.unwrap_or_default();
    let whole =
        |names: [&str; 2]| names.iter().find_map(|name| first_file(folders, name)).and_then(|t| bound(&t));
    // Of cgroup v1 what is counted with the groups below; v2 counts no other way.
    for (family, value) in [
        (CACHE, number(&text, "total_cache").or_else(|| number(&text, "file"))),
        (MAPPED, number(&text, "total_mapped_file").or_else(|| number(&text, "file_mapped"))),
        (ACTIVE_FILE, number(&text, "total_active_file").or_else(|| number(&text, "active_file"))),
        (INACTIVE_FILE, number(&text, "total_inactive_file").or_else(|| number(&text, "inactive_file"))),
        (KERNEL, whole(["memory.kmem.usage_in_bytes"; 2]).or_else(|| number(&text, "kernel"))),
        (OOM, number(&events, "oom_kill")),
        (FAILCNT, whole(["memory.failcnt"; 2]).or_else(|| number(&events, "max"))),
        (MAX_USAGE, whole(["memory.peak", "memory.max_usage_in_bytes"])),
        (SWAP_LIMIT, whole(["memory.swap.max", "memory.memsw.limit_in_bytes"])),
        (RESERVATION, whole(["memory.low", "memory.soft_limit_in_bytes"])),
    ] {
        if let Some(value) = value {
            table.add(family, labels, &[], float(value));
        }
    }
}

fn threads(table: &mut Table, labels: &Labels<'_>, folders: &[PathBuf]) {
    for (family, name) in [(THREADS, "pids.current"), (THREADS_MAX, "pids.max")] {
        if let Some(value) = first_file(folders, name).and_then(|text| bound(&text)) {
            table.add(family, labels, &[], float(value));
        }
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
pub(super) fn network(table: &mut Table, labels: &Labels<'_>, text: &str) {
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
pub(super) fn below(folder: &Path, id: &str) -> Option<PathBuf> {
    let exact = folder.join(id);
    if exact.is_dir() {
        return Some(exact);
    }
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let mut own = entries.filter(|entry| entry.file_name().to_string_lossy().contains(id));
    own.next().map(|entry| entry.path())
}

pub(super) fn first_process(folder: &Path) -> Option<u32> {
    std::fs::read_to_string(folder.join("cgroup.procs")).ok()?.lines().next()?.parse().ok()
}

fn first_file(folders: &[PathBuf], name: &str) -> Option<String> {
    folders.iter().find_map(|folder| std::fs::read_to_string(folder.join(name)).ok())
}

/// A whole file's number; 0 where there is no bound.
fn bound(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(0),
        number => number.parse().ok().map(|number: u64| if number > NO_BOUND { 0 } else { number }),
    }
}

/// The number of the line `name 123`.
fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
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
        put("memory.failcnt", "3\n");
        put("memory.max_usage_in_bytes", "8192\n");
        put("memory.memsw.limit_in_bytes", "9223372036854771712\n");
        put("pids.current", "7\n");
        put("pids.max", "max\n");
        put("blkio.throttle.io_serviced", "8:0 Read 3\n8:0 Write 4\n8:16 Read 5\nTotal 12\n");
        put("blkio.throttle.io_service_bytes", "8:0 Read 300\n8:0 Write 400\nTotal 700\n");
        let labels = Labels { container: "c", pod: "p", namespace: "n", id: "/x", ..Labels::default() };
        let mut table = Table::default();
        throttling(&mut table, &labels, &folders);
        memory(&mut table, &labels, &folders);
        traffic(&mut table, &labels, &folders);
        threads(&mut table, &labels, &folders);
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                   \u{20} eth0: 11 12 13 14 0 0 0 0 21 22 23 24 0 0 0 0\n";
        network(&mut table, &labels, dev);
        let text = table.text();
        let whose = r#"container="c",id="/x",image="",name="",namespace="n",pod="p""#;
        for line in [
            format!("container_cpu_cfs_throttled_seconds_total{{{whose}}} 1.5"),
            format!("container_memory_cache{{{whose}}} 4096"),
            format!("container_memory_failcnt{{{whose}}} 3"),
            format!("container_memory_max_usage_bytes{{{whose}}} 8192"),
            format!("container_spec_memory_swap_limit_bytes{{{whose}}} 0"),
            format!("container_threads{{{whose}}} 7"),
            format!("container_threads_max{{{whose}}} 0"),
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
