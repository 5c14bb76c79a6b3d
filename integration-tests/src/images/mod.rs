//! The images that clusters of tests serve: made here, without a registry of the Internet.
//!
//! agnhost and pause are what Kubernetes builds; the others are stand-ins that behave the same for the suites. They
//! are written straight into the storage of the registry that the control plane runs.

mod critest;
mod rootfs;
mod storage;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::peers::Peers;
use rootfs::Rootfs;
use storage::Storage;

/// The example program as an image, for benches and tests of ours.
pub const EXAMPLE: &str = "registry.k8s.io/coracle/example:1";
/// What sandboxes of the reference run.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.2";

/// What agnhost brings besides itself, which hooks and network specs call.
const CURL: &str = "/usr/bin/curl";
const NETCAT: &str = "/bin/nc.openbsd";

/// Which images are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Set {
    /// pause alone: enough to run pods of any image that a test adds.
    Basic,
    /// All that the conformance suite pulls.
    Conformance,
}

/// The registry's storage of this build.
pub fn folder() -> PathBuf {
    crate::target_dir().join("cluster-images")
}

/// Writes what is missing of a set; `example` is the static program of ours, if it is wanted.
pub fn write(peers: &Peers, set: Set, example: Option<&Path>) -> Result<()> {
    let storage = Storage::at(&folder());
    let pause = peers.program("pause")?;
    storage.add(&["pause:3.10.2", "pause:3.10"], &[&pause], || {
        let mut rootfs = Rootfs::new();
        rootfs.program("pause", &pause)?;
        Ok((rootfs, json!({"Entrypoint": ["/pause"], "User": "65535:65535"})))
    })?;
    if let Some(example) = example {
        storage.add(&["coracle/example:1"], &[example], || {
            let mut rootfs = Rootfs::new();
            rootfs.program("example", example)?;
            rootfs.users(&[("user", 1000)])?;
            Ok((rootfs, json!({"Entrypoint": ["/example"], "Cmd": ["sleep"], "Env": ["PATH=/"]})))
        })?;
    }
    if set == Set::Conformance {
        conformance(&storage, peers)?;
    }
    Ok(())
}

/// Writes what is missing of what critest pulls, with the help of files in `folder`, and returns the digest of the image
/// that stands in for the one that it pins.
pub fn write_for_critest(peers: &Peers, folder: &Path) -> Result<String> {
    write(peers, Set::Basic, None)?;
    critest::write(&Storage::at(&self::folder()), peers, folder)
}

/// What the names of the images begin with that [`write_for_pulls`] writes.
pub const PULLED: &str = "registry.k8s.io/coracle/pulled-";

/// Writes images for a bench of pulls, numbered from 0 on: each a gzip layer of its own, as registries serve them, with
/// a program and some hundred files.
pub fn write_for_pulls(peers: &Peers, example: &Path, count: u32) -> Result<()> {
    write(peers, Set::Basic, Some(example))?;
    let storage = Storage::at(&folder()).with_gzip();
    for number in 0..count {
        let name = format!("coracle/pulled-{number}:1");
        storage.add(&[&name], &[example], || {
            let mut rootfs = Rootfs::new();
            rootfs.program("example", example)?;
            for file in 0..200_u32 {
                let text = format!("file {file} of image {number}\n").repeat(64);
                rootfs.file(&format!("data/{}/{file}", file % 10), text.as_bytes(), 0o644)?;
            }
            Ok((rootfs, json!({"Entrypoint": ["/example"], "Cmd": ["sleep"], "Labels": {"name": name}})))
        })?;
    }
    Ok(())
}

