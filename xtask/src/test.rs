//! `test`: every test of the workspace. Tests make namespaces, mounts and cgroups, so they need root.

use anyhow::{Result, bail};

use coracle_integration_tests::peers::{CONTROL_PLANE, CRI_TOOLS, REFERENCE_NODE};

use crate::{artifacts, peers, process, setup};

/// Runs all tests, or those whose name contains a word of `filter`.
pub(crate) fn run(filter: &[&str]) -> Result<()> {
    if process::output(&mut process::command("id", ["-u"]))?.trim() != "0" {
        bail!("the tests make namespaces, mounts and cgroups: run this as root");
    }
    setup::run()?;
    // Tests start the shim and the helpers as processes, so these are built first.
    let small = artifacts::build_small()?;
    process::run(&mut process::command("cargo", ["build", "--workspace", "--bins"]))?;
    let mut command =
        process::command("cargo", ["test", "--workspace", "--all-features", "--no-fail-fast", "--"]);
    command.args(filter).env("CORACLE_SHIM", &small.shim).env("CORACLE_EXAMPLE", &small.example);
    process::run(&mut command)
}

/// The tests that need a real control plane, which is built first.
pub(crate) fn with_cluster(filter: &[&str]) -> Result<()> {
    setup::run()?;
    for names in [CONTROL_PLANE, REFERENCE_NODE, &["metrics-server"]] {
        peers::ensure(names)?;
    }
    let mut command = process::command("cargo", ["test", "--package", "coracle-integration-tests"]);
    for name in ["cluster", "joined", "rollouts", "streams", "api_faults", "bad_cluster"] {
        command.args(["--test", name]);
    }
    // One after the other: each is a whole cluster.
    process::run(command.args(["--", "--test-threads=1", "--nocapture"]).args(filter))
}

/// The tests of pods from a folder on runtimes that are not ours.
pub(crate) fn on_other_runtimes(filter: &[&str]) -> Result<()> {
    setup::run()?;
    peers::ensure(REFERENCE_NODE)?;
    let small = artifacts::build_small()?;
    process::run(&mut process::command("cargo", ["build", "--workspace", "--bins"]))?;
    for runtime in ["containerd-debian", "containerd"] {
        println!("on {runtime}");
        let arguments = ["test", "--package", "coracle-integration-tests", "--test", "pods", "--"];
        let mut command = process::command("cargo", arguments);
        command.args(filter).env("CORACLE_TEST_RUNTIME", runtime);
        process::run(command.env("CORACLE_SHIM", &small.shim).env("CORACLE_EXAMPLE", &small.example))?;
    }
    Ok(())
}

/// Shims under runtimes that are not theirs.
pub(crate) fn with_shims(filter: &[&str]) -> Result<()> {
    setup::run()?;
    for names in [CRI_TOOLS, REFERENCE_NODE] {
        peers::ensure(names)?;
    }
    let small = artifacts::build_small()?;
    process::run(&mut process::command("cargo", ["build", "--workspace", "--bins"]))?;
    let arguments = ["test", "--package", "coracle-integration-tests", "--test", "shims", "--"];
    let mut command = process::command("cargo", arguments);
    command.arg("--test-threads=1").args(filter);
    process::run(command.env("CORACLE_SHIM", &small.shim).env("CORACLE_EXAMPLE", &small.example))
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
    let arguments = ["test", "--package", "coracle-integration-tests", "--test", "chaos", "--"];
    let mut command = process::command("cargo", arguments);
    command
        .args(["--nocapture", "--test-threads=1"])
        .args(filter)
        .env("CORACLE_CHAOS_MOMENTS", moments)
        .env("CORACLE_BIN", &built.coracle)
        .env("CORACLE_SHIM", &built.shim)
        .env("CORACLE_EXAMPLE", &built.example);
    process::run(&mut command)
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
