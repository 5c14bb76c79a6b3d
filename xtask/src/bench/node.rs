//! `bench node`: a joined node of ours beside the reference (kubelet, containerd, runc), on the same control plane
//! programs in the same run.
//!
//! Counted is everything on the node that is neither a pod's own process nor kube-proxy: agent or kubelet and
//! containerd, shims, pause. Both kinds run one after the other, each on a fresh cluster of its own. A pod's start is
//! timed from the request that creates it, already bound to the node, to a file that its program writes. A join is
//! timed from the start of the node's processes, with the making of its namespaces, until the API calls it Ready; a
//! restart from the agent's or kubelet's start until it has said so anew.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Report, percentile};
use coracle_integration_tests::cluster::{self, Cluster, Kind, Node, Options};
use coracle_integration_tests::images::{self, EXAMPLE, Set};
use coracle_integration_tests::node::{cpu_ns, pss_kib, written_bytes};
use coracle_integration_tests::peers::{CNI, CONTROL_PLANE, Peers, REFERENCE_NODE};

use crate::{artifacts, peers, setup};

/// Single starts that a percentile is taken from.
const STARTS: usize = 30;
/// Restarts of agent or kubelet that a median is taken from.
const RESTARTS: usize = 5;
const NAMESPACE: &str = "/api/v1/namespaces/default/pods";
const NODE: &str = "/api/v1/nodes/node";
const LIMIT: Duration = Duration::from_secs(600);

/// A measure, its unit, where it was taken, and its value.
type Measure = (&'static str, &'static str, usize, f64);

/// Runs the bench on both kinds of node, or the one named.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let kinds = match words {
        [] => vec!["reference", "coracle"],
        ["--node", kind @ ("reference" | "coracle")] => vec![*kind],
        other => bail!("no such flags: {} (--node coracle|reference)", other.join(" ")),
    };
    setup::for_demo()?;
    for names in [CONTROL_PLANE, CNI, REFERENCE_NODE] {
        peers::ensure(names)?;
    }
    let built =
        if kinds.contains(&"coracle") { artifacts::build_or_given()? } else { artifacts::build_small()? };
    images::write(&Peers::new(), Set::Basic, Some(&built.example))?;
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    for kind in kinds {
        println!("measuring a {kind} node");
        if kind == "reference" {
            reference = Bench::start(&Kind::Reference)?.measure()?;
        } else {
            ours =
                Bench::start(&Kind::Coracle { executables: built.clone(), flags: Vec::new() })?.measure()?;
        }
    }
    let mut report = Report::new("node");
    report.head();
    let longer = if ours.is_empty() { &reference } else { &ours };
    for (measure, unit, at, _) in longer {
        let of = |all: &[Measure]| all.iter().find(|row| row.0 == *measure && row.2 == *at).map(|row| row.3);
        report.pair(measure, unit, *at, of(&ours), of(&reference));
    }
    report.write()
}

/// A cluster with one node, empty of pods at first.
struct Bench {
    cluster: Cluster,
    marks: PathBuf,
    measures: Vec<Measure>,
    pods: usize,
}

impl Bench {
    fn start(kind: &Kind) -> Result<Self> {
        let mut cluster = Cluster::start(&Options::of_test("bench"))?;
        let begun = Instant::now();
        cluster.add_node("node", kind)?;
        let joined = begun.elapsed();
        let marks = cluster.node("node")?.machine.folder.join("lib/node/marks");
        std::fs::create_dir_all(&marks).with_context(|| format!("cannot create {}", marks.display()))?;
        count_bytes(&cluster)?;
        let mut bench = Self { cluster, marks, measures: Vec::new(), pods: 0 };
        bench.add("join_s", "s", 0, joined.as_secs_f64());
        Ok(bench)
    }

    fn measure(mut self) -> Result<Vec<Measure>> {
        // The image is fetched once, before anything is timed.
        self.burst(1)?;
        self.delete()?;
        self.image_is_reported()?;
        self.idle()?;
        let took = self.burst(10)?;
        self.add("burst_s", "s", 10, took.as_secs_f64());
        self.idle()?;
        self.burst(20)?;
        self.idle()?;
        self.delete()?;
        let took = self.burst(70)?;
        self.add("burst_s", "s", 70, took.as_secs_f64());
        self.burst(30)?;
        self.idle()?;
        let took = self.delete()?;
        self.add("delete_s", "s", 100, took.as_secs_f64());
        self.single_starts()?;
        self.restarts()?;
        self.cluster.down()?;
        Ok(self.measures)
    }

