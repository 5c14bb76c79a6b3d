//! What a container uses, out of its cgroup's files, as containerd asks for it. Called from the loop; blocks only on the
//! kernel's own files. A file that is not there counts as zero.

use std::fs;
use std::path::PathBuf;

use coracle_shim::protocol::Any;
use coracle_shim::protocol::metrics::{self, v1, v2};
use prost::Message;

use crate::cgroup::Line;

/// Clock ticks of `cpuacct.stat` per second, the same on every Linux that runs containers.
const TICK_NS: u64 = 10_000_000;

/// The metrics of the container whose first process this is; `None` when that is gone.
pub(crate) fn read(pid: i32) -> Option<Any> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let folder = |controller: &str| {
        let line = text.lines().filter_map(Line::parse).find(|line| line.has(controller))?;
        Some(Folder(line.mount()?.join(line.path.trim_start_matches('/'))))
    };
    if let Some(memory) = folder("memory") {
        let metrics = version_1(&memory, folder("cpuacct").as_ref(), folder("pids").as_ref());
        return Some(Any { type_url: metrics::V1.into(), value: metrics.encode_to_vec() });
    }
    let metrics = version_2(&folder("")?);
    Some(Any { type_url: metrics::V2.into(), value: metrics.encode_to_vec() })
}

struct Folder(PathBuf);

impl Folder {
    /// A file of one number. `max` is the largest.
    fn number(&self, file: &str) -> u64 {
        let text = fs::read_to_string(self.0.join(file)).unwrap_or_default();
        match text.trim() {
            "max" => u64::MAX,
            number => number.parse().unwrap_or(0),
        }
    }

    /// A file of lines `name number`.
    fn table(&self, file: &str) -> Table {
        Table(fs::read_to_string(self.0.join(file)).unwrap_or_default())
    }
}

struct Table(String);

impl Table {
    fn get(&self, name: &str) -> u64 {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
        self.0.lines().find_map(value).unwrap_or(0)
    }
}

fn version_1(memory: &Folder, cpu: Option<&Folder>, pids: Option<&Folder>) -> v1::Metrics {
    let stat = memory.table("memory.stat");
    let entry = |prefix: &str| v1::MemoryEntry {
        limit: memory.number(&format!("{prefix}.limit_in_bytes")),
        usage: memory.number(&format!("{prefix}.usage_in_bytes")),
        max: memory.number(&format!("{prefix}.max_usage_in_bytes")),
        failcnt: memory.number(&format!("{prefix}.failcnt")),
    };
    let cpu = cpu.map(|cpu| {
        let (times, quota) = (cpu.table("cpuacct.stat"), cpu.table("cpu.stat"));
        v1::Cpu {
            usage: Some(v1::CpuUsage {
                total: cpu.number("cpuacct.usage"),
                kernel: times.get("system") * TICK_NS,
                user: times.get("user") * TICK_NS,
            }),
            throttling: Some(v1::Throttle {
                periods: quota.get("nr_periods"),
                throttled_periods: quota.get("nr_throttled"),
                throttled_time: quota.get("throttled_time"),
            }),
        }
    });
    v1::Metrics {
        pids: pids.map(pids_of),
        cpu,
        memory: Some(v1::Memory {
            cache: stat.get("cache"),
            rss: stat.get("rss"),
            mapped_file: stat.get("mapped_file"),
            pg_fault: stat.get("pgfault"),
            pg_maj_fault: stat.get("pgmajfault"),
            total_cache: stat.get("total_cache"),
            total_rss: stat.get("total_rss"),
            total_mapped_file: stat.get("total_mapped_file"),
            total_pg_fault: stat.get("total_pgfault"),
            total_pg_maj_fault: stat.get("total_pgmajfault"),
            total_inactive_anon: stat.get("total_inactive_anon"),
            total_active_anon: stat.get("total_active_anon"),
            total_inactive_file: stat.get("total_inactive_file"),
            total_active_file: stat.get("total_active_file"),
            usage: Some(entry("memory")),
            swap: Some(entry("memory.memsw")),
        }),
    }
}

fn pids_of(folder: &Folder) -> v1::Pids {
    let limit = match folder.number("pids.max") {
        u64::MAX => 0,
        limit => limit,
    };
    v1::Pids { current: folder.number("pids.current"), limit }
}

fn version_2(folder: &Folder) -> v2::Metrics {
    let (cpu, stat) = (folder.table("cpu.stat"), folder.table("memory.stat"));
    v2::Metrics {
        pids: Some(pids_of(folder)),
        cpu: Some(v2::Cpu {
            usage_usec: cpu.get("usage_usec"),
            user_usec: cpu.get("user_usec"),
            system_usec: cpu.get("system_usec"),
            nr_periods: cpu.get("nr_periods"),
            nr_throttled: cpu.get("nr_throttled"),
            throttled_usec: cpu.get("throttled_usec"),
        }),
        memory: Some(v2::Memory {
            anon: stat.get("anon"),
            file: stat.get("file"),
            file_mapped: stat.get("file_mapped"),
            inactive_anon: stat.get("inactive_anon"),
            active_anon: stat.get("active_anon"),
            inactive_file: stat.get("inactive_file"),
            active_file: stat.get("active_file"),
            pgfault: stat.get("pgfault"),
            pgmajfault: stat.get("pgmajfault"),
            usage: folder.number("memory.current"),
            usage_limit: folder.number("memory.max"),
            swap_usage: folder.number("memory.swap.current"),
            swap_limit: folder.number("memory.swap.max"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_path_buf());
        for (file, text) in [
            ("memory.stat", "cache 5\nanon 7\ntotal_cache 9\ntotal_inactive_file 4\ninactive_file 3\n"),
            ("memory.usage_in_bytes", "100\n"),
            ("memory.current", "200\n"),
            ("memory.max", "max\n"),
            ("cpuacct.usage", "12345\n"),
            ("cpuacct.stat", "user 2\nsystem 3\n"),
            ("cpu.stat", "usage_usec 8\nnr_periods 6\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let old = version_1(&folder, Some(&folder), Some(&folder));
        let memory = old.memory.unwrap();
        assert_eq!((memory.cache, memory.total_cache, memory.total_inactive_file), (5, 9, 4));
        assert_eq!(memory.usage.unwrap().usage, 100);
        assert_eq!(old.cpu.unwrap().usage.unwrap().kernel, 3 * TICK_NS);
        assert_eq!(old.pids.unwrap(), v1::Pids { current: 2, limit: 0 });

        let new = version_2(&folder);
        let memory = new.memory.unwrap();
        assert_eq!(
            (memory.anon, memory.usage, memory.usage_limit, memory.inactive_file),
            (7, 200, u64::MAX, 3)
        );
        assert_eq!(new.cpu.unwrap().usage_usec, 8);
    }
}