fn conformance(storage: &Storage, peers: &Peers) -> Result<()> {
    let (agnhost, busybox, bash) =
        (peers.program("agnhost")?, PathBuf::from("/bin/busybox"), PathBuf::from("/bin/bash-static"));
    let applets = applets(&busybox)?;
    let names = ["e2e-test-images/agnhost:2.63.0", "e2e-test-images/agnhost:2.55"];
    storage.add(&names, &[&agnhost, &busybox, &bash, Path::new(CURL), Path::new(NETCAT)], || {
        let mut rootfs = Rootfs::new();
        tools(&mut rootfs, &busybox, &bash, &applets)?;
        rootfs.program("agnhost", &agnhost)?;
        rootfs.link("agnhost-2", "agnhost")?;
        for (name, path) in [("usr/bin/curl", CURL), ("usr/bin/nc", NETCAT)] {
            rootfs.linked_program(name, Path::new(path))?;
        }
        rootfs.folder("uploads", 0o755)?;
        // What its servers of HTTPS serve with; clients of the suite do not check it.
        let served = rcgen::generate_simple_self_signed(["localhost".to_owned()]).context("no certificate")?;
        rootfs.file("localhost.crt", served.cert.pem().as_bytes(), 0o644)?;
        rootfs.file("localhost.key", served.signing_key.serialize_pem().as_bytes(), 0o644)?;
        rootfs.users(&[("user-defined-in-image", 1000)])?;
        let groups = "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n";
        rootfs.file("etc/group", groups.as_bytes(), 0o644)?;
        Ok((rootfs, json!({"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "Env": [PATH]})))
    })?;
    storage.add(&["e2e-test-images/busybox:1.37.0-1"], &[&busybox, &bash], || {
        let mut rootfs = Rootfs::new();
        tools(&mut rootfs, &busybox, &bash, &applets)?;
        Ok((rootfs, json!({"Cmd": ["sh"], "Env": [PATH]})))
    })?;
    storage.add(&["e2e-test-images/nonroot:1.5"], &[&busybox, &bash], || {
        let mut rootfs = Rootfs::new();
        tools(&mut rootfs, &busybox, &bash, &applets)?;
        Ok((rootfs, json!({"Cmd": ["sh"], "User": "1234", "Env": [PATH]})))
    })?;
    // What looks up its own name by glibc's ways.
    storage.add(&["e2e-test-images/glibc-dns-testing:2.0.0"], &[&busybox, &bash], || {
        let mut rootfs = Rootfs::new();
        tools(&mut rootfs, &busybox, &bash, &applets)?;
        Ok((rootfs, json!({"Cmd": ["sh"], "Env": [PATH]})))
    })?;
    // A program that belongs to root, runs as its owner, and says as whom it runs.
    storage.add(&["e2e-test-images/nonewprivs:1.4"], &[&bash], || {
        let mut rootfs = Rootfs::new();
        let bytes = std::fs::read(&bash).with_context(|| format!("cannot read {}", bash.display()))?;
        rootfs.file("usr/local/bin/nnp", &bytes, 0o4755)?;
        Ok((rootfs, json!({"Cmd": ["nnp", "-p", "-c", "echo Effective uid: $EUID"], "Env": [PATH]})))
    })?;
    let served = [
        ("nginx:1.15-4", "index.html", "nginx 1.15-4\n"),
        ("nginx:1.27-0", "index.html", "nginx 1.27-0\n"),
        ("kitten:1.8", "data.json", r#"{"image": "kitten.jpg"}"#),
        ("nautilus:1.8", "data.json", r#"{"image": "nautilus.jpg"}"#),
    ];
    for (name, file, text) in served {
        storage.add(&[&format!("e2e-test-images/{name}")], &[&busybox, &bash], || {
            let mut rootfs = Rootfs::new();
            tools(&mut rootfs, &busybox, &bash, &applets)?;
            rootfs.file(&format!("srv/{file}"), text.as_bytes(), 0o644)?;
            // As a volume, the image is looked into where the original has its files.
            rootfs.file(file, text.as_bytes(), 0o644)?;
            rootfs.file("etc/os-release", b"NAME=\"Alpine Linux\"\n", 0o644)?;
            let serve = json!(["busybox", "httpd", "-f", "-p", "80", "-h", "/srv"]);
            Ok((rootfs, json!({"Cmd": serve, "Env": [PATH], "ExposedPorts": {"80/tcp": {}}})))
        })?;
    }
    Ok(())
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A shell and the usual commands. The shell is bash, since busybox's drops variables whose names have a dash or a
/// dot, which ConfigMaps have and the suite looks for.
fn tools(rootfs: &mut Rootfs, busybox: &Path, bash: &Path, applets: &[String]) -> Result<()> {
    rootfs.program("bin/busybox", busybox)?;
    rootfs.program("bin/bash", bash)?;
    rootfs.link("bin/sh", "bash")?;
    for applet in applets.iter().filter(|applet| !matches!(applet.as_str(), "sh" | "bash" | "busybox")) {
        rootfs.link(&format!("bin/{applet}"), "busybox")?;
    }
    rootfs.folder("tmp", 0o1777)?;
    for folder in ["etc", "root", "usr/bin", "usr/local/bin", "var", "home"] {
        rootfs.folder(folder, 0o755)?;
    }
    rootfs.users(&[("www-data", 33)])
}

fn applets(busybox: &Path) -> Result<Vec<String>> {
    let output = Command::new(busybox).arg("--list").output();
    let output =
        output.with_context(|| format!("cannot start {}; install busybox-static", busybox.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// The configuration of an image as the OCI has it.
fn configuration(config: &Value, layer: &str) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
    })
}
