//! A good request of every call, with every kind of field in it, for the malformed ones to be made of.

use std::path::Path;

use coracle_cri::v1::*;
use prost::Message;

use crate::service_support::{IMAGE, namespaces};

/// Names of a pod that lives.
pub(crate) struct Alive {
    pub(crate) sandbox: String,
    pub(crate) container: String,
}

pub(crate) fn sandbox(dir: &Path, cgroup: &str, name: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            attempt: 1,
        }),
        hostname: "host".into(),
        log_directory: dir.join("logs").join(name).to_string_lossy().into_owned(),
        dns_config: Some(DnsConfig {
            servers: vec!["10.0.0.10".into()],
            searches: vec!["a.local".into()],
            options: vec!["ndots:5".into()],
        }),
        port_mappings: vec![PortMapping {
            protocol: 0,
            container_port: 80,
            host_port: 0,
            host_ip: String::new(),
        }],
        labels: [("app".to_owned(), name.to_owned())].into(),
        annotations: [("note".to_owned(), "a".to_owned())].into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("{cgroup}/pods/{name}"),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(NamespaceMode::Node, NamespaceMode::Container)),
                supplemental_groups: vec![1, 2],
                run_as_user: Some(Int64Value { value: 1000 }),
                run_as_group: Some(Int64Value { value: 1000 }),
                seccomp: Some(SecurityProfile { profile_type: 0, localhost_ref: String::new() }),
                ..Default::default()
            }),
            sysctls: [("kernel.shm_rmid_forced".to_owned(), "0".to_owned())].into(),
            overhead: Some(resources()),
            resources: Some(resources()),
        }),
        windows: None,
    }
}

