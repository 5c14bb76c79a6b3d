//! Execs and streams: named pipes, standard input, terminals, signals.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use coracle_shim::protocol::task::{self, State};
use coracle_shim::protocol::{Any, Code, Status, method};
use serde_json::json;

use crate::harness::{PATIENCE, Sandbox, eventually};

fn fifo(sandbox: &Sandbox, name: &str) -> PathBuf {
    let path = sandbox.path(name);
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

fn open_reader(path: &PathBuf) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
}

/// Reads until the writers have gone.
fn read_all(mut file: File) -> String {
    let mut text = Vec::new();
    let start = std::time::Instant::now();
    let mut buffer = [0; 65536];
    loop {
        match file.read(&mut buffer) {
            // Before a writer came it looks as after the last has gone: the caller reads only once it was there.
            Ok(0) => return String::from_utf8_lossy(&text).into_owned(),
            Ok(n) => text.extend_from_slice(&buffer[..n]),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
        }
        assert!(start.elapsed() < PATIENCE, "no end after {:?}", String::from_utf8_lossy(&text));
    }
}

fn exec(
    sandbox: &mut Sandbox,
    exec_id: &str,
    arguments: &[&str],
    edit: impl FnOnce(&mut task::ExecProcessRequest),
) -> Result<u32, Status> {
    let mut request =
        task::ExecProcessRequest { id: "c".into(), exec_id: exec_id.into(), ..Default::default() };
    edit(&mut request);
    let process = json!({
        "terminal": request.terminal, "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": arguments, "env": ["PATH=/bin"],
    });
    request.spec = Some(Any::oci_process(process.to_string().into_bytes()));
    sandbox.client.call::<method::Exec>(&request)?;
    let start = task::StartRequest { id: "c".into(), exec_id: exec_id.into() };
    sandbox.client.call::<method::Start>(&start).map(|response| response.pid)
}

#[test]
fn output_and_exit_code() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    for (n, status) in [("0", 0), ("1", 1), ("2", 42)] {
        let (out, err) = (fifo(&sandbox, &format!("o{n}")), fifo(&sandbox, &format!("e{n}")));
        let (read_out, read_err) = (open_reader(&out), open_reader(&err));
        let script = format!("echo out; echo err >&2; exit {status}");
        let pid = exec(&mut sandbox, n, &["sh", "-c", &script], |request| {
            request.stdout = out.to_str().unwrap().into();
            request.stderr = err.to_str().unwrap().into();
        });
        assert!(pid.unwrap() > 0);
        assert_eq!(sandbox.wait_exec("c", n), status);
        assert_eq!((read_all(read_out).as_str(), read_all(read_err).as_str()), ("out\n", "err\n"));
        let deleted = sandbox.delete("c", n).unwrap();
        assert_eq!(deleted.exit_status, status);
        assert_eq!(sandbox.delete("c", n).unwrap_err().kind(), Code::NotFound);
    }
    let left = std::fs::read_dir(sandbox.path("c")).unwrap().map(|e| e.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["config.json", "init.pid"], "an exec leaves no file");
}

#[test]
fn a_program_that_does_not_exist() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    let error = exec(&mut sandbox, "e", &["/no/such"], |_| ()).unwrap_err();
    assert!(
        error.message.starts_with("OCI runtime exec failed: ") && error.message.contains("/no/such"),
        "{error}"
    );
    sandbox.delete("c", "e").unwrap();
    assert_eq!(sandbox.state("c").unwrap().status(), State::Running);
}

#[test]
fn much_output_to_a_slow_reader_waits_and_arrives() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    let out = fifo(&sandbox, "out");
    let reader = open_reader(&out);
    exec(&mut sandbox, "e", &["seq", "1", "200000"], |request| request.stdout = out.to_str().unwrap().into())
        .unwrap();
    // Nobody reads yet: pipe after pipe fills, and the shim serves on.
    eventually("the writer stands still", || {
        let pid = sandbox.info().containers[0].pid;
        if pid > 0 { Ok(()) } else { Err("no pid".into()) }
    });
    let text = read_all(reader);
    assert_eq!(text.lines().count(), 200_000);
    assert_eq!(sandbox.wait_exec("c", "e"), 0);
}

#[test]
fn an_exec_deleted_before_its_output_is_read_loses_none() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    let out = fifo(&sandbox, "out");
    let reader = open_reader(&out);
    // More than the reader's pipe holds, less than both pipes do.
    exec(&mut sandbox, "e", &["seq", "1", "18000"], |request| request.stdout = out.to_str().unwrap().into())
        .unwrap();
    assert_eq!(sandbox.wait_exec("c", "e"), 0);
    sandbox.delete("c", "e").unwrap();
    assert_eq!(read_all(reader).lines().count(), 18_000);
}

#[test]
fn input_reaches_the_process_and_ends_when_closed() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    let (input, out) = (fifo(&sandbox, "in"), fifo(&sandbox, "out"));
    let reader = open_reader(&out);
    exec(&mut sandbox, "e", &["cat"], |request| {
        request.stdin = input.to_str().unwrap().into();
        request.stdout = out.to_str().unwrap().into();
    })
    .unwrap();
    let mut writer = OpenOptions::new().write(true).open(&input).unwrap();
    let text = "some words\n".repeat(50_000);
    let pump = std::thread::spawn({
        let text = text.clone();
        move || writer.write_all(text.as_bytes()).unwrap()
    });
    let read = std::thread::spawn(move || read_all(reader));
    pump.join().unwrap();
    // The writer is gone, but only a close ends the input.
    let request = task::CloseIORequest { id: "c".into(), exec_id: "e".into(), stdin: true };
    sandbox.client.call::<method::CloseIO>(&request).unwrap();
    assert_eq!(sandbox.wait_exec("c", "e"), 0);
    assert!(read.join().unwrap() == text, "all that went in came out");
}

