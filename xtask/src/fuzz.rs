//! `fuzz`: libFuzzer on every parser that takes bytes from strangers, ten minutes each, as many at once as there are
//! processors.
//!
//! Inputs that reach new code go to `target/fuzz/NAME`; `--keep` puts the smallest of them into the tree, where a test
//! runs each once.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{process, setup};

/// The targets, as `fuzz/src/lib.rs` has them.
const TARGETS: [&str; 6] = ["reference", "manifest", "pod", "tar", "spdy", "websocket"];

/// What makes the compiler count which code an input reaches; stable Rust has all of it. One unit, since the linker
/// would throw away counters of what several units have.
const COUNTERS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// The longest input: enough for several tar headers, and small in the tree.
const LONGEST: usize = 8192;

/// The longest input that is kept in the tree: a header of a tar.
const LONGEST_KEPT: usize = 512;

struct Options<'a> {
    targets: Vec<&'a str>,
    seconds: u64,
    keeps: bool,
}

/// Runs the targets named, or all of them.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let options = parse(words)?;
    setup::run()?;
    let driver = build()?;
    let mut waiting: VecDeque<&str> = options.targets.iter().copied().collect();
    let (mut running, mut failed): (Vec<(&str, Child)>, Vec<String>) = (Vec::new(), Vec::new());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    while !(waiting.is_empty() && running.is_empty()) {
        while running.len() < processors
            && let Some(name) = waiting.pop_front()
        {
            running.push((name, start(&driver, name, options.seconds)?));
        }
        let mut still = Vec::new();
        for (name, mut child) in running {
            match child.try_wait().context("cannot wait for a fuzzer")? {
                Some(status) => failed.extend(report(name, status.success())?),
                None => still.push((name, child)),
            }
        }
        running = still;
        std::thread::sleep(Duration::from_millis(200));
    }
    if options.keeps {
        for name in &options.targets {
            keep(&driver, name)?;
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
}

fn parse<'a>(words: &[&'a str]) -> Result<Options<'a>> {
    let mut options = Options { targets: Vec::new(), seconds: 600, keeps: false };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--seconds" => {
                let seconds = words.next().context("--seconds has a number")?;
                options.seconds = seconds.parse().with_context(|| format!("{seconds} is no number"))?;
            }
            "--keep" => options.keeps = true,
            name if TARGETS.contains(&name) => options.targets.push(name),
            other => bail!("no such target: {other} (there are {}; --seconds N, --keep)", TARGETS.join(", ")),
        }
    }
    if options.targets.is_empty() {
        options.targets = TARGETS.to_vec();
    }
    Ok(options)
}

fn folder() -> PathBuf {
    process::target_dir().join("fuzz")
}

fn build() -> Result<PathBuf> {
    let version = process::output(&mut process::command("rustc", ["-vV"]))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let target = folder().join("build");
    let driver = process::repository().join("fuzz/driver");
    // The versions that the workspace has; cargo adds that of libFuzzer's crate.
    std::fs::copy(process::repository().join("Cargo.lock"), driver.join("Cargo.lock"))
        .context("cannot copy Cargo.lock")?;
    let mut cargo = process::command("cargo", ["build", "--target", host, "--target-dir"]);
    cargo.arg(&target).env("RUSTC_WRAPPER", driver.join("counted")).env("CORACLE_FUZZ_COUNTERS", COUNTERS);
    process::run(cargo.current_dir(driver))?;
    Ok(target.join(host).join("debug/fuzz"))
}

fn command(driver: &Path, name: &str, longest: usize) -> Result<std::process::Command> {
    let found = folder().join(name);
    std::fs::create_dir_all(&found).with_context(|| format!("cannot create {}", found.display()))?;
    let mut command = process::command(&driver.display().to_string(), [""; 0]);
    command
        .env("CORACLE_FUZZ_TARGET", name)
        .arg(format!("-artifact_prefix={}/failed-{name}-", folder().display()))
        .arg(format!("-max_len={longest}"))
        // Nothing here may take long or much: a parser that does is as wrong as one that panics. Its time is the
        // clock's, of which a busy machine may take seconds.
        .args(["-timeout=30", "-rss_limit_mb=512", "-malloc_limit_mb=64", "-print_final_stats=1"]);
    Ok(command)
}

fn start(driver: &Path, name: &str, seconds: u64) -> Result<Child> {
    let path = log(name);
    let mut command = command(driver, name, LONGEST)?;
    let log = std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    println!("fuzzing {name} for {seconds} s; log in {}", path.display());
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(folder().join(name))
        .arg(corpus(name))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot start the fuzzer")
}

fn log(name: &str) -> PathBuf {
    folder().join(format!("{name}.log"))
}

fn corpus(name: &str) -> PathBuf {
    process::repository().join("fuzz/corpus").join(name)
}

/// Prints how it went, and returns what to look at if it went wrong.
fn report(name: &str, is_well: bool) -> Result<Option<String>> {
    let path = log(name);
    let text = String::from_utf8_lossy(&std::fs::read(&path).context("a fuzzer has no log")?).into_owned();
    let of = |field: &str| {
        let line = text.lines().rev().find_map(|line| line.strip_prefix(field));
        line.map_or("?".to_owned(), |value| value.trim_start_matches(':').trim().to_owned())
    };
    let inputs = std::fs::read_dir(folder().join(name)).map_or(0, Iterator::count);
    println!(
        "{name:<10} {} inputs tried, {inputs} found, peak {} MiB: {}",
        of("stat::number_of_executed_units"),
        of("stat::peak_rss_mb"),
        if is_well { "nothing wrong" } else { "FAILED" },
    );
    let reason = text.lines().find(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"));
    let reason = reason.unwrap_or("no reason told");
    Ok((!is_well)
        .then(|| format!("{name}: {reason}; its input is in {}, see {}", folder().display(), path.display())))
}

/// Puts what reaches code that the tree's corpus does not into the tree.
fn keep(driver: &Path, name: &str) -> Result<()> {
    let mut command = command(driver, name, LONGEST_KEPT)?;
    // How often code is reached is much to find by, and too much to keep.
    command
        .args(["-merge=1", "-use_counters=0"])
        .arg(corpus(name))
        .arg(folder().join(name))
        .stderr(Stdio::null());
    process::run(&mut command)
}
