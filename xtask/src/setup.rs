//! `setup`: installs what a fresh Debian or Ubuntu lacks. Every command that needs a tool calls it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;

/// A Debian package and why it is needed.
struct Package {
    name: &'static str,
    why: &'static str,
}

const fn package(name: &'static str, why: &'static str) -> Package {
    Package { name, why }
}

/// What building and running a node needs.
const NODE: &[Package] = &[
    package("build-essential", "the linker and the C library to link statically"),
    package("pkg-config", "finds libseccomp"),
    package("libseccomp-dev", "seccomp filters of containers"),
    package("iptables", "hostPort and NAT of the CNI plugins"),
    package("iproute2", "network namespaces of tests"),
    package("containernetworking-plugins", "the CNI plugins that pods get their network from"),
];

/// What tests and benches need besides.
const TESTS: &[Package] = &[
    package("busybox-static", "root file systems of tests"),
    package("containerd", "the reference that our CRI client and pulls are held against"),
    package("runc", "the reference maker of containers"),
];

/// What building the peers needs, besides Go.
const PEERS: &[Package] = &[
    package("build-essential", "the pause program, and runc's C"),
    package("libseccomp-dev", "runc"),
    package("nftables", "kube-proxy"),
    package("ca-certificates", "fetching Go modules"),
];

/// What images of the suites are made of.
const SUITES: &[Package] = &[
    package("busybox-static", "commands in images of the suites"),
    package("bash-static", "the shell in images of the suites"),
    package("curl", "what agnhost's image brings"),
    package("netcat-openbsd", "what agnhost's image brings"),
];

/// Any Go does: it fetches the one that the modules ask for.
const GO: &[Package] = &[package("golang-go", "the control plane and the reference node")];

/// What makes and runs a virtual machine.
const GUEST: &[Package] = &[
    package("qemu-system-x86", "the machine that guests run in"),
    package("mmdebstrap", "makes the guest's Debian"),
    package("debian-archive-keyring", "whom the guest's Debian comes from"),
    package("e2fsprogs", "the guest's disks"),
];

/// Installs all of it.
pub(crate) fn run() -> Result<()> {
    ensure(NODE.iter().chain(TESTS))
}

/// Installs what `demo` needs.
pub(crate) fn for_demo() -> Result<()> {
    ensure(NODE.iter())
}

/// Installs what the suites' images need.
pub(crate) fn for_suites() -> Result<()> {
    ensure(NODE.iter().chain(SUITES))
}

/// Whether that is there already.
pub(crate) fn has_suites() -> bool {
    SUITES.iter().all(|package| installed(package.name))
}

/// Installs what building the peers needs.
pub(crate) fn for_peers() -> Result<()> {
    ensure(PEERS.iter())?;
    let found = ["go", "/usr/local/go/bin/go"].map(|go| Command::new(go).arg("version").output().is_ok());
    if found.contains(&true) { Ok(()) } else { ensure(GO.iter()) }
}

/// Installs what `guest` needs.
pub(crate) fn for_guest() -> Result<()> {
    ensure(NODE.iter().chain(TESTS).chain(GUEST))
}

fn ensure(packages: impl Iterator<Item = &'static Package>) -> Result<()> {
    let missing: Vec<&Package> = packages.filter(|package| !installed(package.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        let list: Vec<String> = missing.iter().map(|p| format!("{} ({})", p.name, p.why)).collect();
        bail!("not a Debian or Ubuntu system; please install the equivalents of: {}", list.join(", "));
    }
    for package in &missing {
        eprintln!("setup: {} is missing: {}", package.name, package.why);
    }
    let names = missing.iter().map(|package| package.name);
    process::run(&mut apt(["update", "-q"]))?;
    process::run(&mut apt(["install", "-q", "-y", "--no-install-recommends"].into_iter().chain(names)))
        .context("apt-get could not install the packages; run it by hand as root")
}

fn apt<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = process::command("apt-get", arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}
