//! `bench runtime`: `coracle cri` beside containerd with runc, both asked by the same client in the same run.
//!
//! Both have a machine of their own with the same network plugins and the same registry. The calls of both take turns.
//! Memory per pod is that of all processes that came with pods, the pods' own programs apart; that of the daemon
//! itself is a row of its own.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use coracle_integration_tests::cri::{Runtime, Stand};
use coracle_integration_tests::images::{self, EXAMPLE, PAUSE, PULLED};
use coracle_integration_tests::node::memory_kib;
use coracle_integration_tests::peers::{CNI, CRI_TOOLS, Peers, REFERENCE_NODE};
use serde_json::{Value, json};

use super::{Report, percentile};
use crate::{artifacts, critest, peers, process, setup};

/// Calls that a percentile of one pod at a time is taken from.
const ALONE: &str = "100";
/// Rounds of as many pods side by side.
const ROUNDS: &str = "5";
const SIDE: &str = "50";
/// Pods that memory is counted with.
const HELD: usize = 30;
const IMAGES: u32 = 50;

/// Runs the bench on this machine; `--no-critest` leaves the suite's own benchmarks out.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let with_critest = match words {
        [] => true,
        ["--no-critest"] => false,
        other => bail!("no such flags: {} (--no-critest)", other.join(" ")),
    };
    setup::for_suites()?;
    for names in [REFERENCE_NODE, CNI, CRI_TOOLS] {
        peers::ensure(names)?;
    }
    let built = artifacts::build_or_given()?;
    let client = client()?;
    let peers = Peers::new();
    images::write_for_pulls(&peers, &built.example, IMAGES)?;
    let ours = Stand::start(Runtime::Coracle(built))?;
    let reference = Stand::start(Runtime::Containerd)?;
    let mut stands = [ours, reference];
    for stand in &stands {
        make_log_folders(stand)?;
    }

    let mut report = Report::new("runtime");
    let mut times = timed(&client, &stands, "pods", PAUSE)?;
    times.extend(timed(&client, &stands, "pulls", PULLED)?);
    report.head();
    add_times(&mut report, &mut times)?;
    let [ours, reference] = [held(&client, &stands[0])?, held(&client, &stands[1])?];
    for ((measure, value), (_, other)) in ours.iter().zip(&reference) {
        report.add(measure, "MiB", HELD, *value, Some(*other));
    }
    if with_critest {
        let folder = process::target_dir().join("suites").join("critest");
        let suite = critest::prepare(&peers, &folder)?;
        let [ours, reference] = [own_benchmarks(&stands[0], &suite)?, own_benchmarks(&stands[1], &suite)?];
        for (measure, samples) in ours {
            let median = |mut samples: Vec<f64>| percentile(&mut samples, 50);
            let other = reference.get(&measure).cloned().map(median);
            report.add(&format!("critest_{measure}_ms_p50"), "ms", 1, median(samples), other);
        }
    }
    for stand in &mut stands {
        stand.machine.remove()?;
    }
    report.write()
}

/// As a kubelet makes them before it asks for containers.
fn make_log_folders(stand: &Stand) -> Result<()> {
    for number in 0..SIDE.parse::<usize>()?.max(HELD) {
        let folder = stand.machine.folder.join(format!("log/pods/bench-{number}/main"));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    Ok(())
}

/// Builds the client that both are asked by.
fn client() -> Result<PathBuf> {
    let arguments = ["build", "--profile=tools", "--quiet", "-p", "coracle-cri", "--example", "time_calls"];
    process::run(&mut process::command("cargo", arguments))?;
    Ok(process::target_dir().join("tools/examples/time_calls"))
}

/// Samples by measure, by how many calls were made side by side, and by runtime.
type Times = BTreeMap<(String, usize), BTreeMap<String, Vec<f64>>>;

fn timed(client: &Path, stands: &[Stand], what: &str, image: &str) -> Result<Times> {
    let runtimes = stands.iter().map(named);
    let arguments = [what, ALONE, ROUNDS, SIDE, image].map(str::to_owned).into_iter().chain(runtimes);
    let said = process::output(&mut process::command(&client.display().to_string(), arguments));
    let said = said.with_context(|| stands.iter().map(Stand::last_words).collect::<Vec<_>>().join("\n"))?;
    let mut times = Times::new();
    for line in said.lines() {
        let [runtime, measure, at, took] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("the client says {line:?}");
        };
        let of = times.entry((measure.to_owned(), at.parse()?)).or_default();
        of.entry(runtime.to_owned()).or_default().push(took.parse()?);
    }
    Ok(times)
}

fn named(stand: &Stand) -> String {
    format!("{}={}", stand.runtime.name(), stand.endpoint_from_outside())
}

