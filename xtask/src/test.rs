//! `test`: every test of the workspace. Tests make namespaces, mounts and cgroups, so they need root.

use std::process::Command;

use anyhow::{Result, bail};

use coracle_integration_tests::Executables;
use coracle_integration_tests::peers::{CONTROL_PLANE, CRI_TOOLS, MAKERS, REFERENCE_NODE};

use crate::{artifacts, peers, process, setup};

/// Runs all tests, or those whose name contains a word of `filter`.
pub(crate) fn run(filter: &[&str]) -> Result<()> {
    if process::output(&mut process::command("id", ["-u"]))?.trim() != "0" {
        bail!("the tests make namespaces, mounts and cgroups: run this as root");
    }
    setup::run()?;
    // Tests start the shim and the helpers as processes, so these are built first.
    let small = build()?;
    let mut command = process::command("cargo", [&TEST[..], &["--no-fail-fast", "--"]].concat());
    process::run(with_small(command.args(filter), &small))
}

/// Features as the whole workspace has them, so that no command builds anew what another has built.
const TEST: [&str; 3] = ["test", "--workspace", "--all-features"];

/// Builds what tests start as processes.
fn build() -> Result<Executables> {
    let small = artifacts::build_small()?;
    process::run(&mut process::command("cargo", ["build", "--workspace", "--all-features", "--bins"]))?;
    Ok(small)
}

fn with_small<'a>(command: &'a mut Command, small: &Executables) -> &'a mut Command {
    command.env("CORACLE_SHIM", &small.shim).env("CORACLE_EXAMPLE", &small.example)
}

/// A run of these test programs of the workspace; what is added goes to the programs.
fn integration(names: &[&str]) -> Command {
    let mut command = process::command("cargo", [&TEST[..], &["--no-fail-fast"]].concat());
    command.args(names.iter().flat_map(|name| ["--test", name])).arg("--");
    command
}

/// The tests that need a real control plane, which is built first.
pub(crate) fn with_cluster(filter: &[&str]) -> Result<()> {
    setup::run()?;
    for names in [CONTROL_PLANE, REFERENCE_NODE, &["metrics-server"]] {
        peers::ensure(names)?;
    }
    let names = [
        "cluster",
        "reference",
        "joined",
        "evictions",
        "nodes",
        "resizes",
        "rollouts",
        "streams",
        "api_faults",
        "bad_cluster",
    ];
    let mut command = integration(&names);
    // One after the other: each is a whole cluster.
    process::run(command.args(["--test-threads=1", "--nocapture"]).args(filter))
}

/// The tests of pods from a folder on runtimes that are not ours.
pub(crate) fn on_other_runtimes(filter: &[&str]) -> Result<()> {
    setup::run()?;
    peers::ensure(REFERENCE_NODE)?;
    let small = build()?;
    for runtime in ["containerd-debian", "containerd"] {
        println!("on {runtime}");
        let mut command = integration(&["pods"]);
        command.args(filter).env("CORACLE_TEST_RUNTIME", runtime);
        process::run(with_small(&mut command, &small))?;
    }
    Ok(())
}

/// The runtime's test programs in which containers of every kind are made, adopted and killed.
pub(crate) const MAKER_TESTS: &[&str] =
    &["service_run", "service_namespaces", "service_adopt", "service_kill"];

/// The runtime's tests with makers by path: those given, or Debian's runc and those of the peers.
pub(crate) fn with_makers(paths: &[&str]) -> Result<()> {
    setup::run()?;
    let small = artifacts::build_small()?;
    let mut makers: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    if makers.is_empty() {
        makers.push("/usr/sbin/runc".to_owned());
        makers.extend(peers::ensure(MAKERS)?);
    }
    for maker in makers {
        let version = process::output(&mut process::command(&maker, ["--version"]))?;
        println!("with {maker}: {}", version.lines().collect::<Vec<_>>().join(", "));
        let mut command = integration(&[MAKER_TESTS, &["service_streaming"]].concat());
        process::run(with_small(&mut command, &small).env("CORACLE_TEST_MAKER", &maker))?;
    }
    Ok(())
}

/// Shims under runtimes that are not theirs.
pub(crate) fn with_shims(filter: &[&str]) -> Result<()> {
    setup::run()?;
    for names in [CRI_TOOLS, REFERENCE_NODE] {
        peers::ensure(names)?;
    }
    let small = build()?;
    let mut command = integration(&["shims"]);
    process::run(with_small(command.arg("--test-threads=1").args(filter), &small))
}

/// `coracle-streaming` against Go programs that stand on Kubernetes' own libraries; the test builds them.
pub(crate) fn with_streaming_peers(filter: &[&str]) -> Result<()> {
    setup::for_peers()?;
    let arguments = ["test", "--package", "coracle-streaming", "--test", "peers", "--"];
    process::run(process::command("cargo", arguments).args(filter))
}

/// The chaos tests with so many moments each, on the executables as they ship; with one kind of victim, or all.
pub(crate) fn chaos(options: &[&str]) -> Result<()> {
    let (mut moments, mut filter) = ("200", None);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match *option {
            "--victim" => filter = Some(victim(options.next().copied().unwrap_or_default())?),
            number if number.parse::<u32>().is_ok() => moments = number,
            other => bail!("chaos does not know {other}"),
        }
    }
    setup::run()?;
    let built = artifacts::build_or_given()?;
    let mut command = integration(&["chaos"]);
    command
        .args(["--nocapture", "--test-threads=1"])
        .args(filter)
        .env("CORACLE_CHAOS_MOMENTS", moments)
        .env("CORACLE_BIN", &built.coracle);
    process::run(with_small(&mut command, &built))
}

/// What the name of the test with this victim contains.
fn victim(name: &str) -> Result<&'static str> {
    Ok(match name {
        "agent" => "agent",
        "shim" => "shims",
        "maker" => "makers",
        "worker" => "workers",
        other => bail!("no such victim: {other:?}; there are agent, shim, maker and worker"),
    })
}
