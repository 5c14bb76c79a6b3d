//! From the command line to what each crate is started with. Resolved once; nothing reads flags later.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_bootstrap::{JoinConfig, Serving};
use coracle_kubelet_core::admission::HostRules;
use coracle_kubelet_core::admission::sysctls::AllowedSysctls;
use coracle_kubelet_core::api::Quantity;
use coracle_kubelet_core::gc::GcPolicy;
use coracle_kubelet_core::image_pull::{CredentialProviders, VerificationPolicy};
use coracle_kubelet_core::kubelet::{HousekeepingConfig, KubeletConfig};
use coracle_kubelet_core::log_rotation::LogPolicy;
use coracle_kubelet_core::node_ips::NodeIps;
use coracle_kubelet_core::resources::PodResourcesConfig;
use coracle_runtime::spec::apparmor;

use super::addresses;
use super::engine::EngineSettings;
use super::node_api::NodeSettings;
use crate::args::RunArgs;
use crate::runtime_args::POD_CIDR;

/// What the agent is started with.
pub(super) struct Settings {
    pub(super) state_dir: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) images_dir: PathBuf,
    pub(super) manifests: Option<PathBuf>,
    pub(super) node_name: String,
    pub(super) node_ips: NodeIps,
    pub(super) oci_runtime: Option<PathBuf>,
    pub(super) engine: EngineSettings,
    pub(super) kubelet: KubeletConfig,
    /// None for a node on its own.
    pub(super) cluster: Option<ClusterSettings>,
}

/// What ties the node to a cluster.
pub(super) struct ClusterSettings {
    pub(super) join: JoinConfig,
    pub(super) serving: Serving,
    /// Who signs clients of the kubelet API, if not the cluster's own authorities.
    pub(super) client_ca_file: Option<PathBuf>,
    pub(super) node: NodeSettings,
    pub(super) host: HostRules,
    /// Where the cluster's pods are kept over a reboot.
    pub(super) kept_pods: Option<PathBuf>,
    /// Where the addresses are kept that the cluster gave this node for its pods.
    pub(super) kept_cidrs: PathBuf,
}

impl Settings {
    pub(super) fn resolve(args: RunArgs) -> Result<Self> {
        let node_name = addresses::node_name(args.hostname_override.as_deref())?;
        let node_ips = addresses::node_ips(&args.node_ip)?;
        let node = NodeSettings::resolve(&args, &node_name, &node_ips)?;
        if args.image_gc_low_threshold > args.image_gc_high_threshold || args.image_gc_high_threshold > 100 {
            bail!(
                "--image-gc-low-threshold must not be above --image-gc-high-threshold, and both at most 100"
            );
        }
        // A node waits for its API server as long as it takes.
        let join = args.join.resolve(&node_name, &args.data_dir, Duration::MAX)?;
        if join.is_none() && args.manifests.is_none() {
            bail!(
                "nothing says what to run: give --manifests with a folder of pods, or --server to join a cluster"
            );
        }
        let cluster = match join {
            Some(join) => Some(ClusterSettings {
                join,
                serving: args.join.serving(),
                client_ca_file: args.node.client_ca_file.clone(),
                node: node.clone(),
                host: host_rules(&args.node.allowed_unsafe_sysctls)?,
                kept_pods: args.node.keep_pods.then(|| args.data_dir.join("agent/pods.json")),
                kept_cidrs: args.data_dir.join("agent/pod-cidrs"),
            }),
            None => None,
        };
        let kubelet = kubelet(&args, &node_name, &node_ips, &node)?;
        let engine = engine(&args, cluster.is_some())?;
        Ok(Self {
            images_dir: args.images_dir.unwrap_or_else(|| args.data_dir.join("agent/images")),
            manifests: args.manifests.map(std::path::absolute).transpose().context("--manifests")?,
            state_dir: args.state.state_dir,
            data_dir: args.data_dir,
            node_name,
            node_ips,
            oci_runtime: args.runtime.oci_runtime,
            engine,
            kubelet,
            cluster,
        })
    }
}

