//! This crate against the real peers: client-go's executors and port-forwarder as clients, cri-streaming (which
//! containerd and others serve with) as server. Needs Go and its modules: `cargo xtask streaming-peers` runs it.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coracle_streaming::channel::{ExecOptions, Outcome, TerminalSize};
use coracle_streaming::client::{self, Ask, ClientExec, Forwarder, Transport};
use coracle_streaming::server::{self, ExecProtocol, ExecSession, Timeouts};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

const DEADLINE: Duration = Duration::from_secs(120);
const SHELL: ExecOptions = ExecOptions { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: ExecOptions = ExecOptions { stdin: true, stdout: true, stderr: false, tty: true };

/// The Go program, built once.
fn peer() -> &'static Path {
    static PEER: OnceLock<PathBuf> = OnceLock::new();
    PEER.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("streaming-peer");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer");
        let built = std::process::Command::new("go")
            .args(["build", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(source)
            .status()
            .expect("Go is installed");
        assert!(built.success(), "go build: {built}");
        program
    })
}

fn input() -> Vec<u8> {
    (0..300_000u32).map(|number| b'a' + (number % 26) as u8).collect()
}

/// The head of a request or an answer: its first line's words and its headers. Not a byte more is read.
async fn head(socket: &mut TcpStream) -> (Vec<String>, HeaderMap) {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(socket.read_u8().await.unwrap());
    }
    let text = String::from_utf8(bytes).unwrap();
    let mut lines = text.trim_end().split("\r\n");
    let first = lines.next().unwrap().split(' ').map(str::to_owned).collect();
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        headers
            .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    (first, headers)
}

fn lines(headers: &HeaderMap) -> String {
    headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap())).collect()
}

async fn switch(socket: &mut TcpStream, headers: &HeaderMap) {
    let answer = format!("HTTP/1.1 101 Switching Protocols\r\n{}\r\n", lines(headers));
    socket.write_all(answer.as_bytes()).await.unwrap();
}

/// Our server's session with the next Go client.
async fn serve_exec(listener: &TcpListener, options: ExecOptions) -> (ExecSession, ExecProtocol) {
    let (mut socket, _) = listener.accept().await.unwrap();
    let (request, headers) = head(&mut socket).await;
    let method: Method = request[0].parse().unwrap();
    let upgrade = server::exec_upgrade(&method, &headers).unwrap();
    switch(&mut socket, &upgrade.headers).await;
    (server::exec(socket, upgrade.protocol, options, &Timeouts::default()).await.unwrap(), upgrade.protocol)
}

async fn go_client(mode: &[&str], stdin: Vec<u8>) -> std::process::Output {
    let mut child = Command::new(peer())
        .args(mode)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let feed = tokio::spawn(async move { pipe.write_all(&stdin).await });
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    let _ = feed.await.unwrap();
    output
}

#[tokio::test]
async fn go_clients_run_commands_here() {
    for transport in ["spdy", "v5.channel.k8s.io", "v4.channel.k8s.io"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/exec/p/c?command=sh", listener.local_addr().unwrap());
        let command = async {
            let (mut session, protocol) = serve_exec(&listener, SHELL).await;
            let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
            let mut read = vec![0; input().len()];
            stdin.read_exact(&mut read).await.unwrap();
            // v4 over WebSocket has no end of input.
            if transport != "v4.channel.k8s.io" {
                assert_eq!(stdin.read(&mut [0]).await.unwrap(), 0, "by {protocol:?}");
            }
            stdout.write_all(&read).await.unwrap();
            stdout.shutdown().await.unwrap();
            let mut stderr = session.stderr.take().unwrap();
            stderr.write_all(b"done").await.unwrap();
            stderr.shutdown().await.unwrap();
            session.exit.finish(&Outcome::Exited(42)).await.unwrap();
        };
        let arguments = ["exec", transport, &url, "plain"];
        let (output, ()) = tokio::join!(go_client(&arguments, input()), command);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "done", "{transport}");
        assert_eq!(output.status.code(), Some(42), "{transport}");
        assert!(output.stdout == input(), "{transport}: {} bytes came back", output.stdout.len());
    }
}

#[tokio::test]
async fn go_clients_resize_terminals_here() {
    for transport in ["spdy", "v5.channel.k8s.io"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/exec/p/c?command=sh", listener.local_addr().unwrap());
        let command = async {
            let (mut session, _) = serve_exec(&listener, TERMINAL).await;
            let size = session.resize.as_mut().unwrap().next().await.unwrap();
            assert_eq!(size, TerminalSize { width: 132, height: 43 });
            session.stdout.as_mut().unwrap().write_all(b"sized").await.unwrap();
            session.exit.finish(&Outcome::Success).await.unwrap();
        };
        let arguments = ["exec", transport, &url, "tty"];
        let (output, ()) = tokio::join!(go_client(&arguments, Vec::new()), command);
        assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"sized"[..], Some(0)), "{output:?}");
    }
}