fn add_times(report: &mut Report, times: &mut Times) -> Result<()> {
    for ((measure, at), of) in &mut *times {
        for percent in [50, 99] {
            let mut value = |name: &str| of.get_mut(name).map(|samples| percentile(samples, percent));
            let (ours, reference) = (value("coracle"), value("containerd"));
            report.pair(&format!("{measure}_p{percent}"), "ms", *at, ours, reference);
        }
    }
    ensure!(!times.is_empty(), "the client has timed nothing");
    Ok(())
}

/// What a process takes, in KiB.
#[derive(Clone, Copy, Default)]
struct Memory {
    shared_out: u64,
    private: u64,
    resident: u64,
}

/// The memory of a runtime that has pods: per pod, and of the daemon.
fn held(client: &Path, stand: &Stand) -> Result<Vec<(&'static str, f64)>> {
    let held = HELD.to_string();
    let mut command = Command::new(client);
    command.args(["hold", &held, EXAMPLE, &named(stand)]);
    let mut holder = Holder(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    let mut line = String::new();
    BufReader::new(holder.0.stdout.take().context("the client has an output")?).read_line(&mut line)?;
    ensure!(line.trim() == format!("{HELD} pods run"), "no pods to measure: {line:?}");
    // What making them needed is given back within this time, on either side.
    std::thread::sleep(std::time::Duration::from_secs(15));
    let name = stand.runtime.name();
    let daemon = stand.machine.pid_of(name).with_context(|| format!("{name} has ended"))?;
    let (mut of_pods, mut of_daemon) = (Memory::default(), Memory::default());
    for (pid, cgroup) in stand.machine.processes() {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let is_harness = ["/machine", "/registry"].iter().any(|part| cgroup.starts_with(part));
        let sum = match () {
            () if pid == daemon => &mut of_daemon,
            () if is_harness || program == Path::new("/example") => continue,
            () => &mut of_pods,
        };
        let memory = memory(pid);
        sum.shared_out += memory.shared_out;
        sum.private += memory.private;
        sum.resident += memory.resident;
    }
    drop(holder.0.stdin.take());
    let ended = holder.0.wait().context("cannot wait for the client")?;
    ensure!(ended.success(), "the client could not remove its pods: {}", stand.last_words());
    let per_pod = |kib: u64| kib as f64 / 1024.0 / HELD as f64;
    Ok(vec![
        ("pod_pss_mib", per_pod(of_pods.shared_out)),
        ("pod_private_mib", per_pod(of_pods.private)),
        ("pod_rss_mib", per_pod(of_pods.resident)),
        ("daemon_pss_mib", of_daemon.shared_out as f64 / 1024.0),
        ("daemon_private_mib", of_daemon.private as f64 / 1024.0),
    ])
}

fn memory(pid: u32) -> Memory {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let private = field("Private_Clean:") + field("Private_Dirty:");
    Memory { shared_out: memory_kib(pid).0, private, resident: field("Rss:") }
}

/// The client that holds pods; it ends with the bench.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// critest's own benchmarks of a runtime: samples by operation.
fn own_benchmarks(stand: &Stand, suite: &Path) -> Result<BTreeMap<String, Vec<f64>>> {
    let name = stand.runtime.name();
    let folder = process::target_dir().join("bench-runtime").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let parameters = folder.join("parameters.yaml");
    let text = json!({
        "containersNumber": 50, "containersNumberParallel": 1, "podsNumber": 50, "podsNumberParallel": 1,
        "imagesNumber": 20, "imagesNumberParallel": 1, "imagePullingBenchmarkImage": format!("{PULLED}0:1"),
        "imageListingBenchmarkImages": [format!("{PULLED}1:1"), format!("{PULLED}2:1")],
    });
    std::fs::write(&parameters, text.to_string()).context("cannot write critest's parameters")?;
    let output = stand
        .machine
        .command(suite)
        .arg("-benchmark")
        .arg(format!("-runtime-endpoint={}", stand.runtime.endpoint()))
        .arg(format!("-benchmarking-params-file={}", parameters.display()))
        .arg(format!("-benchmarking-output-dir={}", folder.display()))
        .args(["-ginkgo.no-color", "-ginkgo.timeout=20m"])
        .current_dir(&folder)
        .output()
        .context("cannot start critest")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "critest -benchmark on {name}: {said}\n{}", stand.last_words());
    results(&folder)
}

/// What the suite's files say: operations by name, with a duration in each sample.
fn results(folder: &Path) -> Result<BTreeMap<String, Vec<f64>>> {
    let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let file: Value = serde_json::from_slice(&std::fs::read(&path)?)
            .with_context(|| format!("{} is no JSON", path.display()))?;
        let names: Vec<&str> =
            file["operationsNames"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for sample in file["datapoints"].as_array().into_iter().flatten() {
            let took = sample["operationsDurationsNs"].as_array().into_iter().flatten();
            for (name, took) in names.iter().zip(took) {
                let took = took.as_f64().context("a duration is a number")? / 1e6;
                found.entry((*name).to_owned()).or_default().push(took);
            }
        }
    }
    Ok(found)
}
