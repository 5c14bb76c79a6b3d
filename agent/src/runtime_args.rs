//! Flags of the container runtime, which `coracle run` and `coracle cri` have in common, and what they mean for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use coracle_runtime::image::Registries;
use coracle_runtime::{BridgeNetwork, CniConfig, Config, Handler, Maker};

use crate::args::duration;
use crate::shim_file;

/// Addresses of pods of a node on its own.
pub(crate) const POD_CIDR: &str = "10.88.0.0/16";

/// How cgroups are named.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum CgroupDriver {
    /// Folders below --cgroup-root
    Cgroupfs,
    /// Slices and scopes made through systemd
    Systemd,
}

impl From<CgroupDriver> for coracle_kubelet_core::pod_cgroup::CgroupDriver {
    fn from(driver: CgroupDriver) -> Self {
        match driver {
            CgroupDriver::Cgroupfs => Self::Cgroupfs,
            CgroupDriver::Systemd => Self::Systemd,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct RuntimeArgs {
    /// OCI runtime that makes containers (runc, crun, nvidia-container-runtime); ours if not given
    #[arg(long, value_name = "PATH")]
    pub oci_runtime: Option<PathBuf>,

    /// A runtime handler for RuntimeClasses: NAME=PATH of an OCI runtime, or NAME=TYPE of a containerd shim
    /// (io.containerd.runc.v2[,Path=SHIM][,BinaryName=OCI-RUNTIME][,ConfigPath=FILE])
    #[arg(long, value_name = "NAME=RUNTIME")]
    pub runtime_handler: Vec<Handler>,

    /// The coracle-shim executable; the one built in, or beside this executable, if not given
    #[arg(long, value_name = "PATH")]
    pub shim: Option<PathBuf>,

    /// How cgroups are made
    #[arg(long, value_enum, default_value = "cgroupfs")]
    pub cgroup_driver: CgroupDriver,

    /// Cgroup under which the pods' cgroups are made
    #[arg(long, value_name = "CGROUP", default_value = "/")]
    pub cgroup_root: String,

    /// Folder of CNI configurations; with none in it, pods get a bridge on --pod-cidr
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,

    /// Folders of CNI plugins
    #[arg(long, value_name = "DIR", value_delimiter = ',', default_values = ["/opt/cni/bin", "/usr/lib/cni"])]
    pub cni_bin_dir: Vec<PathBuf>,

    /// Addresses of the pods' bridge; 10.88.0.0/16 if not given, and in a cluster what it gives the node
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,

    /// Name of the pods' bridge
    #[arg(long, value_name = "NAME", default_value = "cni-coracle0")]
    pub bridge: String,

    /// Mirrors, credentials and certificates of registries, in k3s' form
    #[arg(long, value_name = "FILE", default_value = "/etc/coracle/registries.yaml")]
    pub private_registry: PathBuf,

    /// How long a registry may send nothing before the connection is given up and tried again (30s, 1m)
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub image_pull_progress_deadline: Duration,
}

impl RuntimeArgs {
    /// What the runtime is started with; `subnet` is that of the pods' bridge where no flag says otherwise.
    pub(crate) fn resolve(&self, data_dir: &Path, state_dir: &Path, subnet: &str) -> Result<Config> {
        let data_dir = std::path::absolute(data_dir).context("--data-dir")?;
        let state_dir = std::path::absolute(state_dir).context("--state-dir")?;
        let shim = shim_file::find(self.shim.as_deref(), &data_dir)?;
        let mut config = Config::new(data_dir, state_dir, shim);
        config.maker = self.oci_runtime.clone().map_or(Maker::Auto, Maker::Path);
        config.handlers = self.runtime_handler.clone();
        config.cgroup_driver = match self.cgroup_driver {
            CgroupDriver::Cgroupfs => coracle_runtime::CgroupDriver::Cgroupfs,
            CgroupDriver::Systemd => coracle_runtime::CgroupDriver::Systemd,
        };
        config.shim_cgroup = format!("{}/coracle-shims", self.cgroup_root.trim_end_matches('/'));
        let subnet = self.pod_cidr.clone().unwrap_or_else(|| subnet.to_owned());
        config.cni = CniConfig {
            conf_dir: self.cni_conf_dir.clone(),
            bin_dirs: self.cni_bin_dir.clone(),
            default: Some(BridgeNetwork { bridge: self.bridge.clone(), subnet }),
        };
        config.pull_stall = self.image_pull_progress_deadline;
        config.registries = registries(&self.private_registry)?;
        Ok(config)
    }
}

/// Mirrors, credentials and certificates of registries; a file that does not exist says nothing.
fn registries(path: &Path) -> Result<Registries> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_yaml_ng::from_str(&text)
            .with_context(|| format!("{} is not in k3s' registries.yaml form", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Registries::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
