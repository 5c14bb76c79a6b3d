//! `test`: every test of the workspace. Tests make namespaces, mounts and cgroups, so they need root.

use anyhow::{Result, bail};

use crate::{process, setup};

/// Runs all tests, or those whose name contains a word of `filter`.
pub(crate) fn run(filter: &[&str]) -> Result<()> {
    if process::output(&mut process::command("id", ["-u"]))?.trim() != "0" {
        bail!("the tests make namespaces, mounts and cgroups: run this as root");
    }
    setup::run()?;
    // Tests start the shim and the helpers as processes, so these are built first.
    process::run(&mut process::command("cargo", ["build", "--workspace", "--bins"]))?;
    let mut command =
        process::command("cargo", ["test", "--workspace", "--all-features", "--no-fail-fast", "--"]);
    command.args(filter);
    process::run(&mut command)
}
