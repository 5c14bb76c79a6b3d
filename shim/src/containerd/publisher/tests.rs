//! The publisher against a server written by hand.

use std::os::unix::net::UnixListener;

use coracle_shim::protocol::Response;
use coracle_shim::protocol::events::{TaskExit, TaskOOM};

use super::*;
use crate::sys::EVENTS;

const ID: u64 = 2;

/// Serves one connection: answers as many requests as asked for, and returns their topics.
fn serve(listener: &UnixListener, answers: usize) -> Vec<String> {
    let (mut socket, _) = listener.accept().unwrap();
    let (mut decoder, mut topics) = (Decoder::new(), Vec::new());
    let mut buffer = [0; 4096];
    while topics.len() < answers {
        let n = socket.read(&mut buffer).unwrap();
        decoder.push(&buffer[..n]);
        while let Some(frame) = decoder.next_frame().unwrap() {
            let request = Request::decode(frame.payload.as_slice()).unwrap();
            assert_eq!((request.service.as_str(), request.method.as_str()), (EVENTS_SERVICE, "Forward"));
            let forward = ForwardRequest::decode(request.payload.as_slice()).unwrap();
            let envelope = forward.envelope.unwrap();
            assert_eq!(envelope.namespace, "k8s.io");
            topics.push(envelope.topic);
            let answer = frame::encode(Kind::Response, frame.header.stream_id, &Response::default());
            socket.write_all(&answer).unwrap();
        }
    }
    topics
}

fn drive(publisher: &mut Publisher, epoll: &Epoll) {
    let mut ids = [0; EVENTS];
    let limit = sys::boot_ms() + 30_000;
    while !publisher.is_idle() && sys::boot_ms() < limit {
        for _ in 0..epoll.wait(&mut ids, 50).unwrap() {
            publisher.on_ready(epoll, ID);
        }
        publisher.on_deadline(epoll, ID, sys::boot_ms());
    }
    assert!(publisher.is_idle());
}

#[test]
fn events_arrive_in_order_and_after_a_restart_of_containerd() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ttrpc");
    let epoll = Epoll::new().unwrap();
    let mut publisher = Publisher::new(&format!("unix://{}", path.display()), "k8s.io".into());
    publisher.publish(&epoll, ID, &TaskOOM::default());
    publisher.publish(&epoll, ID, &TaskExit::default());
    assert!(!publisher.is_idle(), "nobody listens yet");

    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || serve(&listener, 2));
    drive(&mut publisher, &epoll);
    assert_eq!(server.join().unwrap(), ["/tasks/oom", "/tasks/exit"]);
    assert!(matches!(publisher.state, State::Idle));
}

#[test]
fn without_an_address_nothing_is_kept() {
    let mut publisher = Publisher::new("", "k8s.io".into());
    publisher.publish(&Epoll::new().unwrap(), ID, &TaskOOM::default());
    assert!(publisher.is_idle());
}
