//! `ci`: what must pass before a change lands.

use anyhow::Result;

use crate::{demo, process, setup, test};

/// Format, lints, every test (the README's `cargo xtask test`), and the demo.
pub(crate) fn run() -> Result<()> {
    setup::run()?;
    process::run(&mut process::command("cargo", ["fmt", "--all", "--check"]))?;
    process::run(&mut process::command(
        "cargo",
        ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"],
    ))?;
    test::run(&[])?;
    demo::run()
}