fn host_rules(unsafe_sysctls: &[String]) -> Result<HostRules> {
    let uname = rustix::system::uname();
    let sysctls = AllowedSysctls::new(unsafe_sysctls, &uname.release().to_string_lossy())
        .context("--allowed-unsafe-sysctls")?;
    Ok(HostRules { sysctls, has_apparmor: apparmor::is_enabled() })
}

fn engine(args: &RunArgs, is_joined: bool) -> Result<EngineSettings> {
    let Some(endpoint) = args.container_runtime_endpoint.clone() else {
        // In a cluster the addresses of pods come with the Node.
        let subnet = if is_joined { "" } else { POD_CIDR };
        let config = args.runtime.resolve(&args.data_dir, &args.state.state_dir, subnet)?;
        return Ok(EngineSettings::Embedded(Box::new(config)));
    };
    let images = args.image_service_endpoint.clone().unwrap_or_else(|| endpoint.clone());
    Ok(EngineSettings::Endpoints { runtime: endpoint, images })
}

fn kubelet(
    args: &RunArgs,
    node_name: &str,
    node_ips: &NodeIps,
    node: &NodeSettings,
) -> Result<KubeletConfig> {
    let mut resources = PodResourcesConfig::new(std::path::absolute(&args.root_dir).context("--root-dir")?);
    resources.log_root = std::path::absolute(&args.pod_logs_dir).context("--pod-logs-dir")?;
    resources.node_ips = node_ips.clone();
    let share = node.node.share_of_pods();
    resources.allocatable = share.allocatable;
    resources.enforced = Some(share.enforced);
    resources.cgroup_root = args.runtime.cgroup_root.clone();
    resources.cgroup_driver = args.runtime.cgroup_driver.into();
    resources.cluster_dns = args.cluster_dns.clone();
    resources.cluster_domain = args.cluster_domain.clone();
    resources.resolv_conf = Some(args.resolv_conf.clone().unwrap_or_else(addresses::resolv_conf));
    resources.cpu_cfs_quota = args.cpu_cfs_quota;
    resources.pod_pids_limit = (args.pod_max_pids > 0).then_some(args.pod_max_pids);
    resources.seccomp_default = args.seccomp_default;
    let mut config = KubeletConfig::new(resources);
    config.log_links = Some(std::path::absolute(&args.container_logs_dir).context("--container-logs-dir")?);
    let parallel = NonZeroUsize::new(args.max_parallel_image_pulls);
    config.image_pull.max_parallel = parallel.context("--max-parallel-image-pulls must be at least 1")?;
    // As a kubelet: its root folder, its working folder (that of a service is /), and root's home.
    let homes = [args.root_dir.as_path(), Path::new("/"), Path::new("/root/.docker"), Path::new("/.docker")];
    config.image_pull.docker_configs = homes.map(|home| home.join("config.json")).to_vec();
    if let (Some(file), Some(folder)) =
        (&args.image_credential_provider_config, &args.image_credential_provider_bin_dir)
    {
        config.image_pull.providers =
            CredentialProviders::load(file, folder).context("--image-credential-provider-config")?;
    }
    config.image_pull.verification = VerificationPolicy::new(
        &args.image_pull_credentials_verification_policy,
        args.preloaded_images_verification_allowlist.clone(),
    )
    .context("--image-pull-credentials-verification-policy, --preloaded-images-verification-allowlist")?;
    config.housekeeping = housekeeping(args, node_name)?;
    Ok(config)
}

/// What is kept of images and logs.
fn housekeeping(args: &RunArgs, node_name: &str) -> Result<HousekeepingConfig> {
    let size: Quantity = args.container_log_max_size.parse().context("--container-log-max-size")?;
    if args.container_log_max_files < 2 {
        bail!("--container-log-max-files must be at least 2");
    }
    Ok(HousekeepingConfig {
        node_name: node_name.to_owned(),
        gc: GcPolicy {
            image_high_percent: args.image_gc_high_threshold,
            image_low_percent: args.image_gc_low_threshold,
            ..GcPolicy::default()
        },
        // A negative size turns rotation off, as for a kubelet.
        logs: LogPolicy {
            max_size: u64::try_from(size.value()).ok(),
            max_files: args.container_log_max_files as usize,
        },
    })
}
