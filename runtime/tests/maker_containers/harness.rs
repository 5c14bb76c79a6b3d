//! Makes real containers through the maker: a root of busybox, a spec by `coracle_runtime::spec`, the helper binary
//! of this crate. Every container has a directory and a cgroup of its own, and leaves neither.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coracle_cri::v1;
use coracle_runtime::spec::host::HostFacts;
use coracle_runtime::spec::mounts::{SandboxFiles, merge};
use coracle_runtime::spec::observe::observe;
use coracle_runtime::spec::user::{UserFiles, resolve};
use coracle_runtime::spec::{ImageDefaults, NamespaceRef, Namespaces, SpecInput, container_spec};
use oci_spec::runtime::Spec;
use rustix::process::{Pid, WaitOptions};

const HELPER: &str = env!("CARGO_BIN_EXE_coracle-runtime-helper");
const APPLETS: [&str; 34] = [
    "sh", "ls", "cat", "id", "env", "sleep", "true", "mount", "umount", "ps", "unshare", "stat", "mkdir",
    "rmdir", "echo", "hostname", "tty", "grep", "dd", "mknod", "kill", "touch", "readlink", "wc", "head",
    "tail", "sync", "chroot", "setsid", "nproc", "rm", "ln", "test", "pwd",
];

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A container to be made.
pub(crate) struct Container {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) id: String,
    pub(crate) cgroup: String,
    pub(crate) config: v1::ContainerConfig,
    pub(crate) sandbox: v1::PodSandboxConfig,
    pub(crate) image_user: String,
    pub(crate) image_env: Vec<String>,
    pub(crate) namespaces: Namespaces,
    pub(crate) edit: fn(&mut Spec),
    pub(crate) maker: Vec<String>,
    pub(crate) pid: Option<i32>,
}

/// How a container ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
}

