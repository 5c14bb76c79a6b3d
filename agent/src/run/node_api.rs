//! The Node and the kubelet API of a joined node: from flags to what kubelet-core is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use coracle_cluster::Cluster;
use coracle_kubelet_core::clock::Clock;
use coracle_kubelet_core::eviction::{self, EvictionInputs};
use coracle_kubelet_core::kubelet::{Kubelet, PodViews};
use coracle_kubelet_core::node::{
    NodeAgent, NodeConfig, NodeRuntime, parse_labels, parse_reserved, parse_taints,
};
use coracle_kubelet_core::node_ips::NodeIps;
use coracle_kubelet_core::pod_cgroup::CgroupPlace;
use coracle_kubelet_core::server::{Server, ServerConfig, ServerParts};
use rustls::server::ResolvesServerCert;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::engine::Engine;
use crate::args::RunArgs;
use crate::node_args::{AuthorizationMode, NodeArgs};

/// What this node has of the features that nodes declare, in the order of their names.
const DECLARED_FEATURES: [&str; 4] = [
    "ExtendWebSocketsToKubelet",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "RestartAllContainersOnContainerExits",
];

/// What the Node says and how its API is served.
#[derive(Clone, Debug)]
pub(super) struct NodeSettings {
    pub(super) node: NodeConfig,
    address: SocketAddr,
    authenticate_tokens: bool,
    authorize: bool,
    log_root: PathBuf,
    cgroups: CgroupPlace,
    streaming_idle_timeout: Duration,
    configz: Value,
}

impl NodeSettings {
    pub(super) fn resolve(args: &RunArgs, node_name: &str, node_ips: &NodeIps) -> Result<Self> {
        let flags = &args.node;
        let root_dir = std::path::absolute(&args.root_dir).context("--root-dir")?;
        let node = NodeConfig {
            node_ips: node_ips.clone(),
            labels: parse_labels(&flags.node_labels).context("--node-labels")?,
            taints: parse_taints(&flags.register_with_taints).context("--register-with-taints")?,
            provider_id: flags.provider_id.clone(),
            register: flags.register_node,
            max_pods: flags.max_pods,
            pods_per_core: flags.pods_per_core,
            kube_reserved: parse_reserved(&flags.kube_reserved).context("--kube-reserved")?,
            system_reserved: parse_reserved(&flags.system_reserved).context("--system-reserved")?,
            eviction: flags
                .eviction
                .policy()
                .context("--eviction-hard, -soft, -soft-grace-period or -minimum-reclaim")?,
            kubelet_port: flags.port,
            root_dir,
            declared_features: DECLARED_FEATURES.map(str::to_owned).to_vec(),
            ..NodeConfig::new(node_name)
        };
        Ok(Self {
            node,
            address: SocketAddr::new(flags.address, flags.port),
            authenticate_tokens: flags.authentication_token_webhook,
            authorize: flags.authorization_mode == AuthorizationMode::Webhook,
            log_root: std::path::absolute(&args.pod_logs_dir).context("--pod-logs-dir")?,
            cgroups: CgroupPlace {
                root: args.runtime.cgroup_root.clone(),
                driver: args.runtime.cgroup_driver.into(),
            },
            streaming_idle_timeout: flags.streaming_connection_idle_timeout,
            configz: configz(args, flags),
        })
    }
}

