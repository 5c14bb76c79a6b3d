//! Both sides against each other over pipes in memory: each protocol's commands and ports, slow and hostile peers,
//! and what connections hold meanwhile.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use crate::channel::{Encoding, ExecOptions, Outcome, TerminalSize, Version};
use crate::client::{self, ClientExec, Forwarder};
use crate::server::{self, ExecProtocol, ExecSession, ForwardProtocol, SessionError, Timeouts};

const LONG: Timeouts = Timeouts { streams: Duration::from_secs(120), idle: Duration::from_secs(600) };
const SHELL: ExecOptions = ExecOptions { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: ExecOptions = ExecOptions { stdin: true, stdout: true, stderr: false, tty: true };

const PROTOCOLS: [ExecProtocol; 7] = [
    ExecProtocol::Spdy(Version::V1),
    ExecProtocol::Spdy(Version::V2),
    ExecProtocol::Spdy(Version::V4),
    ExecProtocol::WebSocket(Version::V1, Encoding::Binary),
    ExecProtocol::WebSocket(Version::V4, Encoding::Base64),
    ExecProtocol::WebSocket(Version::V4, Encoding::Binary),
    ExecProtocol::WebSocket(Version::V5, Encoding::Binary),
];

async fn connect(protocol: ExecProtocol, options: ExecOptions) -> (ExecSession, ClientExec) {
    let (near, far) = duplex(8 * 1024);
    let (server, client) =
        tokio::join!(server::exec(near, protocol, options, &LONG), client::exec(far, protocol, options));
    (server.unwrap(), client.unwrap())
}

/// Which protocols can end one stream alone.
fn half_closes(protocol: ExecProtocol) -> bool {
    matches!(protocol, ExecProtocol::Spdy(_) | ExecProtocol::WebSocket(Version::V5, _))
}

fn says_codes(protocol: ExecProtocol) -> bool {
    let (ExecProtocol::Spdy(version) | ExecProtocol::WebSocket(version, _)) = protocol;
    version >= Version::V4
}

#[tokio::test]
async fn a_command_reads_writes_and_ends_with_its_code() {
    for protocol in PROTOCOLS {
        let (mut server, mut client) = connect(protocol, SHELL).await;
        let command = tokio::spawn(async move {
            let (mut stdin, mut stdout) = (server.stdin.take().unwrap(), server.stdout.take().unwrap());
            let mut read = vec![0; 100_000];
            stdin.read_exact(&mut read).await.unwrap();
            if half_closes(protocol) {
                assert_eq!(stdin.read(&mut [0]).await.unwrap(), 0, "the input's end, by {protocol:?}");
            }
            stdout.write_all(&read).await.unwrap();
            stdout.shutdown().await.unwrap();
            let mut stderr = server.stderr.take().unwrap();
            stderr.write_all(b"done").await.unwrap();
            stderr.shutdown().await.unwrap();
            server.exit.finish(&Outcome::Exited(42)).await.unwrap();
        });
        let sent: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
        let mut stdin = client.stdin.take().unwrap();
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (mut out, mut err) = (client.stdout.take().unwrap(), client.stderr.take().unwrap());
        let (outcome, first, second) =
            tokio::join!(client.exit.wait(), out.read_to_end(&mut stdout), err.read_to_end(&mut stderr));
        first.and(second).unwrap();
        assert!(stdout == sent, "output differs by {protocol:?}");
        assert_eq!(stderr, b"done", "{protocol:?}");
        match outcome.unwrap() {
            Outcome::Exited(42) if says_codes(protocol) => {}
            Outcome::Failed(text) if !says_codes(protocol) => assert!(text.contains("42"), "{text}"),
            other => panic!("{other:?} by {protocol:?}"),
        }
        command.await.unwrap();
    }
}

#[tokio::test]
async fn a_terminal_is_resized() {
    for protocol in PROTOCOLS {
        let (mut server, mut client) = connect(protocol, TERMINAL).await;
        let ExecProtocol::Spdy(Version::V1 | Version::V2) = protocol else {
            let size = TerminalSize { width: 132, height: 43 };
            client.resize.as_mut().unwrap().send(size).await.unwrap();
            assert_eq!(server.resize.as_mut().unwrap().next().await, Some(size));
            continue;
        };
        assert!(server.resize.is_none() && client.resize.is_none());
    }
}

#[tokio::test]
async fn the_end_arrives_though_input_floods_in_that_nobody_reads() {
    for protocol in PROTOCOLS {
        let (mut server, mut client) = connect(protocol, SHELL).await;
        let mut stdin = client.stdin.take().unwrap();
        let flood = tokio::spawn(async move { while stdin.write_all(&[0; 4096]).await.is_ok() {} });
        let unread = server.stdin.take().unwrap();
        let (finished, outcome) = tokio::join!(server.exit.finish(&Outcome::Success), client.exit.wait());
        finished.unwrap();
        assert_eq!(outcome.unwrap(), Outcome::Success, "{protocol:?}");
        flood.await.unwrap();
        drop(unread);
    }
}

#[tokio::test]
async fn each_side_learns_that_the_other_is_gone() {
    for protocol in PROTOCOLS {
        let (mut server, client) = connect(protocol, SHELL).await;
        drop(client);
        server.exit.client_gone().await;
        assert!(server.stdout.as_mut().unwrap().write_all(b"late").await.is_err());

        let (server, client) = connect(protocol, SHELL).await;
        drop(server);
        assert!(client.exit.wait().await.is_err(), "an end without a word is no success, by {protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_opens_no_streams_is_given_up() {
    let (near, _far) = duplex(64);
    let failed = server::exec(near, ExecProtocol::Spdy(Version::V4), SHELL, &Timeouts::default()).await;
    assert!(matches!(failed, Err(SessionError::Timeout { opened: 0, expected: 4, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_session_in_which_nothing_moves_ends() {
    for protocol in PROTOCOLS {
        let (mut server, mut client) = connect(protocol, SHELL).await;
        let begin = tokio::time::Instant::now();
        let mut stdin = client.stdin.take().unwrap();
        for _ in 0..4 {
            tokio::time::sleep(LONG.idle * 3 / 4).await;
            stdin.write_all(b"!").await.unwrap();
            server.stdin.as_mut().unwrap().read_exact(&mut [0]).await.unwrap();
        }
        let moved = begin.elapsed();
        server.exit.client_gone().await;
        let idle = begin.elapsed() - moved;
        assert!(
            idle >= LONG.idle && idle <= LONG.idle * 2 + Duration::from_secs(1),
            "{idle:?} by {protocol:?}"
        );
    }
}

#[tokio::test]
async fn a_hundred_connections_are_forwarded_at_once() {
    for protocol in [ForwardProtocol::Spdy, ForwardProtocol::Tunnel] {
        let (near, far) = duplex(8 * 1024);
        let mut session = server::forward(near, protocol, &[], &LONG).await.unwrap();
        let server = tokio::spawn(async move {
            let mut echoes = tokio::task::JoinSet::new();
            while let Some(mut forward) = session.next().await {
                echoes.spawn(async move {
                    if forward.port == 1 {
                        return forward.fail("connection refused").await.unwrap();
                    }
                    let (mut data, mut port) = (Vec::new(), forward.port.to_string().into_bytes());
                    forward.data.read_to_end(&mut data).await.unwrap();
                    port.append(&mut data);
                    forward.data.write_all(&port).await.unwrap();
                    forward.finish().await.unwrap();
                });
            }
            echoes.join_all().await;
        });
        let forwarder = Arc::new(Forwarder::new(far, protocol).unwrap());
        let mut clients = tokio::task::JoinSet::new();
        for port in 1000..1100u16 {
            let forwarder = forwarder.clone();
            clients.spawn(async move {
                let mut forwarded = forwarder.connect(port).await.unwrap();
                let sent = vec![b'x'; 3000];
                forwarded.data.write_all(&sent).await.unwrap();
                forwarded.data.shutdown().await.unwrap();
                let mut answer = Vec::new();
                forwarded.data.read_to_end(&mut answer).await.unwrap();
                assert_eq!(answer, [port.to_string().as_bytes(), &sent].concat());
                assert_eq!(forwarded.error().await.unwrap(), None);
            });
        }
        clients.join_all().await;
        let refused = forwarder.connect(1).await.unwrap();
        assert_eq!(refused.error().await.unwrap().as_deref(), Some("connection refused"));
        Arc::into_inner(forwarder).unwrap().close().await;
        server.await.unwrap();
    }
}

#[tokio::test]
async fn a_port_as_websocket_channels_begins_with_its_number() {
    use crate::websocket::{Decoder, Event, Role};
    let (near, mut far) = duplex(8 * 1024);
    let protocol = ForwardProtocol::WebSocket(Encoding::Binary);
    let mut session = server::forward(near, protocol, &[80, 8080], &LONG).await.unwrap();
    let first = session.next().await.unwrap();
    let mut second = session.next().await.unwrap();
    assert_eq!((first.port, second.port), (80, 8080));
    second.data.write_all(b"!").await.unwrap();
    let (mut decoder, mut input, mut messages) =
        (Decoder::new(Role::Client), bytes::BytesMut::new(), Vec::new());
    while messages.len() < 5 {
        assert!(far.read_buf(&mut input).await.unwrap() > 0);
        while let Some(Event::Part { data, .. }) = decoder.decode(&mut input).unwrap() {
            messages.push(data.to_vec());
        }
    }
    let expected: [&[u8]; 5] = [&[0, 80, 0], &[1, 80, 0], &[2, 0x90, 0x1f], &[3, 0x90, 0x1f], &[2, b'!']];
    assert_eq!(messages, expected);
}

#[tokio::test]
async fn a_relay_tells_on_input_output_sizes_and_ends() {
    for protocol in PROTOCOLS.into_iter().filter(|protocol| half_closes(*protocol) && says_codes(*protocol)) {
        for (options, sent) in [(SHELL, 100_000), (TERMINAL, 10)] {
            let (session, mut caller) = connect(protocol, options).await;
            let (mut command, there) = connect(PROTOCOLS[2], options).await;
            let relay = tokio::spawn(crate::relay::exec(session, there));
            let command = tokio::spawn(async move {
                if let Some(sizes) = &mut command.resize {
                    assert_eq!(sizes.next().await, Some(TerminalSize { width: 132, height: 43 }));
                }
                let (mut stdin, mut stdout) = (command.stdin.take().unwrap(), command.stdout.take().unwrap());
                assert_eq!(tokio::io::copy(&mut stdin, &mut stdout).await.unwrap(), sent);
                command.exit.finish(&Outcome::Exited(9)).await.unwrap();
            });
            if let Some(sizes) = &mut caller.resize {
                sizes.send(TerminalSize { width: 132, height: 43 }).await.unwrap();
            }
            let (mut stdin, mut out) = (caller.stdin.take().unwrap(), caller.stdout.take().unwrap());
            let mut stdout = Vec::new();
            let input = async {
                stdin.write_all(&vec![b'x'; sent as usize]).await.unwrap();
                stdin.shutdown().await.unwrap();
            };
            let ((), read, outcome) = tokio::join!(input, out.read_to_end(&mut stdout), caller.exit.wait());
            assert_eq!((read.unwrap() as u64, outcome.unwrap()), (sent, Outcome::Exited(9)), "{protocol:?}");
            relay.await.unwrap().unwrap();
            command.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_relay_hangs_up_when_its_client_does() {
    let (session, caller) = connect(PROTOCOLS[6], SHELL).await;
    let (command, there) = connect(PROTOCOLS[2], SHELL).await;
    let relay = tokio::spawn(crate::relay::exec(session, there));
    drop(caller);
    assert!(relay.await.unwrap().is_err());
    command.exit.client_gone().await;
}

#[tokio::test]
async fn a_relay_forwards_connections_and_refusals() {
    let (pipes, inner) = (duplex(8 * 1024), duplex(8 * 1024));
    let session = server::forward(pipes.0, ForwardProtocol::Tunnel, &[], &LONG).await.unwrap();
    let there = Forwarder::new(inner.1, ForwardProtocol::Spdy).unwrap();
    let relay = tokio::spawn(crate::relay::forward(session, there));
    let mut runtime = server::forward(inner.0, ForwardProtocol::Spdy, &[], &LONG).await.unwrap();
    let caller = Forwarder::new(pipes.1, ForwardProtocol::Tunnel).unwrap();

    let (connection, forward) = tokio::join!(caller.connect(80), runtime.next());
    let (mut connection, mut forward) = (connection.unwrap(), forward.unwrap());
    connection.data.write_all(b"ping").await.unwrap();
    connection.data.shutdown().await.unwrap();
    let mut said = String::new();
    forward.data.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "ping");
    forward.data.write_all(b"pong").await.unwrap();
    forward.finish().await.unwrap();
    said.clear();
    connection.data.read_to_string(&mut said).await.unwrap();
    assert_eq!((said.as_str(), connection.error().await.unwrap()), ("pong", None));

    let (connection, forward) = tokio::join!(caller.connect(81), runtime.next());
    forward.unwrap().fail("connection refused").await.unwrap();
    assert_eq!(connection.unwrap().error().await.unwrap().as_deref(), Some("connection refused"));
    caller.close().await;
    relay.await.unwrap();
    assert!(runtime.next().await.is_none());
}

#[tokio::test]
async fn a_relay_tells_on_that_a_connection_is_reset() {
    let (pipes, inner) = (duplex(8 * 1024), duplex(8 * 1024));
    let session = server::forward(pipes.0, ForwardProtocol::Tunnel, &[], &LONG).await.unwrap();
    let there = Forwarder::new(inner.1, ForwardProtocol::Spdy).unwrap();
    let relay = tokio::spawn(crate::relay::forward(session, there));
    let mut runtime = server::forward(inner.0, ForwardProtocol::Spdy, &[], &LONG).await.unwrap();
    let caller = Forwarder::new(pipes.1, ForwardProtocol::Tunnel).unwrap();
    let (connection, forward) = tokio::join!(caller.connect(80), runtime.next());
    let (mut connection, mut forward) = (connection.unwrap(), forward.unwrap());
    connection.data.shutdown().await.unwrap();
    assert_eq!(forward.data.read(&mut [0]).await.unwrap(), 0);
    // A half-close is no reset: the answer may yet come.
    tokio::select! {
        biased;
        () = forward.data.broken() => panic!("reset by a half-close"),
        () = std::future::ready(()) => {}
    }
    connection.data.reset();
    forward.data.broken().await;
    // Whoever asked is answered though the runtime has not said a word.
    assert_eq!(connection.error().await.unwrap(), None);
    drop(caller);
    relay.await.unwrap();
}

/// What a connection holds beside its buffers: the window and tables of one decompressor.
const INFLATER: usize = 64 * 1024;

#[tokio::test]
async fn sixty_four_fast_writers_to_slow_readers_stay_small() {
    for protocol in [PROTOCOLS[2], PROTOCOLS[6]] {
        let written = Arc::new(AtomicU64::new(0));
        let (mut servers, mut clients, mut writers) = (Vec::new(), Vec::new(), tokio::task::JoinSet::new());
        for _ in 0..64 {
            let (mut server, client) = connect(protocol, SHELL).await;
            let (mut stdout, written) = (server.stdout.take().unwrap(), written.clone());
            writers.spawn(async move {
                while let Ok(wrote) = stdout.write(&[7; 50_000]).await {
                    written.fetch_add(wrote as u64, Ordering::Relaxed);
                }
            });
            servers.push(server);
            clients.push(client);
        }
        let mut most = 0;
        let mut read = 0;
        let mut chunk = vec![0; 4096];
        for _ in 0..100 {
            for client in &mut clients {
                read += client.stdout.as_mut().unwrap().read(&mut chunk).await.unwrap() as u64;
            }
            let servers: usize = servers.iter().map(|server| server.exit.footprint() + INFLATER).sum();
            let clients: usize = clients.iter().map(|client| client.exit.footprint() + INFLATER).sum();
            most = most.max(servers).max(clients);
        }
        let ahead = written.load(Ordering::Relaxed) - read;
        assert!(read > 64 * 100_000, "the readers read: {read}");
        // Each side by itself is what one process holds.
        assert!(most < 16 << 20, "64 connections held {most} bytes on one side by {protocol:?}");
        assert!(ahead < 16 << 20, "writers were {ahead} bytes ahead by {protocol:?}");
        drop((servers, clients));
        writers.join_all().await;
    }
}

#[tokio::test]
async fn endless_pings_to_a_server_whose_answers_nobody_reads_cost_nothing() {
    let spdy: &[u8] = &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    let websocket: &[u8] = &[0x89, 0x80, 0, 0, 0, 0];
    for (protocol, ping) in [(ForwardProtocol::Spdy, spdy), (ForwardProtocol::Tunnel, websocket)] {
        let (near, mut far) = duplex(8 * 1024);
        let session = server::forward(near, protocol, &[], &LONG).await.unwrap();
        let flood = ping.repeat(1000);
        let stuck = async { while far.write_all(&flood).await.is_ok() {} };
        // The flood stands still once the answers have filled what they may.
        assert!(tokio::time::timeout(Duration::from_secs(2), stuck).await.is_err());
        assert!(session.footprint() < 256 * 1024, "{} bytes", session.footprint());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn garbage_ends_a_session_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for protocol in PROTOCOLS {
                let (near, mut far) = duplex(64 * 1024);
                far.write_all(&bytes).await.unwrap();
                drop(far);
                if let Ok(mut session) = server::exec(near, protocol, SHELL, &LONG).await {
                    let mut stdin = Vec::new();
                    let _ = session.stdin.as_mut().unwrap().read_to_end(&mut stdin).await;
                    session.exit.client_gone().await;
                }
            }
            for protocol in [ForwardProtocol::Spdy, ForwardProtocol::Tunnel] {
                let (near, mut far) = duplex(64 * 1024);
                far.write_all(&bytes).await.unwrap();
                drop(far);
                let mut session = server::forward(near, protocol, &[], &LONG).await.unwrap();
                while session.next().await.is_some() {}
            }
        });
    }
}
