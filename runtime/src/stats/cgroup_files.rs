//! The counters of one cgroup, of either version, as CRI's messages. A controller that the host lacks gives
//! no message rather than zeroes.

use std::fs;
use std::path::Path;

use coracle_cri::v1;

use crate::cgroup::{Cgroups, Hierarchy};

/// Version 1 writes "no limit" as the largest page-aligned number.
const UNLIMITED: u64 = 1 << 62;

pub(super) fn is_v2(cgroups: &Cgroups) -> bool {
    matches!(cgroups.hierarchy, Hierarchy::V2(_))
}

pub(super) fn text(cgroups: &Cgroups, controller: &str, path: &str, file: &str) -> Option<String> {
    fs::read_to_string(cgroups.directory(controller, path)?.join(file)).ok()
}

pub(super) fn number(cgroups: &Cgroups, controller: &str, path: &str, file: &str) -> Option<u64> {
    text(cgroups, controller, path, file)?.trim().parse().ok()
}

pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

pub(super) fn cpu(cgroups: &Cgroups, path: &str, timestamp: i64) -> Option<v1::CpuUsage> {
    let used = if is_v2(cgroups) {
        field(&text(cgroups, "cpu", path, "cpu.stat")?, "usage_usec")? * 1000
    } else {
        number(cgroups, "cpuacct", path, "cpuacct.usage")?
    };
    Some(v1::CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(used),
        usage_nano_cores: None,
        psi: psi(cgroups, path, "cpu.pressure"),
    })
}

pub(super) fn memory(cgroups: &Cgroups, path: &str, timestamp: i64) -> Option<v1::MemoryUsage> {
    let stat = text(cgroups, "memory", path, "memory.stat")?;
    let v2 = is_v2(cgroups);
    let (usage, limit, prefix) = if v2 {
        (
            number(cgroups, "memory", path, "memory.current")?,
            number(cgroups, "memory", path, "memory.max"),
            "",
        )
    } else {
        let usage = number(cgroups, "memory", path, "memory.usage_in_bytes")?;
        (usage, field(&stat, "hierarchical_memory_limit"), "total_")
    };
    let counter = |name: &str| field(&stat, &format!("{prefix}{name}")).unwrap_or(0);
    let working_set = usage.saturating_sub(counter("inactive_file"));
    Some(v1::MemoryUsage {
        timestamp,
        working_set_bytes: value(working_set),
        available_bytes: limit
            .filter(|limit| *limit < UNLIMITED)
            .and_then(|limit| value(limit.saturating_sub(working_set))),
        usage_bytes: value(usage),
        rss_bytes: value(if v2 { counter("anon") } else { counter("rss") }),
        page_faults: value(counter("pgfault")),
        major_page_faults: value(counter("pgmajfault")),
        psi: psi(cgroups, path, "memory.pressure"),
    })
}

pub(super) fn swap(cgroups: &Cgroups, path: &str, timestamp: i64) -> Option<v1::SwapUsage> {
    let (used, limit) = if is_v2(cgroups) {
        let used = number(cgroups, "memory", path, "memory.swap.current")?;
        (used, number(cgroups, "memory", path, "memory.swap.max"))
    } else {
        // Version 1 counts memory and swap together.
        let both = number(cgroups, "memory", path, "memory.memsw.usage_in_bytes")?;
        let memory = number(cgroups, "memory", path, "memory.usage_in_bytes")?;
        let limit = number(cgroups, "memory", path, "memory.memsw.limit_in_bytes")
            .filter(|limit| *limit < UNLIMITED)
            .zip(number(cgroups, "memory", path, "memory.limit_in_bytes"))
            .map(|(both, memory)| both.saturating_sub(memory));
        (both.saturating_sub(memory), limit)
    };
    Some(v1::SwapUsage {
        timestamp,
        swap_available_bytes: limit.and_then(|limit| value(limit.saturating_sub(used))),
        swap_usage_bytes: value(used),
    })
}

pub(super) fn processes(cgroups: &Cgroups, path: &str, timestamp: i64) -> Option<v1::ProcessUsage> {
    let count = number(cgroups, "pids", path, "pids.current")?;
    Some(v1::ProcessUsage { timestamp, process_count: value(count) })
}

pub(super) fn io(cgroups: &Cgroups, path: &str, timestamp: i64) -> Option<v1::IoUsage> {
    Some(v1::IoUsage { timestamp, psi: Some(psi(cgroups, path, "io.pressure")?) })
}

/// Pressure exists on version 2 alone, and only in kernels built with it.
fn psi(cgroups: &Cgroups, path: &str, file: &str) -> Option<v1::PsiStats> {
    let Hierarchy::V2(tree) = &cgroups.hierarchy else { return None };
    let text = fs::read_to_string(Path::new(tree).join(path.trim_start_matches('/')).join(file)).ok()?;
    Some(parse_psi(&text))
}

fn parse_psi(text: &str) -> v1::PsiStats {
    let line = |kind: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let part =
            |name: &str| rest.split_whitespace().find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        Some(v1::PsiData {
            total: part("total")?.parse().ok()?,
            avg10: part("avg10")?.parse().ok()?,
            avg60: part("avg60")?.parse().ok()?,
            avg300: part("avg300")?.parse().ok()?,
        })
    };
    v1::PsiStats { full: line("full"), some: line("some") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_lines_are_read_by_name() {
        let text = "some avg10=1.50 avg60=0.20 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=6\n";
        let psi = parse_psi(text);
        assert_eq!(psi.some.unwrap().total, 12345);
        assert_eq!(psi.full.unwrap().total, 6);
        assert_eq!(psi.some.unwrap().avg10, 1.5);
    }

    #[test]
    fn a_counter_is_matched_by_its_whole_name() {
        assert_eq!(field("total_rss_huge 1\ntotal_rss 2\n", "total_rss"), Some(2));
    }
}
