//! The Node as it should be: from settings, the machine and the runtime to labels, taints and status.
//!
//! Pure; the reporter calls it whenever something may have changed. Follows the kubelet's `initialNode`, its status
//! setters and `GetNodeAllocatableReservation` (1.36).

use std::collections::BTreeMap;
use std::net::IpAddr;

use coracle_cri::v1::{Image, RuntimeCondition, StatusResponse};

use super::machine::{MachineFacts, Readings};
use super::pressure::{Pressures, Signal};
use super::{EnforcedShare, NodeConfig, PodsShare};
use crate::api::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeDaemonEndpoints, NodeFeatures, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeStatus, NodeSwapStatus, NodeSystemInfo, ObjectMeta, Quantity,
    ResourceList,
};

/// Names of one image that a node tells.
const NAMES_PER_IMAGE: usize = 5;
/// The API server's attach-detach controller looks after volumes of nodes with this annotation.
pub(super) const ATTACH_DETACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// What is known of the runtime.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RuntimeFacts {
    pub(super) name: String,
    pub(super) version: String,
    /// None as long as it has not answered, or does not answer any more.
    pub(super) status: Option<StatusResponse>,
    /// It has answered before.
    pub(super) was_up: bool,
    /// This node has none and runs no pods.
    pub(super) is_absent: bool,
}

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) r#type: &'static str,
    pub(super) is_true: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// The event when it comes about.
    pub(super) event: &'static str,
    /// Ready alone tells new reasons and messages while its status stays the same.
    pub(super) follows_message: bool,
}

/// Labels that a node keeps right on an existing Node (`updateDefaultLabels`).
pub(super) const DEFAULT_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

/// Everything a status is made from.
pub(super) struct Inputs<'a> {
    pub(super) config: &'a NodeConfig,
    pub(super) machine: &'a MachineFacts,
    pub(super) readings: &'a Readings,
    pub(super) runtime: &'a RuntimeFacts,
    pub(super) images: &'a [ContainerImage],
    pub(super) pressures: Pressures,
    /// What else keeps the node from being ready.
    pub(super) problems: &'a [String],
}

/// The Node without a status, as it is registered.
pub(super) fn node(inputs: &Inputs<'_>) -> Node {
    let Inputs { config, machine, .. } = *inputs;
    let own = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let mut labels = BTreeMap::from([
        own("kubernetes.io/hostname", &config.hostname),
        own("kubernetes.io/os", "linux"),
        own("kubernetes.io/arch", &machine.architecture),
        own("beta.kubernetes.io/os", "linux"),
        own("beta.kubernetes.io/arch", &machine.architecture),
    ]);
    labels.extend(config.labels.clone());
    let mut node = Node {
        metadata: ObjectMeta {
            name: config.name.clone(),
            labels,
            annotations: BTreeMap::from([own(ATTACH_DETACH, "true")]),
            ..ObjectMeta::default()
        },
        ..Node::default()
    };
    node.spec.taints = config.taints.clone();
    node.spec.provider_id = config.provider_id.clone();
    node
}

/// The status but for its conditions. `observed` is what the API has: resources of others stay as they are.
pub(super) fn status(inputs: &Inputs<'_>, observed: &NodeStatus) -> NodeStatus {
    let Inputs { config, readings, runtime, .. } = *inputs;
    let capacity = capacity(inputs, &observed.capacity);
    let allocatable = allocatable(config, &capacity, &observed.allocatable);
    let runtime_status = runtime.status.as_ref();
    NodeStatus {
        allocatable,
        capacity,
        conditions: Vec::new(),
        addresses: if readings.addresses.is_empty() {
            observed.addresses.clone()
        } else {
            addresses(&readings.addresses, &config.hostname)
        },
        daemon_endpoints: NodeDaemonEndpoints {
            kubelet_endpoint: DaemonEndpoint { port: i32::from(config.kubelet_port) },
        },
        node_info: system_info(inputs),
        images: inputs.images.to_vec(),
        runtime_handlers: match runtime_status {
            Some(status) => runtime_handlers(status),
            None => observed.runtime_handlers.clone(),
        },
        features: match runtime_status.and_then(|status| status.features.as_ref()) {
            Some(features) => {
                Some(NodeFeatures { supplemental_groups_policy: Some(features.supplemental_groups_policy) })
            }
            None => observed.features.clone(),
        },
        declared_features: config.declared_features.clone(),
    }
}

fn system_info(inputs: &Inputs<'_>) -> NodeSystemInfo {
    let Inputs { config, machine, runtime, .. } = *inputs;
    let version = runtime.version.trim_start_matches('v');
    let version = if version.is_empty() { "Unknown" } else { version };
    let name = if runtime.is_absent { "none" } else { &runtime.name };
    NodeSystemInfo {
        machine_id: machine.machine_id.clone(),
        system_uuid: machine.system_uuid.clone(),
        boot_id: machine.boot_id.clone(),
        kernel_version: machine.kernel_version.clone(),
        os_image: machine.os_image.clone(),
        container_runtime_version: format!("{name}://{version}"),
        kubelet_version: config.kubelet_version.clone(),
        kube_proxy_version: String::new(),
        operating_system: "linux".to_owned(),
        architecture: machine.architecture.clone(),
        swap: (machine.swap > 0).then_some(NodeSwapStatus { capacity: Some(machine.swap) }),
    }
}

