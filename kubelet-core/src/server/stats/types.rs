//! The summary as the API writes it (`stats/v1alpha1`), from what was measured.
//!
//! Pure.

use coracle_cri::v1;
use serde::Serialize;

use super::gather::{Disk, Disks, Measured, PodUse};
use crate::api::Time;

/// Of the node and its pods.
#[derive(Debug, Serialize)]
pub(super) struct Summary<'a> {
    node: Node<'a>,
    pods: Vec<Pod<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node<'a> {
    node_name: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system_containers: Vec<Container<'a>>,
    start_time: Option<Time>,
    cpu: Cpu,
    memory: Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<Runtime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rlimit: Option<Rlimit>,
    swap: Swap,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Runtime {
    image_fs: Fs,
    container_fs: Fs,
}

#[derive(Debug, Serialize)]
struct Rlimit {
    time: Option<Time>,
    maxpid: i64,
    curproc: i64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod<'a> {
    pod_ref: PodRef<'a>,
    start_time: Option<Time>,
    containers: Vec<Container<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network<'a>>,
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    ephemeral_storage: Option<Fs>,
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    process_stats: Option<Processes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<Swap>,
}

#[derive(Debug, Serialize)]
struct PodRef<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
}

#[derive(Debug, Serialize)]
struct Processes {
    process_count: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Container<'a> {
    name: &'a str,
    start_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<Swap>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_nano_cores: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_core_nano_seconds: Option<u64>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_set_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    major_page_faults: Option<u64>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Swap {
    time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_usage_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Network<'a> {
    time: Option<Time>,
    #[serde(flatten)]
    default: Interface<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<Interface<'a>>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Interface<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rx_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rx_errors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_errors: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Fs {
    time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_free: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_used: Option<u64>,
}

/// Everything.
pub(super) fn summary<'a>(measured: &'a Measured, disks: &Disks, node: &'a str) -> Summary<'a> {
    let mut summary = only_cpu_and_memory(measured, node);
    let own = &measured.node;
    let time = at(own.timestamp);
    summary.node.network = Some(network(&own.network));
    summary.node.fs = disks.root.map(|disk| fs(disk, Some(disk.used()), time));
    let image = disks.images.map(|(disk, used)| fs(disk, used, time));
    let container = disks.containers.map(|(disk, used)| fs(disk, used, time));
    summary.node.runtime =
        image.map(|image_fs| Runtime { image_fs, container_fs: container.unwrap_or(image_fs) });
    summary.node.rlimit = own.process_ids.map(|ids| Rlimit {
        time,
        maxpid: ids.capacity,
        curproc: ids.capacity - ids.available,
    });
    for (pod, used) in summary.pods.iter_mut().zip(&measured.pods) {
        add_disks(pod, used, disks);
        pod.network = used.network.as_ref().map(network);
        pod.process_stats = used.processes.map(|process_count| Processes { process_count });
    }
    summary
}

/// What metrics need.
pub(super) fn only_cpu_and_memory<'a>(measured: &'a Measured, node: &'a str) -> Summary<'a> {
    let own = &measured.node;
    let pods = measured.pods.iter().map(|used| Pod {
        pod_ref: PodRef { name: &used.name, namespace: &used.namespace, uid: &used.uid },
        start_time: at(used.created_at),
        containers: used.containers.iter().map(container).collect(),
        cpu: used.cpu.as_ref().map(cpu),
        memory: used.memory.as_ref().map(memory),
        network: None,
        ephemeral_storage: None,
        process_stats: None,
        swap: pod_swap(used),
    });
    Summary {
        node: Node {
            node_name: node,
            system_containers: Vec::new(),
            start_time: at(own.booted_at),
            cpu: cpu(&own.cpu),
            memory: memory(&own.memory),
            network: None,
            fs: None,
            runtime: None,
            rlimit: None,
            swap: swap(&own.swap),
        },
        pods: pods.collect(),
    }
}

fn container<'a>((stats, created_at): &'a (v1::ContainerStats, i64)) -> Container<'a> {
    let metadata = stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
    Container {
        name: metadata.map_or("", |metadata| &metadata.name),
        start_time: at(*created_at),
        cpu: stats.cpu.as_ref().map(cpu),
        memory: stats.memory.as_ref().map(memory),
        rootfs: None,
        logs: None,
        swap: stats.swap.as_ref().map(swap),
    }
}

/// Writable layers and logs, on the file systems that hold them.
fn add_disks(pod: &mut Pod<'_>, used: &PodUse, disks: &Disks) {
    let (mut bytes, mut inodes) = (0_u64, 0_u64);
    let mut time = None;
    for (container, (stats, _)) in pod.containers.iter_mut().zip(&used.containers) {
        let Some(layer) = &stats.writable_layer else { continue };
        let (layer_bytes, layer_inodes) = (value(layer.used_bytes), value(layer.inodes_used));
        bytes += layer_bytes.unwrap_or(0);
        inodes += layer_inodes.unwrap_or(0);
        time = at(layer.timestamp);
        let on = disks.containers.or(disks.images).map(|(disk, _)| disk).or(disks.root);
        if let Some(disk) = on {
            container.rootfs = Some(Fs { inodes_used: layer_inodes, ..fs(disk, layer_bytes, time) });
        }
        let name = container.name;
        if let (Some(disk), Some(size)) = (disks.root, used.logs.get(name)) {
            bytes += size;
            container.logs = Some(fs(disk, Some(*size), time));
        }
    }
    pod.ephemeral_storage =
        disks.root.map(|disk| Fs { inodes_used: Some(inodes), ..fs(disk, Some(bytes), time) });
}

