//! Tables for the Node's planning: what is registered, and what is patched when.

mod agent;

use std::collections::BTreeMap;

use coracle_cri::v1::{Image, RuntimeCondition, RuntimeStatus, StatusResponse};
use serde_json::json;

use super::NodeConfig;
use super::desired::{self, DEFAULT_LABELS, Inputs, RuntimeFacts};
use super::machine::{MachineFacts, Readings};
use super::plan::{self, KEPT_LABELS};
use super::pressure::{Limit, Pressures, Signal, Threshold};
use crate::api::{Node, NodeCondition, Quantity, Time};

struct World {
    config: NodeConfig,
    machine: MachineFacts,
    readings: Readings,
    runtime: RuntimeFacts,
    pressures: Pressures,
}

impl World {
    fn new() -> Self {
        let condition =
            |kind: &str| RuntimeCondition { r#type: kind.into(), status: true, ..Default::default() };
        let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
        let status = StatusResponse { status: Some(RuntimeStatus { conditions }), ..Default::default() };
        Self {
            config: NodeConfig::new("gateway-7"),
            machine: MachineFacts {
                cores: 2,
                memory: 3_884_676 << 10,
                huge_pages: vec![(2 << 20, 0), (1 << 30, 0)],
                machine_id: "m1".into(),
                boot_id: "b1".into(),
                architecture: "arm64".into(),
                ..MachineFacts::default()
            },
            readings: Readings {
                addresses: std::sync::Arc::new(["192.0.2.7".parse().unwrap()]),
                storage: Some(40_901_312 << 10),
                ..Readings::default()
            },
            runtime: RuntimeFacts {
                name: "coracle".into(),
                version: "0.1.0".into(),
                status: Some(status),
                was_up: true,
                is_absent: false,
            },
            pressures: Pressures::default(),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            config: &self.config,
            machine: &self.machine,
            readings: &self.readings,
            runtime: &self.runtime,
            images: &[],
            pressures: self.pressures,
            problems: &[],
        }
    }

    fn desired(&self, observed: &Node) -> (Node, Vec<desired::Wanted>) {
        let inputs = self.inputs();
        let mut node = desired::node(&inputs);
        node.status = desired::status(&inputs, &observed.status);
        let conditions = desired::conditions(&inputs, &node.status);
        (node, conditions)
    }

    fn update(&self, observed: &Node, now: i64) -> plan::Update {
        let (node, conditions) = self.desired(observed);
        plan::update(observed, &node, &conditions, &DEFAULT_LABELS, Time(now))
    }

    /// The Node as the API has it once everything was sent.
    fn settled(&self, now: i64) -> Node {
        let (mut node, conditions) = self.desired(&Node::default());
        node.status.conditions = plan::merge_conditions(&Default::default(), &conditions, Time(now)).0;
        node
    }
}

#[test]
fn a_new_node_has_what_a_kubelet_says() {
    let world = World::new();
    let node = world.settled(100);
    let status = &node.status;
    let text = |list: &BTreeMap<String, Quantity>, name: &str| list[name].to_string();
    assert_eq!(text(&status.capacity, "cpu"), "2");
    assert_eq!(text(&status.capacity, "memory"), "3884676Ki");
    assert_eq!(text(&status.capacity, "ephemeral-storage"), "40901312Ki");
    assert_eq!(text(&status.capacity, "pods"), "110");
    assert_eq!(text(&status.capacity, "hugepages-1Gi"), "0");
    assert_eq!(text(&status.allocatable, "memory"), "3782276Ki");
    assert_eq!(text(&status.allocatable, "ephemeral-storage"), "37694649077");
    assert_eq!(status.node_info.container_runtime_version, "coracle://0.1.0");
    assert!(status.node_info.kubelet_version.starts_with("v1.36.3+coracle"));
    let types: Vec<&str> = status.conditions.iter().map(|c| c.r#type.as_str()).collect();
    assert_eq!(types, ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]);
    assert!(status.is_ready());
    assert_eq!(status.condition("Ready").unwrap().message, "kubelet is posting ready status");
    assert_eq!(node.metadata.labels["kubernetes.io/arch"], "arm64");
    assert_eq!(node.metadata.labels["beta.kubernetes.io/os"], "linux");
}

#[test]
fn reservations_and_huge_pages_are_taken_off() {
    let mut world = World::new();
    world.config.kube_reserved.insert("cpu".into(), "100m".parse().unwrap());
    world.config.system_reserved.insert("memory".into(), "1Gi".parse().unwrap());
    world.config.eviction.thresholds =
        vec![Threshold::hard(Signal::MemoryAvailable, Limit::Amount(100 << 20))];
    world.machine.memory = 4 << 30;
    world.machine.huge_pages = vec![(2 << 20, 256)];
    let node = world.settled(1);
    assert_eq!(node.status.allocatable["cpu"].to_string(), "1900m");
    assert_eq!(node.status.allocatable["memory"].value(), (4 << 30) - (1 << 30) - (100 << 20) - (512 << 20));
    assert_eq!(node.status.allocatable["hugepages-2Mi"].to_string(), "512Mi");
    assert!(
        node.status.allocatable["ephemeral-storage"]
            .is_same_amount(&node.status.capacity["ephemeral-storage"])
    );
}

#[test]
fn nothing_new_is_no_change_and_only_heartbeats() {
    let world = World::new();
    let node = world.settled(100);
    let update = world.update(&node, 400);
    assert!(!update.is_change, "{}", update.patch);
    let status = update.patch["status"].as_object().unwrap();
    assert_eq!(status.keys().collect::<Vec<_>>(), ["conditions"]);
    let ready = &update.patch["status"]["conditions"][3];
    assert_eq!(ready["lastHeartbeatTime"], "1970-01-01T00:06:40Z");
    assert_eq!(ready["lastTransitionTime"], "1970-01-01T00:01:40Z");
}

#[test]
fn changes_are_sent_and_told() {
    let mut world = World::new();
    let mut node = world.settled(100);
    node.status.capacity.insert("example.com/gpu".into(), Quantity::from_value(2));
    node.status.allocatable.insert("example.com/gpu".into(), Quantity::from_value(1));
    node.status.capacity.insert("hugepages-64Ki".into(), Quantity::from_value(0));
    node.metadata.labels.remove("kubernetes.io/os");
    node.metadata.labels.insert("mine".into(), "kept".into());
    world.pressures.disk = true;
    world.readings.addresses =
        std::sync::Arc::new(["192.0.2.8".parse().unwrap(), "2001:db8::8".parse().unwrap()]);
    let update = world.update(&node, 200);
    assert!(update.is_change);
    assert_eq!(update.events, ["NodeHasDiskPressure"]);
    assert_eq!(update.patch["metadata"], json!({ "labels": { "kubernetes.io/os": "linux" } }));
    assert_eq!(update.patch["status"]["capacity"], json!({ "hugepages-64Ki": null }));
    assert_eq!(update.patch["status"].get("allocatable"), None);
    assert_eq!(update.patch["status"]["addresses"][0], json!({ "$patch": "replace" }));
    assert_eq!(update.patch["status"]["addresses"].as_array().unwrap().len(), 4);
    let disk = &update.patch["status"]["conditions"][1];
    assert_eq!(
        (&disk["status"], &disk["lastTransitionTime"]),
        (&json!("True"), &json!("1970-01-01T00:03:20Z"))
    );
}

#[test]
fn after_registration_only_two_labels_are_put_back() {
    let world = World::new();
    let mut node = world.settled(100);
    node.metadata.labels.clear();
    let (desired, conditions) = world.desired(&node);
    let update = plan::update(&node, &desired, &conditions, &KEPT_LABELS, Time(200));
    assert_eq!(update.patch["metadata"]["labels"].as_object().unwrap().len(), 2);
}

#[test]
fn a_condition_that_the_cluster_doubted_is_told_anew() {
    let world = World::new();
    let mut node = world.settled(100);
    for condition in &mut node.status.conditions {
        *condition = NodeCondition {
            status: "Unknown".into(),
            reason: "NodeStatusUnknown".into(),
            message: "Kubelet stopped posting node status.".into(),
            ..condition.clone()
        };
    }
    let update = world.update(&node, 300);
    let expected = ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"];
    assert_eq!(update.events, expected);
    assert_eq!(update.patch["status"]["conditions"][0]["reason"], "KubeletHasSufficientMemory");
}

#[test]
fn a_node_that_is_not_ready_says_why() {
    let mut world = World::new();
    let message = |world: &World| {
        let conditions = world.desired(&Node::default()).1;
        let ready = conditions.last().unwrap();
        assert!(!ready.is_true && ready.reason == "KubeletNotReady");
        ready.message.clone()
    };
    let status = world.runtime.status.as_mut().unwrap();
    let network = &mut status.status.as_mut().unwrap().conditions[1];
    *network = RuntimeCondition {
        r#type: "NetworkReady".into(),
        status: false,
        reason: "NetworkPluginNotReady".into(),
        message: "cni plugin not initialized".into(),
    };
    let network = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                   message:cni plugin not initialized";
    assert_eq!(message(&world), network);
    world.readings.storage = None;
    assert_eq!(
        message(&world),
        format!("[{network}, missing node capacity for resources: ephemeral-storage]")
    );
    world = World::new();
    world.runtime.status = None;
    assert_eq!(message(&world), "container runtime is down");
}

#[test]
fn images_are_sorted_by_size_and_cut() {
    let image = |id: &str, size: u64, tags: usize| Image {
        id: id.into(),
        size,
        repo_digests: vec![format!("{id}@sha256:1")],
        repo_tags: (0..tags).map(|tag| format!("{id}:{tag}")).collect(),
        ..Image::default()
    };
    let images = desired::images(vec![image("a", 1, 1), image("b", 9, 9), image("c", 5, 0)], 2);
    assert_eq!(images.len(), 2);
    assert_eq!(images[0].names.len(), 5);
    assert_eq!(images[0].names[0], "b@sha256:1");
    assert_eq!(images[1].size_bytes, 5);
}

#[test]
fn machines_are_told_apart() {
    let world = World::new();
    let mut node = world.settled(1);
    assert!(!plan::is_of_another_machine(&node, &world.machine));
    assert!(!plan::has_rebooted(&node, &world.machine));
    node.status.node_info.machine_id = "m2".into();
    node.status.node_info.boot_id = "b0".into();
    assert!(plan::is_of_another_machine(&node, &world.machine));
    assert!(plan::has_rebooted(&node, &world.machine));
    node.status.node_info.machine_id.clear();
    assert!(!plan::is_of_another_machine(&node, &world.machine));
    assert!(plan::is_newer("10", "9") && !plan::is_newer("9", "10") && !plan::is_newer("9", "9"));
}
