//! The harness itself: a control plane and the reference node come, run pods, and leave nothing behind.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves them out.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coracle_integration_tests::cluster::{Cluster, Kind, Options};
use coracle_integration_tests::images::{self, PAUSE, Set};
use coracle_integration_tests::peers::Peers;
use coracle_integration_tests::target_dir;
use serde_json::json;

const PODS: &str = "/api/v1/namespaces/default/pods";
const LIMIT: Duration = Duration::from_secs(120);

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The example programs that need a cluster, on a real one: one reports a node, the other watches nodes.
#[test]
fn a_program_reports_a_node_and_a_controller_sees_it_become_ready() {
    let cluster = Cluster::start(&Options::of_test("examples")).unwrap();
    let folder = target_dir().join(format!("examples-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let proxy =
        cluster.kubectl().unwrap().args(["proxy", "--port=0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut proxy = Running(proxy);
    let mut line = String::new();
    BufReader::new(proxy.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().rsplit(' ').next().unwrap().to_owned();
    let said = folder.join("controller");
    let controller = Command::new(target_dir().join("debug/node_readiness"))
        .arg(format!("http://{address}"))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let controller = Running(controller);

    let join = &cluster.join;
    let reported = Command::new(target_dir().join("debug/report_node"))
        .args([&join.server, &join.token, &join.ca_cert_hash, "gateway-7"])
        .env("BASE", folder.join("node"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&reported.stdout).into_owned();
    assert!(
        reported.status.success() && text.starts_with("gateway-7 is Ready with "),
        "{text}{}",
        String::from_utf8_lossy(&reported.stderr)
    );
    let node = cluster.api.get("/api/v1/nodes/gateway-7").unwrap();
    let taints = node["spec"]["taints"].as_array().unwrap();
    assert!(taints.iter().any(|taint| taint["key"] == "example.com/no-pods"), "{node:#}");
    assert!(text.contains(node["status"]["capacity"]["cpu"].as_str().unwrap()), "{text}{node:#}");
    let noted = |node: &serde_json::Value| node["metadata"]["annotations"]["example.com/was-ready"] == "true";
    let shown = || std::fs::read_to_string(&said).unwrap_or_default();
    let path = "/api/v1/nodes/gateway-7";
    cluster.wait("the controller notes it", LIMIT, |api| Ok(noted(&api.get(path)?)), shown).unwrap();
    assert!(shown().ends_with("gateway-7 Ready\n"), "{}", shown());
    drop((controller, proxy));
    std::fs::remove_dir_all(&folder).unwrap();
    cluster.down().unwrap();
}

#[test]
fn a_pod_of_a_deployment_runs_on_the_reference_node() {
    images::write(&Peers::new(), Set::Basic, None).unwrap();
    let mut cluster = Cluster::start(&Options::of_test("reference")).unwrap();
    cluster.add_node("one", &Kind::Reference).unwrap();
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "pause"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "pause"}},
            "template": {
                "metadata": {"labels": {"app": "pause"}},
                "spec": {"containers": [{"name": "main", "image": PAUSE}]},
            },
        },
    });
    cluster.api.create("/apis/apps/v1/namespaces/default/deployments", &deployment).unwrap();
    let shown = || cluster.node("one").unwrap().last_words();
    let is_running = |pod: &serde_json::Value| pod["status"]["phase"] == "Running";
    cluster
        .wait(
            "two pods run",
            LIMIT,
            |api| {
                let pods = api.get(PODS)?;
                Ok(pods["items"]
                    .as_array()
                    .is_some_and(|all| all.iter().filter(|pod| is_running(pod)).count() == 2))
            },
            shown,
        )
        .unwrap();
    let nodes = cluster.ask(&["get", "nodes", "--no-headers"]).unwrap();
    assert!(nodes.contains("Ready") && nodes.contains("v1.36"), "{nodes}");

    cluster.kill_api_server().unwrap();
    assert!(cluster.api.get("/version").is_err(), "a killed API server answers");
    cluster.start_api_server().unwrap();
    assert_eq!(cluster.api.get(PODS).unwrap()["items"].as_array().map(Vec::len), Some(2));

    let (name, folder) = (cluster.name.clone(), cluster.control_plane().folder.clone());
    cluster.down().unwrap();
    assert!(!folder.exists() && !Cluster::names().contains(&name), "{name} has left {}", folder.display());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    for line in
        mounts.lines().filter(|line| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup")))
    {
        let root = line.split(' ').nth(1).unwrap();
        let left = std::fs::read_dir(root).unwrap().flatten().map(|entry| entry.file_name());
        let left: Vec<_> = left.filter(|entry| entry.to_string_lossy().contains(&name)).collect();
        assert!(left.is_empty(), "{root} still has {left:?}");
    }
}
