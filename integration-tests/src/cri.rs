//! A container runtime on its own in a machine, with a registry beside it: what critest and crictl are pointed at.
//!
//! Both runtimes get the same registry, network and plugins. A stand belongs to the command that started it and ends
//! with it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::Executables;
use crate::cluster::machine::Machine;
use crate::cluster::{Lifetime, conflist, containerd_config};
use crate::peers::Peers;

/// Addresses of pods.
const PODS: &str = "10.42.0.0/24";
/// Where the registry listens.
const REGISTRY: &str = "127.0.0.1:5000";

/// A container runtime.
#[derive(Clone, Debug)]
pub enum Runtime {
    /// The peers' containerd with runc.
    Containerd,
    /// `coracle cri` of these executables.
    Coracle(Executables),
}

impl Runtime {
    /// Its name, which is its service's too.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Coracle(_) => "coracle",
        }
    }

    /// Where it serves CRI in its machine.
    pub fn endpoint(&self) -> &'static str {
        match self {
            Self::Containerd => "unix:///run/containerd/containerd.sock",
            Self::Coracle(_) => "unix:///run/coracle/cri.sock",
        }
    }
}

/// A machine with a runtime and a registry.
#[derive(Debug)]
pub struct Stand {
    /// Where both run.
    pub machine: Machine,
    /// Its runtime.
    pub runtime: Runtime,
}

impl Stand {
    /// Starts one and waits until the runtime answers. The images must have been written, the peers built.
    pub fn start(runtime: Runtime) -> Result<Self> {
        let peers = Peers::new();
        let id = format!("coracle-cri-{}-{}", runtime.name(), std::process::id());
        let folder = crate::target_dir().join("cri").join(&id);
        let machine = Machine::start(&id, runtime.name(), &folder, Lifetime::OfThisProcess)?;
        let stand = Self { machine, runtime };
        stand.start_registry(&peers)?;
        let plugins = peers.program("bridge")?;
        let plugins = plugins.parent().context("a program lies in a folder")?;
        stand.write("net.d/10-test.conflist", &conflist(PODS).to_string())?;
        match &stand.runtime {
            Runtime::Containerd => stand.start_containerd(plugins)?,
            Runtime::Coracle(executables) => stand.start_coracle(executables, plugins)?,
        }
        stand.wait_for(&peers)?;
        Ok(stand)
    }

    /// Writes a file, which the machine has under /var/lib/node.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.machine.folder.join("lib/node").join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn start_registry(&self, peers: &Peers) -> Result<()> {
        let config = json!({
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": true}},
            "storage": {
                "filesystem": {"rootdirectory": crate::images::folder()},
                "maintenance": {"readonly": {"enabled": true}, "uploadpurging": {"enabled": false}},
            },
            "http": {"addr": REGISTRY, "secret": "not one"},
        });
        let path = self.write("registry.json", &config.to_string())?;
        let arguments = ["serve".to_owned(), path.display().to_string()];
        self.machine.start_service("registry", &peers.program("registry")?, &arguments)
    }

    fn start_containerd(&self, programs: &Path) -> Result<()> {
        self.write("containerd.toml", &containerd_config(programs))?;
        let mirror = format!("[host.\"http://{REGISTRY}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        self.write("certs.d/_default/hosts.toml", &mirror)?;
        let arguments = [
            format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()),
            programs.join("containerd").display().to_string(),
            "--config=/var/lib/node/containerd.toml".to_owned(),
        ];
        self.machine.start_service("containerd", Path::new("env"), &arguments)
    }

    fn start_coracle(&self, executables: &Executables, plugins: &Path) -> Result<()> {
        let mirror = format!("mirrors:\n  \"*\":\n    endpoint: [\"http://{REGISTRY}\"]\n");
        self.write("registries.yaml", &mirror)?;
        let arguments = [
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            executables.coracle.display().to_string(),
            "cri".to_owned(),
            format!("--listen={}", self.runtime.endpoint()),
            format!("--shim={}", executables.shim.display()),
            "--private-registry=/var/lib/node/registries.yaml".to_owned(),
            "--cni-conf-dir=/var/lib/node/net.d".to_owned(),
            format!("--cni-bin-dir={}", plugins.display()),
        ];
        self.machine.start_service("coracle", Path::new("env"), &arguments)
    }

    fn wait_for(&self, peers: &Peers) -> Result<()> {
        let crictl = peers.program("crictl")?.display().to_string();
        let name = self.runtime.name();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let asked =
                self.machine.run(&[&crictl, "--runtime-endpoint", self.runtime.endpoint(), "version"]);
            let Err(error) = asked else { return Ok(()) };
            ensure!(Instant::now() < deadline, "{name} does not answer: {error}\n{}", self.last_words());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The runtime's CRI endpoint as processes outside the machine reach it.
    pub fn endpoint_from_outside(&self) -> String {
        let path = self.runtime.endpoint().trim_start_matches("unix://");
        format!("unix://{}", self.machine.path_inside(Path::new(path)).display())
    }

    /// What the runtime has said last.
    pub fn last_words(&self) -> String {
        self.machine.last_words(self.runtime.name(), 20)
    }
}