    fn add(&mut self, measure: &'static str, unit: &'static str, at: usize, value: f64) {
        println!("  {measure:<20} {at:>4} {value:>12.2} {unit}");
        self.measures.push((measure, unit, at, value));
    }

    fn node(&self) -> Result<&Node> {
        self.cluster.node("node")
    }

    /// Creates a pod that is bound to the node already, and says when the request was sent.
    fn create(&self, name: &str) -> Result<SystemTime> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "bench"}},
            "spec": {
                "nodeName": "node",
                "terminationGracePeriodSeconds": 5,
                "containers": [{
                    "name": "main", "image": EXAMPLE, "args": ["mark", format!("/marks/{name}")],
                    "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"memory": "16Mi"}},
                    "volumeMounts": [{"name": "marks", "mountPath": "/marks"}],
                }],
                "volumes": [{"name": "marks", "hostPath": {"path": "/var/lib/node/marks"}}],
            },
        });
        let sent = SystemTime::now();
        self.cluster.api.create(NAMESPACE, &pod)?;
        Ok(sent)
    }

    /// Adds pods all at once, and waits until the API says that each runs.
    fn burst(&mut self, count: usize) -> Result<Duration> {
        let start = Instant::now();
        for number in self.pods..self.pods + count {
            self.create(&format!("pod-{number}"))?;
        }
        self.pods += count;
        let wanted = self.pods;
        self.wait("all pods run", |pods| pods.iter().filter(|pod| runs(pod)).count() == wanted)?;
        Ok(start.elapsed())
    }

    /// Deletes all pods and waits until the API has none.
    fn delete(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.cluster.api.delete(NAMESPACE)?;
        self.wait("no pod is left", <[Value]>::is_empty)?;
        self.pods = 0;
        Ok(start.elapsed())
    }

    /// Waits until the Node names the image, which is told once and belongs to no idle minute.
    fn image_is_reported(&self) -> Result<()> {
        let node = self.node()?;
        let reported = |api: &coracle_integration_tests::cluster::api::Api| {
            let images = &api.get("/api/v1/nodes/node")?["status"]["images"];
            let mut names =
                images.as_array().into_iter().flatten().flat_map(|image| image["names"].as_array());
            Ok(names.any(|names| names.iter().any(|name| name.as_str() == Some(EXAMPLE))))
        };
        self.cluster.wait("the Node names the image", LIMIT, reported, || node.last_words()).map(drop)
    }

    /// Asks seldom, since two cores do all of it.
    fn wait(&self, what: &str, predicate: impl Fn(&[Value]) -> bool) -> Result<()> {
        let node = self.node()?;
        let look = |api: &coracle_integration_tests::cluster::api::Api| {
            std::thread::sleep(Duration::from_millis(100));
            let list = api.get(NAMESPACE)?;
            Ok(list["items"].as_array().is_some_and(|pods| predicate(pods)))
        };
        self.cluster.wait(what, LIMIT, look, || node.last_words()).map(drop)
    }

    /// What the node needs while nothing happens for a minute.
    fn idle(&mut self) -> Result<()> {
        std::thread::sleep(Duration::from_secs(20));
        let before = Sample::take(&self.cluster, self.node()?)?;
        let start = Instant::now();
        std::thread::sleep(Duration::from_secs(60));
        let elapsed = start.elapsed().as_secs_f64();
        let after = Sample::take(&self.cluster, self.node()?)?;
        let at = self.pods;
        self.add("pss_mib", "MiB", at, after.pss_kib as f64 / 1024.0);
        let cpu = after.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e9 / elapsed * 100.0;
        self.add("idle_cpu_pct", "% of a core", at, cpu);
        self.add("idle_write_bytes", "bytes", at, after.written.saturating_sub(before.written) as f64);
        let bytes = after.api_bytes.saturating_sub(before.api_bytes) as f64;
        self.add("api_kib_min", "KiB/min", at, bytes / 1024.0 / elapsed * 60.0);
        Ok(())
    }

    /// Kills and starts what speaks to the API server, which meanwhile says that the node is unknown to it.
    fn restarts(&mut self) -> Result<()> {
        let mut samples = Vec::new();
        for _ in 0..RESTARTS {
            let machine = &self.node()?.machine;
            let service = if machine.pid_of("kubelet").is_some() { "kubelet" } else { "coracle" };
            machine.kill_service(service)?;
            let mut node = self.cluster.api.get(NODE)?;
            for condition in node["status"]["conditions"].as_array_mut().into_iter().flatten() {
                if condition["type"] == "Ready" {
                    condition["status"] = "Unknown".into();
                }
            }
            let patch = json!({ "status": { "conditions": node["status"]["conditions"] } });
            self.cluster.api.merge(&format!("{NODE}/status"), &patch)?;
            let begun = Instant::now();
            machine.start_service_again(service)?;
            self.cluster.wait(
                "the node is Ready again",
                LIMIT,
                |api| Ok(cluster::is_true(&api.get(NODE)?, "Ready")),
                || machine.last_words(service, 20),
            )?;
            samples.push(begun.elapsed().as_secs_f64());
        }
        let p50 = percentile(&mut samples, 50);
        self.add("restart_s", "s", 0, p50);
        Ok(())
    }

    fn single_starts(&mut self) -> Result<()> {
        let mut samples = Vec::new();
        for number in 0..STARTS {
            let name = format!("single-{number}");
            let sent = self.create(&name)?;
            let mark = self.marks.join(&name);
            let node = self.node()?;
            self.cluster.wait(
                "the pod's program runs",
                LIMIT,
                |_| Ok(mark.exists()),
                || node.last_words(),
            )?;
            let marked =
                std::fs::metadata(&mark).and_then(|mark| mark.modified()).context("a mark vanished")?;
            samples.push(marked.duration_since(sent).unwrap_or_default().as_secs_f64() * 1000.0);
            self.delete()?;
        }
        let (p50, p99) = (percentile(&mut samples, 50), percentile(&mut samples, 99));
        self.add("start_ms_p50", "ms", 1, p50);
        self.add("start_ms_p99", "ms", 1, p99);
        Ok(())
    }
}

