//! Copies of a container's output, and execs that end with who asked for them.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;

use coracle_shim::protocol::{Any, Code, Empty, Status, method, shim, task};
use serde_json::json;

use crate::harness::{Client, Sandbox, eventually};

/// A pipe's end as another process finds it.
fn address(end: &impl AsRawFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), end.as_raw_fd())
}

fn attach(sandbox: &mut Sandbox, stdout: &str, stderr: &str) -> Result<Empty, Status> {
    let request = shim::AttachRequest { id: "c".into(), stdout: stdout.into(), stderr: stderr.into() };
    sandbox.client.call::<method::Attach>(&request)
}

fn attach_stdout(sandbox: &mut Sandbox) -> PipeReader {
    let (reader, writer) = std::io::pipe().unwrap();
    attach(sandbox, &address(&writer), "").unwrap();
    reader
}

fn read_all(mut reader: PipeReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

fn descriptors(sandbox: &Sandbox) -> usize {
    fs::read_dir(format!("/proc/{}/fd", sandbox.pid)).unwrap().count()
}

fn file(sandbox: &Sandbox, name: &str) {
    fs::write(sandbox.path("rootfs").join("data").join(name), "").unwrap();
}

/// Runs a script that may wait for files below /data.
fn run(sandbox: &mut Sandbox, script: &str) {
    fs::create_dir(sandbox.path("rootfs/data")).unwrap();
    sandbox.run("c", script);
}

#[test]
fn all_who_are_attached_get_what_comes_from_then_on() {
    let mut sandbox = Sandbox::new();
    run(
        &mut sandbox,
        "echo before; touch /tmp/x; until [ -e /data/go ]; do sleep 0.01; done; echo out; echo err >&2",
    );
    eventually("the first line is logged", || match sandbox.log("c") {
        log if log == ["stdout F before"] => Ok(()),
        log => Err(format!("{log:?}")),
    });
    let one = attach_stdout(&mut sandbox);
    let (two, two_writer) = std::io::pipe().unwrap();
    let (three, three_writer) = std::io::pipe().unwrap();
    attach(&mut sandbox, &address(&two_writer), &address(&three_writer)).unwrap();
    drop((two_writer, three_writer));
    file(&sandbox, "go");
    assert_eq!(sandbox.wait("c"), 0);
    // The ends come by themselves, though nobody has deleted the container.
    assert_eq!(
        (read_all(one), read_all(two), read_all(three)),
        ("out\n".into(), "out\n".into(), "err\n".into())
    );
    assert_eq!(sandbox.log("c").len(), 3);
    let (_reader, writer) = std::io::pipe().unwrap();
    assert_eq!(attach(&mut sandbox, &address(&writer), "").unwrap_err().kind(), Code::FailedPrecondition);
}

#[test]
fn one_who_is_slow_gets_all_and_costs_no_memory() {
    let mut sandbox = Sandbox::new();
    run(&mut sandbox, "until [ -e /data/go ]; do sleep 0.01; done; seq 1 300000");
    let slow = attach_stdout(&mut sandbox);
    file(&sandbox, "go");
    // The container stands still with full pipes, long before its end.
    let before = eventually("the container stands still", || {
        let lines = fs::read_to_string(sandbox.log_path("c")).unwrap_or_default().lines().count();
        std::thread::sleep(std::time::Duration::from_millis(200));
        let later = fs::read_to_string(sandbox.log_path("c")).unwrap_or_default().lines().count();
        if lines > 0 && lines == later { Ok(lines) } else { Err(format!("{lines} then {later} lines")) }
    });
    assert!(before < 100_000, "{before} lines came while nobody read");
    let status = fs::read_to_string(format!("/proc/{}/status", sandbox.pid)).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kilobytes: u32 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 1024, "{resident}");
    let text = std::thread::spawn(move || read_all(slow));
    assert_eq!(sandbox.wait("c"), 0);
    assert_eq!(text.join().unwrap().lines().count(), 300_000);
    assert_eq!(sandbox.log("c").len(), 300_000);
}

