//! A kernel without the memory controller, as Raspberry Pi OS boots by default: pods run without that limit, and
//! the node says why and what to do.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

mod support;

use std::process::Command;

use coracle_integration_tests::Executables;
use coracle_integration_tests::node::Node;
use support::{Fixture, LIMIT, is_running, pod};

#[test]
#[ignore = "needs a kernel booted so: `cargo xtask guest --kernel-arg cgroup_disable=memory` runs it"]
fn pods_run_unlimited_and_the_cure_is_told() {
    let table = std::fs::read_to_string("/proc/cgroups").unwrap();
    let memory = table.lines().find(|line| line.starts_with("memory\t"));
    assert!(memory.is_none_or(|line| line.ends_with("\t0")), "this kernel has a memory controller: {table}");
    let mut fixture = Fixture::start("no-memory-controller");
    let limits = "    resources: {limits: {memory: 8Mi, cpu: 500m}}\n";
    fixture.put("big.yaml", &pod("big", &["fill", "32"], limits));
    let big = fixture.wait_pod("big", "a pod beyond its memory limit runs", is_running);
    assert_eq!(big["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(0), 0, "{big}");
    let holds = |node: &Node| Ok(node.ask(&["logs", "big"])?.contains("holding 32 MiB"));
    fixture.node.wait("it holds more than its limit", LIMIT, holds).unwrap();

    let cure = "cgroup_enable=memory cgroup_memory=1";
    let log = fixture.node.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains(cure)).collect();
    assert!(!told.is_empty(), "the log does not say how to turn it on:\n{log}");
    assert!(told.iter().all(|line| line.contains("WARN")), "{told:?}");
    let check = Command::new(Executables::of_this_build().coracle).arg("check").output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    println!("{said}{}", told.join("\n"));
    assert!(said.contains("the memory cgroup controller is missing") && said.contains(cure), "{said}");
    assert_eq!(check.status.code(), Some(1), "{said}");
    fixture.finish();
}
