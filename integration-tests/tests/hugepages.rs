//! Huge pages: a volume of them, and limits on their use.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

#[path = "support/cgroups.rs"]
mod cgroups;
mod support;

use std::process::Command;

use cgroups::{cgroup, read};
use support::{Fixture, is_running, pod};

/// How many pages of 2 MiB the machine sets aside.
const PAGES: &str = "/proc/sys/vm/nr_hugepages";

#[test]
#[ignore = "sets memory of the machine aside: `cargo xtask guest` runs it"]
fn a_pod_gets_the_huge_pages_it_asks_for_and_no_more() {
    std::fs::write(PAGES, "8").unwrap();
    let mut fixture = Fixture::start("hugepages");
    let more = "    resources: {limits: {memory: 32Mi, hugepages-2Mi: 4Mi}}\n    volumeMounts: [{name: huge, mountPath: /huge}]\n  \
                volumes: [{name: huge, emptyDir: {medium: HugePages}}]\n";
    fixture.put("asks.yaml", &pod("asks", &["count", "21"], more));
    fixture.put("plain.yaml", &pod("plain", &["count", "22"], ""));
    for (name, seconds, limit) in [("asks", "21", "4194304"), ("plain", "22", "0")] {
        fixture.wait_pod(name, "it runs", is_running);
        let pid = fixture.node.processes_with(&format!("count {seconds}"))[0];
        let container = cgroup(pid, "hugetlb");
        let of_pod = container.parent().unwrap();
        for folder in [&*container, of_pod] {
            let used = read(folder, ["hugetlb.2MB.max", "hugetlb.2MB.limit_in_bytes"]);
            assert_eq!(used, limit, "{}", folder.display());
        }
        let reserved = read(of_pod, ["hugetlb.2MB.rsvd.max", "hugetlb.2MB.rsvd.limit_in_bytes"]);
        assert_eq!(reserved, limit, "{}", of_pod.display());
    }
    let pid = fixture.node.processes_with("count 21")[0];
    let volume = format!("/proc/{pid}/root/huge");
    let kind = Command::new("stat").args(["--file-system", "--format", "%T", &volume]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&kind.stdout).trim(), "hugetlbfs");
    fixture.finish();
    std::fs::write(PAGES, "0").unwrap();
}
