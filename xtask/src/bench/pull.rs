//! `bench pull`: pull and unpack of a 200 MB image from a registry on loopback, ours and Debian's containerd in
//! turn, both asked over their sockets; then once more ours with 20 connections cut.
//!
//! Memory is that of the agent and its workers on our side, of containerd on the other, the most that was seen at once
//! of samples every 20 ms: all of it (PSS, so that pages of the executable count once), and what no file stands
//! behind (anonymous), which the kernel cannot take back under pressure.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coracle_integration_tests::example_image;
use coracle_integration_tests::node::{Node, Options, memory_kib};

use super::{Report, percentile};
use crate::{artifacts, process, setup};

const MEBIBYTES: &str = "200";
const CUTS: &str = "20";
const ROUNDS: usize = 3;
/// What starting needed is no part of a pull: both come to rest first.
const REST: Duration = Duration::from_secs(15);

/// Runs the bench on this machine.
pub(crate) fn run() -> Result<()> {
    setup::run()?;
    let built = artifacts::build_or_given()?;
    let tools = process::target_dir().join("tools");
    process::run(&mut process::command(
        "cargo",
        [
            "build",
            "--profile=tools",
            "--quiet",
            "-p",
            "coracle-runtime",
            "--features",
            "testing",
            "--example",
            "bench_registry",
        ],
    ))?;
    process::run(&mut process::command(
        "cargo",
        ["build", "--profile=tools", "--quiet", "-p", "coracle-examples", "--bin", "cri_pull"],
    ))?;
    let folder = process::target_dir().join("bench-pull");
    let manifests = folder.join("manifests");
    std::fs::create_dir_all(&manifests).with_context(|| format!("cannot create {}", manifests.display()))?;
    let archive = folder.join("example.tar");
    example_image::write(&built.example, &archive)?;

    let options = Options { on_host_network: true, ..Options::default() };
    let start = || Node::start_with(&built, "bench-pull", &manifests, &archive, options.clone());
    let registry = Registry::start(&tools, "0")?;
    let image = format!("{}/bench:1", registry.host);
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    for _ in 0..ROUNDS {
        let node = start()?;
        std::thread::sleep(REST);
        ours.add(watch(&[node.agent_pid()], || node.ask(&["images", "pull", &image]))?);
        node.stop()?;
        let containerd = Containerd::start(&folder)?;
        std::thread::sleep(REST);
        let pull =
            || process::output(Command::new(tools.join("cri_pull")).args([&containerd.endpoint(), &image]));
        theirs.add(watch(&[containerd.child.id()], pull)?);
    }
    let mut report = Report::new("pull");
    report.head();
    report.add("pull_s", "s", "200 MiB", ours.seconds(), Some(theirs.seconds()));
    report.add("pull_peak_mib", "MiB", "200 MiB", mebibytes(&mut ours.pss), Some(mebibytes(&mut theirs.pss)));
    let (held, theirs_held) = (mebibytes(&mut ours.anonymous), mebibytes(&mut theirs.anonymous));
    report.add("pull_peak_anonymous_mib", "MiB", "200 MiB", held, Some(theirs_held));
    drop(registry);

    let registry = Registry::start(&tools, CUTS)?;
    let node = start()?;
    let begun = Instant::now();
    let told = node.ask(&["images", "pull", &format!("{}/bench:1", registry.host)])?;
    ensure!(told.contains(&registry.id), "the pull that was cut gave {told:?}, not {}", registry.id);
    report.add("pull_cut_s", "s", "20 cuts", begun.elapsed().as_secs_f64(), None);
    node.stop()?;
    report.write()
}

/// What a side needed in each round.
#[derive(Default)]
struct Side {
    seconds: Vec<f64>,
    pss: Vec<f64>,
    anonymous: Vec<f64>,
}

impl Side {
    fn add(&mut self, (seconds, peak): (f64, Memory)) {
        self.seconds.push(seconds);
        self.pss.push(peak.pss_kib as f64);
        self.anonymous.push(peak.anonymous_kib as f64);
    }

    fn seconds(&mut self) -> f64 {
        percentile(&mut self.seconds, 50)
    }
}

/// The median of rounds in KiB, as MiB.
fn mebibytes(kib: &mut [f64]) -> f64 {
    percentile(kib, 50) / 1024.0
}

/// What some processes hold at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    pss_kib: u64,
    anonymous_kib: u64,
}

impl Memory {
    fn of(pids: &[u32]) -> Self {
        let (pss_kib, anonymous_kib) =
            pids.iter().map(|pid| memory_kib(*pid)).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        Self { pss_kib, anonymous_kib }
    }

    fn max(self, other: Self) -> Self {
        Self {
            pss_kib: self.pss_kib.max(other.pss_kib),
            anonymous_kib: self.anonymous_kib.max(other.anonymous_kib),
        }
    }
}

/// Runs `work` and returns how long it took and the peak of all processes below `roots`.
fn watch<T>(roots: &[u32], work: impl FnOnce() -> Result<T>) -> Result<(f64, Memory)> {
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = Memory::default();
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                peak = peak.max(Memory::of(&descendants(roots)));
                std::thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        let peak = sampler.join().unwrap_or_default();
        result.map(|_| (seconds, peak))
    })
}

fn descendants(roots: &[u32]) -> Vec<u32> {
    let mut all = roots.to_vec();
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        at += 1;
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    all
}

/// The registry of the bench; ends when its input does, so also when this process is killed.
struct Registry {
    child: Child,
    host: String,
    id: String,
}

impl Registry {
    fn start(tools: &Path, cuts: &str) -> Result<Self> {
        let mut child = Command::new(tools.join("examples/bench_registry"))
            .args([MEBIBYTES, cuts])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the registry")?;
        let mut line = String::new();
        let out = child.stdout.take().context("the registry has an output")?;
        BufReader::new(out).read_line(&mut line).context("the registry says nothing")?;
        let Some((host, id)) = line.trim().split_once(' ') else { bail!("the registry says {line:?}") };
        Ok(Self { host: host.to_owned(), id: id.to_owned(), child })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Debian's containerd with folders of its own.
struct Containerd {
    child: Child,
    folder: PathBuf,
}

impl Containerd {
    fn start(base: &Path) -> Result<Self> {
        let folder = base.join("containerd");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let config = folder.join("config.toml");
        std::fs::write(
            &config,
            format!(
                "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n[grpc]\naddress = \"{0}/sock\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\"]\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n",
                folder.display()
            ),
        )?;
        let log = std::fs::File::create(folder.join("log"))?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("cannot start containerd")?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(folder.join("sock")).is_err() {
            if Instant::now() > deadline || child.try_wait()?.is_some() {
                bail!("containerd does not start; see {}", folder.join("log").display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { child, folder })
    }

    fn endpoint(&self) -> String {
        format!("unix://{}", self.folder.join("sock").display())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
