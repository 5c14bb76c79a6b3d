//! One client's connection: frames in, answers out. Owned by the loop; never waits.
//!
//! A client that sends garbage, or does not take its answers, loses its connection and nothing else: containers and
//! logs do not know about it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use coracle_shim::protocol::{Code, Decoder, Kind, Request, Response, Status, frame};
use prost::Message;

use crate::sys::{Epoll, Interest};

/// Answers that may wait for a client. A call's answer is small; only a client that reads nothing has this many.
const MAX_UNSENT: usize = 1 << 20;

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
}

/// What a client asked.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) reply: ReplyTo,
    /// The request, or why it cannot be one.
    pub(crate) request: Result<Request, Status>,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: u64,
    socket: UnixStream,
    decoder: Decoder,
    unsent: Vec<u8>,
    last_stream: u32,
    watches_write: bool,
    dead: bool,
}

impl Connection {
    pub(crate) fn new(id: u64, socket: UnixStream, epoll: &Epoll) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        epoll.add(&socket, id, Interest::READ)?;
        Ok(Self {
            id,
            socket,
            decoder: Decoder::new(),
            unsent: Vec::new(),
            last_stream: 0,
            watches_write: false,
            dead: false,
        })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Whether every answer is on its way.
    pub(crate) fn is_flushed(&self) -> bool {
        self.dead || self.unsent.is_empty()
    }

    /// Handles a wake-up: sends what waits, and returns what the client asked.
    pub(crate) fn on_ready(&mut self, epoll: &Epoll) -> Vec<Asked> {
        self.send(epoll);
        let mut asked = Vec::new();
        let mut buffer = [0; 4096];
        match self.socket.read(&mut buffer) {
            Ok(0) => self.dead = true,
            Ok(n) => self.decoder.push(&buffer[..n]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.dead = true,
        }
        while !self.dead {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => asked.extend(self.accept(&frame)),
                Ok(None) => break,
                Err(error) => {
                    crate::tell(format_args!("connection closed: {error}"));
                    self.dead = true;
                }
            }
        }
        asked
    }

    fn accept(&mut self, frame: &frame::Frame) -> Option<Asked> {
        let stream = frame.header.stream_id;
        let reply = ReplyTo { connection: self.id, stream };
        let invalid = |message: &str| Err(Status::new(Code::InvalidArgument, message));
        let request = if frame.header.kind != Kind::Request {
            if frame.header.kind == Kind::Response {
                crate::tell(format_args!("connection closed: a client sent a response"));
                self.dead = true;
                return None;
            }
            invalid("the Task API has no streams")
        } else if stream.is_multiple_of(2) {
            invalid("a client's stream must be odd")
        } else if stream <= self.last_stream {
            invalid("streams must grow and not be used again")
        } else {
            self.last_stream = stream;
            Request::decode(frame.payload.as_slice())
                .map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))
        };
        Some(Asked { reply, request })
    }

    /// Sends an answer, or as much of it as the client takes now.
    pub(crate) fn answer(&mut self, epoll: &Epoll, stream: u32, result: Result<Vec<u8>, Status>) {
        let response = match result {
            Ok(payload) => Response { status: None, payload },
            Err(status) => Response { status: Some(status), payload: Vec::new() },
        };
        self.unsent.extend_from_slice(&frame::encode(Kind::Response, stream, &response));
        self.send(epoll);
    }

    fn send(&mut self, epoll: &Epoll) {
        while !self.unsent.is_empty() && !self.dead {
            match self.socket.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.dead = true,
            }
        }
        if self.unsent.len() > MAX_UNSENT {
            crate::tell(format_args!("connection closed: a client does not take its answers"));
            self.dead = true;
        }
        if self.unsent.is_empty() {
            self.unsent = Vec::new();
        }
        let waits = !self.unsent.is_empty();
        if waits != self.watches_write && !self.dead {
            self.watches_write = waits;
            let interest = if waits { Interest::BOTH } else { Interest::READ };
            self.dead |= epoll.modify(&self.socket, self.id, interest).is_err();
        }
    }
}
