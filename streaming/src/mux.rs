//! Streams over one connection: what both protocols have in common once bytes are frames. `server` and `client` make
//! connections; whoever serves a command or a port holds their streams.
//!
//! One task per connection, the driver, owns the socket; streams and driver meet in [`State`] behind a lock that is
//! held only to move bytes between buffers, never across an await.
//!
//! ```text
//!   socket ─► input ─► Wire::receive ─► a stream's inbox ─► its reader
//!   socket ◄─ out ◄─ Wire::data ◄──────────────────────── a stream's writer
//! ```
//!
//! Invariant: what a connection holds does not depend on how much is sent. With [`INBOX_LIMIT`] bytes unread the
//! driver reads no more; with [`OUT_LIMIT`] bytes unsent writers wait. Neither SPDY as it is spoken here nor WebSocket
//! has windows per stream, so one slow reader holds up the whole connection, as with the kubelet.

mod driver;
mod stream;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use crate::spdy::Headers;
use driver::Driver;
pub use stream::Stream;
pub(crate) use wire::{ChannelWire, Event, SpdyWire, TunnelWire, Wire, random};

/// How many bytes may wait for their readers before the socket is read no more.
pub const INBOX_LIMIT: usize = 32 * 1024;
/// How many bytes may wait for the socket before writers wait.
pub const OUT_LIMIT: usize = 32 * 1024;
/// How much is read, and taken from a writer, at a time.
const CHUNK: usize = 16 * 1024;
/// How many streams may wait to be taken.
const INCOMING_LIMIT: usize = 16;
/// How many streams a connection has at once; port-forward uses two per connection.
const MAX_STREAMS: usize = 1024;
/// How long an ending connection may stand still.
const CLOSE_GRACE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Goodbye is said: what is unsent goes out, what comes is dropped.
    Closing,
    /// The socket is gone; `clean` if the peer said goodbye or we did.
    Ended {
        clean: bool,
    },
}

#[derive(Default)]
struct StreamState {
    inbox: VecDeque<u8>,
    /// The peer took it; until then peers drop what is sent.
    opened: bool,
    local_done: bool,
    remote_done: bool,
    reset: bool,
    /// What comes is dropped.
    write_only: bool,
    reader: Option<Waker>,
    opener: Option<Waker>,
    /// Whoever wants to know of its reset.
    watcher: Option<Waker>,
}

impl StreamState {
    fn wake(&mut self) {
        for waker in
            [&mut self.reader, &mut self.opener, &mut self.watcher].into_iter().filter_map(Option::take)
        {
            waker.wake();
        }
    }
}

struct State {
    wire: Box<dyn Wire>,
    phase: Phase,
    /// The peer will open no more, and its end is no surprise.
    goodbye: bool,
    streams: HashMap<u32, StreamState>,
    incoming: VecDeque<(u32, Headers)>,
    /// New streams are taken.
    accepting: bool,
    next_stream: u32,
    input: BytesMut,
    out: BytesMut,
    /// Bytes in all inboxes.
    unread: usize,
    /// Bytes that went out since the beginning, so that progress shows.
    sent: u64,
    driver: Option<Waker>,
    acceptor: Option<Waker>,
    writers: Vec<Waker>,
    watchers: Vec<Waker>,
}

impl State {
    fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    fn wake_writers(&mut self) {
        self.writers.drain(..).for_each(Waker::wake);
    }

    /// Too much is unread, unsent or untaken to read on.
    fn stalled(&self) -> bool {
        self.unread >= INBOX_LIMIT || self.out.len() >= OUT_LIMIT || self.incoming.len() >= INCOMING_LIMIT
    }

    /// Uses up the input. True if more is needed, false if it stalled.
    fn process(&mut self) -> io::Result<bool> {
        loop {
            if self.phase != Phase::Open {
                self.input.clear();
                return Ok(true);
            }
            if self.stalled() {
                return Ok(false);
            }
            let received = self.wire.receive(&mut self.input, &mut self.out);
            match received.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
                Some(event) => self.apply(event),
                None => return Ok(true),
            }
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Open { stream, headers, fin } => {
                if !self.accepting || self.streams.len() >= MAX_STREAMS {
                    self.wire.reset(stream, &mut self.out);
                    return;
                }
                self.streams
                    .insert(stream, StreamState { opened: true, remote_done: fin, ..Default::default() });
                self.incoming.push_back((stream, headers));
                if let Some(waker) = self.acceptor.take() {
                    waker.wake();
                }
            }
            Event::Opened { stream, fin } => self.with(stream, |state| {
                state.opened = true;
                state.remote_done |= fin;
            }),
            Event::Data { stream, fin, data } => {
                let mut added = 0;
                self.with(stream, |state| {
                    if !state.write_only && !state.remote_done {
                        state.inbox.extend(data.iter());
                        added = data.len();
                    }
                    state.remote_done |= fin;
                });
                self.unread += added;
            }
            Event::Reset(stream) => {
                self.with(stream, |state| {
                    state.reset = true;
                    state.remote_done = true;
                });
                // One of them may wait for room on a stream that is over.
                self.wake_writers();
            }
            Event::Nothing => {}
            Event::Goodbye { last: false } => self.goodbye = true,
            Event::Goodbye { last: true } => {
                self.goodbye = true;
                self.close();
            }
        }
    }

    /// Changes a stream and wakes who waits for it. What comes for one that is gone is dropped.
    fn with(&mut self, stream: u32, change: impl FnOnce(&mut StreamState)) {
        if let Some(state) = self.streams.get_mut(&stream) {
            change(state);
            state.wake();
        }
    }

    fn close(&mut self) {
        if self.phase == Phase::Open {
            self.wire.goodbye(&mut self.out);
            self.phase = Phase::Closing;
            self.wake_all();
        }
    }

    fn end(&mut self, failed: bool) {
        let clean = !failed && (self.goodbye || self.phase == Phase::Closing);
        self.phase = Phase::Ended { clean };
        self.input = BytesMut::new();
        self.out = BytesMut::new();
        self.wake_all();
    }

    fn wake_all(&mut self) {
        self.streams.values_mut().for_each(StreamState::wake);
        self.wake_writers();
        self.watchers.drain(..).for_each(Waker::wake);
        if let Some(waker) = self.acceptor.take() {
            waker.wake();
        }
        self.wake_driver();
    }

    /// Bytes of buffers, full or not.
    fn footprint(&self) -> usize {
        let inboxes: usize = self.streams.values().map(|state| state.inbox.capacity()).sum();
        self.input.capacity() + self.out.capacity() + inboxes
    }
}