#[test]
fn an_exec_can_be_killed_and_ends_with_its_container() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    exec(&mut sandbox, "e1", &["sleep", "600"], |_| ()).unwrap();
    exec(&mut sandbox, "e2", &["sleep", "600"], |_| ()).unwrap();
    assert_eq!(sandbox.delete("c", "e1").unwrap_err().kind(), Code::FailedPrecondition);
    sandbox.kill("c", "e1", libc::SIGKILL, false).unwrap();
    assert_eq!(sandbox.wait_exec("c", "e1"), 137);
    sandbox.kill("c", "", libc::SIGKILL, false).unwrap();
    assert_eq!(sandbox.wait("c"), 137);
    assert_eq!(sandbox.wait_exec("c", "e2"), 137);
    assert_eq!(exec(&mut sandbox, "e3", &["true"], |_| ()).unwrap_err().kind(), Code::FailedPrecondition);
    sandbox.delete("c", "").unwrap();
}

#[test]
fn many_execs_side_by_side() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    let threads: Vec<_> = (0..8)
        .map(|n: u32| {
            let mut client = sandbox.connect();
            std::thread::spawn(move || {
                let exec_id = format!("e{n}");
                let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/",
                    "args": ["sh", "-c", format!("exit {n}")], "env": ["PATH=/bin"]});
                let spec = Some(Any::oci_process(process.to_string().into_bytes()));
                let (id, request_id) = ("c".to_owned(), exec_id.clone());
                let request =
                    task::ExecProcessRequest { id, exec_id: request_id, spec, ..Default::default() };
                client.call::<method::Exec>(&request).unwrap();
                let start = task::StartRequest { id: "c".into(), exec_id: exec_id.clone() };
                client.call::<method::Start>(&start).unwrap();
                let exit =
                    client.call::<method::Wait>(&task::WaitRequest { id: "c".into(), exec_id }).unwrap();
                assert_eq!(exit.exit_status, n);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_terminal_has_a_size_takes_input_and_is_logged() {
    let mut sandbox = Sandbox::new();
    let bundle = sandbox.bundle("c", "read line; echo got $line; stty size", |config| {
        config["process"]["terminal"] = true.into();
    });
    let input = fifo(&sandbox, "in");
    let log = sandbox.log_address("c");
    sandbox
        .create_with("c", &bundle, |request| {
            request.terminal = true;
            request.stdin = input.to_str().unwrap().into();
            request.stdout = log;
        })
        .unwrap();
    let resize = task::ResizePtyRequest { id: "c".into(), exec_id: String::new(), width: 99, height: 33 };
    sandbox.client.call::<method::ResizePty>(&resize).unwrap();
    sandbox.start("c");
    OpenOptions::new().write(true).open(&input).unwrap().write_all(b"words\n").unwrap();
    assert_eq!(sandbox.wait("c"), 0);
    assert_eq!(sandbox.log("c"), ["stdout F words", "stdout F got words", "stdout F 33 99"]);
    assert!(sandbox.state("c").unwrap().terminal);
}

#[test]
fn an_exec_with_a_terminal() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    let out = fifo(&sandbox, "out");
    let reader = open_reader(&out);
    exec(&mut sandbox, "e", &["sh", "-c", "[ -t 1 ] && echo terminal"], |request| {
        request.terminal = true;
        request.stdout = out.to_str().unwrap().into();
    })
    .unwrap();
    assert_eq!(sandbox.wait_exec("c", "e"), 0);
    assert_eq!(read_all(reader), "terminal\r\n");
}

/// Starts commands only once a file is there.
const WAITING: &str =
    "case \"$*\" in *' exec '*) until test -e $0; do sleep 0.02; done;; esac; exec MAKER \"$@\"";

#[test]
fn what_would_end_an_exec_waits_until_it_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("gate");
    let script = WAITING.replace("MAKER", &crate::harness::maker());
    let mut sandbox = Sandbox::with("/bin/busybox", &["sh", "-c", &script, gate.to_str().unwrap()]);
    sandbox.run("c", "sleep 600");
    let process =
        json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sleep", "600"], "env": ["PATH=/bin"]});
    let spec = Some(Any::oci_process(process.to_string().into_bytes()));
    let names = || ("c".to_owned(), "e".to_owned());
    let (id, exec_id) = names();
    let announce = task::ExecProcessRequest { id, exec_id, spec, ..Default::default() };
    sandbox.client.call::<method::Exec>(&announce).unwrap();
    let mut caller = sandbox.connect();
    let (id, exec_id) = names();
    let start = caller.send::<method::Start>(&task::StartRequest { id, exec_id });
    let (id, exec_id) = names();
    let delete = caller.send::<method::Delete>(&task::DeleteRequest { id, exec_id });
    let (id, exec_id) = names();
    let kill = task::KillRequest { id, exec_id, signal: 9, all: false };
    let kill = caller.send::<method::Kill>(&kill);
    // Others are served meanwhile.
    assert_eq!(sandbox.state("c").unwrap().status(), State::Running);
    std::fs::write(gate, "").unwrap();
    assert!(caller.receive::<method::Start>(start).unwrap().pid > 0);
    let refused = caller.receive::<method::Delete>(delete).unwrap_err();
    assert!(refused.message.contains("is running"), "{refused}");
    caller.receive::<method::Kill>(kill).unwrap();
    assert_eq!(sandbox.wait_exec("c", "e"), 137);
    assert_eq!(sandbox.delete("c", "e").unwrap().exit_status, 137);
}
