//! Create to delete: phases, exit codes, signals, limits, failures of the maker.

use std::fs;

use coracle_shim::protocol::task::{self, State};
use coracle_shim::protocol::{Any, Code, method};
use serde_json::json;

use crate::harness::{Sandbox, eventually};

#[test]
fn a_container_from_create_to_delete() {
    let mut sandbox = Sandbox::new();
    let created = sandbox.create("c1", "echo hello; echo oops >&2; exit 7").unwrap();
    let state = sandbox.state("c1").unwrap();
    assert_eq!((state.status(), state.pid, state.exit_status), (State::Created, created.pid, 0));
    let mut waiting = sandbox.connect();
    let stream = waiting.send::<method::Wait>(&task::WaitRequest { id: "c1".into(), exec_id: String::new() });
    assert_eq!(sandbox.start("c1"), created.pid);
    assert_eq!(waiting.receive::<method::Wait>(stream).unwrap().exit_status, 7);
    assert_eq!(sandbox.wait("c1"), 7);
    let state = sandbox.state("c1").unwrap();
    assert_eq!((state.status(), state.exit_status), (State::Stopped, 7));
    let mut log = sandbox.log("c1");
    log.sort();
    assert_eq!(log, ["stderr F oops", "stdout F hello"]);
    let record = sandbox.exit_record("c1");
    assert_eq!(
        (&record["version"], &record["exit_status"], &record["oom"]),
        (&json!(1), &json!(7), &json!(false))
    );
    assert_eq!(record["exited_at_unix_ns"].as_i64(), state.exited_at.map(|at| at.unix_ns()));
    let deleted = sandbox.delete("c1", "").unwrap();
    assert_eq!((deleted.exit_status, deleted.pid), (7, created.pid));
    assert_eq!(sandbox.state("c1").unwrap_err().kind(), Code::NotFound);
    assert!(sandbox.info().containers.is_empty());
}

#[test]
fn exit_codes_and_signals() {
    let mut sandbox = Sandbox::new();
    for (id, status) in [("ok", 0), ("low", 3), ("high", 255)] {
        sandbox.run(id, &format!("exit {status}"));
        assert_eq!(sandbox.wait(id), status, "{id}");
    }
    sandbox.run("long", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done");
    eventually("ready", || if sandbox.log("long").is_empty() { Err("no line".into()) } else { Ok(()) });
    sandbox.kill("long", "", libc::SIGTERM, false).unwrap();
    assert_eq!(sandbox.wait("long"), 9);
    sandbox.run("deaf", "while :; do sleep 1; done");
    sandbox.kill("deaf", "", libc::SIGKILL, true).unwrap();
    assert_eq!(sandbox.wait("deaf"), 137);
    let error = sandbox.kill("deaf", "", libc::SIGKILL, false).unwrap_err();
    assert_eq!(error.kind(), Code::NotFound);
}

#[test]
fn a_command_that_does_not_exist_leaves_nothing() {
    let mut sandbox = Sandbox::new();
    let bundle = sandbox.bundle("bad", "", |config| config["process"]["args"] = json!(["/no/such/program"]));
    let error = sandbox.create_with("bad", &bundle, |_| ()).unwrap_err();
    assert!(error.message.starts_with("OCI runtime create failed: "), "{error}");
    assert!(error.message.contains("/no/such/program"), "{error}");
    assert_eq!(sandbox.state("bad").unwrap_err().kind(), Code::NotFound);
    assert_eq!(fs::read_dir(sandbox.path("runc")).unwrap().count(), 0, "the maker's state is gone");
    let left: Vec<_> = fs::read_dir(&bundle).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["config.json"]);
    // The same name serves again.
    sandbox.bundle("good", "exit 0", |_| ());
    let good = sandbox.path("good");
    sandbox.create_with("bad", &good, |_| ()).unwrap();
}