/// The part of a KubeletConfiguration that this node has, by its names.
fn configz(args: &RunArgs, flags: &NodeArgs) -> Value {
    let pairs = |text: &str, separator: char| -> Value {
        let split = |part: &str| part.split_once(separator).map(|(k, v)| (k.to_owned(), Value::from(v)));
        Value::Object(text.split(',').filter_map(|part| split(part.trim())).collect())
    };
    let eviction = &flags.eviction;
    json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "staticPodPath": args.manifests,
        "address": flags.address,
        "port": flags.port,
        "authentication": {
            "x509": { "clientCAFile": flags.client_ca_file },
            "webhook": { "enabled": flags.authentication_token_webhook, "cacheTTL": "2m0s" },
            "anonymous": { "enabled": false },
        },
        "authorization": {
            "mode": match flags.authorization_mode {
                AuthorizationMode::Webhook => "Webhook",
                AuthorizationMode::AlwaysAllow => "AlwaysAllow",
            },
            "webhook": { "cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s" },
        },
        "containerRuntimeEndpoint": args.container_runtime_endpoint,
        "imageServiceEndpoint": args.image_service_endpoint,
        "clusterDomain": args.cluster_domain,
        "clusterDNS": args.cluster_dns,
        "streamingConnectionIdleTimeout": go_duration(flags.streaming_connection_idle_timeout),
        "nodeStatusUpdateFrequency": "10s",
        "nodeStatusReportFrequency": "5m0s",
        "nodeLeaseDurationSeconds": 40,
        "nodeStatusMaxImages": 50,
        "imageGCHighThresholdPercent": args.image_gc_high_threshold,
        "imageGCLowThresholdPercent": args.image_gc_low_threshold,
        "cgroupRoot": args.runtime.cgroup_root,
        "cgroupsPerQOS": true,
        "maxPods": flags.max_pods,
        "podsPerCore": flags.pods_per_core,
        "podPidsLimit": args.pod_max_pids,
        "resolvConf": args.resolv_conf,
        "cpuCFSQuotaPeriod": "100ms",
        "maxParallelImagePulls": args.max_parallel_image_pulls,
        "imagePullCredentialsVerificationPolicy": args.image_pull_credentials_verification_policy,
        "preloadedImagesVerificationAllowlist": args.preloaded_images_verification_allowlist,
        "evictionHard": pairs(&eviction.eviction_hard, '<'),
        "evictionSoft": pairs(&eviction.eviction_soft, '<'),
        "evictionSoftGracePeriod": pairs(&eviction.eviction_soft_grace_period, '='),
        "evictionPressureTransitionPeriod": go_duration(eviction.eviction_pressure_transition_period),
        "evictionMaxPodGracePeriod": eviction.eviction_max_pod_grace_period,
        "evictionMinimumReclaim": pairs(&eviction.eviction_minimum_reclaim, '='),
        "containerLogMaxSize": args.container_log_max_size,
        "containerLogMaxFiles": args.container_log_max_files,
        "systemReserved": pairs(&flags.system_reserved, '='),
        "kubeReserved": pairs(&flags.kube_reserved, '='),
        "seccompDefault": args.seccomp_default,
        "registerNode": flags.register_node,
        "podLogsDir": args.pod_logs_dir,
    })
}

/// As Go writes a time of whole seconds: `4h0m0s`.
fn go_duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// Who the node is to its clients, and whom it trusts.
pub(super) struct ServingTrust {
    pub(super) certificates: Arc<dyn ResolvesServerCert>,
    /// In PEM.
    pub(super) client_authorities: watch::Receiver<Arc<Vec<u8>>>,
}

/// What keeps the Node and serves its API; both end when this is dropped.
pub(super) struct NodeApi {
    pub(super) agent: NodeAgent,
    _server: Server,
    /// Ends pods when the node runs short.
    evictions: JoinHandle<()>,
}

impl Drop for NodeApi {
    fn drop(&mut self) {
        self.evictions.abort();
    }
}

/// Registers the Node and serves the kubelet API, both in the background.
pub(super) async fn start(
    settings: &NodeSettings,
    cluster: Cluster,
    trust: ServingTrust,
    (kubelet, idle): (&Kubelet, watch::Receiver<PodViews>),
    engine: &Engine,
) -> Result<NodeApi> {
    let mut cgroups = settings.cgroups.clone();
    cgroups.driver = engine.cgroup_driver().await.unwrap_or(cgroups.driver);
    let config = ServerConfig {
        address: settings.address,
        node_name: settings.node.name.clone(),
        certificates: trust.certificates,
        client_authorities: trust.client_authorities,
        authenticate_tokens: settings.authenticate_tokens,
        authorize: settings.authorize,
        configz: settings.configz.clone(),
        root_dir: settings.node.root_dir.clone(),
        log_root: settings.log_root.clone(),
        cgroups,
        streaming_idle_timeout: settings.streaming_idle_timeout,
        clock: Clock::system(),
    };
    let parts = ServerParts {
        cluster: Some(cluster.clone()),
        pods: kubelet.statuses(),
        idle,
        runtime: engine.runtime.clone(),
        images: engine.images.clone(),
        probes: kubelet.probe_counts(),
    };
    // Before the Node says that it is ready, its API is.
    let server = Server::start(config, parts).await?;
    let cri = NodeRuntime { runtime: engine.runtime.clone(), images: engine.images.clone() };
    let agent = NodeAgent::start(settings.node.clone(), cluster, Some(cri), kubelet.events().clone());
    let evictions = tokio::spawn(eviction::run(EvictionInputs {
        pressing: agent.pressing(),
        evictor: kubelet.evictor(),
        runtime: engine.runtime.clone(),
        events: kubelet.events().clone(),
        node_name: settings.node.name.clone(),
        max_pod_grace_seconds: settings.node.eviction.max_pod_grace_seconds,
        root_dir: settings.node.root_dir.clone(),
        log_root: settings.log_root.clone(),
    }));
    Ok(NodeApi { agent, _server: server, evictions })
}
