//! The node as systemd's unit, with systemd's cgroups, in the places where a device has it.
//!
//! It takes the machine's `/etc/coracle`, `/var/lib/coracle` and `coracle.service`, so it runs in a guest only.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use coracle_integration_tests::{Executables, example_image};
use support::{LIMIT, pod, put};

const MANIFESTS: &str = "/etc/coracle/manifests";

fn output(program: &str, words: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(words).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// Runs it, and fails with what it said if it fails.
fn run(program: &str, words: &[&str]) -> String {
    let (is_good, text) = output(program, words);
    assert!(is_good, "{program} {}: {text}\n{}", words.join(" "), journal());
    text
}

fn journal() -> String {
    output("journalctl", &["-u", "coracle", "--no-pager", "-n", "60"]).1
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        let pods = || output("coracle", &["pods"]).1;
        assert!(start.elapsed() < 2 * LIMIT, "{what}: not within {:?}\n{}{}", 2 * LIMIT, pods(), journal());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// The processes of example pods with these arguments.
fn processes(arguments: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let line = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    pids.filter(|pid| line(pid).replace('\0', " ").trim() == format!("/example {arguments}")).collect()
}

fn install() {
    std::fs::create_dir_all(MANIFESTS).unwrap();
    std::fs::create_dir_all("/var/lib/coracle/agent/images").unwrap();
    let settings = format!("manifests: {MANIFESTS}\ncgroup-driver: systemd\npod-max-pids: 64\n");
    std::fs::write("/etc/coracle/config.yaml", settings).unwrap();
    let image = Path::new("/var/lib/coracle/agent/images/example.tar");
    example_image::write(&Executables::of_this_build().example, image).unwrap();
}

/// What systemd and the kernel say of the limits of the container's scope and the pod's slice.
fn expect_limits(scope: &str, slice: &str) {
    for unit in [scope, slice] {
        let told = run("systemctl", &["show", "-p", "MemoryMax,CPUQuotaPerSecUSec", unit]);
        assert!(told.contains("MemoryMax=67108864") && told.contains("=250ms"), "{unit}: {told}");
        let group = run("systemctl", &["show", "-p", "ControlGroup", "--value", unit]);
        let folder = Path::new("/sys/fs/cgroup").join(group.trim().trim_start_matches('/'));
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap().trim().to_owned();
        assert_eq!(read("memory.max"), "67108864", "{unit}");
        assert_eq!(read("cpu.max"), "25000 100000", "{unit}");
        if unit == slice {
            assert_eq!(read("pids.max"), "64", "{unit}");
        }
    }
}

#[test]
#[ignore = "takes over the machine's units: `cargo xtask guest --systemd` runs it"]
fn the_unit_runs_pods_in_slices_that_outlive_it() {
    install();
    let limits = "    resources: {limits: {memory: 64Mi, cpu: 250m}}\n";
    put(Path::new(MANIFESTS), "limited.yaml", &pod("limited", &["count", "7"], limits));
    let bridge = pod("bridge", &["sleep"], "").replace("hostNetwork: true", "hostNetwork: false");
    put(Path::new(MANIFESTS), "bridge.yaml", &bridge);
    let greedy = "    resources: {limits: {memory: 8Mi}}\n  restartPolicy: Never\n";
    put(Path::new(MANIFESTS), "greedy.yaml", &pod("greedy", &["fill", "64"], greedy));
    let device = "    volumeMounts: [{name: d, mountPath: /d}]\n  restartPolicy: Never\n  \
                  volumes: [{name: d, hostPath: {path: /dev/kmsg}}]\n";
    put(Path::new(MANIFESTS), "device.yaml", &pod("device", &["open", "/d"], device));
    // The type of the unit is notify: it has started when the node says that it is ready.
    run("systemctl", &["start", "coracle"]);
    wait("pods run", || processes("count 7").len() == 1 && processes("sleep").len() == 1);
    wait("the greedy pod is killed", || output("coracle", &["pods"]).1.contains("OOMKilled"));
    wait("the device stays shut", || output("coracle", &["logs", "device"]).1.contains("not permitted"));
    println!("{}", run("coracle", &["pods"]));

    let pids = (processes("count 7"), processes("sleep"));
    let group = std::fs::read_to_string(format!("/proc/{}/cgroup", pids.0[0])).unwrap();
    let parts: Vec<&str> = group.trim().rsplit('/').collect();
    println!("{group}");
    assert!(parts[0].starts_with("coracle-") && parts[0].ends_with(".scope"), "{group}");
    assert!(parts[1].starts_with("kubepods-pod") && parts[1].ends_with(".slice"), "{group}");
    assert_eq!(parts[2], "kubepods.slice", "{group}");
    expect_limits(parts[0], parts[1]);
    // What only lies in files is set back by a reload; what systemd was told stays.
    run("systemctl", &["daemon-reload"]);
    expect_limits(parts[0], parts[1]);

    let same = |what: &str| {
        wait(what, || output("coracle", &["pods"]).0 && output("systemctl", &["is-active", "coracle"]).0);
        assert_eq!((processes("count 7"), processes("sleep")), pids, "{what}: {}", journal());
    };
    run("systemctl", &["kill", "-s", "KILL", "--kill-who=main", "coracle"]);
    same("systemd starts the killed agent again");
    run("systemctl", &["restart", "coracle"]);
    same("the restarted agent adopts");
    run("systemctl", &["stop", "coracle"]);
    assert_eq!((processes("count 7"), processes("sleep")), pids, "pods outlive the unit");
    run("systemctl", &["start", "coracle"]);
    same("the agent comes back");
    expect_limits(parts[0], parts[1]);

    run("coracle", &["stop-pods", "--timeout", "60"]);
    wait("nothing is left", || leftovers().is_empty());
    run("systemctl", &["stop", "coracle"]);
}

fn leftovers() -> Vec<String> {
    let units = output("systemctl", &["list-units", "--all", "--plain", "--no-legend"]).1;
    let is_pods = |line: &&str| {
        line.starts_with("coracle-") && line.contains(".scope") || line.contains("kubepods-pod")
    };
    let mut left: Vec<String> = units.lines().filter(is_pods).map(str::to_owned).collect();
    left.extend(processes("count 7").iter().chain(&processes("sleep")).map(|pid| format!("process {pid}")));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_sandbox = |line: &&str| line.contains("/run/coracle/sandboxes/") || line.contains("/rootfs ");
    left.extend(mounts.lines().filter(is_sandbox).map(str::to_owned));
    left
}