impl Container {
    /// A container that runs a shell script.
    pub(crate) fn new(script: &str) -> Self {
        // The maker's children become ours, as they become the shim's.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("maker-{}-{number}", std::process::id());
        let dir = tempfile::Builder::new().prefix("coracle-maker-").tempdir().unwrap();
        let bin = dir.path().join("bundle/rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(dir.path().join("bundle/rootfs/etc")).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        for applet in APPLETS {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        fs::write(
            dir.path().join("bundle/rootfs/etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
        )
        .unwrap();
        fs::write(dir.path().join("bundle/rootfs/etc/group"), "root:x:0:\napp:x:1001:\nmedia:x:44:app\n")
            .unwrap();
        let mut config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "c".into(), attempt: 0 }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            ..Default::default()
        };
        config.linux = Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources::default()),
            security_context: Some(v1::LinuxContainerSecurityContext::default()),
        });
        let sandbox = v1::PodSandboxConfig {
            hostname: "pod-host".into(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    privileged: true,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        Self {
            cgroup: format!("/coracle-{id}/ctr"),
            dir,
            id,
            config,
            sandbox,
            image_user: String::new(),
            image_env: Vec::new(),
            namespaces: Namespaces {
                net: NamespaceRef::Own,
                ipc: NamespaceRef::Own,
                uts: NamespaceRef::Own,
                pid: NamespaceRef::Own,
                user: NamespaceRef::Host,
            },
            edit: |_| {},
            maker: vec![HELPER.to_owned(), "oci".to_owned()],
            pid: None,
        }
    }

    pub(crate) fn security(&mut self) -> &mut v1::LinuxContainerSecurityContext {
        self.config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
    }

    pub(crate) fn resources(&mut self) -> &mut v1::LinuxContainerResources {
        self.config.linux.as_mut().unwrap().resources.as_mut().unwrap()
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    /// The spec of the container, with the test's own change.
    pub(crate) fn spec(&self) -> Spec {
        let host = HostFacts::gather().unwrap();
        let mounts = merge(&self.config, &SandboxFiles::default(), &[]);
        let observed = observe(&self.config, &mounts).unwrap();
        let sc = self.config.linux.as_ref().unwrap().security_context.as_ref().unwrap();
        let user = resolve(sc, &self.image_user, &UserFiles::read(&self.rootfs()).unwrap()).unwrap();
        let mut spec = container_spec(&SpecInput {
            container_id: &self.id,
            sandbox_id: "sandbox",
            config: &self.config,
            sandbox: &self.sandbox,
            image: ImageDefaults { env: &self.image_env, ..Default::default() },
            image_name: "busybox",
            user: &user,
            namespaces: &self.namespaces,
            cgroups_path: &self.cgroup,
            rootfs: &self.rootfs(),
            mounts: &mounts,
            observed: &observed,
            host: &host,
        })
        .unwrap();
        (self.edit)(&mut spec);
        spec
    }

    /// Runs one command of the maker and returns what it said.
    pub(crate) fn maker(&self, args: &[&str]) -> Output {
        let mut command = self.command();
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.maker[0]);
        command.args(&self.maker[1..]).arg("--root").arg(self.dir.path().join("state"));
        command.arg("--log").arg(self.dir.path().join("log.json")).args(["--log-format", "json"]);
        command
    }

    /// `create`; the error is what the maker said.
    pub(crate) fn create(&mut self) -> Result<(), String> {
        let spec = self.spec();
        fs::write(self.bundle().join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        self.create_as_written(&[])
    }

    /// `create` with the config.json that is there.
    pub(crate) fn create_as_written(&mut self, options: &[&str]) -> Result<(), String> {
        // Appending, as a pipe does: the container may open its own streams anew.
        let stream =
            |name| fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join(name)).unwrap();
        let (out, err) = (stream("out"), stream("err"));
        let pid_file = self.dir.path().join("pid");
        let mut command = self.command();
        command
            .args(["create", "--bundle"])
            .arg(self.bundle())
            .arg("--pid-file")
            .arg(&pid_file)
            .args(options);
        let status = command.arg(&self.id).stdin(Stdio::null()).stdout(out).stderr(err).status().unwrap();
        if !status.success() {
            return Err(fs::read_to_string(self.dir.path().join("err")).unwrap());
        }
        self.pid = Some(fs::read_to_string(pid_file).unwrap().parse().unwrap());
        Ok(())
    }

    pub(crate) fn start(&self) {
        let output = self.maker(&["start", &self.id]);
        assert!(output.status.success(), "start: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Waits for the end of the first process.
    pub(crate) fn wait(&mut self) -> Ended {
        let pid = Pid::from_raw(self.pid.expect("created")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some((_, status)) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG).unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "container still runs; it said {:?}", self.output());
            std::thread::sleep(Duration::from_millis(5));
        };
        self.pid = None;
        let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal)).unwrap();
        Ended { code, out: self.output() }
    }

    pub(crate) fn output(&self) -> String {
        let mut out = String::new();
        for name in ["out", "err"] {
            if let Ok(mut file) = fs::File::open(self.dir.path().join(name)) {
                let _ = file.read_to_string(&mut out);
            }
        }
        out
    }

    /// Waits until the container has said something.
    pub(crate) fn wait_for(&self, word: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.output().contains(word) {
            assert!(
                Instant::now() < deadline,
                "{word:?} did not come; the container said {:?}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Creates, starts and waits.
    pub(crate) fn run(mut self) -> Ended {
        self.create().unwrap();
        self.start();
        let ended = self.wait();
        let deleted = self.maker(&["delete", &self.id]);
        assert!(deleted.status.success(), "delete: {}", String::from_utf8_lossy(&deleted.stderr));
        ended
    }

    /// Creates and starts a container that goes on.
    pub(crate) fn running(mut self) -> Self {
        self.create().unwrap();
        self.start();
        self
    }

    pub(crate) fn exec(&self, script: &str) -> Output {
        self.maker(&["exec", &self.id, "/bin/sh", "-c", script])
    }

    /// Directories of the container's cgroup in every hierarchy.
    pub(crate) fn cgroup_dirs(&self) -> Vec<PathBuf> {
        cgroup_roots()
            .into_iter()
            .map(|root| root.join(self.cgroup.trim_start_matches('/')))
            .filter(|d| d.exists())
            .collect()
    }
}

fn cgroup_roots() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points =
        table.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    points.map(PathBuf::from).collect()
}

impl Drop for Container {
    fn drop(&mut self) {
        self.maker(&["delete", "--force", &self.id]);
        if let Some(pid) = self.pid.and_then(Pid::from_raw) {
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        }
        let parent = Path::new(&self.cgroup).parent().unwrap().strip_prefix("/").unwrap().to_owned();
        for root in cgroup_roots() {
            let _ = fs::remove_dir(root.join(&self.cgroup[1..]));
            let _ = fs::remove_dir(root.join(&parent));
        }
    }
}
