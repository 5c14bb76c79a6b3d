//! Exec, attach and port-forward through the URLs that CRI answers with, by the crate's own client over SPDY and
//! WebSocket.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod service_support;

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use coracle_cri::v1::*;
use coracle_cri::{Code, RuntimeService as _};
use coracle_runtime::{BridgeNetwork, Maker};
use coracle_streaming::channel::{ExecOptions, Outcome, TerminalSize};
use coracle_streaming::client::{self, Ask, ClientExec, Forwarder, Transport};
use coracle_streaming::spdy;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use service_support::{Node, namespaces, script_container, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const OUTPUT: ExecOptions = ExecOptions { stdin: false, stdout: true, stderr: true, tty: false };
const SHELL: ExecOptions = ExecOptions { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: ExecOptions = ExecOptions { stdin: true, stdout: true, stderr: false, tty: true };

/// Asks a URL for an upgrade; the connection and the answer's head.
async fn ask(url: &str, transport: Transport, ask: &Ask) -> (TcpStream, StatusCode, HeaderMap) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    assert!(host.starts_with("127.0.0.1:"), "{url}");
    let mut socket = TcpStream::connect(host).await.unwrap();
    let method = if transport == Transport::Spdy { "POST" } else { "GET" };
    let mut head = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n");
    for (name, value) in ask.headers() {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    socket.write_all((head + "\r\n").as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(socket.read_u8().await.unwrap());
    }
    let text = String::from_utf8(bytes).unwrap();
    let mut lines = text.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    (socket, status, headers)
}

async fn open(url: &str, transport: Transport, options: ExecOptions) -> ClientExec {
    let asked = Ask::exec(transport);
    let (socket, status, headers) = ask(url, transport, &asked).await;
    let protocol = asked.exec_answer(status, &headers).unwrap();
    client::exec(socket, protocol, options).await.unwrap()
}

async fn exec_url(node: &Node, id: &str, command: &[&str], options: ExecOptions) -> String {
    let ExecOptions { stdin, stdout, stderr, tty } = options;
    let cmd = command.iter().map(|word| (*word).to_owned()).collect();
    let request = ExecRequest { container_id: id.into(), cmd, tty, stdin, stdout, stderr };
    node.runtime().exec(request).await.unwrap().url
}

async fn exec(node: &Node, id: &str, command: &[&str], options: ExecOptions) -> ClientExec {
    open(&exec_url(node, id, command, options).await, Transport::Spdy, options).await
}

async fn attach(node: &Node, id: &str, options: ExecOptions) -> ClientExec {
    let ExecOptions { stdin, stdout, stderr, tty } = options;
    let request = AttachRequest { container_id: id.into(), stdin, tty, stdout, stderr };
    let url = node.runtime().attach(request).await.unwrap().url;
    open(&url, Transport::Spdy, options).await
}

/// All that comes, and how it ends.
async fn collect(mut exec: ClientExec) -> (String, String, Outcome) {
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (exec.stdout.take(), exec.stderr.take());
    let read_out = async {
        if let Some(stdout) = &mut stdout {
            stdout.read_to_string(&mut out).await.unwrap();
        }
    };
    let read_err = async {
        if let Some(stderr) = &mut stderr {
            stderr.read_to_string(&mut err).await.unwrap();
        }
    };
    let ((), (), outcome) = tokio::join!(read_out, read_err, exec.exit.wait());
    (out, err, outcome.unwrap())
}

/// A node with a pod and a container in it that runs a script.
async fn running(script: &str) -> (Node, String, String) {
    let node = Node::start().await;
    let pod = node.sandbox("one");
    let sandbox = node.run_sandbox(&pod).await;
    let id = node.run(&sandbox, &pod, "main", script).await;
    (node, sandbox, id)
}

async fn processes(node: &Node, id: &str) -> String {
    String::from_utf8_lossy(&node.exec(id, &["ps"]).await.stdout).into_owned()
}

#[tokio::test]
async fn commands_tell_output_and_exit_code_by_both_transports() {
    let (node, sandbox, id) = running("sleep 1000").await;
    for transport in [Transport::Spdy, Transport::WebSocket] {
        let url = exec_url(&node, &id, &["sh", "-c", "echo out; echo err >&2; exit 42"], OUTPUT).await;
        let said = collect(open(&url, transport, OUTPUT).await).await;
        assert_eq!(said, ("out\n".into(), "err\n".into(), Outcome::Exited(42)), "{transport:?}");
        let url = exec_url(&node, &id, &["cat"], SHELL).await;
        let mut session = open(&url, transport, SHELL).await;
        let mut stdin = session.stdin.take().unwrap();
        let input: String = (0..200_000).map(|number| format!("{number}\n")).collect();
        let feed = async {
            stdin.write_all(input.as_bytes()).await.unwrap();
            stdin.shutdown().await.unwrap();
        };
        let ((), (out, _, outcome)) = tokio::join!(feed, collect(session));
        assert!(out == input && outcome == Outcome::Success, "{transport:?}: {} {outcome:?}", out.len());
    }
    let (_, _, outcome) = collect(exec(&node, &id, &["/no/such"], OUTPUT).await).await;
    let Outcome::Failed(words) = outcome else { panic!("{outcome:?}") };
    assert!(words.contains("error executing command in container") && words.contains("/no/such"), "{words}");
    let (_, _, outcome) = collect(exec(&node, &id, &["sh", "-c", "kill -9 $$"], OUTPUT).await).await;
    assert_eq!(outcome, Outcome::Exited(137));
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_has_the_clients_size_and_one_stream() {
    let (node, sandbox, id) = running("sleep 1000").await;
    let script = "read line; echo \"got $line\"; stty size; [ -t 2 ] && echo terminal";
    let mut session = exec(&node, &id, &["sh", "-c", script], TERMINAL).await;
    let mut resize = session.resize.take().unwrap();
    resize.send(TerminalSize { width: 99, height: 33 }).await.unwrap();
    // The size is there before the command asks for it.
    until("the size to be set", || async {
        let shown = node.exec(&id, &["sh", "-c", "for t in /dev/pts/[0-9]*; do stty size -F $t; done"]).await;
        String::from_utf8_lossy(&shown.stdout).contains("33 99").then_some(())
    })
    .await;
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"words\n").await.unwrap();
    let (out, _, outcome) = collect(session).await;
    assert_eq!((out.as_str(), outcome), ("words\r\ngot words\r\n33 99\r\nterminal\r\n", Outcome::Success));
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_process_along() {
    let (mut node, sandbox, id) = running("sleep 1000").await;
    let mut session = exec(&node, &id, &["sh", "-c", "echo up; sleep 701; true"], TERMINAL).await;
    let mut up = [0; 2];
    session.stdout.as_mut().unwrap().read_exact(&mut up).await.unwrap();
    assert!(processes(&node, &id).await.contains("sleep 701"));
    drop(session);
    until("the process to be gone", || async {
        (!processes(&node, &id).await.contains("sleep 701")).then_some(())
    })
    .await;
    // So does a runtime that ends; the container goes on.
    let mut session = exec(&node, &id, &["sh", "-c", "echo up; sleep 702"], OUTPUT).await;
    session.stdout.as_mut().unwrap().read_exact(&mut up).await.unwrap();
    node.restart().await;
    until("the process to be gone", || async {
        let list = processes(&node, &id).await;
        (!list.contains("sleep 702") && list.contains("sleep 1000")).then_some(())
    })
    .await;
    drop(session);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

/// A maker that starts commands only once a file `gate` lies beside it, and tells with files how far it is.
fn slow_maker(folder: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let maker = match std::env::var("CORACLE_TEST_MAKER") {
        Ok(path) => path,
        Err(_) => concat!(env!("CARGO_BIN_EXE_coracle-runtime-helper"), " oci").to_owned(),
    };
    let path = folder.join("maker");
    let script = "#!/bin/busybox sh
        case \"$*\" in
            *' exec '*) touch FOLDER/begun; until test -e FOLDER/gate; do sleep 0.02; done; MAKER \"$@\"; code=$?
                touch FOLDER/done; exit $code;;
            *) exec MAKER \"$@\";;
        esac";
    let script = script.replace("MAKER", &maker).replace("FOLDER", &folder.to_string_lossy());
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn a_client_that_leaves_while_its_command_is_started_takes_it_along() {
    let folder = tempfile::tempdir().unwrap();
    let maker = slow_maker(folder.path());
    let node = Node::with(|config| config.maker = Maker::Path(maker)).await;
    let pod = node.sandbox("slow");
    let sandbox = node.run_sandbox(&pod).await;
    let id = node.run(&sandbox, &pod, "main", "sleep 1000").await;
    let session = exec(&node, &id, &["sleep", "704"], OUTPUT).await;
    let is_there = |name: &str| folder.path().join(name).exists().then_some(());
    until("the maker to begin", || async { is_there("begun") }).await;
    drop(session);
    // Long enough for whoever would lose patience with the maker.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    fs::write(folder.path().join("gate"), "").unwrap();
    until("the command to be made", || async { is_there("done") }).await;
    until("the command to be gone", || async { (!sleeps(704)).then_some(()) }).await;
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

/// Whether a `sleep` of so many seconds runs on this machine.
fn sleeps(seconds: u32) -> bool {
    let line = format!("sleep\0{seconds}\0");
    service_support::entries(Path::new("/proc"))
        .iter()
        .any(|process| fs::read(process.join("cmdline")).is_ok_and(|text| text == line.as_bytes()))
}

/// A runtime that runs commands for clients until it is killed.
async fn victim(dir: PathBuf, name: &str, id: String, seconds: [u32; 3]) {
    let config = service_support::configuration(&dir, name);
    let runtime = coracle_runtime::Runtime::start(config).await.unwrap();
    let sync = ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["sleep".into(), seconds[0].to_string()],
        timeout: 0,
    };
    let syncing = runtime.clone();
    tokio::spawn(async move { syncing.exec_sync(sync).await });
    let mut held = Vec::new();
    for (tty, seconds) in [(false, seconds[1]), (true, seconds[2])] {
        let options = if tty { TERMINAL } else { OUTPUT };
        let ExecOptions { stdin, stdout, stderr, tty } = options;
        let cmd = vec!["sleep".into(), seconds.to_string()];
        let request = ExecRequest { container_id: id.clone(), cmd, tty, stdin, stdout, stderr };
        held.push(open(&runtime.exec(request).await.unwrap().url, Transport::Spdy, options).await);
    }
    let request = AttachRequest { container_id: id, stdout: true, ..Default::default() };
    let url = runtime.attach(request).await.unwrap().url;
    held.push(open(&url, Transport::Spdy, ExecOptions { stdout: true, ..ExecOptions::default() }).await);
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_runtime_takes_its_commands_along_and_no_container() {
    const TEST: &str = "a_killed_runtime_takes_its_commands_along_and_no_container";
    if let Ok(words) = std::env::var("CORACLE_TEST_VICTIM") {
        let words: Vec<&str> = words.split(' ').collect();
        let seconds = [3, 4, 5].map(|at: usize| words[at].parse().unwrap());
        return victim(words[0].into(), words[1], words[2].into(), seconds).await;
    }
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done";
    let (mut node, sandbox, id) = running(script).await;
    node.stop().await;
    // Numbers that no other test's commands have.
    let seconds = [1, 2, 3].map(|number| number * 10_000_000 + std::process::id());
    let dir = node.dir.path().display().to_string();
    let [one, two, three] = seconds;
    let words = format!("{dir} {} {id} {one} {two} {three}", node.cgroup.trim_start_matches('/'));
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env("CORACLE_TEST_VICTIM", words)
        .env("CORACLE_SHIM", service_support::shim())
        .spawn()
        .unwrap();
    until("all commands to run", || async { seconds.iter().all(|one| sleeps(*one)).then_some(()) }).await;
    victim.kill().unwrap();
    victim.wait().unwrap();
    until("no command to run", || async { (!seconds.iter().any(|one| sleeps(*one))).then_some(()) }).await;
    node.restart().await;
    assert_eq!(node.status(&id).await.state(), ContainerState::ContainerRunning);
    // Its output goes on, to its log and to who attaches next.
    let log = node.status(&id).await.log_path;
    let before = fs::metadata(&log).unwrap().len();
    let mut session = attach(&node, &id, OUTPUT).await;
    let mut some = [0; 8];
    session.stdout.as_mut().unwrap().read_exact(&mut some).await.unwrap();
    until("the log to grow", || async { (fs::metadata(&log).unwrap().len() > before).then_some(()) }).await;
    assert_eq!(node.exec(&id, &["echo", "there"]).await.stdout, b"there\n");
    drop(session);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn output_after_the_exit_is_waited_for_as_long_as_the_client_takes_it() {
    let (node, sandbox, id) = running("sleep 1000").await;
    // A child that says nothing more holds the pipes, and nobody waits for it for ever.
    let begun = Instant::now();
    let said = collect(exec(&node, &id, &["sh", "-c", "echo out; sleep 600 & exit 3"], OUTPUT).await).await;
    assert_eq!(said, ("out\n".into(), String::new(), Outcome::Exited(3)));
    assert!(begun.elapsed() < Duration::from_secs(60));
    // A client that is slow gets everything.
    let mut session = exec(&node, &id, &["seq", "1", "30000"], OUTPUT).await;
    let mut stdout = session.stdout.take().unwrap();
    let mut first = [0; 2];
    stdout.read_exact(&mut first).await.unwrap();
    tokio::time::sleep(Duration::from_secs(12)).await;
    let mut rest = String::new();
    let (read, outcome) = tokio::join!(stdout.read_to_string(&mut rest), session.exit.wait());
    read.unwrap();
    assert_eq!((rest.lines().count(), outcome.unwrap()), (29_999, Outcome::Success));
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

/// Sends more than the pipe and the session take while nobody reads, and less than the sockets take besides; then hangs
/// up. By hand, since a client that is dropped may have sent less.
async fn leave_amid_words(socket: &mut TcpStream) {
    const PART: u16 = 16_000;
    // A masked binary message on the channel of the input.
    let mut message = vec![0x82, 0x80 | 126];
    message.extend((PART + 1).to_be_bytes());
    message.extend([0; 5]);
    message.resize(message.len() + usize::from(PART), b'a');
    for _ in 0..14 {
        socket.write_all(&message).await.unwrap();
    }
    socket.shutdown().await.unwrap();
}

async fn by_hand(url: &str) -> TcpStream {
    let (socket, status, _) = ask(url, Transport::WebSocket, &Ask::exec(Transport::WebSocket)).await;
    assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS);
    socket
}

#[tokio::test]
async fn a_client_that_leaves_amid_words_that_nobody_reads_is_missed() {
    let node = Node::start().await;
    let pod = node.sandbox("one");
    let sandbox = node.run_sandbox(&pod).await;
    let id = with_input(&node, &sandbox, "deaf", false, false, "sleep 1000").await;
    let mut client = by_hand(&exec_url(&node, &id, &["sleep", "703"], SHELL).await).await;
    until("the process", || async { processes(&node, &id).await.contains("sleep 703").then_some(()) }).await;
    leave_amid_words(&mut client).await;
    until("the process to be gone", || async {
        (!processes(&node, &id).await.contains("sleep 703")).then_some(())
    })
    .await;
    // An attachment holds the container's named pipe, and the container goes on without it.
    let request = AttachRequest { container_id: id.clone(), stdin: true, stdout: true, ..Default::default() };
    let mut client = by_hand(&node.runtime().attach(request).await.unwrap().url).await;
    until("the attachment", || async { holds_input(&id).then_some(()) }).await;
    leave_amid_words(&mut client).await;
    until("the attachment to end", || async { (!holds_input(&id)).then_some(()) }).await;
    assert_eq!(node.status(&id).await.state(), ContainerState::ContainerRunning);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

/// Whether the runtime, which is this process, holds the named pipe to a container's input.
fn holds_input(id: &str) -> bool {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut paths = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    paths.any(|path| path.ends_with("stdin") && path.to_string_lossy().contains(id))
}

/// A container with input, which runs a script.
async fn with_input(node: &Node, sandbox: &str, name: &str, once: bool, tty: bool, script: &str) -> String {
    let pod = node.sandbox("one");
    let mut config = script_container(&pod, name, script);
    (config.stdin, config.stdin_once, config.tty) = (true, once, tty);
    let id = node.create(sandbox, &pod, config).await;
    node.start_container(&id).await;
    id
}

#[tokio::test]
async fn attached_clients_get_output_give_input_and_may_come_back() {
    let mut node = Node::start().await;
    let pod = node.sandbox("one");
    let sandbox = node.run_sandbox(&pod).await;
    let echo = "while read line; do echo \"out $line\"; echo \"err $line\" >&2; done; echo over";
    let id = with_input(&node, &sandbox, "many", false, false, echo).await;
    let watch = attach(&node, &id, OUTPUT).await;
    for word in ["one", "two"] {
        let mut session = attach(&node, &id, SHELL).await;
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(format!("{word}\n").as_bytes()).await.unwrap();
        let mut line = [0; 8];
        session.stdout.as_mut().unwrap().read_exact(&mut line).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&line), format!("out {word}\n"));
        // The end of input ends the attachment; the process waits for the next client.
        stdin.shutdown().await.unwrap();
        let (_, _, outcome) = collect(session).await;
        assert_eq!(outcome, Outcome::Success);
        // Its input is there for the next runtime too.
        if word == "one" {
            let mut watch = attach(&node, &id, OUTPUT).await;
            node.restart().await;
            let mut rest = String::new();
            let ended = watch.stdout.take().unwrap().read_to_string(&mut rest).await;
            assert!(ended.is_err() || rest.is_empty(), "{rest}");
        }
    }
    drop(watch);
    assert_eq!(node.status(&id).await.state(), ContainerState::ContainerRunning);
    node.log_has(&id, "stderr F err two").await;

    let id = with_input(&node, &sandbox, "once", true, false, echo).await;
    let mut session = attach(&node, &id, SHELL).await;
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"words\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    let said = collect(session).await;
    assert_eq!(said, ("out words\nover\n".into(), "err words\n".into(), Outcome::Success));
    assert_eq!(node.exit(&id).await.exit_code, 0);

    // A client that leaves without a word ends that input too.
    let id = with_input(&node, &sandbox, "left", true, false, echo).await;
    drop(attach(&node, &id, SHELL).await);
    assert_eq!(node.exit(&id).await.exit_code, 0);

    let id = with_input(&node, &sandbox, "tty", true, true, "read line; echo got $line; stty size").await;
    let mut session = attach(&node, &id, TERMINAL).await;
    session.resize.as_mut().unwrap().send(TerminalSize { width: 90, height: 30 }).await.unwrap();
    until("the size to be set", || async {
        let shown = node.exec(&id, &["sh", "-c", "stty size < /dev/console"]).await;
        String::from_utf8_lossy(&shown.stdout).contains("30 90").then_some(())
    })
    .await;
    session.stdin.as_mut().unwrap().write_all(b"words\n").await.unwrap();
    let (out, _, outcome) = collect(session).await;
    assert_eq!((out.as_str(), outcome), ("words\r\ngot words\r\n30 90\r\n", Outcome::Success));
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

#[tokio::test]
async fn only_a_token_that_was_not_used_gets_anything() {
    let (node, sandbox, id) = running("sleep 1000").await;
    let url = exec_url(&node, &id, &["echo", "out"], OUTPUT).await;
    let (kind, token) = url.rsplit_once('/').unwrap();
    assert!(token.len() >= 8 && kind.ends_with("/exec"), "{url}");
    let host = kind.strip_suffix("/exec").unwrap();
    let spdy = Ask::exec(Transport::Spdy);
    for wrong in [
        format!("{host}/exec/"),
        format!("{host}/"),
        format!("{host}/exec/{}", "a".repeat(token.len())),
        format!("{host}/exec/{token}/x"),
    ] {
        let (_, status, _) = ask(&wrong, Transport::Spdy, &spdy).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{wrong}");
    }
    assert_eq!(collect(open(&url, Transport::Spdy, OUTPUT).await).await.0, "out\n");
    let (_, status, _) = ask(&url, Transport::Spdy, &spdy).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    // Garbage without an end is let go.
    let mut socket = TcpStream::connect(host.strip_prefix("http://").unwrap()).await.unwrap();
    let flood = async { while socket.write_all(&[b'x'; 4096]).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(30), flood).await.unwrap();

    let request = ExecRequest { container_id: id.clone(), tty: true, stderr: true, ..Default::default() };
    assert_eq!(node.runtime().exec(request).await.unwrap_err().code(), Code::InvalidArgument);
    let request = AttachRequest { container_id: id.clone(), ..Default::default() };
    assert_eq!(node.runtime().attach(request).await.unwrap_err().code(), Code::InvalidArgument);
    let request = AttachRequest { container_id: "no".into(), stdout: true, ..Default::default() };
    assert_eq!(node.runtime().attach(request).await.unwrap_err().code(), Code::NotFound);
    node.stop_container(&id, 0).await;
    let request = ExecRequest { container_id: id.clone(), stdout: true, ..Default::default() };
    assert_eq!(node.runtime().exec(request).await.unwrap_err().code(), Code::FailedPrecondition);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

/// Writes the same until it is let go or nobody takes it for a second; how much was taken.
async fn flood(socket: &mut TcpStream, bytes: &[u8]) -> usize {
    let mut taken = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        let next = &bytes[taken % bytes.len()..];
        match tokio::time::timeout(Duration::from_secs(1), socket.write(next)).await {
            Ok(Ok(length)) => taken += length,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    taken
}

#[tokio::test]
async fn hostile_clients_keep_nobody_out_and_cost_nothing() {
    let _alone = MEASURED.lock().await;
    let (node, sandbox, id) = running("sleep 1000").await;
    collect(exec(&node, &id, &["true"], OUTPUT).await).await;
    // What those with a token will send without an end: streams, parts of a message, pings.
    let (mut encoder, mut streams) = (spdy::Encoder::new(), BytesMut::new());
    for number in 0..50_000 {
        let headers = spdy::Headers::new().with("streamtype", format!("made up {number}"));
        let (stream, fin, unidirectional) = (number * 2 + 1, false, false);
        encoder.encode(&spdy::Frame::SynStream { stream, fin, unidirectional, headers }, &mut streams);
    }
    let ping: &[u8] = &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    let part = [&[0, 0xfe, 0x10, 0, 0, 0, 0, 0][..], &[0; 4096]].concat();
    let floods = [
        (Transport::Spdy, streams.to_vec()),
        (Transport::Spdy, ping.repeat(1000)),
        (Transport::WebSocket, part),
        (Transport::WebSocket, [0x89, 0x80, 0, 0, 0, 0].repeat(1000)),
    ];
    let before = resident();
    // Clients without a token that never say what they want.
    let url = exec_url(&node, &id, &["echo", "served"], OUTPUT).await;
    let host = url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
    let mut strangers = Vec::new();
    for number in 0..300 {
        let mut socket = TcpStream::connect(&host).await.unwrap();
        if number % 2 == 0 {
            let _ = socket.write_all(b"POST /exec/ HTTP/1.1\r\nHost: x\r\nx: ").await;
        }
        strangers.push(socket);
    }
    let served = tokio::time::timeout(Duration::from_secs(8), open(&url, Transport::Spdy, OUTPUT)).await;
    assert_eq!(collect(served.expect("a place is made at once")).await.0, "served\n");
    for (transport, bytes) in floods {
        let url = exec_url(&node, &id, &["wc"], SHELL).await;
        let asked = Ask::exec(transport);
        let (mut socket, status, _) = ask(&url, transport, &asked).await;
        assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS);
        if bytes.len() > 4096 && transport == Transport::WebSocket && bytes[0] == 0 {
            // The message that then goes on and on, to stdin.
            socket.write_all(&[0x02, 0x81, 0, 0, 0, 0, 0]).await.unwrap();
        }
        let taken = flood(&mut socket, &bytes).await;
        let more = resident().saturating_sub(before);
        println!("{transport:?}: {taken} bytes taken, {more} bytes held");
        assert!(more < 8 << 20, "{more} bytes more");
    }
    drop(strangers);
    until("their commands to be gone", || async {
        (!processes(&node, &id).await.lines().any(|line| line.ends_with(" wc"))).then_some(())
    })
    .await;
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

/// Held by a test that measures the memory of this process, in which all of them run.
static MEASURED: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn sixty_four_fast_writers_to_slow_readers_stay_small() {
    let _alone = MEASURED.lock().await;
    let (node, sandbox, id) = running("sleep 1000").await;
    collect(exec(&node, &id, &["true"], OUTPUT).await).await;
    let before = resident();
    let mut sessions = Vec::new();
    for _ in 0..64 {
        sessions.push(exec(&node, &id, &["yes"], OUTPUT).await);
    }
    for session in &mut sessions {
        let mut some = [0; 1000];
        session.stdout.as_mut().unwrap().read_exact(&mut some).await.unwrap();
    }
    // Some time for buffers to fill; more would not make them larger.
    let mut most = 0;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(resident().saturating_sub(before));
    }
    // The clients' side is in it.
    assert!(most < 16 << 20, "{most} bytes more");
    drop(sessions);
    until("the writers to be gone", || async {
        (!processes(&node, &id).await.contains("yes")).then_some(())
    })
    .await;
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}

async fn forwarder(node: &Node, sandbox: &str, transport: Transport) -> Forwarder {
    let request = PortForwardRequest { pod_sandbox_id: sandbox.into(), port: Vec::new() };
    let url = node.runtime().port_forward(request).await.unwrap().url;
    let asked = Ask::port_forward(transport);
    let (socket, status, headers) = ask(&url, transport, &asked).await;
    Forwarder::new(socket, asked.port_forward_answer(status, &headers).unwrap()).unwrap()
}

/// Runs the test in a fresh network namespace; answers whether this is that run.
fn isolated(test: &str) -> bool {
    if std::env::var_os("CORACLE_TEST_NETNS").is_some() {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        return true;
    }
    let status = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("CORACLE_TEST_NETNS", "1")
        .env("CORACLE_SHIM", service_support::shim())
        .status()
        .unwrap();
    assert!(status.success(), "the test failed in its network namespace");
    false
}

/// Servers in a network namespace that send back what comes.
fn echo_servers(pin: PathBuf, addresses: &'static [&'static str]) {
    serve(pin, addresses, |mut stream| {
        let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
    });
}

/// Servers in a network namespace. Their threads end with the test's process.
fn serve(pin: PathBuf, addresses: &'static [&'static str], answer: fn(std::net::TcpStream)) {
    let bind = move || {
        let pin = fs::File::open(pin).unwrap();
        rustix::thread::move_into_link_name_space(pin.as_fd(), None).unwrap();
        addresses.iter().map(|address| std::net::TcpListener::bind(address).unwrap()).collect::<Vec<_>>()
    };
    // Only that thread moves, and sockets stay where they were made.
    for listener in std::thread::spawn(bind).join().unwrap() {
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                std::thread::spawn(move || answer(stream));
            }
        });
    }
}

#[tokio::test]
async fn ports_of_a_pods_own_loopback_are_forwarded() {
    if !isolated("ports_of_a_pods_own_loopback_are_forwarded") {
        return;
    }
    let node = Node::with(|config| {
        config.cni.default =
            Some(BridgeNetwork { bridge: "cortest1".into(), subnet: "10.199.8.0/24".into() });
    })
    .await;
    let mut pod = node.sandbox("one");
    let context = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options = Some(namespaces(NamespaceMode::Pod, NamespaceMode::Container));
    let sandbox = node.run_sandbox(&pod).await;
    // One listens on IPv4's loopback alone, one on IPv6's; both send back what comes until it ends.
    let pin = node.state().join("sandboxes").join(&sandbox).join("ns/net");
    echo_servers(pin.clone(), &["127.0.0.1:8080", "[::1]:8081"]);
    // One answers after a while, one never.
    serve(pin.clone(), &["127.0.0.1:8083"], |mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        std::thread::sleep(Duration::from_secs(2));
        let _ = std::io::Write::write_all(&mut stream, b"late");
    });
    serve(pin, &["127.0.0.1:8084"], |_stream| std::thread::sleep(Duration::from_secs(600)));
    for transport in [Transport::Spdy, Transport::WebSocket] {
        let forwarder = forwarder(&node, &sandbox, transport).await;
        for port in [8080, 8081] {
            let (mut data, error) = forwarder.connect(port).await.unwrap().into_parts();
            let words = "some words\n".repeat(20_000);
            let mut back = String::new();
            let (mut read, mut write) = tokio::io::split(&mut data);
            let feed = async {
                write.write_all(words.as_bytes()).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let ((), outcome) = tokio::join!(feed, read.read_to_string(&mut back));
            outcome.unwrap();
            assert!(back == words, "{transport:?} {port}: {} of {} bytes", back.len(), words.len());
            assert_eq!(error.await.unwrap(), None);
        }
        let error = forwarder.connect(8082).await.unwrap().error().await.unwrap().unwrap();
        assert!(error.contains("8082") && error.contains("refused"), "{error}");
    }
    let forwarder = forwarder(&node, &sandbox, Transport::Spdy).await;
    // An answer that takes its time reaches a client whose side has ended.
    let mut forwarded = forwarder.connect(8083).await.unwrap();
    forwarded.data.shutdown().await.unwrap();
    let mut late = String::new();
    forwarded.data.read_to_string(&mut late).await.unwrap();
    assert_eq!((late.as_str(), forwarded.error().await.unwrap()), ("late", None));
    // A client that is gone is let go, though its pod says nothing: at once by a reset, else after a while.
    for reset in [true, false] {
        let (mut data, error) = forwarder.connect(8084).await.unwrap().into_parts();
        data.write_all(b"anybody?").await.unwrap();
        data.shutdown().await.unwrap();
        if reset {
            data.reset();
        }
        let over = tokio::time::timeout(Duration::from_secs(60), error).await;
        assert_eq!(over.expect("the connection ends").unwrap(), None, "reset: {reset}");
    }
    // Many side by side over one connection.
    let mut open = Vec::new();
    for number in 0..100u32 {
        let mut forwarded = forwarder.connect(8080).await.unwrap();
        forwarded.data.write_all(&number.to_le_bytes()).await.unwrap();
        open.push(forwarded);
    }
    for (number, forwarded) in open.iter_mut().enumerate() {
        assert_eq!(forwarded.data.read_u32_le().await.unwrap() as usize, number);
    }
    drop((open, forwarder));
    let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    node.runtime().stop_pod_sandbox(request).await.unwrap();
    let request = PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: Vec::new() };
    let refused = node.runtime().port_forward(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}
