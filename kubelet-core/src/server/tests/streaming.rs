//! Streams through the kubelet API, to a runtime whose streaming server knows SPDY only, as containerd's does.

use coracle_cri::testing::Method;
use coracle_streaming::channel::{Encoding, ExecOptions, Outcome, TerminalSize, Version};
use coracle_streaming::client::{self, Ask, Forwarder, Transport};
use coracle_streaming::server::{self as there, ExecProtocol, Timeouts, exec_upgrade, forward_upgrade};
use hyper::{HeaderMap, StatusCode};
use tokio::sync::mpsc;

use super::*;

/// What the runtime's commands do, by their query.
async fn command(mut session: there::ExecSession, gone: mpsc::UnboundedSender<()>) -> std::io::Result<()> {
    let (mut stdin, mut stdout) = (session.stdin.take(), session.stdout.take().unwrap());
    if let Some(resize) = &mut session.resize {
        let size = resize.next().await.unwrap();
        stdout.write_all(format!("{}x{}\n", size.width, size.height).as_bytes()).await?;
    }
    if let Some(stdin) = &mut stdin {
        let copied = tokio::select! {
            copied = tokio::io::copy(stdin, &mut stdout) => copied,
            () = session.exit.client_gone() => Ok(0),
        };
        if copied? == 0 {
            let _ = gone.send(());
        }
    } else {
        let endless = async { while stdout.write_all(&[b'x'; 8192]).await.is_ok() {} };
        tokio::select! { () = endless => {}, () = session.exit.client_gone() => {} }
        let _ = gone.send(());
    }
    stdout.shutdown().await?;
    session.exit.finish(&Outcome::Exited(7)).await
}

/// A runtime's streaming server; tells when a client has left.
async fn runtime_server() -> (String, mpsc::UnboundedReceiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (gone, left) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let gone = gone.clone();
            let service = service_fn(move |request| serve_stream(request, gone.clone()));
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service).with_upgrades());
        }
    });
    (url, left)
}

async fn serve_stream(
    request: Request<Incoming>,
    gone: mpsc::UnboundedSender<()>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert!(!request.headers().contains_key("authorization"), "the runtime needs no credentials");
    let mut answer = Response::new(Full::default());
    let (method, headers) = (request.method().clone(), request.headers().clone());
    if headers.contains_key("sec-websocket-key") && !request.uri().path().starts_with("/attach") {
        *answer.status_mut() = StatusCode::FORBIDDEN;
        *answer.body_mut() = "SPDY only".into();
        return Ok(answer);
    }
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    if request.uri().path().starts_with("/portforward") {
        let upgrade = forward_upgrade(&method, &headers).unwrap();
        *answer.headers_mut() = upgrade.headers;
        tokio::spawn(async move {
            let io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            let mut session = there::forward(io, upgrade.protocol, &[], &Timeouts::default()).await.unwrap();
            while let Some(mut forward) = session.next().await {
                tokio::spawn(async move {
                    if forward.port == 1 {
                        return forward.fail("nobody listens on 1").await;
                    }
                    let (mut reader, mut writer) = tokio::io::split(&mut forward.data);
                    tokio::io::copy(&mut reader, &mut writer).await?;
                    forward.finish().await
                });
            }
        });
    } else {
        let upgrade = exec_upgrade(&method, &headers).unwrap();
        let options = ExecOptions::from_query(request.uri().query().unwrap()).unwrap();
        *answer.headers_mut() = upgrade.headers;
        tokio::spawn(async move {
            let io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            let session = there::exec(io, upgrade.protocol, options, &Timeouts::default()).await.unwrap();
            command(session, gone).await
        });
    }
    Ok(answer)
}

impl World {
    /// A world whose runtime serves streams, and what tells when a client of them has left.
    async fn streaming() -> (Self, mpsc::UnboundedReceiver<()>) {
        let world = Self::new().await;
        let (url, left) = runtime_server().await;
        world.runtime.set_streaming_server(&url);
        (world, left)
    }

    /// Asks for a stream.
    async fn upgrade(
        &self,
        method: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> (StatusCode, HeaderMap, TlsStream<TcpStream>) {
        let mut stream = self.connect(self.admin()).await;
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer x\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
        }
        if method == "POST" {
            request.push_str("Content-Length: 0\r\n");
        }
        stream.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let pairs = lines.filter_map(|line| line.split_once(": "));
        let headers = pairs.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        (status, headers.collect(), stream)
    }