#[test]
fn makers_that_are_missing_or_mute() {
    let mut sandbox = Sandbox::with("/no/such/maker", &[]);
    let error = sandbox.create("c", "exit 0").unwrap_err();
    assert!(error.message.contains("/no/such/maker") && error.message.contains("No such file"), "{error}");
    let mut sandbox = Sandbox::with("/bin/busybox", &["sh", "-c", "echo broken >&2; exit 4"]);
    let error = sandbox.create("c", "exit 0").unwrap_err();
    assert!(error.message.contains("status 4") && error.message.contains("broken"), "{error}");
    let mut sandbox = Sandbox::with("/bin/busybox", &["sh", "-c", "kill -SEGV $$"]);
    let error = sandbox.create("c", "exit 0").unwrap_err();
    assert!(error.message.contains("signal 11"), "{error}");
}

#[test]
fn a_maker_that_hangs_ends_with_the_callers_patience() {
    let mut sandbox =
        Sandbox::with("/bin/busybox", &["sh", "-c", "case \"$*\" in *create*) sleep 60;; esac", "x"]);
    let bundle = sandbox.bundle("c", "exit 0", |_| ()).to_str().unwrap().to_owned();
    let request = task::CreateTaskRequest { id: "c".into(), bundle, ..Default::default() };
    let stream = sandbox.client.send_within::<method::Create>(&request, Some(200_000_000));
    let error = sandbox.client.receive::<method::Create>(stream).unwrap_err();
    assert_eq!(error.kind(), Code::DeadlineExceeded, "{error}");
    assert!(sandbox.info().containers.is_empty());
}

#[test]
fn a_created_container_can_be_deleted() {
    let mut sandbox = Sandbox::new();
    let pid = sandbox.create("c", "exit 0").unwrap().pid;
    let deleted = sandbox.delete("c", "").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 137));
    assert_eq!(sandbox.state("c").unwrap_err().kind(), Code::NotFound);
}

#[test]
fn what_cannot_be_is_refused() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 60");
    assert_eq!(sandbox.create_with("c", &sandbox.path("c"), |_| ()).unwrap_err().kind(), Code::AlreadyExists);
    assert_eq!(sandbox.delete("c", "").unwrap_err().kind(), Code::FailedPrecondition);
    let twice =
        sandbox.client.call::<method::Start>(&task::StartRequest { id: "c".into(), exec_id: String::new() });
    assert_eq!(twice.unwrap_err().kind(), Code::FailedPrecondition);
    assert_eq!(sandbox.kill("c", "", 99, false).unwrap_err().kind(), Code::InvalidArgument);
    assert_eq!(sandbox.kill("c", "nobody", 9, false).unwrap_err().kind(), Code::NotFound);
    for (id, bundle) in [("../x", "/tmp"), ("", "/tmp"), ("x", "relative")] {
        let request = task::CreateTaskRequest { id: id.into(), bundle: bundle.into(), ..Default::default() };
        let error = sandbox.client.call::<method::Create>(&request).unwrap_err();
        assert_eq!(error.kind(), Code::InvalidArgument, "{id} {bundle}");
    }
    let unserved = task::CheckpointTaskRequest { id: "c".into(), ..Default::default() };
    let unserved = sandbox.client.call::<method::Checkpoint>(&unserved);
    assert_eq!(unserved.unwrap_err().kind(), Code::Unimplemented);
}

#[test]
fn limits_can_be_changed_and_processes_listed() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 60 & sleep 60; :");
    let pids = eventually("two sleeps", || {
        let pids =
            sandbox.client.call::<method::Pids>(&task::PidsRequest { id: "c".into() }).unwrap().processes;
        if pids.len() == 3 { Ok(pids) } else { Err(format!("{pids:?}")) }
    });
    let init = sandbox.state("c").unwrap().pid;
    assert!(pids.iter().any(|process| process.pid == init));
    let resources = Some(Any::linux_resources(br#"{"pids":{"limit":77}}"#.to_vec()));
    let request = task::UpdateTaskRequest { id: "c".into(), resources, ..Default::default() };
    sandbox.client.call::<method::Update>(&request).unwrap();
    let limit = fs::read_to_string(sandbox.cgroup("pids", "c").join("pids.max")).unwrap();
    assert_eq!(limit.trim(), "77");
    let stats = sandbox.client.call::<method::Stats>(&task::StatsRequest { id: "c".into() }).unwrap();
    assert!(stats.stats.is_some_and(|stats| stats.type_url.starts_with("io.containerd.cgroups.v")));
}

#[test]
fn a_paused_container_can_be_resumed_and_killed() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 60");
    sandbox.client.call::<method::Pause>(&task::PauseRequest { id: "c".into() }).unwrap();
    assert_eq!(sandbox.state("c").unwrap().status(), State::Paused);
    sandbox.client.call::<method::Resume>(&task::ResumeRequest { id: "c".into() }).unwrap();
    assert_eq!(sandbox.state("c").unwrap().status(), State::Running);
    sandbox.client.call::<method::Pause>(&task::PauseRequest { id: "c".into() }).unwrap();
    sandbox.kill("c", "", libc::SIGKILL, false).unwrap();
    assert_eq!(sandbox.wait("c"), 137);
    sandbox.delete("c", "").unwrap();
}