/// CRI tells swap of containers alone.
fn pod_swap(used: &PodUse) -> Option<Swap> {
    let all: Vec<&v1::SwapUsage> =
        used.containers.iter().filter_map(|(stats, _)| stats.swap.as_ref()).collect();
    let last = all.last()?;
    let sum = |of: fn(&v1::SwapUsage) -> Option<v1::UInt64Value>| {
        all.iter().filter_map(|swap| value(of(swap))).reduce(u64::saturating_add)
    };
    Some(Swap {
        time: at(last.timestamp),
        swap_available_bytes: sum(|swap| swap.swap_available_bytes),
        swap_usage_bytes: sum(|swap| swap.swap_usage_bytes),
    })
}

fn at(nanos: i64) -> Option<Time> {
    Time::from_unix_nanos(nanos)
}

fn value(value: Option<v1::UInt64Value>) -> Option<u64> {
    value.map(|value| value.value)
}

fn cpu(usage: &v1::CpuUsage) -> Cpu {
    Cpu {
        time: at(usage.timestamp),
        usage_nano_cores: value(usage.usage_nano_cores),
        usage_core_nano_seconds: value(usage.usage_core_nano_seconds),
    }
}

fn memory(usage: &v1::MemoryUsage) -> Memory {
    Memory {
        time: at(usage.timestamp),
        available_bytes: value(usage.available_bytes),
        usage_bytes: value(usage.usage_bytes),
        working_set_bytes: value(usage.working_set_bytes),
        rss_bytes: value(usage.rss_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
    }
}

fn swap(usage: &v1::SwapUsage) -> Swap {
    Swap {
        time: at(usage.timestamp),
        swap_available_bytes: value(usage.swap_available_bytes),
        swap_usage_bytes: value(usage.swap_usage_bytes),
    }
}

fn network(usage: &v1::NetworkUsage) -> Network<'_> {
    Network {
        time: at(usage.timestamp),
        default: usage.default_interface.as_ref().map(interface).unwrap_or_default(),
        interfaces: usage.default_interface.iter().chain(&usage.interfaces).map(interface).collect(),
    }
}

fn interface(usage: &v1::NetworkInterfaceUsage) -> Interface<'_> {
    Interface {
        name: &usage.name,
        rx_bytes: value(usage.rx_bytes),
        rx_errors: value(usage.rx_errors),
        tx_bytes: value(usage.tx_bytes),
        tx_errors: value(usage.tx_errors),
    }
}

fn fs(disk: Disk, used_bytes: Option<u64>, time: Option<Time>) -> Fs {
    Fs {
        time,
        available_bytes: Some(disk.available),
        capacity_bytes: Some(disk.capacity),
        used_bytes,
        inodes_free: Some(disk.inodes_free),
        inodes: Some(disk.inodes),
        inodes_used: Some(disk.inodes.saturating_sub(disk.inodes_free)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_has_the_names_of_the_api() {
        let value = |value| Some(v1::UInt64Value { value });
        let cpu = v1::CpuUsage {
            timestamp: 7_000_000_000,
            usage_core_nano_seconds: value(5),
            ..v1::CpuUsage::default()
        };
        let metadata = Some(v1::ContainerMetadata { name: "app".into(), attempt: 0 });
        let attributes = Some(v1::ContainerAttributes { metadata, ..Default::default() });
        let layer = v1::FilesystemUsage { timestamp: 1, used_bytes: value(10), ..Default::default() };
        let stats = v1::ContainerStats {
            attributes,
            cpu: Some(cpu),
            writable_layer: Some(layer),
            ..Default::default()
        };
        let pod = PodUse {
            name: "web".into(),
            namespace: "default".into(),
            uid: "u".into(),
            cpu: Some(cpu),
            containers: vec![(stats, 3_000_000_000)],
            logs: [("app".to_owned(), 7)].into(),
            ..PodUse::default()
        };
        let measured = Measured { pods: vec![pod], ..Measured::default() };
        let disk = Disk { available: 1, capacity: 4, inodes_free: 2, inodes: 8 };
        let disks = Disks { root: Some(disk), ..Disks::default() };
        let text = serde_json::to_value(summary(&measured, &disks, "n")).unwrap();
        assert_eq!(text["node"]["nodeName"], "n");
        assert_eq!(text["node"]["fs"]["usedBytes"], 3);
        let pod = &text["pods"][0];
        assert_eq!(pod["podRef"]["name"], "web");
        assert_eq!(pod["cpu"]["usageCoreNanoSeconds"], 5);
        assert_eq!(pod["containers"][0]["startTime"], "1970-01-01T00:00:03Z");
        assert_eq!(pod["containers"][0]["rootfs"]["usedBytes"], 10);
        assert_eq!(pod["containers"][0]["logs"]["usedBytes"], 7);
        assert_eq!(pod["ephemeral-storage"]["usedBytes"], 17);
        let short = serde_json::to_value(only_cpu_and_memory(&measured, "n")).unwrap();
        assert_eq!(short["node"].get("fs"), None);
    }
}
