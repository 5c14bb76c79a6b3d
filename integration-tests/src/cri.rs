//! A container runtime on its own in a machine, with a registry beside it: what critest and crictl are pointed at.
//!
//! Both runtimes get the same registry, network and plugins. A stand belongs to the command that started it and ends
//! with it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::Executables;
use crate::cluster::machine::{Machine, checked};
use crate::cluster::{Lifetime, conflist, containerd_config};
use crate::containerd::{Release, Settings};
use crate::example_image;
use crate::peers::Peers;

/// Addresses of pods.
const PODS: &str = "10.42.0.0/24";
/// Where the registry listens.
const REGISTRY: &str = "127.0.0.1:5000";

/// Soft and hard limit of open files of a runtime with flags of its own.
const OPEN_FILES: &str = "--nofile=1024:4096";

/// A container runtime.
#[derive(Clone, Debug)]
pub enum Runtime {
    /// The peers' containerd with runc.
    Containerd,
    /// `coracle cri` of these executables.
    Coracle(Executables),
    /// The same with further flags, in a machine that has the peers' programs, begun with 1024 open files of 4096.
    CoracleWith(Executables, Vec<String>),
    /// A containerd that has our shim as the handler `coracle`, and the example image for sandboxes.
    ContainerdWithShim(Release, Executables),
}

impl Runtime {
    /// Its name, which is its service's too.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Containerd | Self::ContainerdWithShim(..) => "containerd",
            Self::Coracle(_) | Self::CoracleWith(..) => "coracle",
        }
    }

    /// Where it serves CRI in its machine.
    pub fn endpoint(&self) -> &'static str {
        match self {
            Self::Containerd | Self::ContainerdWithShim(..) => "unix:///run/containerd/containerd.sock",
            Self::Coracle(_) | Self::CoracleWith(..) => "unix:///run/coracle/cri.sock",
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
            Runtime::Coracle(executables) => stand.start_coracle(executables, plugins, "", &[])?,
            Runtime::CoracleWith(executables, flags) => {
                let programs = format!("{}:", plugins.display());
                stand.start_coracle(executables, plugins, &programs, flags)?;
            }
            Runtime::ContainerdWithShim(release, executables) => {
                stand.start_with_shim(*release, executables, plugins)?;
            }
        }
        stand.wait_for(&peers)?;
        Ok(stand)
    }

    /// Writes a file, which the machine has under /var/lib/node.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
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

    fn start_with_shim(&self, release: Release, executables: &Executables, plugins: &Path) -> Result<()> {
        let programs = match release {
            Release::Debian => Path::new("/usr/bin"),
            Release::Newest => plugins,
        };
        self.write("containerd.toml", &config_with_shim(release, programs, plugins))?;
        let folder = self.machine.folder.join("lib/node/bin");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        // containerd finds a shim by its name among the programs.
        std::fs::copy(&executables.shim, folder.join("containerd-shim-coracle-v1"))
            .context("cannot install the shim")?;
        let arguments = [
            format!("PATH=/var/lib/node/bin:{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()),
            programs.join("containerd").display().to_string(),
            "--config=/var/lib/node/containerd.toml".to_owned(),
        ];
        self.machine.start_service("containerd", Path::new("env"), &arguments)
    }

    /// Adds the images of an archive to a containerd.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let ctr = match &self.runtime {
            Runtime::ContainerdWithShim(Release::Debian, _) => PathBuf::from("ctr"),
            _ => Peers::new().program("ctr")?,
        };
        let (ctr, archive) = (ctr.display().to_string(), archive.display().to_string());
        self.machine.run(&[&ctr, "--namespace", "k8s.io", "images", "import", &archive]).map(drop)
    }

    /// Runs crictl in the machine and returns what it printed.
    pub fn crictl(&self, words: &[&str]) -> Result<String> {
        checked(&mut self.crictl_command(words)?)
    }

    /// A crictl that runs in the machine.
    pub fn crictl_command(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.machine.command(Peers::new().program("crictl")?);
        let endpoint = self.runtime.endpoint();
        command.args(["--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", "60s"]);
        command.args(words);
        Ok(command)
    }

    fn start_coracle(
        &self,
        executables: &Executables,
        plugins: &Path,
        programs: &str,
        flags: &[String],
    ) -> Result<()> {
        let mirror = format!("mirrors:\n  \"*\":\n    endpoint: [\"http://{REGISTRY}\"]\n");
        self.write("registries.yaml", &mirror)?;
        let mut arguments = vec![
            format!("PATH={programs}/usr/sbin:/usr/bin:/sbin:/bin"),
            executables.coracle.display().to_string(),
            "cri".to_owned(),
            format!("--listen={}", self.runtime.endpoint()),
            format!("--shim={}", executables.shim.display()),
            "--private-registry=/var/lib/node/registries.yaml".to_owned(),
            "--cni-conf-dir=/var/lib/node/net.d".to_owned(),
            format!("--cni-bin-dir={}", plugins.display()),
        ];
        arguments.extend_from_slice(flags);
        if !matches!(self.runtime, Runtime::CoracleWith(..)) {
            return self.machine.start_service("coracle", Path::new("env"), &arguments);
        }
        // A soft limit below the hard one, as a service manager sets it.
        arguments.splice(0..0, [OPEN_FILES.to_owned(), "env".to_owned()]);
        self.machine.start_service("coracle", Path::new("prlimit"), &arguments)
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

/// containerd's settings with our shim as a handler beside runc's own.
fn config_with_shim(release: Release, programs: &Path, plugins: &Path) -> String {
    let settings = Settings {
        release,
        root: Path::new("/var/lib/containerd"),
        state: Path::new("/run/containerd"),
        socket: Path::new("/run/containerd/containerd.sock"),
        sandbox: example_image::NAME,
        plugins,
        networks: Path::new("/var/lib/node/net.d"),
        runc: Some(&programs.join("runc")),
        handlers: &[("coracle", "io.containerd.coracle.v1")],
    };
    settings.text()
}
