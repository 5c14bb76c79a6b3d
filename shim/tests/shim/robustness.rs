//! Clients that die, lie or sleep, makers' orphans, many containers.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use coracle_shim::protocol::{Header, Kind, method, shim, task};

use crate::harness::{Client, Sandbox, eventually};

fn raw(sandbox: &Sandbox) -> UnixStream {
    let folder = fs::File::open(sandbox.socket.parent().unwrap()).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&folder);
    let socket = UnixStream::connect(format!("/proc/self/fd/{fd}/shim.sock")).unwrap();
    socket.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
    socket
}

#[test]
fn garbage_closes_the_connection_and_harms_nothing() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    let too_long = Header { len: 5 << 20, stream_id: 1, kind: Kind::Request, flags: 0 }.encode();
    let response = Header { len: 0, stream_id: 1, kind: Kind::Response, flags: 0 }.encode();
    for bytes in [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(), &too_long, &response, &[0xff; 4096]] {
        let mut socket = raw(&sandbox);
        socket.write_all(bytes).unwrap();
        let mut rest = Vec::new();
        // A reset says the same as an end.
        drop(socket.read_to_end(&mut rest));
        assert!(rest.is_empty(), "{rest:?}");
    }
    // A frame that is well formed and means nothing gets an answer.
    let mut socket = raw(&sandbox);
    let mut frame = Header { len: 4, stream_id: 1, kind: Kind::Request, flags: 0 }.encode().to_vec();
    frame.extend_from_slice(&[0xff; 4]);
    socket.write_all(&frame).unwrap();
    let mut header = [0; 10];
    socket.read_exact(&mut header).unwrap();
    assert_eq!(Header::parse(&header).unwrap().kind, Kind::Response);
    assert_eq!(sandbox.info().containers.len(), 1);
}

#[test]
fn a_client_killed_at_any_moment_loses_no_container() {
    let mut sandbox = Sandbox::new();
    sandbox.bundle("c", "trap 'exit 8' TERM; echo up; while :; do sleep 0.05; done", |_| ());
    let bundle = sandbox.path("c").to_str().unwrap().to_owned();
    let stdout = sandbox.log_address("c");
    let mut client = sandbox.connect();
    client.send::<method::Create>(&task::CreateTaskRequest {
        id: "c".into(),
        bundle,
        stdout,
        ..Default::default()
    });
    client.send::<method::Start>(&task::StartRequest { id: "c".into(), exec_id: String::new() });
    client.send::<method::Wait>(&task::WaitRequest { id: "c".into(), exec_id: String::new() });
    drop(client);
    eventually("the container runs", || {
        if sandbox.log_path("c").exists() && sandbox.log("c") == ["stdout F up"] {
            Ok(())
        } else {
            Err("no log".into())
        }
    });
    // Its first line may be there before the maker that started it has ended.
    eventually("the shim calls it running", || match sandbox.state("c").unwrap().status() {
        task::State::Running => Ok(()),
        other => Err(format!("{other:?}")),
    });
    sandbox.kill("c", "", libc::SIGTERM, false).unwrap();
    assert_eq!(sandbox.wait("c"), 8);
}

#[test]
fn a_client_that_never_reads_is_dropped_and_stalls_nothing() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "seq 1 200000");
    let mut deaf = sandbox.connect();
    let socket = sandbox.socket.clone();
    let flood = std::thread::spawn(move || {
        // Answers are longer than questions, so the shim's bound is met before the kernel's.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..200_000 {
                deaf.send::<method::Info>(&shim::InfoRequest {});
            }
        }))
        .is_err()
    });
    assert_eq!(sandbox.wait("c"), 0);
    assert_eq!(sandbox.log("c").len(), 200_000);
    assert!(flood.join().unwrap(), "the connection was closed under it");
    Client::connect(&socket).call::<method::Info>(&shim::InfoRequest {}).unwrap();
}

#[test]
fn it_outlives_who_started_it_and_signals() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    for signal in ["-TERM", "-INT", "-HUP", "-PIPE"] {
        if signal == "-HUP" {
            // A hang-up comes from a terminal, and the shim has none: its session is its own.
            let stat = fs::read_to_string(format!("/proc/{}/stat", sandbox.pid)).unwrap();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            assert_eq!((fields[3], fields[4]), (sandbox.pid.to_string().as_str(), "0"));
            continue;
        }
        assert!(Command::new("kill").args([signal, &sandbox.pid.to_string()]).status().unwrap().success());
    }
    assert_eq!(sandbox.info().pid, sandbox.pid);
    for fd in 0..3 {
        let target = fs::read_link(format!("/proc/{}/fd/{fd}", sandbox.pid)).unwrap();
        let expected = if fd == 2 { sandbox.path("shim.log") } else { "/dev/null".into() };
        assert_eq!(target, expected);
    }
    let mut open: Vec<_> = fs::read_dir(format!("/proc/{}/fd", sandbox.pid)).unwrap().flatten().collect();
    open.retain(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.starts_with("/tmp")));
    assert_eq!(open.len(), 2, "its own log and the container's, and nothing of the caller's: {open:?}");
    let members = fs::read_to_string(sandbox.cgroup("memory", "shim").join("cgroup.procs")).unwrap();
    assert_eq!(members.trim(), sandbox.pid.to_string());
}

