//! The example programs, run as their first lines say, in a network namespace of their own.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_integration_tests::{Executables, example_image, target_dir};

/// A network namespace and a folder; both go with it.
struct Place {
    base: PathBuf,
    netns: String,
}

impl Place {
    fn new(name: &str) -> Self {
        let netns = format!("coracle-{name}-{}", std::process::id());
        let base = Path::new("/run").join(&netns);
        std::fs::create_dir_all(&base).unwrap();
        example_image::write(&Executables::of_this_build().example, &base.join("image.tar")).unwrap();
        assert!(Command::new("ip").args(["netns", "add", &netns]).status().unwrap().success());
        Self { base, netns }
    }

    /// An example program with the shim and folders of this place.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg("--");
        command.arg(target_dir().join("debug").join(name)).env("BASE", &self.base).stdin(Stdio::null());
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for path in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(path).starts_with(&self.base) {
                let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
            }
        }
        let _ = Command::new("ip").args(["netns", "delete", &self.netns]).status();
        // The examples use the default cgroups; only empty ones can be removed, so nobody else's go.
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            for name in ["coracle-shims", "kubepods/besteffort", "kubepods/burstable", "kubepods"] {
                let _ = std::fs::remove_dir(hierarchy.path().join(name));
            }
        }
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

#[test]
fn a_container_is_run_by_the_runtime_alone() {
    let place = Place::new("run-container");
    let mut command = place.program("run_container");
    command.arg(Executables::of_this_build().shim).arg(place.base.join("image.tar"));
    let output = command.args([example_image::NAME, "write", "/dev/stdout", "hello"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("stdout F hello"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_firmware_runs_pods_from_a_folder() {
    let place = Place::new("firmware");
    let shim = Executables::of_this_build().shim;
    // The image first: the program itself only knows what it can pull, or what is there.
    let loaded = place
        .program("run_container")
        .arg(&shim)
        .arg(place.base.join("image.tar"))
        .args([example_image::NAME, "exit", "0"])
        .output()
        .unwrap();
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let manifests = place.base.join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  hostNetwork: true\n  \
         terminationGracePeriodSeconds: 1\n  containers: [{{name: main, image: '{}'}}]\n",
        example_image::NAME
    );
    std::fs::write(manifests.join("one.yaml"), text).unwrap();
    let out = place.base.join("out");
    let mut child = place
        .program("manifest_node")
        .arg(&manifests)
        .arg(shim)
        .stdout(std::fs::File::create(&out).unwrap())
        .spawn()
        .unwrap();
    let said = |what: &str| std::fs::read_to_string(&out).unwrap().contains(what);
    wait("the pod runs", || said("default/one-gateway Running"), &out);
    std::fs::remove_file(manifests.join("one.yaml")).unwrap();
    wait("the program ends with its pods", || child.try_wait().unwrap().is_some(), &out);
}

#[test]
fn the_pods_of_any_cri_runtime_are_listed() {
    let place = Place::new("cri-list");
    let base = place.base.display();
    let config = format!(
        "version = 2\nroot = \"{base}/root\"\nstate = \"{base}/state\"\n[grpc]\naddress = \"{base}/sock\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n"
    );
    std::fs::write(place.base.join("config.toml"), config).unwrap();
    let log = std::fs::File::create(place.base.join("log")).unwrap();
    let mut containerd = Command::new("containerd");
    containerd
        .arg("--config")
        .arg(place.base.join("config.toml"))
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let mut containerd = containerd.spawn().unwrap();
    let endpoint = format!("unix://{base}/sock");
    let listed = || {
        let output = Command::new(target_dir().join("debug/cri_list")).arg(&endpoint).output().unwrap();
        String::from_utf8_lossy(&output.stdout).starts_with("containerd ")
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut is_listed = listed();
    while !is_listed && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        is_listed = listed();
    }
    containerd.kill().unwrap();
    containerd.wait().unwrap();
    assert!(is_listed, "{}", std::fs::read_to_string(place.base.join("log")).unwrap());
}

/// As far as a scripted API server allows: it says of nodes what the test says.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_controller_tells_which_nodes_become_ready() {
    const NODES: &str = "/api/v1/nodes";
    let node = |ready: &str| {
        serde_json::json!({"metadata": {"name": "edge-1"},
                           "status": {"conditions": [{"type": "Ready", "status": ready}]}})
    };
    let api = coracle_cluster::testing::FakeApi::start().await;
    api.put(NODES, node("False"));
    let out = std::env::temp_dir().join(format!("coracle-node-readiness-{}", std::process::id()));
    let mut child = Command::new(target_dir().join("debug/node_readiness"))
        .arg(format!("http://{}", api.address()))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&out).unwrap())
        .spawn()
        .unwrap();
    let noted = |ready: &'static str| {
        move |node: &serde_json::Value| node["metadata"]["annotations"]["example.com/was-ready"] == ready
    };
    api.wait_for(NODES, "", "edge-1", noted("false")).await;
    api.put(NODES, node("True"));
    api.wait_for(NODES, "", "edge-1", noted("true")).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let said = std::fs::read_to_string(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    assert_eq!(said, "edge-1 NotReady\nedge-1 Ready\n");
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool, out: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: {}", std::fs::read_to_string(out).unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
}
