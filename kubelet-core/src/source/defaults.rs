//! What an API server fills in before it stores a pod or a secret.
//!
//! Called by the manifest folder before validation; pure. The rules are those of Kubernetes'
//! `pkg/apis/core/v1/defaults.go`. A default that an API server does not set is not set here either: the node
//! acts on the same object whichever way it came.

use std::collections::BTreeMap;

use super::image_name::parse_image_name;
use crate::api::{
    Container, DownwardAPIVolumeFile, EmptyDirVolumeSource, HTTPGetAction, LifecycleHandler,
    ObjectFieldSelector, Pod, PodSecurityContext, PodSpec, Probe, Quantity, ResourceRequirements, Secret,
    Volume,
};

/// `0644`, the mode of files in volumes.
const FILE_MODE: i32 = 0o644;
/// An hour, the life of a projected token.
const TOKEN_SECONDS: i64 = 3600;

/// Fills in what a manifest leaves out.
pub fn default_pod(pod: &mut Pod) {
    let spec = &mut pod.spec;
    let containers = || -> [fn(&mut PodSpec) -> &mut Vec<Container>; 2] {
        [|spec| &mut spec.init_containers, |spec| &mut spec.containers]
    };
    for list in containers() {
        for container in list(spec) {
            requests_from_limits(&mut container.resources);
        }
    }
    default_pod_resources(pod);
    let spec = &mut pod.spec;
    spec.enable_service_links.get_or_insert(true);
    if spec.host_network {
        for list in containers() {
            for port in list(spec).iter_mut().flat_map(|container| &mut container.ports) {
                if port.host_port == 0 {
                    port.host_port = port.container_port;
                }
            }
        }
    }
    set_if_empty(&mut spec.dns_policy, "ClusterFirst");
    set_if_empty(&mut spec.restart_policy, "Always");
    set_if_empty(&mut spec.scheduler_name, "default-scheduler");
    spec.security_context.get_or_insert_with(|| Box::new(PodSecurityContext::default()));
    spec.termination_grace_period_seconds.get_or_insert(30);
    // The old name of the field still counts where the new one is absent.
    if spec.service_account_name.is_empty() {
        spec.service_account_name.clone_from(&spec.service_account);
    }
    spec.volumes.iter_mut().for_each(default_volume);
    let all =
        spec.init_containers.iter_mut().chain(&mut spec.containers).chain(&mut spec.ephemeral_containers);
    all.for_each(default_container);
}

