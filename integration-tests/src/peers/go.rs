//! The Go toolchain that builds the peers: an installed one that is new enough, or one from the module proxy.
//!
//! Go distributes its toolchains as modules, so any Go that can fetch modules can fetch the right Go.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::recipe::Module;

/// The oldest that the modules build with, and what is fetched where none is as new.
const MINIMUM: (u32, u32) = (1, 26);
const FETCHED: &str = "1.26.8";

/// The path of a `go` that is new enough; fetched into the module cache if the installed one is older.
pub fn toolchain(cache: &Path) -> Result<PathBuf> {
    let candidates = ["go", "/usr/local/go/bin/go", "/usr/lib/go/bin/go"].map(PathBuf::from);
    let mut old = None;
    for go in candidates {
        match version(&go) {
            Some(found) if found >= MINIMUM => return Ok(go),
            Some(_) => old = old.or(Some(go)),
            None => {}
        }
    }
    let Some(old) = old else {
        bail!("the peers need Go, of any version: run `cargo xtask setup`, or install golang-go");
    };
    fetch(&old, cache)
}

/// A Go command whose toolchain is the one asked for and no other.
pub(super) fn command(go: &Path) -> Command {
    let mut command = Command::new(go);
    command.env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=readonly").env("GOWORK", "off");
    if std::env::var_os("HOME").is_none() {
        command.env("HOME", "/root");
    }
    command
}

/// Where the source of a module's main dependency lies.
pub(super) fn module_folder(go: &Path, module: &Module) -> Result<PathBuf> {
    let mut download = command(go);
    download.args(["mod", "download", "-json", module.of]).current_dir(module.folder());
    folder_of(&mut download)
}

fn folder_of(download: &mut Command) -> Result<PathBuf> {
    let output = download.stdin(Stdio::null()).output().context("cannot start go")?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match answer["Dir"].as_str() {
        Some(folder) => Ok(PathBuf::from(folder)),
        None => bail!(
            "`go mod download` ended with {}: {}{}",
            output.status,
            answer["Error"].as_str().unwrap_or_default(),
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

fn version(go: &Path) -> Option<(u32, u32)> {
    let output = Command::new(go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.trim().strip_prefix("go")?.split(['.', 'r', 'b', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn fetch(old: &Path, cache: &Path) -> Result<PathBuf> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let module = format!("golang.org/toolchain@v0.0.1-go{FETCHED}.linux-{architecture}");
    eprintln!("peers: the installed Go is too old; fetching {module}");
    std::fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let mut download = Command::new(old);
    download.args(["mod", "download", "-json", &module]).current_dir(cache);
    let folder = folder_of(&mut download)?;
    // Module archives carry no permissions, and an old Go does not know that this one is to be run.
    make_executable(&folder.join("bin"))?;
    make_executable(&folder.join("pkg/tool"))?;
    name_modules(&folder)?;
    let go = folder.join("bin/go");
    match version(&go) {
        Some(found) if found >= MINIMUM => Ok(go),
        found => bail!("{} is {found:?}, not Go {FETCHED}", go.display()),
    }
}

fn make_executable(folder: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            make_executable(&path)?;
        } else {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                .with_context(|| format!("cannot make {} executable", path.display()))?;
        }
    }
    Ok(())
}

/// Gives the files `go.mod` of the standard library their name, which an archive of a module cannot hold.
fn name_modules(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            name_modules(&entry.path())?;
        } else if entry.file_name() == "_go.mod" {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
                .and_then(|()| std::fs::copy(entry.path(), folder.join("go.mod")))
                .with_context(|| format!("cannot name a module in {}", folder.display()))?;
        }
    }
    Ok(())
}
