//! `conformance`: Kubernetes' own conformance specs against nodes of ours and against the reference.
//!
//! Writes `target/suites/conformance-FOCUS.json`, `{"coracle": {"passed": [], "failed": [], "skipped": []},
//! "reference": {…}}`, and prints where the two differ.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use coracle_integration_tests::cluster::{Cluster, Kind, Lifetime, Options};
use coracle_integration_tests::images::{self, Set};
use coracle_integration_tests::peers::{CNI, CONFORMANCE, CONTROL_PLANE, Peers, REFERENCE_NODE};

use crate::{artifacts, peers, process, setup};

/// What the node must pass so far: what pods are, without exec, attach and port-forward.
const PODS: &str = r"\[sig-(node|storage)\] (Pods|Containers|Probing|Container Lifecycle Hook|InitContainer|ConfigMap|Secrets|Projected|Downward API|EmptyDir|HostPath|Variable Expansion)";

/// A cluster that runs already.
const KUBECONFIG: &str = "CORACLE_TEST_KUBECONFIG";

/// What the command line asks for.
struct Request<'a> {
    /// Names the file.
    name: String,
    /// What specs are chosen by.
    focus: String,
    nodes: usize,
    processes: &'a str,
    kinds: Vec<&'static str>,
}

/// Runs the specs on the kinds of node asked for.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let request = parse(words)?;
    ensure!(
        request.kinds.len() == 1 || std::env::var_os(KUBECONFIG).is_none(),
        "{KUBECONFIG} names one cluster: say with --node which kind of node it has"
    );
    setup::for_suites()?;
    for names in [CONTROL_PLANE, CONFORMANCE, CNI] {
        peers::ensure(names)?;
    }
    if request.kinds.iter().any(|kind| *kind != "coracle") {
        peers::ensure(REFERENCE_NODE)?;
    }
    images::write(&Peers::new(), Set::Conformance, None)?;
    let folder = process::target_dir().join("suites");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join(format!("conformance-{}.json", request.name));
    // What ran before stands beside what runs now: the reference changes only with its version.
    let mut results: Map<String, Value> =
        std::fs::read(&path).ok().and_then(|old| serde_json::from_slice(&old).ok()).unwrap_or_default();
    for kind in &request.kinds {
        results.insert((*kind).to_owned(), on(kind, &request)?);
        std::fs::write(&path, serde_json::to_vec_pretty(&results)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    show(&results);
    println!("written to {}", path.display());
    Ok(())
}

fn parse<'a>(words: &[&'a str]) -> Result<Request<'a>> {
    let (mut focus, mut nodes, mut processes, mut kinds) = (None, 1, "8", vec!["reference", "coracle"]);
    let mut rest = words.iter();
    while let Some(flag) = rest.next() {
        let value = *rest.next().with_context(|| format!("{flag} wants a value"))?;
        match *flag {
            "--focus" => focus = Some(value),
            "--nodes" => nodes = value.parse().with_context(|| format!("--nodes {value} is no number"))?,
            "--procs" => processes = value,
            "--node" if value == "reference" => kinds = vec!["reference"],
            "--node" if value == "coracle" => kinds = vec!["coracle"],
            "--node" if value == "coracle-on-containerd" => kinds = vec!["coracle-on-containerd"],
            _ => bail!(
                "no such flag: {flag} {value} (--focus, --nodes, --node coracle|coracle-on-containerd|reference, --procs)"
            ),
        }
    }
    let name = focus.unwrap_or("pods");
    let expression = match focus {
        None => PODS.to_owned(),
        Some(group) if group.starts_with("sig-") && group.chars().all(is_plain) => format!(r"\[{group}\]"),
        Some(expression) => expression.to_owned(),
    };
    let separated = |letter: char| if is_plain(letter) { letter } else { '-' };
    let name: Vec<String> =
        name.chars().map(separated).collect::<String>().split('-').map(str::to_owned).collect();
    let name = name.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    Ok(Request { name, focus: expression, nodes, processes, kinds })
}

/// Whether a letter means itself in an expression.
fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '-'
}

/// Runs the specs on a cluster of that kind of nodes.
fn on(kind: &str, request: &Request<'_>) -> Result<Value> {
    if let Some(kubeconfig) = std::env::var_os(KUBECONFIG) {
        return specs(Path::new(&kubeconfig), kind, request);
    }
    let kind_of_node = match kind {
        "reference" => Kind::Reference,
        "coracle-on-containerd" => {
            Kind::CoracleOnContainerd { executables: artifacts::build_or_given()?, flags: Vec::new() }
        }
        _ => Kind::Coracle { executables: artifacts::build_or_given()?, flags: Vec::new() },
    };
    let mut cluster =
        Cluster::start(&Options { lifetime: Lifetime::OfThisProcess, ..Options::of_test("conformance") })?;
    for number in 0..request.nodes {
        cluster.add_node(&format!("{kind}-{number}"), &kind_of_node)?;
    }
    println!("{} {kind} nodes are Ready; KUBECONFIG={}", request.nodes, cluster.kubeconfig().display());
    let results = specs(&cluster.kubeconfig(), kind, request);
    cluster.down()?;
    results
}