/// Fills in a secret's type.
pub fn default_secret(secret: &mut Secret) {
    set_if_empty(&mut secret.r#type, "Opaque");
}

fn set_if_empty(field: &mut String, value: &str) {
    if field.is_empty() {
        value.clone_into(field);
    }
}

fn requests_from_limits(resources: &mut ResourceRequirements) {
    for (name, limit) in &resources.limits {
        resources.requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
}

/// Always for a tag `latest`, also an implied one.
fn pull_policy(image: &str) -> &'static str {
    match parse_image_name(image) {
        Ok(name) if name.tag.as_deref() == Some("latest") => "Always",
        _ => "IfNotPresent",
    }
}

fn default_container(container: &mut Container) {
    set_if_empty(&mut container.image_pull_policy, pull_policy(&container.image));
    set_if_empty(&mut container.termination_message_path, "/dev/termination-log");
    set_if_empty(&mut container.termination_message_policy, "File");
    for port in &mut container.ports {
        set_if_empty(&mut port.protocol, "TCP");
    }
    for source in container.env.iter_mut().filter_map(|variable| variable.value_from.as_mut()) {
        if let Some(field) = &mut source.field_ref {
            default_field_ref(field);
        }
        if let Some(file) = &mut source.file_key_ref {
            file.optional.get_or_insert(false);
        }
    }
    let probes =
        [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    probes.into_iter().flatten().for_each(|probe| default_probe(probe));
    if let Some(lifecycle) = &mut container.lifecycle {
        for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
            default_handler(handler);
        }
    }
}

fn default_probe(probe: &mut Probe) {
    for (field, value) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        if *field == 0 {
            *field = value;
        }
    }
    if let Some(get) = &mut probe.http_get {
        default_http_get(get);
    }
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn default_handler(handler: &mut LifecycleHandler) {
    if let Some(get) = &mut handler.http_get {
        default_http_get(get);
    }
}

fn default_http_get(get: &mut HTTPGetAction) {
    set_if_empty(&mut get.path, "/");
    set_if_empty(&mut get.scheme, "HTTP");
}

fn default_field_ref(field: &mut ObjectFieldSelector) {
    set_if_empty(&mut field.api_version, "v1");
}

fn default_files(items: &mut [DownwardAPIVolumeFile]) {
    items.iter_mut().filter_map(|item| item.field_ref.as_mut()).for_each(|field| default_field_ref(field));
}

fn default_volume(volume: &mut Volume) {
    if !has_source(volume) {
        volume.empty_dir = Some(Box::new(EmptyDirVolumeSource::default()));
    }
    if let Some(image) = &mut volume.image {
        set_if_empty(&mut image.pull_policy, pull_policy(&image.reference));
    }
    if let Some(path) = &mut volume.host_path {
        path.r#type.get_or_insert_default();
    }
    if let Some(secret) = &mut volume.secret {
        secret.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(config_map) = &mut volume.config_map {
        config_map.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(downward) = &mut volume.downward_api {
        downward.default_mode.get_or_insert(FILE_MODE);
        default_files(&mut downward.items);
    }
    if let Some(projected) = &mut volume.projected {
        projected.default_mode.get_or_insert(FILE_MODE);
        for source in &mut projected.sources {
            if let Some(downward) = &mut source.downward_api {
                default_files(&mut downward.items);
            }
            if let Some(token) = &mut source.service_account_token {
                token.expiration_seconds.get_or_insert(TOKEN_SECONDS);
            }
        }
    }
}

/// Whether any source of a volume is set, also one that a node does not mount.
fn has_source(volume: &Volume) -> bool {
    volume.empty_dir.is_some()
        || volume.host_path.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.persistent_volume_claim.is_some()
        || volume.image.is_some()
        || volume.unused_sources().next().is_some()
}

impl Volume {
    /// Names of the sources that are set and that a node of ours does not mount.
    pub(crate) fn unused_sources(&self) -> impl Iterator<Item = &'static str> {
        [
            ("csi", self.csi),
            ("ephemeral", self.ephemeral),
            ("nfs", self.nfs),
            ("iscsi", self.iscsi),
            ("fc", self.fc),
            ("awsElasticBlockStore", self.aws_elastic_block_store),
            ("gcePersistentDisk", self.gce_persistent_disk),
            ("azureDisk", self.azure_disk),
            ("azureFile", self.azure_file),
            ("cephfs", self.cephfs),
            ("cinder", self.cinder),
            ("flexVolume", self.flex_volume),
            ("flocker", self.flocker),
            ("gitRepo", self.git_repo),
            ("glusterfs", self.glusterfs),
            ("photonPersistentDisk", self.photon_persistent_disk),
            ("portworxVolume", self.portworx_volume),
            ("quobyte", self.quobyte),
            ("rbd", self.rbd),
            ("scaleIO", self.scale_i_o),
            ("storageos", self.storageos),
            ("vsphereVolume", self.vsphere_volume),
        ]
        .into_iter()
        .filter_map(|(name, source)| source.is_set.then_some(name))
    }
}

/// Pod-level requests and huge page limits follow from the containers' where the pod sets some of them.
fn default_pod_resources(pod: &mut Pod) {
    let Some(mut resources) = pod.spec.resources.take() else { return };
    if !resources.limits.is_empty() || !resources.requests.is_empty() {
        for (name, sum) in aggregate(&pod.spec, |resources| &resources.limits) {
            if name.starts_with("hugepages-") && !resources.requests.contains_key(&name) {
                resources.limits.entry(name).or_insert(sum);
            }
        }
    }
    if !resources.limits.is_empty() {
        for (name, sum) in aggregate_requests(&pod.spec) {
            if name == "cpu" || name == "memory" {
                resources.requests.entry(name).or_insert(sum);
            }
        }
        for (name, limit) in &resources.limits {
            if name == "cpu" || name == "memory" || name.starts_with("hugepages-") {
                resources.requests.entry(name.clone()).or_insert_with(|| limit.clone());
            }
        }
    }
    pod.spec.resources = Some(resources);
}

/// What all containers request together.
pub(super) fn aggregate_requests(spec: &PodSpec) -> BTreeMap<String, Quantity> {
    aggregate(spec, |resources| &resources.requests)
}

/// What all containers need together: the sum of those that run side by side, or more where an init
/// container needs more while the sidecars before it run (component-helpers' `AggregateContainerRequests`).
fn aggregate(
    spec: &PodSpec,
    list: fn(&ResourceRequirements) -> &BTreeMap<String, Quantity>,
) -> BTreeMap<String, Quantity> {
    let mut running: BTreeMap<String, i64> = BTreeMap::new();
    for (name, quantity) in spec.containers.iter().flat_map(|container| list(&container.resources)) {
        *running.entry(name.clone()).or_default() += quantity.milli_value();
    }
    let mut sidecars: BTreeMap<String, i64> = BTreeMap::new();
    let mut init: BTreeMap<String, i64> = BTreeMap::new();
    for container in &spec.init_containers {
        for (name, quantity) in list(&container.resources) {
            if container.is_restartable_init() {
                *running.entry(name.clone()).or_default() += quantity.milli_value();
                *sidecars.entry(name.clone()).or_default() += quantity.milli_value();
            }
        }
        let own = |name: &String| {
            if container.is_restartable_init() {
                0
            } else {
                list(&container.resources).get(name).map_or(0, Quantity::milli_value)
            }
        };
        let names: Vec<String> = sidecars.keys().chain(list(&container.resources).keys()).cloned().collect();
        for name in names {
            let needed = sidecars.get(&name).copied().unwrap_or(0) + own(&name);
            let most = init.entry(name).or_default();
            *most = needed.max(*most);
        }
    }
    for (name, needed) in init {
        let sum = running.entry(name).or_default();
        *sum = needed.max(*sum);
    }
    running.into_iter().map(|(name, milli)| (name, from_milli(milli))).collect()
}

fn from_milli(milli: i64) -> Quantity {
    if milli % 1000 == 0 {
        Quantity::from_value(milli / 1000)
    } else {
        format!("{milli}m").parse().expect("invariant: digits and `m` are a quantity")
    }
}

#[cfg(test)]
mod tests;
