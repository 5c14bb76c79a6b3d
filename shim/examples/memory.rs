//! What shims cost in memory: starts some, each with a running container whose output it logs, and reads
//! `smaps_rollup`.
//!
//! ```text
//! RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
//!     cargo build --profile shim -p coracle-shim --bin coracle-shim --target x86_64-unknown-linux-gnu
//! cargo run -p coracle-shim --example memory -- target/x86_64-unknown-linux-gnu/shim/coracle-shim 30
//! ```
//!
//! Needs root, runc and `/bin/busybox`; it is also the shortest client of a shim there is.
#![allow(clippy::print_stdout, reason = "a table is what it is for")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use coracle_shim::protocol::{Decoder, Method, call, method, task};

/// Containers that come and go in one shim.
const CHURN: usize = 50;

type Failure = Box<dyn Error>;

struct Client {
    socket: UnixStream,
    stream: u32,
}

impl Client {
    fn call<M: Method>(&mut self, message: &M::Request) -> Result<M::Response, Failure> {
        self.stream += 2;
        self.socket.write_all(&call::request::<M>(self.stream, message, None))?;
        let mut decoder = Decoder::new();
        loop {
            if let Some(frame) = decoder.next_frame()? {
                return Ok(call::response::<M>(&frame.payload)?);
            }
            let mut buffer = [0; 4096];
            let n = self.socket.read(&mut buffer)?;
            decoder.push(&buffer[..n]);
        }
    }
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let shim = fs::canonicalize(arguments.next().ok_or("usage: memory SHIM [COUNT]")?)?;
    let count: usize = arguments.next().map_or(Ok(30), |count| count.parse())?;
    let dir = tempfile::tempdir()?;
    let rootfs = dir.path().join("rootfs");
    fs::create_dir_all(rootfs.join("bin"))?;
    fs::create_dir_all(rootfs.join("proc"))?;
    fs::copy("/bin/busybox", rootfs.join("bin/sh"))?;
    let mut shims = Vec::new();
    for n in 0..count {
        shims.push(start(&shim, dir.path(), n)?);
    }
    std::thread::sleep(Duration::from_secs(2));
    report(&shims);
    println!("the first of them after {CHURN} more containers have come and gone");
    for _ in 0..CHURN {
        create(&mut shims[0].1, dir.path(), "more")?;
        end(&mut shims[0].1, "more")?;
        fs::remove_dir_all(dir.path().join("more"))?;
    }
    report(&shims[..1]);
    for (n, (_, client)) in shims.iter_mut().enumerate() {
        end(client, &format!("c{n}"))?;
        client.call::<method::Shutdown>(&task::ShutdownRequest { id: String::new(), now: false })?;
    }
    for folder in fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let group = folder.path().join(format!("coracle-shim-memory-{}", std::process::id()));
        let end = Instant::now() + Duration::from_secs(5);
        while group.exists() && Instant::now() < end {
            drop(fs::remove_dir(group.join("shims")));
            drop(fs::remove_dir(&group));
        }
    }
    Ok(())
}

fn start(shim: &Path, dir: &Path, n: usize) -> Result<(u32, Client), Failure> {
    let id = format!("c{n}");
    let group = format!("/coracle-shim-memory-{}", std::process::id());
    let socket = dir.join(format!("{n}.sock"));
    let mut command = Command::new(shim);
    command.args(["serve", "--id", &id, "--maker", "/usr/sbin/runc", "--cgroup", &format!("{group}/shims")]);
    command.arg("--socket").arg(&socket).arg("--maker-root").arg(dir.join("runc"));
    let pid = String::from_utf8(command.output()?.stdout)?.trim().parse()?;
    let mut client = Client { socket: UnixStream::connect(&socket)?, stream: 1 };
    create(&mut client, dir, &id)?;
    Ok((pid, client))
}

fn create(client: &mut Client, dir: &Path, id: &str) -> Result<(), Failure> {
    let bundle = dir.join(id);
    fs::create_dir(&bundle)?;
    let group = format!("/coracle-shim-memory-{}/{id}", std::process::id());
    let script = "echo a line; while :; do echo another line; sleep 600; done";
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"]},
        "root": {"path": dir.join("rootfs"), "readonly": true},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}], "cgroupsPath": group},
    });
    fs::write(bundle.join("config.json"), config.to_string())?;
    let log = format!("cri://{}", dir.join(format!("{id}.log")).display());
    let create = task::CreateTaskRequest {
        id: id.into(),
        bundle: bundle.to_string_lossy().into_owned(),
        stdout: log.clone(),
        stderr: log,
        ..Default::default()
    };
    client.call::<method::Create>(&create)?;
    client.call::<method::Start>(&task::StartRequest { id: id.into(), exec_id: String::new() })?;
    Ok(())
}

fn end(client: &mut Client, id: &str) -> Result<(), Failure> {
    client.call::<method::Kill>(&task::KillRequest { id: id.into(), signal: 9, ..Default::default() })?;
    client.call::<method::Wait>(&task::WaitRequest { id: id.into(), exec_id: String::new() })?;
    client.call::<method::Delete>(&task::DeleteRequest { id: id.into(), exec_id: String::new() })?;
    Ok(())
}

fn report(shims: &[(u32, Client)]) {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (pid, _) in shims {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        for line in text.lines() {
            if let Some((name, value)) = line.split_once(':')
                && let Ok(kib) = value.trim().trim_end_matches(" kB").parse::<u64>()
            {
                *sums.entry(name.into()).or_default() += kib;
            }
        }
    }
    println!("{} shims, each with one container; KiB per shim", shims.len());
    for name in ["Rss", "Pss", "Pss_Anon", "Pss_File", "Shared_Clean", "Private_Clean", "Private_Dirty"] {
        let sum = sums.get(name).copied().unwrap_or(0);
        println!("{name:>14} {:8.1}", f64::from(u32::try_from(sum).unwrap_or(u32::MAX)) / shims.len() as f64);
    }
}