fn addresses(ips: &[IpAddr], hostname: &str) -> Vec<NodeAddress> {
    let address = |r#type: &str, address: String| NodeAddress { r#type: r#type.to_owned(), address };
    let internal = ips.iter().map(|ip| address("InternalIP", ip.to_string()));
    internal.chain([address("Hostname", hostname.to_owned())]).collect()
}

/// What the machine has. Resources that others announced stay; huge page sizes that are gone go.
fn capacity(inputs: &Inputs<'_>, observed: &ResourceList) -> ResourceList {
    let Inputs { config, machine, readings, .. } = *inputs;
    let mut capacity = observed.clone();
    capacity.retain(|name, _| !name.starts_with("hugepages-"));
    for (size, count) in &machine.huge_pages {
        let name = format!("hugepages-{}", Quantity::from_bytes(*size));
        capacity.insert(name, Quantity::from_bytes(size.saturating_mul(*count)));
    }
    let cores = i64::from(machine.cores);
    let pods = match config.pods_per_core {
        0 => i64::from(config.max_pods),
        per_core => i64::from(config.max_pods).min(cores * i64::from(per_core)),
    };
    capacity.insert("cpu".to_owned(), Quantity::from_milli(cores * 1000));
    capacity.insert("memory".to_owned(), Quantity::from_bytes(machine.memory));
    capacity.insert("pods".to_owned(), Quantity::from_value(pods));
    if let Some(storage) = readings.storage {
        capacity.insert("ephemeral-storage".to_owned(), Quantity::from_bytes(storage));
    }
    capacity
}

/// What pods may take of a machine, before there is a Node that says so.
pub(super) fn share_of_pods(config: &NodeConfig, machine: &MachineFacts, storage: Option<i64>) -> PodsShare {
    let mut capacity = ResourceList::from([
        ("cpu".to_owned(), Quantity::from_milli(i64::from(machine.cores) * 1000)),
        ("memory".to_owned(), Quantity::from_bytes(machine.memory)),
    ]);
    capacity.extend(storage.map(|bytes| ("ephemeral-storage".to_owned(), Quantity::from_bytes(bytes))));
    for (size, count) in &machine.huge_pages {
        let name = format!("hugepages-{}", Quantity::from_bytes(*size));
        capacity.insert(name, Quantity::from_bytes(size.saturating_mul(*count)));
    }
    let reserved = |name: &str, value: fn(&Quantity) -> i64| {
        let own = config.kube_reserved.get(name).into_iter().chain(config.system_reserved.get(name));
        own.map(value).fold(0_i64, i64::saturating_add)
    };
    let enforced = EnforcedShare {
        cpu_milli: (i64::from(machine.cores) * 1000 - reserved("cpu", Quantity::milli_value)).max(0),
        memory: (machine.memory - reserved("memory", Quantity::value)).max(0),
        pids_reserved: reserved("pid", Quantity::value),
    };
    PodsShare { allocatable: allocatable(config, &capacity, &ResourceList::new()), enforced }
}

/// What pods may take: the capacity without what is reserved, what would mean pressure and what lies in huge
/// pages.
pub(super) fn allocatable(
    config: &NodeConfig,
    capacity: &ResourceList,
    observed: &ResourceList,
) -> ResourceList {
    let reserved = |name: &str| {
        let own = config.kube_reserved.get(name).into_iter().chain(config.system_reserved.get(name));
        own.fold(0_i64, |sum, quantity| sum.saturating_add(quantity.milli_value()))
    };
    let eviction = |signal: Signal, name: &str| {
        let bytes = capacity.get(name).map_or(0, Quantity::value);
        config.eviction.kept_back(signal, bytes)
    };
    let mut huge = 0_i64;
    let mut allocatable = ResourceList::new();
    for (name, quantity) in capacity {
        let value = match name.as_str() {
            "cpu" => Quantity::from_milli((quantity.milli_value() - reserved(name)).max(0)),
            "memory" => {
                let left = quantity.value() - eviction(Signal::MemoryAvailable, name) - reserved(name) / 1000;
                Quantity::from_bytes(left.max(0))
            }
            "ephemeral-storage" => {
                let left = quantity.value() - eviction(Signal::NodefsAvailable, name) - reserved(name) / 1000;
                Quantity::from_bytes(left.max(0))
            }
            // What others announced they also say how much is left of.
            extended if extended.contains('/') => observed.get(extended).unwrap_or(quantity).clone(),
            _ if name.starts_with("hugepages-") => {
                huge = huge.saturating_add(quantity.value());
                Quantity::from_bytes((quantity.value() - reserved(name) / 1000).max(0))
            }
            _ => Quantity::from_value((quantity.value() - reserved(name) / 1000).max(0)),
        };
        allocatable.insert(name.clone(), value);
    }
    if huge > 0
        && let Some(memory) = allocatable.get_mut("memory")
    {
        *memory = Quantity::from_bytes((memory.value() - huge).max(0));
    }
    allocatable
}

