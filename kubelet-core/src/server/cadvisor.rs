//! `/metrics/cadvisor`: the families that dashboards of containers read, by their names and labels.
//!
//! What CRI measures comes with [`super::stats`]; the rest is read from the pods' cgroups and from `/proc` when somebody
//! asks, and nothing is kept. Only groups of pods that this node has are looked at.

mod families;
mod groups;
mod table;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_cri::v1;

use self::families::*;
use self::table::{Labels, Table};
use super::Shared;
use super::metrics::float;
use super::stats::{self, Measured, PodUse};
use crate::api::{Pod, PodStatus, Quantity};
use crate::kubelet::PodView;
use crate::pod_cgroup::{self, CgroupPlace};

/// Answers `/metrics/cadvisor`.
pub(super) async fn metrics(shared: &Arc<Shared>) -> String {
    let Ok(measured) = stats::measured(shared).await else { return String::new() };
    let views: HashMap<Arc<str>, PodView> =
        shared.parts.pods.borrow().iter().map(|(uid, view)| (uid.clone(), view.clone())).collect();
    let place = shared.config.cgroups.clone();
    // Hundreds of small files: not on the event loop.
    let now = float(shared.config.clock.now().wall().0.unsigned_abs());
    let told = tokio::task::spawn_blocking(move || tell(&measured, &views, &place, now));
    told.await.unwrap_or_default()
}

fn tell(measured: &Measured, views: &HashMap<Arc<str>, PodView>, place: &CgroupPlace, now: f64) -> String {
    let mut table = Table::default();
    machine(&mut table, measured);
    for pod in &measured.pods {
        let Some(view) = views.get(pod.uid.as_str()) else { continue };
        of_pod(&mut table, pod, view, place, now);
    }
    table.text()
}

fn machine(table: &mut Table, measured: &Measured) {
    let (none, root) = (Labels::default(), Labels { id: "/", ..Labels::default() });
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    table.add(CORES, &none, &[], float(cores as u64));
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = crate::node::machine::kibibytes(&meminfo, "MemTotal:");
    table.add(MACHINE_MEMORY, &none, &[], float(total.unsigned_abs()));
    processor(table, &root, Some(&measured.node.cpu));
    memory(table, &root, Some(&measured.node.memory));
}

fn processor(table: &mut Table, labels: &Labels<'_>, cpu: Option<&v1::CpuUsage>) {
    if let Some(used) = cpu.and_then(|cpu| cpu.usage_core_nano_seconds) {
        table.add(CPU, labels, &[("cpu", "total")], float(used.value) / 1e9);
    }
    if let Some(psi) = cpu.and_then(|cpu| cpu.psi.as_ref()) {
        pressure(table, labels, CPU_PRESSURE, psi);
    }
}

fn memory(table: &mut Table, labels: &Labels<'_>, memory: Option<&v1::MemoryUsage>) {
    let Some(memory) = memory else { return };
    for (family, value) in
        [(WORKING_SET, memory.working_set_bytes), (USAGE, memory.usage_bytes), (RSS, memory.rss_bytes)]
    {
        if let Some(value) = value {
            table.add(family, labels, &[], float(value.value));
        }
    }
    for (kind, faults) in [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)] {
        // A container's group has none below it.
        for scope in ["container", "hierarchy"] {
            let more = [("failure_type", kind), ("scope", scope)];
            faults.iter().for_each(|faults| table.add(FAILURES, labels, &more, float(faults.value)));
        }
    }
    if let Some(psi) = &memory.psi {
        pressure(table, labels, MEMORY_PRESSURE, psi);
    }
}

/// What the kernel counts in microseconds.
fn pressure(table: &mut Table, labels: &Labels<'_>, (stalled, waiting): Pressure, psi: &v1::PsiStats) {
    for (family, data) in [(stalled, &psi.full), (waiting, &psi.some)] {
        if let Some(data) = data {
            table.add(family, labels, &[], float(data.total) / 1e6);
        }
    }
}

