//! A shim with its folder, a client for it, and bundles to run. Each test owns one; nothing is shared.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coracle_shim::protocol::{Decoder, Empty, Method, Status, call, method, shim, task};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Waits until `look` finds something, and panics with the last state when it never does.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(state) if start.elapsed() > PATIENCE => panic!("{what}: {state}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A connection to a shim.
pub(crate) struct Client {
    socket: UnixStream,
    decoder: Decoder,
    next: u32,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let folder = fs::File::open(path.parent().unwrap()).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&folder);
        let short = Path::new("/proc/self/fd").join(fd.to_string()).join(path.file_name().unwrap());
        let socket = UnixStream::connect(short).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, decoder: Decoder::new(), next: 1 }
    }

    pub(crate) fn send<M: Method>(&mut self, message: &M::Request) -> u32 {
        self.send_within::<M>(message, None)
    }

    pub(crate) fn send_within<M: Method>(&mut self, message: &M::Request, timeout_ns: Option<i64>) -> u32 {
        let stream = self.next;
        self.next += 2;
        self.socket.write_all(&call::request::<M>(stream, message, timeout_ns)).unwrap();
        stream
    }

    pub(crate) fn receive<M: Method>(&mut self, stream: u32) -> Result<M::Response, Status> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                assert_eq!(frame.header.stream_id, stream, "an answer to another call came first");
                return call::response::<M>(&frame.payload);
            }
            let mut buffer = [0; 4096];
            let n = match self.socket.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.expect("the shim answers in time"),
            };
            assert!(n > 0, "the shim closed the connection instead of answering {}", M::NAME);
            self.decoder.push(&buffer[..n]);
        }
    }

    pub(crate) fn call<M: Method>(&mut self, message: &M::Request) -> Result<M::Response, Status> {
        let stream = self.send::<M>(message);
        self.receive::<M>(stream)
    }
}

/// The maker under test as a command line.
pub(crate) fn maker() -> String {
    std::env::var("CORACLE_SHIM_TEST_MAKER").unwrap_or_else(|_| "/usr/sbin/runc".into())
}

/// A shim, its folder and its cgroups.
pub(crate) struct Sandbox {
    pub(crate) dir: TempDir,
    pub(crate) pid: u32,
    pub(crate) socket: PathBuf,
    pub(crate) client: Client,
    pub(crate) name: String,
}

impl Sandbox {
    /// With runc, or the maker that `CORACLE_SHIM_TEST_MAKER` names: a program and its arguments.
    pub(crate) fn new() -> Self {
        let words = maker();
        let words: Vec<&str> = words.split_whitespace().collect();
        Self::with(words[0], &words[1..])
    }

    /// With a maker and arguments of one's own.
    pub(crate) fn with(maker: &str, maker_arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("coracle-shim-test").tempdir().unwrap();
        let name =
            format!("coracle-shim-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        make_rootfs(&dir.path().join("rootfs"));
        // Longer than a socket's path may be.
        let folder = dir.path().join("a-folder-with-quite-a-long-name".repeat(5));
        fs::create_dir(&folder).unwrap();
        let socket = folder.join("shim.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle-shim"));
        command.args(["serve", "--id", &name, "--maker", maker, "--cgroup", &format!("/{name}/shim")]);
        command.arg("--socket").arg(&socket).arg("--maker-root").arg(dir.path().join("runc"));
        command.arg("--log").arg(dir.path().join("shim.log"));
        for argument in maker_arguments {
            command.args(["--maker-arg", argument]);
        }
        // As a careless caller leaves it: a descriptor that is not closed on exec.
        let mut shell = Command::new("/bin/busybox");
        shell
            .args(["sh", "-c", "exec \"$@\" 7</tmp", "sh"])
            .arg(command.get_program())
            .args(command.get_args());
        let output = shell.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pid = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let client = Client::connect(&socket);
        Self { dir, pid, socket, client, name }
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.socket)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder of one of this sandbox's cgroups, on either version.
    pub(crate) fn cgroup(&self, controller: &str, name: &str) -> PathBuf {
        let root = Path::new("/sys/fs/cgroup");
        let root = if root.join("cgroup.controllers").exists() { root.into() } else { root.join(controller) };
        root.join(&self.name).join(name)
    }

