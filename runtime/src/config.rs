//! What an embedder decides about a [`crate::Runtime`]: paths, maker, cgroup driver, pod network. Resolved
//! once by the embedder and never changed while the runtime lives.

mod handler;

use std::path::PathBuf;
use std::time::Duration;

pub use handler::{ForeignShim, Handler, HandlerError, HandlerKind};

use crate::image::Registries;

/// Which OCI runtime makes the containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Maker {
    /// Ours where the kernel has all it needs (Linux 5.12), else `runc` or `crun` from `PATH`.
    Auto,
    /// Ours: `helper oci`.
    Own,
    /// An executable with runc's command line.
    Path(PathBuf),
}

/// Who creates cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The runtime writes to the cgroup file system.
    Cgroupfs,
    /// systemd is asked over D-Bus.
    Systemd,
}

/// The pod network.
#[derive(Clone, Debug)]
pub struct CniConfig {
    /// Where the host's conflists lie; the first by name is used.
    pub conf_dir: PathBuf,
    /// Where plugins are looked for, in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// The network used when `conf_dir` holds no conflist; `None` makes the network not ready then.
    pub default: Option<BridgeNetwork>,
}

/// The default pod network: a bridge with a subnet, source NAT and host ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeNetwork {
    /// Name of the bridge interface, at most 15 bytes.
    pub bridge: String,
    /// The subnet in CIDR notation from which pods get their addresses; empty where only the cluster knows it, and
    /// then there is no network until `UpdateRuntimeConfig` tells.
    pub subnet: String,
}

/// Configuration of a [`crate::Runtime`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Durable data: images and writable layers.
    pub root: PathBuf,
    /// Data of this boot: records, sockets, mount points. Must be on a tmpfs to spare the flash.
    pub state: PathBuf,
    /// The executable that calls [`crate::run_helper`]; by default this process's own.
    pub helper: PathBuf,
    /// The `coracle-shim` executable.
    pub shim: PathBuf,
    /// Which OCI runtime makes the containers.
    pub maker: Maker,
    /// Runtime handlers beside our own.
    pub handlers: Vec<Handler>,
    /// Who creates the cgroups of containers.
    pub cgroup_driver: CgroupDriver,
    /// The cgroup of the shims. It must be neither the agent's, which a service manager kills, nor a pod's,
    /// whose out-of-memory kill the shim must outlive to tell.
    pub shim_cgroup: String,
    /// The pod network.
    pub cni: CniConfig,
    /// Mirrors, credentials and TLS of registries, as a `registries.yaml` in k3s' form has them.
    pub registries: Registries,
    /// How long a registry may send nothing before the connection counts as stalled and is tried again.
    pub pull_stall: Duration,
    /// Size of a sandbox's /dev/shm in bytes.
    pub shm_size: u64,
    /// The soft limit of open files that containers begin with, where it is not this process's own.
    pub descriptor_limit: Option<u64>,
}

impl Config {
    /// A configuration with the usual paths below `root` and `state`, and the shim at `shim`.
    pub fn new(root: impl Into<PathBuf>, state: impl Into<PathBuf>, shim: impl Into<PathBuf>) -> Config {
        Config {
            root: root.into(),
            state: state.into(),
            helper: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe")),
            shim: shim.into(),
            maker: Maker::Auto,
            handlers: Vec::new(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            shim_cgroup: "/coracle-shims".into(),
            cni: CniConfig::default(),
            registries: Registries::default(),
            pull_stall: Duration::from_secs(30),
            shm_size: 64 << 20,
            descriptor_limit: None,
        }
    }

    /// The handler of that name, unless it is our own.
    pub(crate) fn handler(&self, name: &str) -> Option<&Handler> {
        self.handlers.iter().find(|handler| handler.name == name)
    }

    /// Where images live.
    pub fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout { root: self.root.clone(), state: self.state.clone() }
    }
}

impl Default for CniConfig {
    fn default() -> CniConfig {
        CniConfig {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            default: Some(BridgeNetwork { bridge: "coracle0".into(), subnet: "10.85.0.0/16".into() }),
        }
    }
}

/// The paths of everything the runtime keeps, derived from ids alone so that a sweep finds them again.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
}

impl Layout {
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.state.join("containers")
    }

    /// Record, namespace pins, shm and files of one sandbox.
    pub(crate) fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }

    /// The directory of the namespace pins of one sandbox.
    pub(crate) fn pins(&self, id: &str) -> PathBuf {
        self.sandbox(id).join("ns")
    }

    pub(crate) fn shm(&self, id: &str) -> PathBuf {
        self.sandbox(id).join("shm")
    }

    /// Record and OCI bundle of one container.
    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// The named pipe to the standard input of a container that has one.
    pub(crate) fn stdin(&self, id: &str) -> PathBuf {
        self.bundle(id).join("stdin")
    }

    pub(crate) fn rootfs(&self, id: &str) -> PathBuf {
        self.bundle(id).join("rootfs")
    }

    /// Parent of every writable layer.
    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// The writable layer and the image volumes of one container.
    pub(crate) fn layer(&self, id: &str) -> PathBuf {
        self.layers().join(id)
    }

    pub(crate) fn shims(&self) -> PathBuf {
        self.state.join("shims")
    }

    /// The socket of one sandbox's shim. Short, because a socket's path may have 107 bytes at most.
    pub(crate) fn shim_socket(&self, id: &str) -> PathBuf {
        self.shims().join(&id[..id.len().min(16)])
    }

    /// State directory of the maker, one for the whole runtime.
    pub(crate) fn maker_root(&self) -> PathBuf {
        self.state.join("maker")
    }

    /// State directory of makers that shims of other kinds call.
    pub(crate) fn foreign_root(&self) -> PathBuf {
        self.state.join("foreign")
    }

    /// Sockets of shims of other kinds. Short: their names have 64 characters.
    pub(crate) fn foreign_sockets(&self) -> PathBuf {
        self.state.join("s")
    }

    /// Results and address leases of the network plugins.
    pub(crate) fn cni(&self) -> PathBuf {
        self.state.join("cni")
    }

    /// The read-only root of PID namespace holders.
    pub(crate) fn holder_rootfs(&self) -> PathBuf {
        self.state.join("holder")
    }
}
