//! The command line. Flags bear kubelet's names where kubelet has them.
//!
//! Parsed once at the start; nothing reads arguments or the environment later.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::join_args::JoinArgs;
use crate::node_args::NodeArgs;
use crate::runtime_args::RuntimeArgs;

/// A Kubernetes node in one small binary.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, about, args_override_self = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node
    Run(Box<RunArgs>),
    /// Join a cluster: obtain credentials, write the settings, and end
    Join(Box<JoinCommandArgs>),
    /// List the pods that run here
    Pods(PodsArgs),
    /// Print the log of a container
    Logs(LogsArgs),
    /// Run a command in a container
    Exec(ExecArgs),
    /// Attach to what a container runs
    Attach(AttachArgs),
    /// Forward local ports to a pod
    PortForward(PortForwardArgs),
    /// List what happened to the pods
    Events(EventsArgs),
    /// List, pull, load, save and remove images
    Images(ImagesArgs),
    /// Tell what this machine lacks to run pods, each with its cure
    Check(CheckArgs),
    /// Serve the container runtime alone, as CRI v1 on a socket
    Cri(Box<CriArgs>),
    /// Stop all pods gracefully; they stay stopped until the agent starts again
    StopPods(StopPodsArgs),
    /// Print the version
    Version,
    /// Print shell completions
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
}

/// Where a running agent is found.
#[derive(Args, Debug, Clone)]
pub(crate) struct StateArgs {
    /// Folder for sockets and records of this boot
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/coracle")]
    pub state_dir: PathBuf,
}

/// Folder for images, container file systems and credentials, unless another is given.
pub(crate) const DATA_DIR: &str = "/var/lib/coracle";

#[derive(Args, Debug)]
pub(crate) struct JoinCommandArgs {
    #[command(flatten)]
    pub join: JoinArgs,

    /// Name of this node; the host name if not given
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// Folder that gets the credentials, in pki/
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,

    /// Settings file to write
    #[arg(long, value_name = "FILE", default_value = crate::config_file::DEFAULT)]
    pub config: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub state: StateArgs,

    #[command(flatten)]
    pub join: JoinArgs,

    #[command(flatten)]
    pub node: NodeArgs,

    /// Settings file: the names of these flags as keys
    #[arg(long, value_name = "FILE", default_value = crate::config_file::DEFAULT)]
    pub config: PathBuf,

    /// Folder of manifests: v1 Pods, and the ConfigMaps and Secrets they use, as YAML or JSON
    #[arg(long, visible_alias = "pod-manifest-path", value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Folder for images and container file systems
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,

    /// Folder for pods' volumes
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,

    /// Folder for pods' logs
    #[arg(long, value_name = "DIR", default_value = "/var/log/pods")]
    pub pod_logs_dir: PathBuf,

    /// Folder for links to the logs, one per container
    #[arg(long, value_name = "DIR", default_value = "/var/log/containers")]
    pub container_logs_dir: PathBuf,

    /// Name of this node; the host name if not given
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// Address of this node, or one of each family, primary first; that of the default route if not given
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,

    #[command(flatten)]
    pub runtime: RuntimeArgs,

    /// A CRI runtime that is to run the pods (unix:///run/containerd/containerd.sock); ours if not given
    #[arg(long, value_name = "ENDPOINT")]
    pub container_runtime_endpoint: Option<String>,

    /// The CRI image service of that runtime; at the same endpoint if not given
    #[arg(long, value_name = "ENDPOINT", requires = "container_runtime_endpoint")]
    pub image_service_endpoint: Option<String>,

    /// Folder of image archives that are loaded at start; DATA_DIR/agent/images if not given
    #[arg(long, value_name = "DIR")]
    pub images_dir: Option<PathBuf>,

    /// Images pulled side by side
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub max_parallel_image_pulls: usize,

    /// Percent of disk use above which unused images are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 85)]
    pub image_gc_high_threshold: u8,

    /// Percent of disk use down to which they are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 80)]
    pub image_gc_low_threshold: u8,

    /// Size at which a container's log is rotated
    #[arg(long, value_name = "QUANTITY", default_value = "10Mi")]
    pub container_log_max_size: String,

    /// Log files kept of one container
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub container_log_max_files: u32,

    /// Addresses of the cluster's DNS servers
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,

    /// Domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// Resolver configuration that pods inherit; /etc/resolv.conf, or systemd-resolved's own list of servers
    /// where that names only a resolver on this machine, if not given
    #[arg(long, value_name = "FILE")]
    pub resolv_conf: Option<PathBuf>,

    /// Turn CPU limits into quotas
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    pub cpu_cfs_quota: bool,

    /// Which programs are asked for credentials of registries, as a kubelet's configuration names them
    #[arg(long, value_name = "FILE", requires = "image_credential_provider_bin_dir")]
    pub image_credential_provider_config: Option<PathBuf>,

    /// Folder of those programs
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,