#[test]
fn the_last_words_reach_the_log_and_one_who_is_slow() {
    let mut sandbox = Sandbox::new();
    run(&mut sandbox, "until [ -e /data/go ]; do sleep 0.01; done; seq 1 20000");
    let slow = attach_stdout(&mut sandbox);
    file(&sandbox, "go");
    // 108,894 bytes: the reader's pipe does not take them, both pipes and what is read at once do.
    assert_eq!(sandbox.wait("c"), 0);
    sandbox.delete("c", "").unwrap();
    assert_eq!(sandbox.log("c").len(), 20_000);
    assert_eq!(read_all(slow).lines().count(), 20_000);
}

#[test]
fn one_who_leaves_is_forgotten_while_the_container_is_silent() {
    let mut sandbox = Sandbox::new();
    run(&mut sandbox, "until [ -e /data/go ]; do sleep 0.01; done; echo on");
    let before = descriptors(&sandbox);
    for _ in 0..200 {
        drop(attach_stdout(&mut sandbox));
    }
    eventually("the pipes are closed", || match descriptors(&sandbox) {
        now if now == before => Ok(()),
        now => Err(format!("{now} descriptors, {before} before")),
    });
    file(&sandbox, "go");
    assert_eq!(sandbox.wait("c"), 0);
    assert_eq!(sandbox.log("c"), ["stdout F on"]);
}

#[test]
fn a_terminal_is_copied_too() {
    let mut sandbox = Sandbox::new();
    let bundle = sandbox.bundle("c", "read line; echo got $line", |config| {
        config["process"]["terminal"] = true.into();
    });
    let input = sandbox.path("in");
    assert!(std::process::Command::new("mkfifo").arg(&input).status().unwrap().success());
    let log = sandbox.log_address("c");
    sandbox
        .create_with("c", &bundle, |request| {
            request.terminal = true;
            request.stdin = input.to_str().unwrap().into();
            request.stdout = log;
        })
        .unwrap();
    sandbox.start("c");
    let copy = attach_stdout(&mut sandbox);
    fs::OpenOptions::new().write(true).open(&input).unwrap().write_all(b"words\n").unwrap();
    assert_eq!(sandbox.wait("c"), 0);
    assert_eq!(read_all(copy), "words\r\ngot words\r\n");
}

/// An exec whose streams are pipes of this process, over a connection of its own.
fn exec(sandbox: &Sandbox, exec_id: &str, arguments: &[&str]) -> (Client, PipeWriter, PipeReader, u32) {
    let (stdin, input) = std::io::pipe().unwrap();
    let (output, stdout) = std::io::pipe().unwrap();
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": arguments, "env": ["PATH=/bin"]});
    let request = task::ExecProcessRequest {
        id: "c".into(),
        exec_id: exec_id.into(),
        stdin: address(&stdin),
        stdout: address(&stdout),
        spec: Some(Any::oci_process(process.to_string().into_bytes())),
        ..Default::default()
    };
    let mut client = sandbox.connect();
    client.call::<method::Exec>(&request).unwrap();
    let start = task::StartRequest { id: "c".into(), exec_id: exec_id.into() };
    let pid = client.call::<method::Start>(&start).unwrap().pid;
    (client, input, output, pid)
}

#[test]
fn input_of_a_living_process_ends_when_it_closes_it() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    let (mut client, mut input, output, _) = exec(&sandbox, "e", &["cat"]);
    input.write_all(b"words").unwrap();
    drop(input);
    assert_eq!(read_all(output), "words");
    let wait = task::WaitRequest { id: "c".into(), exec_id: "e".into() };
    assert_eq!(client.call::<method::Wait>(&wait).unwrap().exit_status, 0);
}

#[test]
fn an_exec_ends_with_who_asked_for_it_and_is_forgotten() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "sleep 600");
    let before = descriptors(&sandbox);
    let (client, input, output, pid) = exec(&sandbox, "e", &["sleep", "600"]);
    drop(client);
    eventually("the process is gone", || match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => Err(name),
        Err(_) => Ok(()),
    });
    eventually("the exec is forgotten", || match sandbox.delete("c", "e") {
        Err(error) if error.kind() == Code::NotFound => Ok(()),
        other => Err(format!("{other:?}")),
    });
    drop((input, output));
    eventually("its pipes are closed", || match descriptors(&sandbox) {
        now if now == before => Ok(()),
        now => Err(format!("{now} descriptors, {before} before")),
    });
    assert_eq!(sandbox.info().containers.len(), 1);
}
