//! containerd in the place of our own runtime under a [`crate::node::Node`]: Debian's 1.6 or the peers' 2.4.
//!
//! Owned by its node, in whose network and below whose folders it runs. Sandboxes run the example image, so that nothing
//! is fetched. Ended, with its shims, when dropped.

mod settings;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::example_image;
use crate::peers::Peers;
pub(crate) use settings::Settings;

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Release {
    /// Debian's package with Debian's runc: 1.6, which sends no container events.
    Debian,
    /// That of the peers, with their runc: 2.4.
    Newest,
}

impl Release {
    /// The release that `CORACLE_TEST_RUNTIME` names, or none for our own runtime.
    pub fn of_environment() -> Option<Self> {
        match std::env::var("CORACLE_TEST_RUNTIME").unwrap_or_default().as_str() {
            "containerd-debian" => Some(Self::Debian),
            "containerd" => Some(Self::Newest),
            _ => None,
        }
    }
}

/// What a containerd is started with.
pub(crate) struct Place<'a> {
    pub(crate) release: Release,
    /// Images and snapshots go below it.
    pub(crate) disk: &'a Path,
    /// Sockets and mounts go below it.
    pub(crate) state: &'a Path,
    /// The network namespace, if not the machine's own.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) bridge: &'a str,
    pub(crate) subnet: String,
}

/// A running containerd.
pub(crate) struct Containerd {
    daemon: Child,
    socket: PathBuf,
    programs: PathBuf,
}

impl Containerd {
    /// Starts it and waits until it answers.
    pub(crate) fn start(place: &Place<'_>) -> Result<Self> {
        let (programs, plugins) = match place.release {
            Release::Debian => (PathBuf::from("/usr/bin"), PathBuf::from("/usr/lib/cni")),
            Release::Newest => {
                let containerd = Peers::new().program("containerd")?;
                let folder = containerd.parent().context("a program lies in a folder")?.to_owned();
                (folder.clone(), folder)
            }
        };
        let socket = place.state.join("containerd.sock");
        let folder = place.disk.join("containerd");
        let net = folder.join("net.d");
        std::fs::create_dir_all(&net).with_context(|| format!("cannot create {}", net.display()))?;
        std::fs::create_dir_all(place.state).context("cannot create the state's folder")?;
        std::fs::write(net.join("10-test.conflist"), conflist(place)).context("cannot write the conflist")?;
        let config = folder.join("config.toml");
        std::fs::write(&config, settings(place, &programs, &plugins, &net))
            .context("cannot write the settings")?;
        let log = std::fs::File::create(folder.join("containerd.log")).context("cannot create the log")?;

        let mut words = Vec::new();
        if let Some(netns) = &place.netns {
            words.extend(["nsenter".to_owned(), format!("--net={}", netns.display()), "--".to_owned()]);
        }
        words.push(programs.join("containerd").display().to_string());
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
        let daemon = Command::new(&words[0])
            .args(&words[1..])
            .arg("--config")
            .arg(&config)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start containerd; install containerd")?;
        let mut containerd = Self { daemon, socket, programs };
        let deadline = Instant::now() + Duration::from_secs(60);
        while containerd.ctr(&["plugins", "ls"]).is_err() {
            if containerd.daemon.try_wait()?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(folder.join("containerd.log")).unwrap_or_default();
                bail!("containerd does not answer: {log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(containerd)
    }

    /// Its CRI endpoint.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Adds the images of an archive.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        self.ctr(&["images", "import", &archive.display().to_string()])
    }

    fn ctr(&self, words: &[&str]) -> Result<()> {
        let mut ctr = Command::new(self.programs.join("ctr"));
        let output =
            ctr.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io"]).args(words).output();
        let output = output.context("cannot start ctr; install containerd")?;
        if !output.status.success() {
            bail!("ctr {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// The shims that it has started, which outlive it.
    fn shims(&self) -> Vec<Pid> {
        let socket = self.socket.as_os_str().as_encoded_bytes();
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?));
        let is_shim = |pid: &Pid| {
            let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.first().is_some_and(|program| program.ends_with(b"containerd-shim-runc-v2"))
                && words.iter().any(|word| word.starts_with(socket))
        };
        pids.filter(is_shim).collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.daemon.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for shim in self.shims() {
            let _ = rustix::process::kill_process(shim, Signal::KILL);
        }
    }
}

fn conflist(place: &Place<'_>) -> String {
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "test",
        "plugins": [
            {
                "type": "bridge", "bridge": place.bridge, "isGateway": true,
                "ipam": {
                    "type": "host-local", "dataDir": place.state.join("cni-networks"),
                    "ranges": [[{"subnet": place.subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    })
    .to_string()
}

fn settings(place: &Place<'_>, programs: &Path, plugins: &Path, net: &Path) -> String {
    let runc = programs.join("runc");
    let settings = Settings {
        release: place.release,
        root: &place.disk.join("containerd/root"),
        state: &place.state.join("containerd"),
        socket: &place.state.join("containerd.sock"),
        sandbox: example_image::NAME,
        plugins,
        networks: net,
        runc: (place.release == Release::Newest).then_some(&runc),
        handlers: &[],
    };
    let text = settings.text();
    match place.release {
        Release::Debian => text,
        // Its socket is the machine's own, and tests run side by side.
        Release::Newest => text + "[plugins.'io.containerd.nri.v1.nri']\ndisable = true\n",
    }
}
