//! `bench local`: pods from a folder, without a cluster.
//!
//! Each pod's program writes a mark when it runs, so that a start is timed by file times alone, from the
//! manifest's appearance to the mark, with nothing polling the agent meanwhile.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};

use super::{Report, percentile};
use coracle_integration_tests::node::{self, Node};
use coracle_integration_tests::{Executables, example_image};

use crate::{artifacts, process, setup};

/// Single starts that a percentile is taken from.
const STARTS: usize = 40;

/// Runs the bench on this machine.
pub(crate) fn run() -> Result<()> {
    setup::for_demo()?;
    let built = artifacts::build_or_given()?;
    let folder = process::target_dir().join("bench-local");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let archive = folder.join("example.tar");
    example_image::write(&built.example, &archive)?;
    let mut report = Report::new("local");
    report.head();
    for pods in [10, 30, 100] {
        burst(&mut report, &built, &archive, pods, Network::Host)?;
    }
    burst(&mut report, &built, &archive, 100, Network::Cni)?;
    for network in [Network::Host, Network::Cni] {
        single_starts(&mut report, &built, &archive, network)?;
    }
    report.write()
}

#[derive(Clone, Copy, PartialEq)]
enum Network {
    Host,
    Cni,
}

impl Network {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "host-network",
            Self::Cni => "cni",
        }
    }
}

/// A node on an empty folder, with a folder for marks.
struct Bench {
    node: Node,
    marks: PathBuf,
}

impl Bench {
    fn start(built: &Executables, archive: &Path) -> Result<Self> {
        let base = process::target_dir().join("bench-local");
        let (manifests, marks) = (base.join("manifests"), base.join("marks"));
        for folder in [&manifests, &marks] {
            let _ = std::fs::remove_dir_all(folder);
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(Self { node: Node::start(built, "bench-local", &manifests, archive)?, marks })
    }

    /// Puts a manifest into the folder in one step and returns when that was.
    fn add(&self, name: &str, network: Network) -> Result<SystemTime> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  hostNetwork: {}\n  \
             terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {}\n    \
             args: [mark, /marks/{name}]\n    resources: {{requests: {{cpu: 1m, memory: 1Mi}}, limits: {{memory: 16Mi}}}}\n    \
             volumeMounts: [{{name: marks, mountPath: /marks}}]\n  volumes:\n  \
             - {{name: marks, hostPath: {{path: {}}}}}\n",
            network == Network::Host,
            example_image::NAME,
            self.marks.display(),
        );
        let draft = self.node.manifests.join(format!(".{name}"));
        std::fs::write(&draft, text)?;
        let now = SystemTime::now();
        std::fs::rename(&draft, self.node.manifests.join(format!("{name}.yaml")))?;
        Ok(now)
    }

    fn marked(&self, name: &str) -> Option<SystemTime> {
        std::fs::metadata(self.marks.join(name)).ok()?.modified().ok()
    }
}

fn burst(
    report: &mut Report,
    built: &Executables,
    archive: &Path,
    pods: usize,
    network: Network,
) -> Result<()> {
    let mut bench = Bench::start(built, archive)?;
    let start = Instant::now();
    for number in 0..pods {
        bench.add(&format!("pod-{number}"), network)?;
    }
    bench.node.wait("all pods run", Duration::from_secs(120), |node| {
        // Asked seldom, since two cores do all of it.
        std::thread::sleep(Duration::from_millis(100));
        Ok(node.running()? == pods)
    })?;
    let took = start.elapsed().as_secs_f64();
    if network == Network::Cni {
        report.add("burst_s", "s", format!("{pods} cni"), took, None);
        return bench.node.stop();
    }
    report.add("burst_s", "s", pods, took, None);
    idle(report, &bench.node, pods)?;
    bench.node.stop()
}

/// What the node needs while nothing happens for a minute.
fn idle(report: &mut Report, node: &Node, pods: usize) -> Result<()> {
    std::thread::sleep(Duration::from_secs(15));
    let own = node.own_processes()?;
    let sum = |measure: fn(u32) -> u64| own.iter().map(|pid| measure(*pid)).sum::<u64>();
    let (cpu, written, newest) = (sum(node::cpu_ns), sum(node::written_bytes), newest_change(&node.disk));
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(60));
    let elapsed = start.elapsed().as_nanos() as f64;
    let cpu = (sum(node::cpu_ns) - cpu) as f64 / elapsed * 100.0;
    let mut written = sum(node::written_bytes) - written;
    if written == 0 && newest_change(&node.disk) != newest {
        // Something wrote through another process or a mapping; count at least that it did.
        written = 1;
    }
    report.add("pss_mib", "MiB", pods, sum(node::pss_kib) as f64 / 1024.0, None);
    report.add("idle_cpu_pct", "% of a core", pods, cpu, None);
    report.add("idle_write_bytes", "bytes", pods, written as f64, None);
    Ok(())
}

/// The latest modification below a folder, the agent's own log apart.
fn newest_change(folder: &Path) -> Option<SystemTime> {
    let mut newest = None;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).ok()?.flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            if entry.file_name() != "agent.log" {
                newest = newest.max(metadata.modified().ok());
            }
        }
    }
    newest
}

fn single_starts(report: &mut Report, built: &Executables, archive: &Path, network: Network) -> Result<()> {
    let mut bench = Bench::start(built, archive)?;
    let mut samples = Vec::new();
    for number in 0..STARTS {
        let name = format!("single-{number}");
        let begun = bench.add(&name, network)?;
        let marks = bench.marks.clone();
        bench.node.wait("the pod runs", Duration::from_secs(20), |_| Ok(marks.join(&name).exists()))?;
        let marked = bench.marked(&name).context("a mark vanished")?;
        samples.push(marked.duration_since(begun).unwrap_or_default().as_secs_f64() * 1000.0);
        std::fs::remove_file(bench.node.manifests.join(format!("{name}.yaml")))?;
        bench.node.wait("the pod is gone", Duration::from_secs(20), |node| Ok(node.pods()?.is_empty()))?;
    }
    report.add("start_ms_p50", "ms", network.name(), percentile(&mut samples, 50), None);
    report.add("start_ms_p99", "ms", network.name(), percentile(&mut samples, 99), None);
    bench.node.stop()
}