pub(crate) fn container(name: &str) -> ContainerConfig {
    let mount = Mount {
        container_path: "/mnt".into(),
        host_path: "/etc/hostname".into(),
        readonly: true,
        propagation: 0,
        ..Default::default()
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 1 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
        command: vec!["sleep".into()],
        args: vec!["1000".into()],
        working_dir: "/tmp".into(),
        envs: vec![KeyValue { key: "A".into(), value: "b".into() }],
        mounts: vec![mount],
        devices: vec![Device {
            container_path: "/dev/mine".into(),
            host_path: "/dev/null".into(),
            permissions: "rwm".into(),
        }],
        labels: [("container".to_owned(), name.to_owned())].into(),
        annotations: [("note".to_owned(), "a".to_owned())].into(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources()),
            security_context: Some(LinuxContainerSecurityContext {
                capabilities: Some(Capability {
                    add_capabilities: vec!["NET_ADMIN".into()],
                    drop_capabilities: vec!["ALL".into()],
                    ..Default::default()
                }),
                namespace_options: Some(namespaces(NamespaceMode::Node, NamespaceMode::Container)),
                run_as_user: Some(Int64Value { value: 1000 }),
                run_as_username: String::new(),
                supplemental_groups: vec![5],
                no_new_privs: true,
                masked_paths: vec!["/proc/kcore".into()],
                readonly_paths: vec!["/proc/sys".into()],
                seccomp: Some(SecurityProfile { profile_type: 0, localhost_ref: String::new() }),
                apparmor: Some(SecurityProfile { profile_type: 1, localhost_ref: String::new() }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn resources() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 500,
        cpuset_cpus: "0".into(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        unified: [("memory.high".to_owned(), "max".to_owned())].into(),
        memory_swap_limit_in_bytes: 64 << 20,
    }
}

const RUNTIME: &str = "/runtime.v1.RuntimeService/";
const IMAGES: &str = "/runtime.v1.ImageService/";

fn base(service: &str, method: &str, message: &impl Message) -> (String, Vec<u8>) {
    (format!("{service}{method}"), message.encode_to_vec())
}

/// One of every call. `fresh` is a name that no pod has.
pub(crate) fn all(dir: &Path, cgroup: &str, alive: &Alive, fresh: &str) -> Vec<(String, Vec<u8>)> {
    let mut all = pods(dir, cgroup, alive, fresh);
    all.extend(containers(alive));
    all.extend(lists(alive));
    all.extend(images());
    all
}

/// Those that make something, which most of the requests should be.
pub(crate) fn makers(dir: &Path, cgroup: &str, alive: &Alive, fresh: &str) -> Vec<(String, Vec<u8>)> {
    let run =
        RunPodSandboxRequest { config: Some(sandbox(dir, cgroup, fresh)), runtime_handler: "coracle".into() };
    let create = CreateContainerRequest {
        pod_sandbox_id: alive.sandbox.clone(),
        config: Some(container(fresh)),
        sandbox_config: Some(sandbox(dir, cgroup, "alive")),
    };
    let update = UpdateContainerResourcesRequest {
        container_id: alive.container.clone(),
        linux: Some(resources()),
        annotations: [("note".to_owned(), "a".to_owned())].into(),
        ..Default::default()
    };
    vec![
        base(RUNTIME, "RunPodSandbox", &run),
        base(RUNTIME, "CreateContainer", &create),
        base(RUNTIME, "UpdateContainerResources", &update),
    ]
}

fn pods(dir: &Path, cgroup: &str, alive: &Alive, fresh: &str) -> Vec<(String, Vec<u8>)> {
    let pod_sandbox_id = alive.sandbox.clone();
    let forward = PortForwardRequest { pod_sandbox_id: pod_sandbox_id.clone(), port: vec![80] };
    let update = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
        overhead: Some(resources()),
        resources: Some(resources()),
    };
    let status = PodSandboxStatusRequest { pod_sandbox_id: pod_sandbox_id.clone(), verbose: true };
    let stats = PodSandboxStatsRequest { pod_sandbox_id };
    let config = UpdateRuntimeConfigRequest {
        runtime_config: Some(RuntimeConfig {
            network_config: Some(NetworkConfig { pod_cidr: "10.196.0.0/16".into() }),
        }),
    };
    let none = "0123456789abcdef".repeat(4);
    let mut all = makers(dir, cgroup, alive, fresh);
    all.extend([
        base(RUNTIME, "Version", &VersionRequest { version: "v1".into() }),
        base(RUNTIME, "PortForward", &forward),
        base(RUNTIME, "UpdatePodSandboxResources", &update),
        base(RUNTIME, "PodSandboxStatus", &status),
        base(RUNTIME, "PodSandboxStats", &stats),
        base(RUNTIME, "UpdateRuntimeConfig", &config),
        base(RUNTIME, "StopPodSandbox", &StopPodSandboxRequest { pod_sandbox_id: none.clone() }),
        base(RUNTIME, "RemovePodSandbox", &RemovePodSandboxRequest { pod_sandbox_id: none }),
    ]);
    all
}

fn containers(alive: &Alive) -> Vec<(String, Vec<u8>)> {
    let container_id = alive.container.clone();
    let none = "0123456789abcdef".repeat(4);
    let sync = ExecSyncRequest { container_id: container_id.clone(), cmd: vec!["true".into()], timeout: 5 };
    let exec = ExecRequest {
        container_id: container_id.clone(),
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    let attach = AttachRequest { container_id: container_id.clone(), stdout: true, ..Default::default() };
    let status = ContainerStatusRequest { container_id: container_id.clone(), verbose: true };
    let stats = ContainerStatsRequest { container_id: container_id.clone() };
    let checkpoint = CheckpointContainerRequest {
        container_id: container_id.clone(),
        location: "/checkpoint.tar".into(),
        timeout: 1,
    };
    vec![
        base(RUNTIME, "ExecSync", &sync),
        base(RUNTIME, "Exec", &exec),
        base(RUNTIME, "Attach", &attach),
        base(RUNTIME, "ContainerStatus", &status),
        base(RUNTIME, "ContainerStats", &stats),
        base(RUNTIME, "CheckpointContainer", &checkpoint),
        base(RUNTIME, "ReopenContainerLog", &ReopenContainerLogRequest { container_id }),
        base(RUNTIME, "StartContainer", &StartContainerRequest { container_id: none.clone() }),
        base(RUNTIME, "StopContainer", &StopContainerRequest { container_id: none.clone(), timeout: 1 }),
        base(RUNTIME, "RemoveContainer", &RemoveContainerRequest { container_id: none }),
    ]
}

fn lists(alive: &Alive) -> Vec<(String, Vec<u8>)> {
    let labels = [("app".to_owned(), "alive".to_owned())];
    let sandboxes = PodSandboxFilter {
        id: alive.sandbox.clone(),
        state: Some(PodSandboxStateValue { state: 0 }),
        label_selector: labels.clone().into(),
    };
    let containers = ContainerFilter {
        id: alive.container.clone(),
        state: Some(ContainerStateValue { state: 1 }),
        pod_sandbox_id: alive.sandbox.clone(),
        label_selector: labels.clone().into(),
    };
    let usage = ContainerStatsFilter {
        id: alive.container.clone(),
        pod_sandbox_id: alive.sandbox.clone(),
        label_selector: labels.clone().into(),
    };
    let pod_usage = PodSandboxStatsFilter { id: alive.sandbox.clone(), label_selector: labels.into() };
    vec![
        base(RUNTIME, "ListPodSandbox", &ListPodSandboxRequest { filter: Some(sandboxes.clone()) }),
        base(RUNTIME, "StreamPodSandboxes", &StreamPodSandboxesRequest { filter: Some(sandboxes) }),
        base(RUNTIME, "ListContainers", &ListContainersRequest { filter: Some(containers.clone()) }),
        base(RUNTIME, "StreamContainers", &StreamContainersRequest { filter: Some(containers) }),
        base(RUNTIME, "ListContainerStats", &ListContainerStatsRequest { filter: Some(usage) }),
        base(RUNTIME, "ListPodSandboxStats", &ListPodSandboxStatsRequest { filter: Some(pod_usage) }),
        base(RUNTIME, "GetContainerEvents", &GetEventsRequest {}),
        base(RUNTIME, "ListMetricDescriptors", &ListMetricDescriptorsRequest {}),
        base(RUNTIME, "ListPodSandboxMetrics", &ListPodSandboxMetricsRequest {}),
        base(RUNTIME, "RuntimeConfig", &RuntimeConfigRequest {}),
        base(RUNTIME, "Status", &StatusRequest { verbose: true }),
        base(RUNTIME, "NoSuchCall", &StatusRequest { verbose: true }),
    ]
}

fn images() -> Vec<(String, Vec<u8>)> {
    let image = ImageSpec {
        image: "127.0.0.1:1/none:1".into(),
        annotations: [("a".to_owned(), "b".to_owned())].into(),
        user_specified_image: "none".into(),
        image_ref: "none".into(),
        runtime_handler: String::new(),
    };
    let pull = PullImageRequest {
        image: Some(image.clone()),
        auth: Some(AuthConfig { username: "a".into(), password: "b".into(), ..Default::default() }),
        sandbox_config: None,
    };
    let listed = ListImagesRequest { filter: Some(ImageFilter { image: Some(image.clone()) }) };
    vec![
        base(IMAGES, "PullImage", &pull),
        base(IMAGES, "ListImages", &listed),
        base(IMAGES, "ImageStatus", &ImageStatusRequest { image: Some(image.clone()), verbose: true }),
        base(IMAGES, "RemoveImage", &RemoveImageRequest { image: Some(image) }),
        base(IMAGES, "ImageFsInfo", &ImageFsInfoRequest {}),
    ]
}
