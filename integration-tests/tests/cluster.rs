//! The harness itself: a control plane and the reference node come, run pods, and leave nothing behind.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves them out.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::time::Duration;

use coracle_integration_tests::cluster::{Cluster, Kind, Options};
use coracle_integration_tests::images::{self, PAUSE, Set};
use coracle_integration_tests::peers::Peers;
use serde_json::json;

const PODS: &str = "/api/v1/namespaces/default/pods";
const LIMIT: Duration = Duration::from_secs(120);

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
