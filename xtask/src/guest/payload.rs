//! The guest's second disk: the built executables, the test programs, and the script that the guest begins with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use coracle_integration_tests::Executables;

use super::Options;
use super::root::{make_disk, remove, write_script};
use crate::artifacts::Tests;
use crate::process;

/// Makes the disk.
pub(super) fn make(built: &Executables, tests: &Tests, options: &Options) -> Result<PathBuf> {
    let folder = process::target_dir().join("guest");
    let tree = folder.join("payload");
    remove(&tree)?;
    let create = |path: &Path| {
        std::fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
    };
    create(&tree.join("bin"))?;
    create(&tree.join("tests"))?;
    for (from, name) in
        [(&built.coracle, "coracle"), (&built.shim, "coracle-shim"), (&built.example, "example")]
    {
        copy(from, &tree.join("bin").join(name))?;
    }
    for program in &tests.programs {
        copy(&program.executable, &tree.join("tests").join(&program.name))?;
    }
    // Tests name helpers and manifests by where they lay when they were compiled.
    let mut placed: Vec<PathBuf> = tests.helpers.clone();
    let pods = process::repository().join("examples/pods");
    for entry in std::fs::read_dir(&pods).with_context(|| format!("cannot list {}", pods.display()))? {
        placed.push(entry?.path());
    }
    for path in placed {
        let to = tree.join("placed").join(path.strip_prefix("/").unwrap_or(&path));
        create(to.parent().unwrap_or(&tree))?;
        copy(&path, &to)?;
    }
    copy(&process::repository().join("agent/systemd/coracle.service"), &tree.join("coracle.service"))?;
    write_script(&tree.join("init"), include_str!("init.sh"))?;
    write_script(&tree.join("run-tests"), include_str!("run-tests.sh"))?;
    std::fs::write(tree.join("coracle-guest.service"), include_str!("guest.service"))
        .context("cannot write the guest's unit")?;
    let list = options.test_programs().join("\n") + "\n";
    std::fs::write(tree.join("list"), list).context("cannot write the list of tests")?;
    let mut settings = format!(
        "SYSTEMD={}\nCGROUP={}\n",
        if options.systemd { "yes" } else { "no" },
        if options.cgroup_v1 { "v1" } else { "v2" }
    );
    if let Some(maker) = &options.maker {
        settings.push_str(&format!("export CORACLE_TEST_MAKER={maker}\n"));
    }
    std::fs::write(tree.join("settings"), settings).context("cannot write the guest's settings")?;
    let disk = folder.join("payload.img");
    make_disk(&tree, &disk, "1G")?;
    remove(&tree)?;
    Ok(disk)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display())).map(drop)
}
