//! Limits of pods, read back from the cgroups of either version that hold them.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

#[path = "support/cgroups.rs"]
mod cgroups;
mod support;

use cgroups::{cgroup, read};
use coracle_integration_tests::node::Options;
use support::{Fixture, is_running, pod};

#[test]
fn limits_are_set_on_the_container_and_on_the_pod() {
    let flags = vec!["--pod-max-pids=32".to_owned()];
    let mut fixture = Fixture::start_with("limits", Options { flags, ..Options::default() });
    let limits = "    resources: {requests: {cpu: 100m}, limits: {memory: 64Mi, cpu: 250m}}\n";
    fixture.put("limited.yaml", &pod("limited", &["count", "7"], limits));
    fixture.wait_pod("limited", "it runs", is_running);
    let pid = fixture.node.processes_with("count 7")[0];

    let container = cgroup(pid, "memory");
    for folder in [&container, container.parent().unwrap()] {
        assert_eq!(read(folder, ["memory.max", "memory.limit_in_bytes"]), "67108864", "{}", folder.display());
    }
    let container = cgroup(pid, "cpu");
    for folder in [&container, container.parent().unwrap()] {
        let quota = read(folder, ["cpu.max", "cpu.cfs_quota_us"]);
        assert!(["25000 100000", "25000"].contains(&quota.as_str()), "{quota} at {}", folder.display());
        let weight = read(folder, ["cpu.weight", "cpu.shares"]);
        // 100 thousandths of a core are 102 shares, which runtimes turn into a weight of 17.
        assert!(["17", "102"].contains(&weight.as_str()), "{weight} at {}", folder.display());
    }
    let of_pod = cgroup(pid, "pids").parent().unwrap().to_owned();
    assert_eq!(read(&of_pod, ["pids.max", "pids.max"]), "32", "{}", of_pod.display());
    fixture.finish();
}

#[test]
fn devices_of_the_host_stay_shut_unless_the_pod_is_privileged() {
    let mut fixture = Fixture::start("devices");
    let volumes = |security: &str| {
        format!(
            "{security}    volumeMounts: [{{name: device, mountPath: /host-device}}]\n  restartPolicy: Never\n  \
             volumes: [{{name: device, hostPath: {{path: /dev/kmsg}}}}]\n"
        )
    };
    fixture.put("plain.yaml", &pod("plain", &["open", "/host-device"], &volumes("")));
    let privileged = "    securityContext: {privileged: true}\n";
    fixture.put("trusted.yaml", &pod("trusted", &["open", "/host-device"], &volumes(privileged)));
    fixture.put("zero.yaml", &pod("zero", &["open", "/dev/zero"], "  restartPolicy: Never\n"));
    let plain = fixture.wait_pod("plain", "the pod ends", |pod| pod["status"]["phase"] == "Failed");
    let said = fixture.node.ask(&["logs", "plain"]).unwrap();
    assert!(said.contains("Operation not permitted"), "{said}{plain}");
    fixture.wait_pod("trusted", "a privileged pod opens it", |pod| pod["status"]["phase"] == "Succeeded");
    fixture.wait_pod("zero", "/dev/zero is open to all", |pod| pod["status"]["phase"] == "Succeeded");
    fixture.finish();
}
