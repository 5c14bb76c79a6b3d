//! A node on Linux 4.9: the agent and everything it starts meet ENOSYS for every later system call, so that
//! runc makes the containers, as on a Jetson Nano.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

mod support;

use coracle_integration_tests::node::Options;
use support::{Fixture, LIMIT, is_running, pod};

#[test]
fn pods_run_with_the_system_calls_of_linux_4_9() {
    let wrapper = vec![env!("CARGO_BIN_EXE_old_kernel").to_owned()];
    let mut fixture = Fixture::start_with("old-kernel", Options { wrapper, ..Options::default() });
    let on_bridge = pod("bridge", &["sleep"], "").replace("hostNetwork: true", "hostNetwork: false");
    fixture.put("bridge.yaml", &on_bridge);
    let limits = "    resources: {limits: {memory: 16Mi, cpu: 500m}}\n    securityContext: {readOnlyRootFilesystem: true, runAsUser: 1000}\n";
    fixture.put("limits.yaml", &pod("limits", &["count", "1"], limits));
    fixture.wait_pod("bridge", "a pod on the bridge runs", is_running);
    fixture.wait_pod("limits", "a pod with limits runs", is_running);
    assert!(!fixture.node.ask(&["logs", "limits"]).unwrap().is_empty());
    fixture.node.kill_agent().unwrap();
    fixture.node.start_agent().unwrap();
    fixture.node.wait("both are adopted", LIMIT, |node| Ok(node.running()? == 2)).unwrap();
    fixture.finish();
}