fn runs(pod: &Value) -> bool {
    let containers = pod["status"]["containerStatuses"].as_array();
    pod["status"]["phase"] == "Running"
        && containers.is_some_and(|all| all.iter().all(|container| container["ready"] == true))
}

/// What the node has taken so far.
struct Sample {
    pss_kib: u64,
    cpu_ns: u64,
    written: u64,
    api_bytes: u64,
}

impl Sample {
    fn take(cluster: &Cluster, node: &Node) -> Result<Self> {
        let own = own_processes(node);
        let sum = |measure: fn(u32) -> u64| own.iter().map(|pid| measure(*pid)).sum::<u64>();
        let (pss_kib, cpu_ns, written) = (sum(pss_kib), sum(cpu_ns), sum(written_bytes));
        Ok(Self { pss_kib, cpu_ns, written, api_bytes: api_bytes(cluster)? })
    }
}

/// The processes of the node that are neither a pod's own nor the harness's.
fn own_processes(node: &Node) -> Vec<u32> {
    let is_own = |(pid, cgroup): &(u32, String)| {
        let harness = ["/machine", "/kube-proxy"].iter().any(|part| cgroup.starts_with(part));
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        !harness && program != Path::new("/example")
    };
    node.machine.processes().into_iter().filter(is_own).map(|(pid, _)| pid).collect()
}

/// Counts what goes between the node and the API server; kube-proxy has an address of the server's to itself.
fn count_bytes(cluster: &Cluster) -> Result<()> {
    let (server, node) = (cluster.network.control_plane(), cluster.network.node(0));
    let rules = format!(
        "table ip bench {{\n counter api {{ }}\n chain in {{ type filter hook input priority 0; ip saddr {node} ip daddr \
         {server} tcp dport 6443 counter name api; }}\n chain out {{ type filter hook output priority 0; ip saddr \
         {server} ip daddr {node} tcp sport 6443 counter name api; }}\n}}"
    );
    cluster.control_plane().run(&["nft", &rules]).map(drop)
}

fn api_bytes(cluster: &Cluster) -> Result<u64> {
    let text = cluster.control_plane().run(&["nft", "-j", "list", "counter", "ip", "bench", "api"])?;
    let answer: Value = serde_json::from_str(&text).context("nft answers no JSON")?;
    let parts = answer["nftables"].as_array().into_iter().flatten();
    parts.filter_map(|part| part["counter"]["bytes"].as_u64()).next().context("nft has lost its counter")
}
