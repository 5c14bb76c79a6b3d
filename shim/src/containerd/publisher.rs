//! Sends events to containerd, one after the other, over a connection that lasts as long as there are any.
//!
//! Owned by the loop, which tells it of wake-ups and deadlines; nothing here waits. A containerd that is away gets them
//! when it is back, if that is soon: as containerd's own shims do, it is tried [`TRIES`] times.
//!
//! ```text
//! Idle ──► Talking ──(answered, more to send)──► Talking ──► Idle
//!  ▲          └─(failed)──► Waiting ──► Talking
//! ```

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use coracle_shim::protocol::events::{Envelope, Event, ForwardRequest};
use coracle_shim::protocol::method::{EVENTS_SERVICE, Forward, Method};
use coracle_shim::protocol::{Any, Decoder, KeyValue, Kind, Request, Timestamp, call, frame};
use prost::Message;

use crate::sys::{self, Epoll, Interest};

/// Events that may wait.
const MAX_QUEUED: usize = 1024;

/// How often one event is tried.
const TRIES: u32 = 6;

/// How long containerd may take over one, in milliseconds.
const ANSWER_MS: u64 = 5000;

/// How much longer each further try waits, in milliseconds.
const PAUSE_MS: u64 = 1000;

#[derive(Debug)]
pub(crate) struct Publisher {
    /// Without one there is nobody to tell.
    address: Option<PathBuf>,
    namespace: String,
    /// Events as they are sent, but for their stream.
    queue: VecDeque<Request>,
    /// Tries of the first of them.
    tries: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle,
    /// Milliseconds since boot of the next try.
    Waiting(u64),
    Talking(Talk),
}

#[derive(Debug)]
struct Talk {
    socket: UnixStream,
    stream: u32,
    unsent: Vec<u8>,
    decoder: Decoder,
    until: u64,
}

impl Publisher {
    pub(crate) fn new(address: &str, namespace: String) -> Self {
        let address = address.strip_prefix("unix://").unwrap_or(address);
        let address = (!address.is_empty()).then(|| PathBuf::from(address));
        Self { address, namespace, queue: VecDeque::new(), tries: 0, state: State::Idle }
    }

    /// Whether every event is told, or never will be.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// When it has to be looked at.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        match &self.state {
            State::Idle => None,
            State::Waiting(at) => Some(*at),
            State::Talking(talk) => Some(talk.until),
        }
    }

    /// Tells containerd of an event. `id` is what the loop calls this by.
    pub(crate) fn publish<E: Event>(&mut self, epoll: &Epoll, id: u64, event: &E) {
        if self.address.is_none() {
            return;
        }
        if self.queue.len() >= MAX_QUEUED {
            crate::tell(format_args!("event {} is dropped: {MAX_QUEUED} wait for containerd", E::TOPIC));
            return;
        }
        let envelope = Envelope {
            timestamp: Some(Timestamp::from_unix_ns(sys::unix_ns())),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.into(),
            event: Some(Any { type_url: E::TYPE.into(), value: event.encode_to_vec() }),
        };
        let header = KeyValue { key: call::NAMESPACE_HEADER.into(), value: self.namespace.clone() };
        self.queue.push_back(Request {
            service: EVENTS_SERVICE.into(),
            method: Forward::NAME.into(),
            payload: ForwardRequest { envelope: Some(envelope) }.encode_to_vec(),
            timeout_nano: i64::try_from(ANSWER_MS * 1_000_000).unwrap_or(i64::MAX),
            metadata: vec![header],
        });
        if matches!(self.state, State::Idle) {
            self.begin(epoll, id);
        }
    }

    /// Handles a wake-up of the connection.
    pub(crate) fn on_ready(&mut self, epoll: &Epoll, id: u64) {
        let State::Talking(talk) = &mut self.state else { return };
        match talk.go_on() {
            Ok(false) => drop(epoll.modify(&talk.socket, id, talk.interest())),
            Ok(true) => {
                self.queue.pop_front();
                self.tries = 0;
                let stream = talk.stream + 2;
                match self.queue.front() {
                    Some(request) => {
                        talk.ask(stream, request);
                        drop(epoll.modify(&talk.socket, id, talk.interest()));
                    }
                    None => {
                        self.queue = VecDeque::new();
                        self.state = State::Idle;
                    }
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Handles what is due.
    pub(crate) fn on_deadline(&mut self, epoll: &Epoll, id: u64, now: u64) {
        if self.next_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        match &self.state {
            State::Idle => {}
            State::Waiting(_) => self.begin(epoll, id),
            State::Talking(_) => self.failed(&io::ErrorKind::TimedOut.into()),
        }
    }

    fn begin(&mut self, epoll: &Epoll, id: u64) {
        let (Some(address), Some(request)) = (&self.address, self.queue.front()) else {
            self.state = State::Idle;
            return;
        };
        let started = sys::connect_nonblocking(address).and_then(|socket| {
            let mut talk = Talk { socket, stream: 1, unsent: Vec::new(), decoder: Decoder::new(), until: 0 };
            talk.ask(1, request);
            epoll.add(&talk.socket, id, talk.interest())?;
            Ok(talk)
        });
        match started {
            Ok(talk) => self.state = State::Talking(talk),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &io::Error) {
        self.tries += 1;
        if self.tries >= TRIES {
            self.queue.pop_front();
            self.tries = 0;
            crate::tell(format_args!("containerd does not take an event: {error}"));
        }
        self.state = if self.queue.is_empty() {
            State::Idle
        } else {
            State::Waiting(sys::boot_ms() + PAUSE_MS * u64::from(self.tries.max(1)))
        };
    }
}

impl Talk {
    fn ask(&mut self, stream: u32, request: &Request) {
        self.stream = stream;
        self.unsent = frame::encode(Kind::Request, stream, request);
        self.until = sys::boot_ms() + ANSWER_MS;
    }

    fn interest(&self) -> Interest {
        if self.unsent.is_empty() { Interest::READ } else { Interest::BOTH }
    }

    /// Sends and reads as far as that needs no waiting; true when the answer is there.
    fn go_on(&mut self) -> io::Result<bool> {
        let waits = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        };
        if !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if waits(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let mut buffer = [0; 1024];
        match self.socket.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
            Ok(n) => self.decoder.push(&buffer[..n]),
            Err(error) if waits(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        while let Some(frame) = self.decoder.next_frame().map_err(io::Error::other)? {
            if frame.header.stream_id == self.stream {
                call::response::<Forward>(&frame.payload).map_err(io::Error::other)?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests;
