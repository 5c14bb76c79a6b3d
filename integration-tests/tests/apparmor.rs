//! AppArmor: which profile confines a container, read from its process.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};

use support::{Fixture, is_running, pod};

/// Loads a profile that allows everything.
fn load(name: &str) {
    let mut parser = Command::new("apparmor_parser")
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let text =
        format!("profile {name} flags=(attach_disconnected) {{ file, network, capability, signal, }}\n");
    parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(parser.wait().unwrap().success());
}

fn profile(kind: &str, name: &str) -> String {
    let local = if name.is_empty() { String::new() } else { format!(", localhostProfile: {name}") };
    format!("    securityContext: {{appArmorProfile: {{type: {kind}{local}}}}}\n")
}

#[test]
#[ignore = "needs a kernel with AppArmor: `cargo xtask guest` runs it"]
fn containers_are_confined_as_the_pod_says() {
    load("mine");
    let mut fixture = Fixture::start("apparmor");
    let log = fixture.node.log();
    assert!(!log.contains("AppArmor profile"), "the default profile is not loaded: {log}");
    for (name, seconds, security, label) in [
        ("plain", "11", String::new(), "cri-coracle.apparmor.d (enforce)"),
        ("asked", "12", profile("RuntimeDefault", ""), "cri-coracle.apparmor.d (enforce)"),
        ("free", "13", profile("Unconfined", ""), "unconfined"),
        ("local", "14", profile("Localhost", "mine"), "mine (enforce)"),
    ] {
        fixture.put(&format!("{name}.yaml"), &pod(name, &["count", seconds], &security));
        fixture.wait_pod(name, "it runs", is_running);
        let pid = fixture.node.processes_with(&format!("count {seconds}"))[0];
        let current = std::fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap();
        assert_eq!(current.trim(), label, "{name}");
    }
    fixture.put("lost.yaml", &pod("lost", &["sleep"], &profile("Localhost", "nobody-loaded-this")));
    let lost = fixture.wait_pod("lost", "it is refused", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerError"
    });
    let message = lost["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.contains("apparmor profile not found nobody-loaded-this"), "{message}");

    // The default profile lets the pod's end through: the signals of the maker and of the shim.
    fixture.finish();
}