    /// Which images that are present a pod needs credentials for: those by which they were pulled, or others that the
    /// registry takes
    #[arg(long, value_name = "POLICY", default_value = "NeverVerifyPreloadedImages",
        value_parser = ["NeverVerify", "NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "AlwaysVerify"])]
    pub image_pull_credentials_verification_policy: String,

    /// Images that are for all pods under NeverVerifyAllowlistedImages: repositories, or their beginnings that end in /*
    #[arg(long, value_name = "IMAGES", value_delimiter = ',')]
    pub preloaded_images_verification_allowlist: Vec<String>,

    /// Most processes of one pod; -1 for no limit
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    pub pod_max_pids: i64,

    /// Confine containers by the default seccomp profile unless they say otherwise
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    pub seccomp_default: bool,

    /// What is logged: error, warn, info, debug or trace, or per module as in RUST_LOG
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

/// A time as a kubelet's flags have it: `30s`, `1m30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Result<jiff::SignedDuration, _> = text.parse();
    parsed
        .ok()
        .and_then(|span| Duration::try_from(span).ok())
        .ok_or_else(|| format!("{text:?} is no time such as 30s or 1m30s"))
}

#[derive(Args, Debug)]
pub(crate) struct CriArgs {
    #[command(flatten)]
    pub state: StateArgs,

    #[command(flatten)]
    pub runtime: RuntimeArgs,

    /// Where to serve: unix:// and the path of a socket, which only root may open
    #[arg(long, value_name = "ADDRESS", default_value = "unix:///run/coracle/cri.sock")]
    pub listen: String,

    /// Folder for images and container file systems
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,

    /// What is logged: error, warn, info, debug or trace, or per module as in RUST_LOG
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

/// How lists are printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Output {
    /// A table
    Table,
    /// A table with more columns
    Wide,
    /// JSON, as kubectl prints lists
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct PodsArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Form of the list
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// The pod: NAME or NAMESPACE/NAME; of a manifest's pod also the name in the manifest
    pub pod: String,
    /// The container; needed when the pod has several
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Go on as the log grows
    #[arg(short, long)]
    pub follow: bool,
    /// The log of the previous instance
    #[arg(short, long)]
    pub previous: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// Print the time before each line
    #[arg(long)]
    pub timestamps: bool,
}

/// Which container is meant, and what is connected to it.
#[derive(Args, Debug)]
pub(crate) struct ContainerArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// The pod: NAME or NAMESPACE/NAME; of a manifest's pod also the name in the manifest
    pub pod: String,
    /// The container; the first if not given
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Standard input is a terminal
    #[arg(short, long)]
    pub tty: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub container: ContainerArgs,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub container: ContainerArgs,
}

#[derive(Args, Debug)]
pub(crate) struct PortForwardArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// The pod: NAME or NAMESPACE/NAME; of a manifest's pod also the name in the manifest
    pub pod: String,
    /// Ports: LOCAL:REMOTE, or PORT for both, or :REMOTE for any that is free here
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    pub ports: Vec<String>,
    /// Addresses to listen on
    #[arg(long, value_name = "IP", value_delimiter = ',', default_value = "127.0.0.1")]
    pub address: Vec<IpAddr>,
}

#[derive(Args, Debug)]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Go on as events come
    #[arg(short, long)]
    pub follow: bool,
    /// Only those of this pod
    #[arg(long, value_name = "POD")]
    pub r#for: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ImagesArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Folder of the images, for the list when no agent runs
    #[arg(long, global = true, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    #[command(subcommand)]
    pub command: ImagesCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// List images
    Ls {
        /// Form of the list
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Pull an image
    Pull {
        /// Its reference
        image: String,
        /// Docker config.json with credentials
        #[arg(long, value_name = "FILE")]
        auth_file: Option<PathBuf>,
    },
    /// Load an OCI layout or docker-archive, plain, gzip or zstd, or every archive of a folder
    Load {
        /// A file or a folder
        path: PathBuf,
    },
    /// Save images as an OCI layout
    Save {
        /// The file to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Their references
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove images
    Rm {
        /// References or IDs
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove every image that no container uses and that is not from the air-gap folder
    Prune {
        /// Those from the air-gap folder too
        #[arg(long)]
        all: bool,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// Folders of CNI plugins
    #[arg(long, value_name = "DIR", value_delimiter = ',', default_values = ["/opt/cni/bin", "/usr/lib/cni"])]
    pub cni_bin_dir: Vec<PathBuf>,
    /// Folder for images and container file systems
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// OCI runtime that is to make containers
    #[arg(long, value_name = "PATH")]
    pub oci_runtime: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct StopPodsArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Most seconds to wait for all of them
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_later_flag_overrides_an_earlier_one() {
        let cli = Cli::try_parse_from([
            "coracle",
            "run",
            "--manifests=/a",
            "--pod-cidr=1.0.0.0/8",
            "--manifests=/b",
        ]);
        let Ok(Cli { command: Command::Run(run) }) = cli else { panic!("{cli:?}") };
        assert_eq!(run.manifests, Some(PathBuf::from("/b")));
        assert!(!run.seccomp_default);
    }
}
