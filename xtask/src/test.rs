//! `test`: every test of the workspace. Tests make namespaces, mounts and cgroups, so they need root.

use anyhow::{Result, bail};

use crate::{artifacts, process, setup};

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

/// The chaos test with so many moments, on the executables as they ship.
pub(crate) fn chaos(moments: &str) -> Result<()> {
    setup::run()?;
    let built = artifacts::build()?;
    let arguments =
        ["test", "--package", "coracle-integration-tests", "--test", "chaos", "--", "--nocapture"];
    let mut command = process::command("cargo", arguments);
    command
        .env("CORACLE_CHAOS_MOMENTS", moments)
        .env("CORACLE_BIN", &built.coracle)
        .env("CORACLE_SHIM", &built.shim)
        .env("CORACLE_EXAMPLE", &built.example);
    process::run(&mut command)
}