fn specs(kubeconfig: &Path, kind: &str, request: &Request<'_>) -> Result<Value> {
    let peers = Peers::new();
    let folder = process::target_dir().join("suites").join(format!("{}-{kind}", request.name));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let log = std::fs::File::create(folder.join("log")).context("cannot create the suite's log")?;
    println!("running the specs of {} on {kind}; log in {}", request.name, folder.join("log").display());
    let kubectl = peers.program("control-plane")?.with_file_name("kubectl");
    // The exit status says that a spec failed, which the report tells by name.
    Command::new(peers.program("ginkgo")?)
        .args([
            "--no-color",
            "--silence-skips",
            "--timeout=3h",
            "--label-filter=Conformance || NodeConformance",
        ])
        .arg(format!("--procs={}", request.processes))
        .arg(format!("--focus={}", request.focus))
        .arg(format!("--output-dir={}", folder.display()))
        .arg("--json-report=report.json")
        .arg(peers.program("e2e.test")?)
        .arg("--")
        .args(["--provider=skeleton", "--dump-logs-on-failure=false"])
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--kubectl-path={}", kubectl.display()))
        .arg(format!("--num-nodes={}", request.nodes))
        .current_dir(&folder)
        .env("KUBECONFIG", kubeconfig)
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone().context("cannot share the log")?)
        .stderr(log)
        .status()
        .context("cannot start ginkgo")?;
    results(&folder.join("report.json"))
}

/// The specs in ginkgo's report.
fn specs_of(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read(path).with_context(|| format!("the suite wrote no {}", path.display()))?;
    let report: Value = serde_json::from_slice(&text).context("the suite's report is no JSON")?;
    let suites = report.as_array().into_iter().flatten();
    Ok(suites.filter_map(|suite| suite["SpecReports"].as_array()).flatten().cloned().collect())
}

/// Whether a spec was skipped by itself. Those that the focus leaves out have not even been looked at.
fn is_skip(spec: &Value) -> bool {
    spec["LeafNodeType"] == "It" && spec["State"] == "skipped" && spec["Failure"]["Message"].is_string()
}

/// The specs of a report that were skipped, each with its reason.
pub(crate) fn skips(path: &Path) -> Result<Vec<(String, String)>> {
    let specs = specs_of(path)?;
    let reason = |spec: &Value| spec["Failure"]["Message"].as_str().unwrap_or_default().to_owned();
    let mut skips: Vec<_> =
        specs.iter().filter(|spec| is_skip(spec)).map(|spec| (name_of(spec), reason(spec))).collect();
    skips.sort_unstable();
    Ok(skips)
}

/// The results in ginkgo's report.
pub(crate) fn results(path: &Path) -> Result<Value> {
    let (mut passed, mut failed, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for spec in &specs_of(path)? {
        let is_spec = spec["LeafNodeType"] == "It";
        match spec["State"].as_str().unwrap_or_default() {
            "skipped" if is_skip(spec) => skipped.push(name_of(spec)),
            "skipped" | "pending" => {}
            "passed" if is_spec => passed.push(name_of(spec)),
            "passed" => {}
            _ => failed.push(name_of(spec)),
        }
    }
    ensure!(!passed.is_empty() || !failed.is_empty() || !skipped.is_empty(), "no spec has that focus");
    for list in [&mut passed, &mut failed, &mut skipped] {
        list.sort_unstable();
    }
    Ok(json!({"passed": passed, "failed": failed, "skipped": skipped}))
}

fn name_of(spec: &Value) -> String {
    let texts = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
    let mut words: Vec<&str> = texts.filter_map(Value::as_str).collect();
    words.extend(spec["LeafNodeText"].as_str());
    words.join(" ")
}

/// Prints the counts, and each spec that the two kinds do not agree on.
pub(crate) fn show(results: &Map<String, Value>) {
    let list = |kind: &str, state: &str| -> Vec<String> {
        let names = results.get(kind).and_then(|kind| kind[state].as_array());
        names.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    for kind in results.keys() {
        let counts = ["passed", "failed", "skipped"].map(|state| list(kind, state).len());
        println!("{kind:<10} {} passed, {} failed, {} skipped", counts[0], counts[1], counts[2]);
        for name in list(kind, "failed") {
            println!("  failed: {name}");
        }
    }
    if results.len() < 2 {
        return;
    }
    let (ours, reference) = (list("coracle", "passed"), list("reference", "passed"));
    for name in reference.iter().filter(|name| !ours.contains(name)) {
        println!("passes on the reference alone: {name}");
    }
    for name in ours.iter().filter(|name| !reference.contains(name)) {
        println!("passes on coracle alone: {name}");
    }
}