    async fn exec(
        &self,
        transport: Transport,
        query: &str,
        options: ExecOptions,
    ) -> (ExecProtocol, client::ClientExec) {
        self.open("exec", transport, query, options).await
    }

    async fn open(
        &self,
        what: &str,
        transport: Transport,
        query: &str,
        options: ExecOptions,
    ) -> (ExecProtocol, client::ClientExec) {
        let ask = Ask::exec(transport);
        let method = if transport == Transport::Spdy { "POST" } else { "GET" };
        let path = format!("/{what}/default/web/app?command=sh&{query}");
        let (status, headers, io) = self.upgrade(method, &path, ask.headers()).await;
        let protocol = ask.exec_answer(status, &headers).unwrap();
        (protocol, client::exec(io, protocol, options).await.unwrap())
    }
}

/// Sends a size, then much more than any buffer holds, and expects all of it back and the exit code.
async fn echoes(transport: Transport) {
    let (world, _left) = World::streaming().await;
    let options = ExecOptions { stdin: true, stdout: true, stderr: false, tty: true };
    let (_, mut exec) = world.exec(transport, "input=1&output=1&tty=1", options).await;
    exec.resize.as_mut().unwrap().send(TerminalSize { width: 80, height: 24 }).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n / 7) as u8).collect();
    let (mut stdin, mut stdout) = (exec.stdin.take().unwrap(), exec.stdout.take().unwrap());
    let mut size = [0; 6];
    stdout.read_exact(&mut size).await.unwrap();
    assert_eq!(&size, b"80x24\n");
    let send = async {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let mut seen = Vec::new();
    let (_, read, outcome) = tokio::join!(send, stdout.read_to_end(&mut seen), exec.exit.wait());
    read.unwrap();
    assert_eq!(outcome.unwrap(), Outcome::Exited(7));
    assert!(seen == sent, "{} bytes came back", seen.len());
    // A runtime that refused WebSocket is asked once more, and only then.
    let asked = world.runtime.count(Method::Exec);
    assert_eq!(asked, if transport == Transport::Spdy { 1 } else { 2 });
    let (_, again) = world.exec(transport, "input=1&output=1&tty=1", options).await;
    assert_eq!(world.runtime.count(Method::Exec), asked + 1);
    drop(again);
}

#[tokio::test]
async fn a_command_runs_over_the_runtimes_own_protocol() {
    tokio::time::timeout(DEADLINE, echoes(Transport::Spdy)).await.unwrap();
}

#[tokio::test]
async fn a_websocket_client_is_relayed_to_a_runtime_that_speaks_spdy() {
    tokio::time::timeout(DEADLINE, echoes(Transport::WebSocket)).await.unwrap();
}

#[tokio::test]
async fn a_websocket_client_speaks_to_a_runtime_that_does_too() {
    let (world, _left) = World::streaming().await;
    let options = ExecOptions { stdin: true, stdout: true, ..ExecOptions::default() };
    let (protocol, mut attached) =
        world.open("attach", Transport::WebSocket, "input=1&output=1", options).await;
    assert_eq!(protocol, ExecProtocol::WebSocket(Version::V5, Encoding::Binary));
    let mut stdin = attached.stdin.take().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    stdin.shutdown().await.unwrap();
    let mut said = String::new();
    attached.stdout.as_mut().unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!((said.as_str(), attached.exit.wait().await.unwrap()), ("hello", Outcome::Exited(7)));
    assert_eq!(world.runtime.count(Method::Attach), 1);
}

