//! The Node's tasks against a scripted API server and a runtime that is a fake.

use std::time::Duration;

use coracle_cluster::testing::FakeApi;
use coracle_cri::testing::FakeRuntime;
use serde_json::{Value, json};

use super::super::*;
use crate::events::EventRecorder;

const NODES: &str = "/api/v1/nodes";
const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";
const NAME: &str = "gateway-7";

struct World {
    api: FakeApi,
    runtime: FakeRuntime,
    events: EventRecorder,
}

impl World {
    async fn new() -> Self {
        let clock = Clock::system();
        Self {
            api: FakeApi::start().await,
            runtime: FakeRuntime::new(),
            events: EventRecorder::new(clock, 100),
        }
    }

    fn start(&self) -> NodeAgent {
        let mut config = NodeConfig::new(NAME);
        config.node_ips = NodeIps::given(["192.0.2.7".parse().unwrap()]);
        config.eviction.thresholds.clear();
        let runtime = Arc::new(self.runtime.clone());
        let runtime = NodeRuntime { runtime: runtime.clone(), images: runtime };
        let machine = MachineFacts {
            machine_id: "this machine".to_owned(),
            boot_id: "this boot".to_owned(),
            cores: 1,
            ..MachineFacts::read()
        };
        let (watch, events) = (Duration::from_secs(1), self.events.clone());
        NodeAgent::start_on(machine, watch, config, self.api.cluster(), Some(runtime), events)
    }

    async fn node(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.api.wait_for(NODES, "", NAME, wanted).await
    }

    async fn events_until(&self, reason: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while !self.events.snapshot().iter().any(|event| event.reason == reason) {
            assert!(tokio::time::Instant::now() < deadline, "no {reason}: {:?}", self.events.snapshot());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn ready(node: &Value) -> Option<&Value> {
    node["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == "Ready")
}

fn is_ready(node: &Value) -> bool {
    ready(node).is_some_and(|condition| condition["status"] == "True")
}

#[tokio::test]
async fn a_node_registers_renews_its_lease_and_tells_its_network() {
    let world = World::new().await;
    world.runtime.set_condition("NetworkReady", false, "NetworkPluginNotReady", "no addresses yet");
    let agent = world.start();
    let node = world.node(|node| ready(node).is_some()).await;
    assert!(!is_ready(&node));
    assert_eq!(node["status"]["addresses"][0]["address"], "192.0.2.7");
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], NAME);
    let uid = node["metadata"]["uid"].clone();
    let lease = world.api.wait_for(LEASES, "kube-node-lease", NAME, |_| true).await;
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], uid);
    assert_eq!(lease["spec"]["holderIdentity"], NAME);
    // The cluster gives the node its addresses; the runtime hears of them, and its network comes up.
    let mut given = node.clone();
    given["spec"]["podCIDRs"] = json!(["10.244.3.0/24"]);
    world.api.put(NODES, given);
    let told = coracle_cri::testing::Method::UpdateRuntimeConfig;
    world.runtime.wait_until(Duration::from_secs(60), |runtime| runtime.count(told) > 0).await;
    world.runtime.set_condition("NetworkReady", true, "", "");
    agent.nudge().look();
    world.node(is_ready).await;
    world.events_until("NodeReady").await;
    let mut own = agent.node();
    let own =
        own.wait_for(|node| node.as_ref().is_some_and(|node| node.status.is_ready())).await.unwrap().clone();
    assert_eq!(own.unwrap().spec.pod_cidrs, ["10.244.3.0/24"]);
}

#[tokio::test]
async fn a_node_that_was_deleted_comes_back() {
    let world = World::new().await;
    let _agent = world.start();
    let before = world.node(is_ready).await;
    world.api.remove(NODES, "", NAME);
    let after =
        world.node(|node| is_ready(node) && node["metadata"]["uid"] != before["metadata"]["uid"]).await;
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
}

#[tokio::test]
async fn what_a_former_life_left_is_made_right() {
    let world = World::new().await;
    let old = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": NAME, "labels": { "mine": "kept", "kubernetes.io/arch": "vax" } },
        "spec": {},
        "status": {
            "capacity": { "hugepages-64Ki": "0", "example.com/gpu": "1" },
            "nodeInfo": { "bootID": "another boot" },
            "conditions": [{ "type": "Ready", "status": "Unknown" }, { "type": "Mine", "status": "True" }],
        },
    });
    world.api.put(NODES, old);
    let _agent = world.start();
    let node = world.node(is_ready).await;
    assert_eq!(node["metadata"]["labels"]["mine"], "kept");
    assert_ne!(node["metadata"]["labels"]["kubernetes.io/arch"], "vax");
    assert_eq!(node["status"]["capacity"].get("hugepages-64Ki"), None);
    assert_eq!(node["status"]["capacity"]["example.com/gpu"], "1");
    let conditions = node["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|condition| condition["type"] == "Mine"));
    world.events_until("Rebooted").await;
}

#[tokio::test]
async fn a_name_that_a_living_machine_has_is_not_taken() {
    let world = World::new().await;
    let theirs = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": NAME },
        "status": {
            "nodeInfo": { "machineID": "another machine" },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    world.api.put(NODES, theirs);
    let renew = |second: u32| {
        let metadata = json!({ "name": NAME, "namespace": "kube-node-lease" });
        let spec = json!({ "renewTime": format!("2026-01-01T00:00:00.{second:06}Z") });
        json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec })
    };
    let lives = std::sync::atomic::AtomicBool::new(true);
    let mut second = 0;
    let machine = async {
        while lives.load(std::sync::atomic::Ordering::Relaxed) {
            second += 1;
            world.api.put(LEASES, renew(second));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let agent = world.start();
    let judged = async {
        // It looked at the lease twice, and once more because it was told no.
        let looks = || world.api.seen().iter().filter(|seen| seen.path.contains("leases/")).count();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while looks() < 3 {
            assert!(tokio::time::Instant::now() < deadline, "only {} looks", looks());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        lives.store(false, std::sync::atomic::Ordering::Relaxed);
    };
    tokio::join!(machine, judged);
    assert!(agent.node().borrow().is_none());
    let node = world.api.object(NODES, "", NAME).unwrap();
    assert_eq!(node["status"]["nodeInfo"]["machineID"], "another machine");
    // The other machine is gone now: its name is free.
    world.node(|node| node["status"]["nodeInfo"]["machineID"] == "this machine").await;
}