#[test]
fn a_kill_for_want_of_memory_is_told() {
    let mut sandbox = Sandbox::new();
    let bundle = sandbox.bundle("c", "x=a; while :; do x=$x$x; done", |config| {
        config["linux"]["resources"] = json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
    });
    sandbox.create_with("c", &bundle, |_| ()).unwrap();
    sandbox.start("c");
    assert_eq!(sandbox.wait("c"), 137);
    assert_eq!(sandbox.exit_record("c")["oom"], json!(true));
    assert!(sandbox.info().containers[0].oom);
}

#[test]
fn without_a_pid_namespace_the_rest_is_killed_with_the_first() {
    let mut sandbox = Sandbox::new();
    let bundle = sandbox.bundle("c", "sleep 600 & sleep 601 & exit 5", |config| {
        config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
    });
    sandbox.create_with("c", &bundle, |_| ()).unwrap();
    sandbox.start("c");
    assert_eq!(sandbox.wait("c"), 5);
    eventually("no process left", || {
        let left =
            sandbox.client.call::<method::Pids>(&task::PidsRequest { id: "c".into() }).unwrap().processes;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    sandbox.delete("c", "").unwrap();
}

#[test]
fn the_shim_ends_when_it_is_empty_and_asked() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "exit 0");
    sandbox.wait("c");
    let shutdown = task::ShutdownRequest { id: "s".into(), now: false };
    sandbox.client.call::<method::Shutdown>(&shutdown).unwrap();
    assert_eq!(sandbox.info().containers.len(), 1, "it stays while it holds a container");
    sandbox.delete("c", "").unwrap();
    sandbox.client.call::<method::Shutdown>(&shutdown).unwrap();
    eventually("the shim's end", || {
        let gone = !std::path::Path::new(&format!("/proc/{}/exe", sandbox.pid)).exists();
        if gone && !sandbox.socket.exists() { Ok(()) } else { Err("still there".into()) }
    });
}

#[test]
fn the_holder_reaps_and_ends_on_request() {
    let mut sandbox = Sandbox::new();
    let shim = sandbox.path("rootfs/coracle-shim");
    fs::copy(env!("CARGO_BIN_EXE_coracle-shim"), shim).unwrap();
    // The test's build may be linked dynamically: its libraries come along.
    let bundle = sandbox.bundle("hold", "", |config| {
        config["process"]["args"] = json!(["/coracle-shim", "hold"]);
        for library in ["lib", "lib64", "usr"] {
            fs::create_dir_all(sandbox.path("rootfs").join(library)).unwrap();
            let mount = json!({"destination": format!("/{library}"), "source": format!("/{library}"), "type": "bind",
                "options": ["rbind", "ro"]});
            config["mounts"].as_array_mut().unwrap().push(mount);
        }
    });
    sandbox.create_with("hold", &bundle, |_| ()).unwrap();
    let pid = sandbox.start("hold");
    eventually("the holder runs", || {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        let blocked =
            fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("SigBlk:\t0000000000014002");
        if command.contains("hold") && blocked { Ok(()) } else { Err(command) }
    });
    sandbox.kill("hold", "", libc::SIGTERM, false).unwrap();
    assert_eq!(sandbox.wait("hold"), 0);
}