#[tokio::test]
async fn go_clients_forward_a_hundred_connections_here() {
    for transport in ["spdy", "tunnel"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/portForward/p", listener.local_addr().unwrap());
        let ports = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let (request, headers) = head(&mut socket).await;
            let upgrade = server::forward_upgrade(&request[0].parse().unwrap(), &headers).unwrap();
            switch(&mut socket, &upgrade.headers).await;
            let mut session =
                server::forward(socket, upgrade.protocol, &[], &Timeouts::default()).await.unwrap();
            let mut echoes = tokio::task::JoinSet::new();
            while let Some(mut forward) = session.next().await {
                echoes.spawn(async move {
                    forward.data.write_all(forward.port.to_string().as_bytes()).await.unwrap();
                    let mut chunk = vec![0; 5000];
                    loop {
                        match forward.data.read(&mut chunk).await.unwrap() {
                            0 => break,
                            read => forward.data.write_all(&chunk[..read]).await.unwrap(),
                        }
                    }
                    forward.finish().await.unwrap();
                });
            }
            assert_eq!(echoes.join_all().await.len(), 100);
        };
        let arguments = ["forward", transport, &url];
        let (output, ()) = tokio::join!(go_client(&arguments, Vec::new()), ports);
        assert_eq!(output.status.code(), Some(0), "{transport}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The Go server and the addresses it printed: a command, one with a terminal, ports. It ends with its input.
async fn go_server() -> (Child, [String; 3]) {
    let mut child = Command::new(peer())
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut printed = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut addresses = Vec::new();
    while addresses.len() < 3 {
        addresses.push(printed.next_line().await.unwrap().expect("the peer prints three addresses"));
    }
    (child, addresses.try_into().unwrap())
}

/// Sends the request to an address of the Go server and returns the answer with its connection.
async fn ask(url: &str, method: &Method, ask: &Ask) -> (TcpStream, StatusCode, HeaderMap) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    let request = format!("{method} /{path} HTTP/1.1\r\nhost: {host}\r\n{}\r\n", lines(ask.headers()));
    socket.write_all(request.as_bytes()).await.unwrap();
    let (answer, headers) = head(&mut socket).await;
    (socket, answer[1].parse().unwrap(), headers)
}

async fn exec_there(url: &str, transport: Transport, method: &Method, options: ExecOptions) -> ClientExec {
    let asked = Ask::exec(transport);
    let (socket, status, headers) = ask(url, method, &asked).await;
    let protocol = asked.exec_answer(status, &headers).unwrap();
    client::exec(socket, protocol, options).await.unwrap()
}

#[tokio::test]
async fn commands_run_on_a_runtimes_server() {
    let (_server, [plain, terminal, _]) = go_server().await;
    let mut exec = exec_there(&plain, Transport::Spdy, &Method::POST, SHELL).await;
    let mut stdin = exec.stdin.take().unwrap();
    let feed = tokio::spawn(async move {
        stdin.write_all(&input()).await.unwrap();
        stdin.shutdown().await.unwrap();
        stdin
    });
    let (mut stdout, mut stderr) = (exec.stdout.take().unwrap(), exec.stderr.take().unwrap());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (outcome, first, second) =
        tokio::join!(exec.exit.wait(), stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
    first.and(second).unwrap();
    assert_eq!((outcome.unwrap(), err), (Outcome::Exited(42), b"done".to_vec()));
    assert!(out == input(), "{} bytes came back", out.len());
    feed.await.unwrap();

    // Over WebSocket the server knows v4, which has no end of input.
    let mut exec = exec_there(&terminal, Transport::WebSocket, &Method::GET, TERMINAL).await;
    exec.resize.as_mut().unwrap().send(TerminalSize { width: 132, height: 43 }).await.unwrap();
    exec.stdin.as_mut().unwrap().write_all(b"hello").await.unwrap();
    let mut out = vec![0; "132x43 hello".len()];
    exec.stdout.as_mut().unwrap().read_exact(&mut out).await.unwrap();
    assert_eq!(out, b"132x43 hello");
}

#[tokio::test]
async fn connections_are_forwarded_by_a_runtimes_server() {
    let (_server, [_, _, ports]) = go_server().await;
    let asked = Ask::port_forward(Transport::Spdy);
    let (socket, status, headers) = ask(&ports, &Method::POST, &asked).await;
    let protocol = asked.port_forward_answer(status, &headers).unwrap();
    let forwarder = Arc::new(Forwarder::new(socket, protocol).unwrap());
    let mut connections = tokio::task::JoinSet::new();
    for port in 1000..1100u16 {
        let forwarder = forwarder.clone();
        connections.spawn(async move {
            let mut forwarded = forwarder.connect(port).await.unwrap();
            let sent = vec![b'x'; 50_000];
            forwarded.data.write_all(&sent).await.unwrap();
            forwarded.data.shutdown().await.unwrap();
            let mut answer = Vec::new();
            forwarded.data.read_to_end(&mut answer).await.unwrap();
            assert!(answer == [port.to_string().as_bytes(), &sent].concat(), "{} bytes", answer.len());
            assert_eq!(forwarded.error().await.unwrap(), None);
        });
    }
    connections.join_all().await;
    let refused = forwarder.connect(1).await.unwrap().error().await.unwrap().unwrap();
    assert!(refused.contains("connection refused"), "{refused}");
    Arc::into_inner(forwarder).unwrap().close().await;
}