fn of_pod(table: &mut Table, measured: &PodUse, view: &PodView, place: &CgroupPlace, now: f64) {
    let group = pod_cgroup::group_of(place, &view.pod);
    let labels =
        Labels { id: &group, namespace: &measured.namespace, pod: &measured.name, ..Labels::default() };
    processor(table, &labels, measured.cpu.as_ref());
    memory(table, &labels, measured.memory.as_ref());
    let folders = pod_cgroup::folders_of(&group);
    groups::throttling(table, &labels, &folders);
    if let Some(processes) = measured.processes {
        table.add(PROCESSES, &labels, &[], float(processes));
    }
    let mut in_network = None;
    for (stats, created_at) in &measured.containers {
        let Some(attributes) = &stats.attributes else { continue };
        let name = attributes.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
        let own: Vec<PathBuf> =
            folders.iter().filter_map(|folder| groups::below(folder, &attributes.id)).collect();
        let id =
            own.first().and_then(|path| path.file_name()).map(|part| part.to_string_lossy().into_owned());
        let id = format!("{group}/{}", id.as_deref().unwrap_or(&attributes.id));
        let image = image_of(&view.status, name);
        let labels = Labels { container: name, id: &id, image: &image, name: &attributes.id, ..labels };
        of_container(table, &labels, (stats, *created_at), &own, &view.pod, now);
        in_network = in_network.or_else(|| own.iter().find_map(|folder| groups::first_process(folder)));
    }
    if let Some(pid) = in_network.filter(|_| !view.pod.spec.host_network) {
        groups::network(
            table,
            &labels,
            &std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default(),
        );
    }
}

fn of_container(
    table: &mut Table,
    labels: &Labels<'_>,
    (stats, created_at): (&v1::ContainerStats, i64),
    folders: &[PathBuf],
    pod: &Pod,
    now: f64,
) {
    processor(table, labels, stats.cpu.as_ref());
    memory(table, labels, stats.memory.as_ref());
    let swap = stats.swap.as_ref().and_then(|swap| swap.swap_usage_bytes);
    table.add(SWAP, labels, &[], swap.map_or(0.0, |used| float(used.value)));
    table.add(LAST_SEEN, labels, &[], now);
    if created_at > 0 {
        table.add(START, labels, &[], float(created_at.unsigned_abs()) / 1e9);
    }
    if let Some(layer) = &stats.writable_layer {
        let device = layer.fs_id.as_ref().map_or("", |id| id.mountpoint.as_str());
        let used = layer.used_bytes.map_or(0.0, |used| float(used.value));
        table.add(FS_USAGE, labels, &[("device", device)], used);
    }
    if let Some(psi) = stats.io.as_ref().and_then(|io| io.psi.as_ref()) {
        pressure(table, labels, IO_PRESSURE, psi);
    }
    groups::of_container(table, labels, folders);
    limits(table, labels, pod);
}

fn limits(table: &mut Table, labels: &Labels<'_>, pod: &Pod) {
    let Some(container) = pod.container(labels.container) else { return };
    let limit = |name: &str| container.resources.limits.get(name);
    let bytes = limit("memory").map_or(0, Quantity::value);
    table.add(MEMORY_LIMIT, labels, &[], float(bytes.unsigned_abs()));
    let requested = container.resources.requests.get("cpu").or(limit("cpu"));
    let shares = crate::qos::milli_cpu_to_shares(requested.map_or(0, Quantity::milli_value));
    table.add(CPU_SHARES, labels, &[], float(shares));
    table.add(CPU_PERIOD, labels, &[], 100_000.0);
    if let Some(limit) = limit("cpu") {
        table.add(CPU_QUOTA, labels, &[], float(limit.milli_value().unsigned_abs() * 100));
    }
}

fn image_of(status: &PodStatus, name: &str) -> String {
    let all = status.container_statuses.iter().chain(&status.init_container_statuses);
    let mut own = all.chain(&status.ephemeral_container_statuses).filter(|container| container.name == name);
    own.next().map(|container| container.image.clone()).unwrap_or_default()
}