#[test]
fn a_second_shim_does_not_take_the_socket() {
    let sandbox = Sandbox::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_coracle-shim"));
    command.args(["serve", "--id", "x", "--maker", "/bin/true", "--maker-root", "/tmp"]);
    let output = command.arg("--socket").arg(&sandbox.socket).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("another shim serves on"), "{told}");
}

#[test]
fn forty_containers_in_one_shim() {
    let mut sandbox = Sandbox::new();
    let ids: Vec<String> = (0..40).map(|n| format!("c{n}")).collect();
    let mut client = sandbox.connect();
    let mut streams = Vec::new();
    for (id, n) in ids.iter().zip(0..) {
        let bundle = sandbox.bundle(id, &format!("echo {n}; exit {n}"), |_| ());
        let (bundle, stdout) = (bundle.to_str().unwrap().to_owned(), sandbox.log_address(id));
        let request = task::CreateTaskRequest { id: id.clone(), bundle, stdout, ..Default::default() };
        streams.push(client.send::<method::Create>(&request));
    }
    // Makers run side by side, so answers come in any order.
    eventually("all are created", || {
        let info = sandbox.info();
        let created = info.containers.iter().filter(|c| c.pid > 0).count();
        if created == ids.len() { Ok(()) } else { Err(format!("{created} created")) }
    });
    for (id, n) in ids.iter().zip(0..) {
        sandbox.start(id);
        assert_eq!(sandbox.wait(id), n);
        assert_eq!(sandbox.log(id), [format!("stdout F {n}")]);
        sandbox.delete(id, "").unwrap();
    }
    let open = fs::read_dir(format!("/proc/{}/fd", sandbox.pid)).unwrap().count();
    assert!(open < 12, "{open} descriptors are left open");
    assert!(!Path::new(&sandbox.path("c0").join("exit.json.new")).exists());
}

#[test]
fn a_maker_dies_with_its_shim() {
    let mut sandbox = Sandbox::with("/bin/busybox", &["sh", "-c", "sleep 600"]);
    let bundle = sandbox.bundle("c", "exit 0", |_| ()).to_str().unwrap().to_owned();
    let request = task::CreateTaskRequest { id: "c".into(), bundle, ..Default::default() };
    sandbox.client.send::<method::Create>(&request);
    let maker = eventually("the maker runs", || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", sandbox.pid)).unwrap();
        children.trim().parse::<u32>().map_err(|_| children)
    });
    assert!(Command::new("kill").args(["-9", &sandbox.pid.to_string()]).status().unwrap().success());
    eventually("the maker is gone", || {
        // It is a zombie until the host's first process reaps it.
        let status = fs::read_to_string(format!("/proc/{maker}/status")).unwrap_or_default();
        if status.is_empty() || status.contains("State:\tZ") { Ok(()) } else { Err(status) }
    });
}

/// Runs a maker and kills it in the middle of a creation.
const KILLING: &str = "MAKER \"$@\" & maker=$!; \
    case \"$*\" in *' create '*) sleep $0; kill -9 $maker 2>/dev/null;; esac; wait $maker";

#[test]
fn a_maker_killed_at_any_moment_leaves_nothing() {
    let (mut killed, mut made) = (0, 0);
    for step in 0..20 {
        let delay = format!("0.{:03}", step * 4);
        let script = KILLING.replace("MAKER", &crate::harness::maker());
        let mut sandbox = Sandbox::with("/bin/busybox", &["sh", "-c", &script, &delay]);
        match sandbox.create("c", "exit 0") {
            Ok(_) => {
                made += 1;
                sandbox.delete("c", "").unwrap();
            }
            Err(error) => {
                killed += 1;
                assert!(error.message.contains("create failed"), "{error}");
            }
        }
        assert_eq!(fs::read_dir(sandbox.path("runc")).map_or(0, Iterator::count), 0, "after {delay} s");
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain(["/sys/fs/cgroup".into()]) {
            let left = hierarchy.join(&sandbox.name).join("c");
            assert!(
                !left.exists(),
                "{} after {delay} s, {made} made, procs {:?}",
                left.display(),
                fs::read_to_string(left.join("cgroup.procs"))
            );
        }
        // What had not joined a cgroup yet ends by itself, its maker being gone.
        eventually("no child is left", || {
            let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", sandbox.pid)).unwrap();
            if children.is_empty() { Ok(()) } else { Err(format!("{children} after {delay} s")) }
        });
        assert!(sandbox.info().containers.is_empty());
    }
    assert!(killed > 0, "{made} were made");
}