struct Shared(Mutex<State>);

impl Shared {
    fn new(wire: Box<dyn Wire>, accepting: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            wire,
            phase: Phase::Open,
            goodbye: false,
            streams: HashMap::new(),
            incoming: VecDeque::new(),
            accepting,
            next_stream: 1,
            input: BytesMut::new(),
            out: BytesMut::new(),
            unread: 0,
            sent: 0,
            driver: None,
            acceptor: None,
            writers: Vec::new(),
            watchers: Vec::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held broke this connection only, and nothing in it is unsafe to look at.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One connection with its streams. Dropping it ends them at once; [`Connection::close`] lets the last bytes go out.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
}

impl Connection {
    /// Takes an upgraded connection, which ends when for `idle` nothing moved, or up to twice as long. Must be called
    /// within a tokio runtime.
    pub(crate) fn new<IO>(io: IO, wire: Box<dyn Wire>, accepting: bool, idle: Option<Duration>) -> Self
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self::start(io, Shared::new(wire, accepting), idle)
    }

    fn start<IO>(io: IO, shared: Arc<Shared>, idle: Option<Duration>) -> Self
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let driver = tokio::spawn(Driver::new(io, shared.clone(), idle));
        Self { shared, driver }
    }

    /// The next stream that the peer opens, answered. `None` once there will be no more.
    pub(crate) async fn accept(&self) -> Option<(Stream, Headers)> {
        std::future::poll_fn(|context| {
            let mut state = self.shared.lock();
            if let Some((id, headers)) = state.incoming.pop_front() {
                let State { wire, out, .. } = &mut *state;
                wire.accept(id, out);
                state.wake_driver();
                return Poll::Ready(Some((Stream::new(id, self.shared.clone()), headers)));
            }
            if state.phase != Phase::Open {
                return Poll::Ready(None);
            }
            state.acceptor = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Takes no more streams; what the peer opens from now on is reset.
    pub(crate) fn refuse_more(&self) {
        let mut state = self.shared.lock();
        state.accepting = false;
        while let Some((id, _)) = state.incoming.pop_front() {
            state.streams.remove(&id);
            let State { wire, out, .. } = &mut *state;
            wire.reset(id, out);
        }
        state.wake_driver();
    }

    /// Opens a stream and waits until the peer took it: peers drop what is sent before.
    pub(crate) async fn open(&self, headers: &Headers) -> io::Result<Stream> {
        let stream = {
            let mut state = self.shared.lock();
            let id = state.next_stream;
            state.next_stream += 2;
            state.streams.insert(id, StreamState::default());
            let State { wire, out, .. } = &mut *state;
            wire.open(id, headers, out);
            state.wake_driver();
            Stream::new(id, self.shared.clone())
        };
        stream.opened().await?;
        Ok(stream)
    }

    /// A connection whose streams both sides know of without a word. They are there before the first byte is read.
    pub(crate) fn quiet<IO, K: Copy + Into<u32>>(
        io: IO,
        wire: Box<dyn Wire>,
        streams: impl Iterator<Item = K>,
        mut each: impl FnMut(K, Stream),
        idle: Option<Duration>,
    ) -> Self
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Shared::new(wire, false);
        for kind in streams {
            let id = kind.into();
            shared.lock().streams.insert(id, StreamState { opened: true, ..Default::default() });
            each(kind, Stream::new(id, shared.clone()));
        }
        Self::start(io, shared, idle)
    }

    /// Waits until the connection is over, from either side.
    pub(crate) async fn ended(&self) {
        std::future::poll_fn(|context| {
            let mut state = self.shared.lock();
            if state.phase != Phase::Open {
                return Poll::Ready(());
            }
            state.watchers.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Says goodbye and waits until everything is sent and the peer has hung up, as long as bytes move.
    pub(crate) async fn close(mut self) {
        self.shared.lock().close();
        let mut sent = None;
        while tokio::time::timeout(CLOSE_GRACE, &mut self.driver).await.is_err() {
            let now = Some(self.shared.lock().sent);
            if now == sent {
                return;
            }
            sent = now;
        }
    }

    /// Bytes of buffers that the connection holds, full or not.
    pub(crate) fn footprint(&self) -> usize {
        self.shared.lock().footprint()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
        self.shared.lock().end(false);
    }
}
