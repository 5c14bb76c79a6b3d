//! Builds the executables as they ship: static, not position-independent, optimised for size.
//!
//! A position-independent executable dirties its relocated pages in every process that runs it; the shim
//! lives once per pod and the maker starts once per container, so both are linked to fixed addresses.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use coracle_integration_tests::Executables;

use crate::process;

const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// The target triple of this machine, as rustc names it.
fn host() -> Result<String> {
    let version = process::output(&mut process::command("rustc", ["-vV"]))?;
    let line = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("`rustc -vV` names no host")?.to_owned())
}

/// Builds all of it for this machine.
pub(crate) fn build() -> Result<Executables> {
    build_with(None)
}

/// Those that `CORACLE_BIN`, `CORACLE_SHIM` and `CORACLE_EXAMPLE` name if all are given, else built here.
pub(crate) fn build_or_given() -> Result<Executables> {
    let are_given = ["CORACLE_BIN", "CORACLE_SHIM", "CORACLE_EXAMPLE"]
        .iter()
        .all(|variable| std::env::var_os(variable).is_some());
    if are_given { Ok(Executables::of_this_build()) } else { build() }
}

/// A test program that cargo has built.
pub(crate) struct TestProgram {
    /// The folder of its package, in which cargo would start it.
    pub(crate) folder: PathBuf,
    /// The name of its test file, or of the library or executable whose unit tests it holds.
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
}

/// Test programs, and the executables that they start.
pub(crate) struct Tests {
    pub(crate) programs: Vec<TestProgram>,
    pub(crate) helpers: Vec<PathBuf>,
}

/// Builds the test programs that these command lines begin with, and the executables of their packages, for any Linux
/// of this architecture.
pub(crate) fn static_tests(commands: &[String]) -> Result<Tests> {
    let (mut cargo, _) = static_build()?;
    // Always both packages, so that what they stand on has the same features whichever tests are asked for.
    let mut build = cargo(&["--package", "coracle-integration-tests", "--package", "coracle-runtime"]);
    build.args(
        commands.iter().filter_map(|command| command.split(' ').next()).flat_map(|name| ["--test", name]),
    );
    tests_by(build)
}

/// Builds every test program as `test` runs it, and the executables beside them.
pub(crate) fn tests() -> Result<Tests> {
    tests_by(process::command("cargo", ["build", "--quiet", "--workspace", "--tests", "--bins"]))
}

fn tests_by(mut build: Command) -> Result<Tests> {
    let mut tests = Tests { programs: Vec::new(), helpers: Vec::new() };
    build.args(["--all-features", "--message-format", "json"]);
    for message in process::output(&mut build)?.lines() {
        let message: serde_json::Value =
            serde_json::from_str(message).context("cargo says what is not JSON")?;
        let text = |pointer| message.pointer(pointer).and_then(serde_json::Value::as_str);
        let (Some(name), Some(manifest)) = (text("/target/name"), text("/manifest_path")) else { continue };
        let Some(executable) = text("/executable").map(PathBuf::from) else { continue };
        if message["profile"]["test"] == true {
            let folder = Path::new(manifest).parent().context("a package has a folder")?.to_owned();
            tests.programs.push(TestProgram { folder, name: name.to_owned(), executable });
        } else {
            tests.helpers.push(executable);
        }
    }
    Ok(tests)
}

/// Builds one `coracle` that carries its shim, and returns its path.
pub(crate) fn dist() -> Result<PathBuf> {
    let plain = build()?;
    let whole = build_with(Some(&plain.shim))?;
    let folder = process::target_dir().join("dist");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join("coracle");
    std::fs::copy(&whole.coracle, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Builds the two small executables alone: tests run them as they ship, beside a debug build of the rest.
pub(crate) fn build_small() -> Result<Executables> {
    let (mut cargo, triple) = static_build()?;
    build_small_with(&mut cargo)?;
    Ok(executables(&triple))
}

fn build_with(embedded_shim: Option<&PathBuf>) -> Result<Executables> {
    let (mut cargo, triple) = static_build()?;
    build_small_with(&mut cargo)?;
    let mut coracle = cargo(&["--release", "--package", "coracle-agent", "--bin", "coracle"]);
    if let Some(shim) = embedded_shim {
        coracle.env("CORACLE_EMBED_SHIM", shim);
    }
    process::run(&mut coracle)?;
    Ok(executables(&triple))
}

fn build_small_with(cargo: &mut impl FnMut(&[&str]) -> Command) -> Result<()> {
    process::run(&mut cargo(&["--profile", "shim", "--package", "coracle-shim", "--bin", "coracle-shim"]))?;
    process::run(&mut cargo(&[
        "--profile",
        "shim",
        "--package",
        "coracle-example-program",
        "--bin",
        "example",
    ]))
}

fn executables(triple: &Path) -> Executables {
    Executables {
        coracle: triple.join("release/coracle"),
        shim: triple.join("shim/coracle-shim"),
        example: triple.join("shim/example"),
    }
}

/// How a static executable is built, and the folder where it then lies.
fn static_build() -> Result<(impl FnMut(&[&str]) -> Command, PathBuf)> {
    let host = host()?;
    // A folder of its own: other flags would make cargo rebuild what tests and checks have built.
    let target = process::target_dir().join("static");
    let triple = target.join(&host);
    let cargo = move |arguments: &[&str]| {
        let mut command = process::command("cargo", ["build", "--quiet", "--target", &host]);
        command.args(arguments).arg("--target-dir").arg(&target);
        // Given to the target only, since --target is set: build scripts and macros stay as they are.
        command.env("RUSTFLAGS", STATIC).env("LIBSECCOMP_LINK_TYPE", "static");
        command.env("LIBSECCOMP_LIB_PATH", format!("/usr/lib/{}", host.replace("-unknown-", "-")));
        command
    };
    Ok((cargo, triple))
}