    /// A bundle that runs a shell script; `edit` may change its config.
    pub(crate) fn bundle(&self, id: &str, script: &str, edit: impl FnOnce(&mut Value)) -> PathBuf {
        let bundle = self.path(id);
        fs::create_dir(&bundle).unwrap();
        let namespaces: Vec<Value> =
            ["pid", "mount", "ipc", "uts"].iter().map(|kind| json!({"type": kind})).collect();
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/",
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin", "TERM=xterm"],
                "noNewPrivileges": true,
            },
            "root": {"path": self.path("rootfs"), "readonly": true},
            "hostname": "t",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"namespaces": namespaces, "cgroupsPath": format!("/{}/{id}", self.name)},
        });
        edit(&mut config);
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    /// The log of a container as its address.
    pub(crate) fn log_address(&self, id: &str) -> String {
        format!("cri://{}", self.log_path(id).display())
    }

    pub(crate) fn log_path(&self, id: &str) -> PathBuf {
        self.path(&format!("{id}.log"))
    }

    /// Creates a container with a CRI log.
    pub(crate) fn create(&mut self, id: &str, script: &str) -> Result<task::CreateTaskResponse, Status> {
        let bundle = self.bundle(id, script, |_| ());
        let log = self.log_address(id);
        self.create_with(id, &bundle, |request| {
            request.stdout = log.clone();
            request.stderr = log;
        })
    }

    pub(crate) fn create_with(
        &mut self,
        id: &str,
        bundle: &Path,
        edit: impl FnOnce(&mut task::CreateTaskRequest),
    ) -> Result<task::CreateTaskResponse, Status> {
        let bundle = bundle.to_str().unwrap().to_owned();
        let mut request = task::CreateTaskRequest { id: id.into(), bundle, ..Default::default() };
        edit(&mut request);
        self.client.call::<method::Create>(&request)
    }

    pub(crate) fn start(&mut self, id: &str) -> u32 {
        self.client
            .call::<method::Start>(&task::StartRequest { id: id.into(), exec_id: String::new() })
            .unwrap()
            .pid
    }

    /// Creates and starts a container with a CRI log.
    pub(crate) fn run(&mut self, id: &str, script: &str) -> u32 {
        self.create(id, script).unwrap();
        self.start(id)
    }

    pub(crate) fn wait(&mut self, id: &str) -> u32 {
        self.wait_exec(id, "")
    }

    pub(crate) fn wait_exec(&mut self, id: &str, exec_id: &str) -> u32 {
        let request = task::WaitRequest { id: id.into(), exec_id: exec_id.into() };
        let response = self.client.call::<method::Wait>(&request).unwrap();
        assert!(response.exited_at.is_some_and(|at| at.seconds > 1_600_000_000));
        response.exit_status
    }

    pub(crate) fn state(&mut self, id: &str) -> Result<task::StateResponse, Status> {
        self.client.call::<method::State>(&task::StateRequest { id: id.into(), exec_id: String::new() })
    }

    pub(crate) fn kill(&mut self, id: &str, exec_id: &str, signal: i32, all: bool) -> Result<Empty, Status> {
        let signal = signal.unsigned_abs();
        self.client.call::<method::Kill>(&task::KillRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            signal,
            all,
        })
    }

    pub(crate) fn delete(&mut self, id: &str, exec_id: &str) -> Result<task::DeleteResponse, Status> {
        self.client.call::<method::Delete>(&task::DeleteRequest { id: id.into(), exec_id: exec_id.into() })
    }

    pub(crate) fn info(&mut self) -> shim::InfoResponse {
        self.client.call::<method::Info>(&shim::InfoRequest {}).unwrap()
    }

    /// A log's lines without their times: `stdout F text`.
    pub(crate) fn log(&self, id: &str) -> Vec<String> {
        log_lines(&self.log_path(id))
    }

    pub(crate) fn exit_record(&self, id: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(id).join("exit.json")).unwrap()).unwrap()
    }
}

/// The lines of a log without their times, each of which is looked at.
pub(crate) fn log_lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line: {text:?}");
    let cut = |line: &str| {
        let (time, rest) = line.split_at(31);
        assert!(time.ends_with("Z ") && time.as_bytes()[10] == b'T', "{line}");
        rest.to_owned()
    };
    text.lines().map(cut).collect()
}

fn make_rootfs(root: &Path) {
    for folder in ["bin", "proc", "dev", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("Debian's busybox-static is installed");
    for applet in ["sh", "sleep", "cat", "yes", "head", "dd", "seq", "kill", "stty", "tail", "true", "echo"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("shim.log")).unwrap_or_default();
            #[allow(clippy::print_stderr, reason = "the test is failing and this says why")]
            {
                eprintln!("shim's log:\n{log}");
            }
        }
        // The shim's end first, so that it makes nothing new; then what it held, by cgroup.
        let pid = i32::try_from(self.pid).unwrap();
        drop(Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status());
        let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return };
        let folders: Vec<PathBuf> =
            hierarchies.flatten().map(|entry| entry.path().join(&self.name)).collect();
        let start = Instant::now();
        while folders.iter().any(|folder| folder.exists()) && start.elapsed() < PATIENCE {
            folders.iter().for_each(|folder| clear_cgroup(folder));
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn clear_cgroup(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            clear_cgroup(&entry.path());
        }
    }
    drop(fs::write(folder.join("freezer.state"), "THAWED"));
    for pid in fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
        drop(Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status());
    }
    drop(fs::remove_dir(folder));
}
