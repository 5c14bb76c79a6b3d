//! `critest`: cri-tools' suite on containerd with runc and on `coracle cri`, one after the other.
//!
//! Writes `target/suites/critest.json` as `conformance` does, prints each skip with its reason and where the two
//! differ.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use coracle_integration_tests::cri::{Runtime, Stand};
use coracle_integration_tests::images;
use coracle_integration_tests::peers::{CNI, CRI_TOOLS, Peers};

use crate::{artifacts, conformance, peers, process, setup};

/// The digest that the suite pins of an image of its authors'. Nobody else can make one, so the suite is given that of
/// our stand-in, which has the same length.
const PINNED: &str = "9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

/// Runs the suite on the runtimes asked for; further words go to it.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let (names, further) = parse(words)?;
    setup::for_suites()?;
    for wanted in [CRI_TOOLS, CNI] {
        peers::ensure(wanted)?;
    }
    let peers = Peers::new();
    let folder = process::target_dir().join("suites").join("critest");
    let suite = prepare(&peers, &folder)?;
    // Chosen specs must not pass for the whole suite.
    let name = if further.is_empty() { "critest.json" } else { "critest-chosen.json" };
    let path = process::target_dir().join("suites").join(name);
    let mut results: Map<String, Value> =
        std::fs::read(&path).ok().and_then(|old| serde_json::from_slice(&old).ok()).unwrap_or_default();
    for name in names {
        let runtime = match name {
            "coracle" => Runtime::Coracle(artifacts::build_or_given()?),
            _ => Runtime::Containerd,
        };
        let report = on(runtime, &suite, &folder, &further)?;
        let kind = if name == "containerd" { "reference" } else { name };
        results.insert(kind.to_owned(), conformance::results(&report)?);
        std::fs::write(&path, serde_json::to_vec_pretty(&results)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        show_skips(kind, &report)?;
    }
    conformance::show(&results);
    println!("written to {}", path.display());
    Ok(())
}

fn parse<'a>(words: &[&'a str]) -> Result<(Vec<&'static str>, Vec<&'a str>)> {
    let (mut names, mut rest) = (vec!["containerd", "coracle"], words);
    while let [flag, value, more @ ..] = rest {
        match (*flag, *value) {
            ("--runtime", "containerd") => names = vec!["containerd"],
            ("--runtime", "coracle") => names = vec!["coracle"],
            ("--", _) => break,
            _ => bail!("no such flag: {flag} {value} (--runtime containerd|coracle, -- FLAGS of critest)"),
        }
        rest = more;
    }
    let further = rest.iter().skip_while(|word| **word == "--").copied().collect();
    Ok((names, further))
}

/// Writes the images that the suite pulls, and returns a copy of it that knows them.
pub(crate) fn prepare(peers: &Peers, folder: &Path) -> Result<PathBuf> {
    let digest = images::write_for_critest(peers, folder)?;
    with_digest(&peers.program("critest")?, folder, &digest)
}

/// A copy of the suite that knows the digest of our image.
fn with_digest(suite: &Path, folder: &Path, digest: &str) -> Result<PathBuf> {
    let mut program = std::fs::read(suite).with_context(|| format!("cannot read {}", suite.display()))?;
    ensure!(digest.len() == PINNED.len(), "{digest} is no digest");
    let at = program.windows(PINNED.len()).position(|bytes| bytes == PINNED.as_bytes());
    let at = at.context("this critest pins another image: look at its validate/consts.go")?;
    program[at..at + PINNED.len()].copy_from_slice(digest.as_bytes());
    let path = folder.join("critest");
    // A suite that still runs keeps its file.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, program).with_context(|| format!("cannot write {}", path.display()))?;
    process::run(process::command("chmod", ["0755"]).arg(&path))?;
    Ok(path)
}

/// Runs the suite on a runtime, and returns where its report is.
fn on(runtime: Runtime, suite: &Path, folder: &Path, further: &[&str]) -> Result<PathBuf> {
    let name = runtime.name();
    let report = folder.join(format!("{name}.json"));
    let log_path = folder.join(format!("{name}.log"));
    let _ = std::fs::remove_file(&report);
    let log = std::fs::File::create(&log_path).context("cannot create the suite's log")?;
    let mut stand = Stand::start(runtime)?;
    println!("running critest on {name}; log in {}", log_path.display());
    // The exit status says that a spec failed, which the report tells by name.
    stand
        .machine
        .command(suite)
        .arg(format!("-runtime-endpoint={}", stand.runtime.endpoint()))
        .arg(format!("-ginkgo.json-report={}", report.display()))
        .args(["-ginkgo.no-color", "-ginkgo.timeout=1h"])
        .args(further)
        .current_dir(folder)
        .stdout(log.try_clone().context("cannot share the log")?)
        .stderr(log)
        .status()
        .context("cannot start critest")?;
    let said = folder.join(format!("{name}.runtime.log"));
    std::fs::copy(stand.machine.log_of(name), &said).context("cannot keep what the runtime said")?;
    stand.machine.remove()?;
    Ok(report)
}

fn show_skips(kind: &str, report: &Path) -> Result<()> {
    for (name, reason) in conformance::skips(report)? {
        println!("{kind} skips: {name}: {reason}");
    }
    Ok(())
}
