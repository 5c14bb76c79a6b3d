//! Disks that are full or cannot be written: told once and clearly, survived, and mended without a human.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_integration_tests::node::Node;
use coracle_integration_tests::{Executables, target_dir};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use support::{Fixture, LIMIT, is_running, pod};

/// A small file system that ends with its value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(path: PathBuf, options: &std::ffi::CStr, flags: MountFlags) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        mount("tmpfs", &path, "tmpfs", flags, options).unwrap();
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // The node unmounts what lies under its folders when it ends.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_holds_back_new_pods_until_there_is_room() {
    let _disk = Tmpfs::new(target_dir().join("full-disk"), c"size=160m", MountFlags::empty());
    let mut fixture = Fixture::start("full-disk");
    fixture.put("steady.yaml", &pod("steady", &["count", "1"], ""));
    fixture.wait_pod("steady", "it runs", is_running);
    let process = fixture.node.processes_with("count");
    let volume =
        "    volumeMounts: [{name: data, mountPath: /data}]\n  volumes: [{name: data, emptyDir: {}}]\n";
    // The folder lies on that disk too: what is to be put in later is written while there is room.
    let draft = fixture.node.manifests.join(".late.yaml");
    std::fs::write(&draft, pod("late", &["sleep"], "")).unwrap();
    fixture.put("hog.yaml", &pod("hog", &["pour", "/data/file", "400"], volume));
    let free = |node: &Node| rustix::fs::statvfs(&node.disk).map(|disk| disk.f_bavail * disk.f_frsize);
    fixture.node.wait("the hog fills the disk", LIMIT, |node| Ok(free(node)? < 2 << 20)).unwrap();
    fill(&fixture.node.disk.join("filler"), 4096);
    // What is free in the last page of its log would last for a minute.
    let links = std::fs::read_dir(fixture.node.disk.join("logs/containers")).unwrap();
    let mut logs = links.map(|link| link.unwrap().path());
    fill(&logs.find(|path| path.to_string_lossy().contains("steady")).unwrap(), 1);
    std::fs::rename(&draft, fixture.node.manifests.join("late.yaml")).unwrap();
    let is_told = |events: &str| {
        events.lines().any(|line| line.contains("late") && line.contains("No space left on device"))
    };
    fixture
        .node
        .wait("an event tells of the full disk", LIMIT, |node| Ok(is_told(&node.ask(&["events"])?)))
        .unwrap();
    assert_eq!(process, fixture.node.processes_with("count"), "who runs runs on");
    wait_event(&mut fixture, "steady", "Output of container \"main\" is lost");
    fixture.remove("hog.yaml");
    fixture.wait_pod("late", "it runs once there is room", is_running);
    std::fs::remove_file(fixture.node.disk.join("filler")).unwrap();
    wait_event(&mut fixture, "steady", "takes output again");
    let told = fixture.node.log();
    assert!(told.contains("the log of a container takes output again"), "{told}");
    assert_eq!(process, fixture.node.processes_with("count"));
    fixture.finish();
}

/// Waits for an event of a pod that says so, which comes once.
fn wait_event(fixture: &mut Fixture, pod: &str, words: &str) {
    let lines = |node: &Node| -> anyhow::Result<usize> {
        let events = node.ask(&["events"])?;
        Ok(events.lines().filter(|line| line.contains(pod) && line.contains(words)).count())
    };
    fixture.node.wait(words, LIMIT, |node| Ok(lines(node)? > 0)).unwrap();
    assert_eq!(lines(&fixture.node).unwrap(), 1, "{}", fixture.node.ask(&["events"]).unwrap());
}

/// Adds such pieces to a file until nothing fits any more.
fn fill(path: &Path, piece: usize) {
    use std::io::Write as _;
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    let piece = vec![b'\n'; piece];
    while file.write_all(&piece).is_ok() {}
}

/// What the agent says when it cannot start with these flags.
fn refusal(base: &Path, data: &Path, state: &Path) -> String {
    let executables = Executables::of_this_build();
    let manifests = base.join("manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    let mut agent = Command::new("timeout");
    agent.arg("60").arg(&executables.coracle).arg("run").arg("--manifests").arg(&manifests);
    agent.arg("--data-dir").arg(data).arg("--state-dir").arg(state).arg("--shim").arg(&executables.shim);
    agent.arg("--root-dir").arg(base.join("pods")).arg("--pod-logs-dir").arg(base.join("logs"));
    agent.arg("--container-logs-dir").arg(base.join("links"));
    agent.args(["--cgroup-root", "/coracle-read-only", "--cni-conf-dir", "/nonexistent"]);
    let output = agent.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn folders_that_cannot_be_written_are_named() {
    let base = target_dir().join(format!("read-only-{}", std::process::id()));
    let fixed = Tmpfs::new(base.join("fixed"), c"size=1m", MountFlags::RDONLY);
    let folders = [
        (fixed.0.join("data"), base.join("state"), fixed.0.join("data")),
        (base.join("data"), fixed.0.join("state"), fixed.0.join("state")),
    ];
    for (data, state, named) in folders {
        let told = refusal(&base, &data, &state);
        let last = told.lines().last().unwrap_or_default();
        assert!(last.contains(named.to_str().unwrap()), "{named:?} is not named in: {told}");
        assert!(last.contains("Read-only file system"), "{told}");
    }
    drop(fixed);
    std::fs::remove_dir_all(&base).unwrap();
}
