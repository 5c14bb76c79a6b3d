//! `old-kernel`: the tests once more as on Linux 4.9, the kernel of JetPack 4.
//!
//! Every test program runs whole under `old_kernel` of integration-tests, a filter that answers ENOSYS to each
//! system call that came later. All that it starts inherits the filter: agent, shim, workers, runc, the pods.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::artifacts::{self, TestProgram};
use crate::{process, setup};

/// Test programs that are left out, each with its reason.
const LEFT_OUT: &[(&str, &str)] = &[
    // libcontainer mounts only by the calls of Linux 5.12, which is why another maker is chosen below that.
    ("maker_containers", "its subject is the built-in maker, which needs Linux 5.12"),
    ("xtask", "it tests no part of a node"),
    ("tidy", "it tests no part of a node"),
];

/// Single tests that are left out, each with its reason.
const LEFT_OUT_TESTS: &[(&str, &str)] = &[
    ("this_kernel_has_the_mount_api", "its subject is a kernel that the built-in maker can use"),
    ("root_of_a_pod_is_nobody_on_the_node", MAPPED_IDS),
    ("a_pod_of_the_folder_has_users_of_its_own", MAPPED_IDS),
];

/// Below that such a pod is refused, with words that say so.
const MAPPED_IDS: &str = "its subject is user namespaces, which need Linux 5.19 for mounts with mapped ids";

/// Runs all of them, or those whose name contains a word of `filter`.
pub(crate) fn run(filter: &[&str]) -> Result<()> {
    setup::run()?;
    let small = artifacts::build_small()?;
    let tests = artifacts::tests()?;
    let is_filter = |path: &&PathBuf| path.file_name().is_some_and(|name| name == "old_kernel");
    let wrapper = tests.helpers.iter().find(is_filter).context("the filter was not built")?;
    for (name, why) in LEFT_OUT_TESTS {
        eprintln!("left out: {name}: {why}");
    }
    let mut failed = Vec::new();
    for program in &tests.programs {
        let is_meant = |word: &&str| program.name.contains(word);
        if !filter.is_empty() && !filter.iter().any(is_meant) {
            continue;
        }
        if let Some((name, why)) = LEFT_OUT.iter().find(|(name, _)| *name == program.name) {
            eprintln!("left out: {name}: {why}");
            continue;
        }
        if let Err(error) = run_one(wrapper, program, &small.shim, &small.example) {
            eprintln!("{error:#}");
            failed.push(format!("{} in {}", program.name, program.folder.display()));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed without the system calls that came after Linux 4.9: {}", failed.join(", "))
}

fn run_one(wrapper: &Path, program: &TestProgram, shim: &Path, example: &Path) -> Result<()> {
    let mut command = process::command(&wrapper.to_string_lossy(), [&program.executable]);
    for (name, _) in LEFT_OUT_TESTS {
        command.args(["--skip", name]);
    }
    command
        .current_dir(&program.folder)
        .env("CORACLE_TEST_MAKER", "/usr/sbin/runc")
        .env("CORACLE_SHIM", shim)
        .env("CORACLE_EXAMPLE", example);
    process::run(&mut command)
}