#[tokio::test]
async fn a_command_ends_when_its_client_has_left() {
    for transport in [Transport::Spdy, Transport::WebSocket] {
        let (world, mut left) = World::streaming().await;
        let options = ExecOptions { stdout: true, ..ExecOptions::default() };
        let (_, mut exec) = world.exec(transport, "output=1", options).await;
        // A slow reader of a command that writes without end.
        exec.stdout.as_mut().unwrap().read_exact(&mut [0; 10_000]).await.unwrap();
        assert!(left.try_recv().is_err());
        drop(exec);
        tokio::time::timeout(DEADLINE, left.recv()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn ports_are_forwarded_side_by_side() {
    for (transport, method) in [(Transport::Spdy, "POST"), (Transport::WebSocket, "GET")] {
        let (world, _left) = World::streaming().await;
        let ask = Ask::port_forward(transport);
        let (status, headers, io) = world.upgrade(method, "/portForward/default/web", ask.headers()).await;
        let protocol = ask.port_forward_answer(status, &headers).unwrap();
        let forwarder = Arc::new(Forwarder::new(io, protocol).unwrap());
        let mut connections = JoinSet::new();
        for number in 0..100_u32 {
            let forwarder = forwarder.clone();
            connections.spawn(async move {
                let (mut data, error) = forwarder.connect(80).await.unwrap().into_parts();
                let sent = vec![number as u8; 5000];
                data.write_all(&sent).await.unwrap();
                data.shutdown().await.unwrap();
                let mut seen = Vec::new();
                data.read_to_end(&mut seen).await.unwrap();
                assert_eq!(seen, sent);
                assert_eq!(error.await.unwrap(), None);
            });
        }
        tokio::time::timeout(DEADLINE, connections.join_all()).await.unwrap();
        let refused = forwarder.connect(1).await.unwrap().error().await.unwrap();
        assert_eq!(refused.as_deref(), Some("nobody listens on 1"));
    }
}

#[tokio::test]
async fn what_cannot_be_streamed_is_told_as_a_kubelet_tells_it() {
    let (world, _left) = World::streaming().await;
    let ask = |path: &str, more: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nContent-Length: 0{more}");
        let world = &world;
        async move { world.ask(world.admin(), &head).await }
    };
    let upgrade =
        "\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io";
    let streams = "you must specify at least 1 of stdin, stdout, stderr";
    assert_eq!(ask("/exec/default/web/app?command=sh", upgrade).await, (400, streams.into()));
    let absent = ask("/exec/default/db/app?output=1", upgrade).await;
    assert_eq!(absent, (404, "pod does not exist".into()));
    let absent = ask("/exec/default/web/db?output=1", upgrade).await;
    assert_eq!(absent, (500, "container not found (\"db\")".into()));
    let absent = ask("/attach/default/web/db?output=1", upgrade).await;
    assert_eq!(absent, (500, "container db not found in pod web_default".into()));
    let other = ask("/exec/default/web/uid-2/app?output=1", upgrade).await;
    assert_eq!(other, (500, "container not found (\"app\")".into()));
    assert_eq!(ask("/portForward/default/web/uid-2", upgrade).await, (404, "pod not found".into()));
    assert_eq!(ask("/exec/default/web/app?output=1", "").await, (500, "Upgrade request required\n".into()));
    let old = upgrade.replace("v4.channel.k8s.io", "v9.channel.k8s.io");
    // `Connection` is sent twice, so that the test can read to the end.
    world.runtime.set_streaming_server("http://127.0.0.1:1");
    let (status, words) = ask("/exec/default/web/app?output=1", &old).await;
    assert_eq!(
        (status, words.as_str()),
        (500, "cannot connect to the runtime's streaming server at 127.0.0.1:1\n")
    );
    world.runtime.exit_container(&world.container, 0);
    let ended = ask("/exec/default/web/app?output=1", upgrade).await;
    assert_eq!(ended, (500, "container not found (\"app\")".into()));
}

#[tokio::test]
async fn what_the_runtime_refuses_is_told_in_its_words() {
    let (world, _left) = World::streaming().await;
    let mut ask = Ask::exec(Transport::WebSocket).headers().clone();
    ask.insert("sec-websocket-protocol", "v4.channel.k8s.io".parse().unwrap());
    let (status, _, mut io) = world.upgrade("GET", "/exec/default/web/app?output=1", &ask).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let mut said = [0; 9];
    io.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"SPDY only");
}

#[tokio::test]
async fn a_command_is_run_to_its_end() {
    let world = World::new().await;
    let (status, _) = world.ask(world.admin(), "POST /run/default/web/app?cmd=ls%20-l HTTP/1.1").await;
    assert_eq!(status, 200);
    assert_eq!(world.runtime.execs()[0].command, ["ls", "-l"]);
    assert_eq!(world.get("/run/default/web/app?cmd=ls").await.0, 405);
}