fn runtime_handlers(status: &StatusResponse) -> Vec<NodeRuntimeHandler> {
    let mut handlers: Vec<NodeRuntimeHandler> = status
        .runtime_handlers
        .iter()
        .map(|handler| {
            let features = handler.features.unwrap_or_default();
            NodeRuntimeHandler {
                name: handler.name.clone(),
                features: Some(NodeRuntimeHandlerFeatures {
                    recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
                    user_namespaces: Some(features.user_namespaces),
                }),
            }
        })
        .collect();
    handlers.sort_by(|a, b| a.name.cmp(&b.name));
    handlers
}

/// The largest images, with their digests before their tags.
pub(super) fn images(mut images: Vec<Image>, limit: usize) -> Vec<ContainerImage> {
    // Equal sizes in a fixed order, or the status would change with every listing.
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    images.truncate(limit);
    let shown = |image: Image| ContainerImage {
        names: image.repo_digests.into_iter().chain(image.repo_tags).take(NAMES_PER_IMAGE).collect(),
        size_bytes: i64::try_from(image.size).unwrap_or(i64::MAX),
    };
    images.into_iter().map(shown).collect()
}

/// The conditions; Ready last.
pub(super) fn conditions(inputs: &Inputs<'_>, status: &NodeStatus) -> Vec<Wanted> {
    let Pressures { memory, disk, pid } = inputs.pressures;
    vec![
        pressure("MemoryPressure", memory, &MEMORY),
        pressure("DiskPressure", disk, &DISK),
        pressure("PIDPressure", pid, &PID),
        ready(inputs, status),
    ]
}

/// Reason, message and event of a pressure, and of its absence.
type Words = [(&'static str, &'static str, &'static str); 2];

const MEMORY: Words = [
    (
        "KubeletHasInsufficientMemory",
        "kubelet has insufficient memory available",
        "NodeHasInsufficientMemory",
    ),
    ("KubeletHasSufficientMemory", "kubelet has sufficient memory available", "NodeHasSufficientMemory"),
];
const DISK: Words = [
    ("KubeletHasDiskPressure", "kubelet has disk pressure", "NodeHasDiskPressure"),
    ("KubeletHasNoDiskPressure", "kubelet has no disk pressure", "NodeHasNoDiskPressure"),
];
const PID: Words = [
    ("KubeletHasInsufficientPID", "kubelet has insufficient PID available", "NodeHasInsufficientPID"),
    ("KubeletHasSufficientPID", "kubelet has sufficient PID available", "NodeHasSufficientPID"),
];

fn pressure(r#type: &'static str, is_true: bool, words: &Words) -> Wanted {
    let (reason, message, event) = words[usize::from(!is_true)];
    Wanted { r#type, is_true, reason, message: message.to_owned(), event, follows_message: false }
}

fn ready(inputs: &Inputs<'_>, status: &NodeStatus) -> Wanted {
    let mut problems = runtime_problems(inputs.runtime);
    problems.extend_from_slice(inputs.problems);
    if inputs.readings.addresses.is_empty() {
        problems.push("the node has no address yet: no default route, and no --node-ip".to_owned());
    }
    let required = ["cpu", "memory", "pods", "ephemeral-storage"];
    let missing: Vec<&str> =
        required.into_iter().filter(|name| !status.capacity.contains_key(*name)).collect();
    if !missing.is_empty() {
        problems.push(format!("missing node capacity for resources: {}", missing.join(", ")));
    }
    let is_true = problems.is_empty();
    let (reason, event) =
        if is_true { ("KubeletReady", "NodeReady") } else { ("KubeletNotReady", "NodeNotReady") };
    let message = match problems.as_slice() {
        [] => "kubelet is posting ready status".to_owned(),
        [one] => one.clone(),
        // As Go prints an aggregate of errors.
        several => format!("[{}]", several.join(", ")),
    };
    Wanted { r#type: "Ready", is_true, reason, message, event, follows_message: true }
}

fn runtime_problems(runtime: &RuntimeFacts) -> Vec<String> {
    if runtime.is_absent {
        return Vec::new();
    }
    let Some(status) = &runtime.status else {
        let words = if runtime.was_up {
            "container runtime is down"
        } else {
            "container runtime status check may not have completed yet"
        };
        return vec![words.to_owned()];
    };
    let conditions = status.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let problem = |kind: &str, subject: &str| {
        let condition = conditions.iter().find(|condition| condition.r#type == kind);
        match condition {
            Some(condition) if condition.status => None,
            condition => Some(format!("{subject} not ready: {}", shown(condition))),
        }
    };
    let runtime = problem("RuntimeReady", "container runtime");
    runtime.into_iter().chain(problem("NetworkReady", "container runtime network")).collect()
}

/// As Go prints a condition of the runtime.
fn shown(condition: Option<&RuntimeCondition>) -> String {
    match condition {
        None => "condition is not set".to_owned(),
        Some(RuntimeCondition { r#type, status, reason, message }) => {
            format!("{type}={status} reason:{reason} message:{message}")
        }
    }
}
