//! The flags of a joined node: what its Node object says, and how its kubelet API is served. A kubelet's names.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use coracle_kubelet_core::node::pressure::{EvictionFlagError, EvictionPolicy, parse_thresholds};

/// Who decides what a known client of the kubelet API may.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum AuthorizationMode {
    /// The API server, by SubjectAccessReview
    Webhook,
    /// Whoever is known may everything
    AlwaysAllow,
}

/// When pods are ended because the node runs short.
#[derive(Args, Clone, Debug)]
pub(crate) struct EvictionArgs {
    /// Below these the node is under pressure, and pods are ended at once
    #[arg(
        long,
        value_name = "SIGNALS",
        default_value = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%"
    )]
    pub eviction_hard: String,

    /// Below these the node is under pressure, and pods are ended once that lasted: memory.available<300Mi,…
    #[arg(long, value_name = "SIGNALS", default_value = "")]
    pub eviction_soft: String,

    /// How long a signal of --eviction-soft may be low: memory.available=1m30s,…
    #[arg(long, value_name = "TIMES", default_value = "")]
    pub eviction_soft_grace_period: String,

    /// Most seconds that a pod has to end because of --eviction-soft; negative for its own grace period
    #[arg(long, value_name = "SECONDS", default_value_t = 0, allow_negative_numbers = true)]
    pub eviction_max_pod_grace_period: i64,

    /// How much above its limit a signal has to rise once pods were ended for it: imagefs.available=2Gi,…
    #[arg(long, value_name = "AMOUNTS", default_value = "")]
    pub eviction_minimum_reclaim: String,

    /// How long a condition outlasts the pressure
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = crate::args::duration)]
    pub eviction_pressure_transition_period: Duration,
}

impl EvictionArgs {
    pub(crate) fn policy(&self) -> Result<EvictionPolicy, EvictionFlagError> {
        let thresholds = parse_thresholds(
            &self.eviction_hard,
            &self.eviction_soft,
            &self.eviction_soft_grace_period,
            &self.eviction_minimum_reclaim,
        )?;
        let transition_period = self.eviction_pressure_transition_period;
        let max_pod_grace_seconds = self.eviction_max_pod_grace_period;
        Ok(EvictionPolicy { thresholds, transition_period, max_pod_grace_seconds })
    }
}

/// Flags that matter once the node has joined a cluster.
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    /// Labels of the Node when it registers: key=value,…
    #[arg(long, value_name = "LABELS", default_value = "")]
    pub node_labels: String,

    /// Taints of the Node when it registers: key=value:Effect,…
    #[arg(long, value_name = "TAINTS", default_value = "")]
    pub register_with_taints: String,

    /// Create the Node if there is none
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    pub register_node: bool,

    /// Id of the machine at its cloud
    #[arg(long, value_name = "ID", default_value = "")]
    pub provider_id: String,

    /// Most pods on this node
    #[arg(long, value_name = "N", default_value_t = 110)]
    pub max_pods: u32,

    /// Most pods per processor; 0 for no such limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub pods_per_core: u32,

    /// What the node itself needs: cpu=100m,memory=64Mi
    #[arg(long, value_name = "RESOURCES", default_value = "")]
    pub kube_reserved: String,

    /// What the rest of the machine needs
    #[arg(long, value_name = "RESOURCES", default_value = "")]
    pub system_reserved: String,

    /// Kernel parameters that pods may set besides the safe ones: kernel.msg*,net.core.somaxconn
    #[arg(long, value_name = "SYSCTL,…", value_delimiter = ',')]
    pub allowed_unsafe_sysctls: Vec<String>,

    #[command(flatten)]
    pub eviction: EvictionArgs,

    /// Keep the cluster's pods and what they refer to, Secrets too, in DATA_DIR/agent/pods.json (mode 0600), so that
    /// they start again after a reboot with no API server in reach
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    pub keep_pods: bool,

    /// Address the kubelet API is served on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub address: IpAddr,

    /// Port the kubelet API is served on
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    pub port: u16,

    /// After how long without a byte a stream of exec, attach or port-forward ends
    #[arg(long, value_name = "DURATION", default_value = "4h", value_parser = crate::args::duration)]
    pub streaming_connection_idle_timeout: Duration,

    /// Who signs certificates of the kubelet API's clients, in PEM; the authorities of the kubeconfig if not given
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,

    /// Have the API server review bearer tokens of the kubelet API's clients
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    pub authentication_token_webhook: bool,

    /// Who decides what a client of the kubelet API may
    #[arg(long, value_enum, default_value = "Webhook")]
    pub authorization_mode: AuthorizationMode,
}
