//! One connection to one pod's shim: calls of the Task API over a unix socket, and the news that the shim died.
//!
//! Every sandbox holds one client. Calls may run side by side; a single task owned by the client reads answers
//! and ends when the connection does. The end of the connection is the only sign of a shim's death.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_shim::protocol::call::Peer;
use coracle_shim::protocol::{Code, Decoder, Method, call, method, task};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

/// The most calls that wait for one shim. Each container has one Wait, the rest is short.
const MAX_PENDING: usize = 1024;

/// How long a terminal's new size may take.
const RESIZE_BOUND: Duration = Duration::from_secs(20);

/// A call to a shim failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    /// The shim's socket cannot be reached.
    #[error("connect to shim {socket}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection ended: the shim is dead.
    #[error("{method}: the shim is gone")]
    Gone {
        /// The call.
        method: &'static str,
    },
    /// No answer came in time.
    #[error("{method}: no answer from the shim in {seconds} s")]
    Deadline {
        /// The call.
        method: &'static str,
        /// The bound.
        seconds: u64,
    },
    /// Too many calls wait already.
    #[error("{method}: {MAX_PENDING} calls wait for this shim already")]
    Busy {
        /// The call.
        method: &'static str,
    },
    /// The shim answered with an error.
    #[error("{method}: {message}")]
    Refused {
        /// The call.
        method: &'static str,
        /// The kind of error.
        code: Code,
        /// What the shim or the maker said.
        message: String,
    },
}

impl ShimError {
    /// Whether the shim does not know the container or process.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, ShimError::Refused { code: Code::NotFound, .. })
    }

    /// The maker's or shim's own words, without the call's name.
    pub(crate) fn message(&self) -> String {
        match self {
            ShimError::Refused { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }
}

type Answer = oneshot::Sender<Vec<u8>>;

/// Calls that wait for their answer, by stream.
#[derive(Default)]
struct Pending {
    next_stream: u32,
    waiting: HashMap<u32, Answer>,
    closed: bool,
}

/// A connection to a shim. Cheap to clone; the connection ends with the last clone.
#[derive(Clone)]
pub(crate) struct ShimClient {
    connection: Arc<Connection>,
}

struct Connection {
    /// Who is called, where that is not a shim of ours.
    peer: Option<Peer>,
    pending: Arc<Mutex<Pending>>,
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    closed: watch::Receiver<bool>,
    reader: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl ShimClient {
    /// Connects to a listening shim.
    pub(crate) async fn connect(socket: &Path) -> Result<ShimClient, ShimError> {
        Self::connect_to(socket, None).await
    }

    /// Connects to a listening shim, which may be somebody else's.
    pub(crate) async fn connect_to(socket: &Path, peer: Option<Peer>) -> Result<ShimClient, ShimError> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| ShimError::Connect { socket: socket.into(), source })?;
        let (read, write) = stream.into_split();
        let pending = Arc::new(Mutex::new(Pending { next_stream: 1, ..Default::default() }));
        let (close, closed) = watch::channel(false);
        let reader = tokio::spawn(read_answers(read, pending.clone(), close)).abort_handle();
        let connection = Connection { peer, pending, writer: Arc::new(write.into()), closed, reader };
        Ok(ShimClient { connection: Arc::new(connection) })
    }

    /// Returns once the connection has ended.
    pub(crate) async fn closed(&self) {
        let mut closed = self.connection.closed.clone();
        // An error means that the reader is gone, which is the same news.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Calls `M` and waits at most `bound` for the answer.
    pub(crate) async fn call<M: Method>(
        &self,
        request: &M::Request,
        bound: Duration,
    ) -> Result<M::Response, ShimError> {
        // The shim gets a little less, so that its own error about a slow maker comes before ours.
        let for_shim = bound.saturating_sub(Duration::from_millis(500)).max(Duration::from_millis(100));
        match tokio::time::timeout(bound, self.send::<M>(request, Some(for_shim))).await {
            Ok(result) => result,
            Err(_) => Err(ShimError::Deadline { method: M::NAME, seconds: bound.as_secs() }),
        }
    }

    /// Sets the size of a terminal, of a container's first process or of an exec; one that has ended has none.
    pub(crate) async fn resize(&self, id: &str, exec_id: &str, width: u16, height: u16) {
        let request = task::ResizePtyRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            width: width.into(),
            height: height.into(),
        };
        if let Err(error) = self.call::<method::ResizePty>(&request, RESIZE_BOUND).await {
            tracing::debug!(container = %id, %error, "terminal not resized");
        }
    }

    /// Calls `M` and waits for the answer as long as the shim lives; for Wait.
    pub(crate) async fn call_unbounded<M: Method>(
        &self,
        request: &M::Request,
    ) -> Result<M::Response, ShimError> {
        self.send::<M>(request, None).await
    }

    async fn send<M: Method>(
        &self,
        request: &M::Request,
        bound: Option<Duration>,
    ) -> Result<M::Response, ShimError> {
        let (stream, answer) = self.register(M::NAME)?;
        let _forget = Forget { pending: &self.connection.pending, stream };
        let bound = bound.map(|bound| i64::try_from(bound.as_nanos()).unwrap_or(i64::MAX));
        let frame = match &self.connection.peer {
            None => call::request::<M>(stream, request, bound),
            Some(peer) => call::request_to::<M>(peer, stream, request, bound),
        };
        self.write(frame).await.map_err(|_| ShimError::Gone { method: M::NAME })?;
        let payload = answer.await.map_err(|_| ShimError::Gone { method: M::NAME })?;
        call::response::<M>(&payload).map_err(|status| ShimError::Refused {
            method: M::NAME,
            code: status.kind(),
            message: status.message,
        })
    }

    fn register(&self, method: &'static str) -> Result<(u32, oneshot::Receiver<Vec<u8>>), ShimError> {
        let (sender, receiver) = oneshot::channel();
        let mut pending = lock(&self.connection.pending);
        if pending.closed {
            return Err(ShimError::Gone { method });
        }
        if pending.waiting.len() >= MAX_PENDING {
            return Err(ShimError::Busy { method });
        }
        let stream = pending.next_stream;
        // Clients use odd numbers; after 2^31 calls they may start over, long since answered.
        pending.next_stream = stream.checked_add(2).unwrap_or(1);
        pending.waiting.insert(stream, sender);
        Ok((stream, receiver))
    }

    /// Writes a whole frame even if the caller goes away halfway, because half a frame ends the connection.
    async fn write(&self, frame: Vec<u8>) -> io::Result<()> {
        let mut writer = self.connection.writer.clone().lock_owned().await;
        // Nearly always the socket takes the frame at once, without a task.
        let written = match writer.try_write(&frame) {
            Ok(count) if count == frame.len() => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        // The task ends with the frame or with the connection.
        tokio::spawn(async move { writer.write_all(&frame[written..]).await })
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }
}

/// Takes a call's entry away when its caller stops waiting.
struct Forget<'a> {
    pending: &'a Mutex<Pending>,
    stream: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.pending).waiting.remove(&self.stream);
    }
}

/// The lock guards a map for moments; a panic while it is held cannot leave it half changed.
fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands answers to their callers until the connection ends, then fails all that wait.
async fn read_answers(read: OwnedReadHalf, pending: Arc<Mutex<Pending>>, close: watch::Sender<bool>) {
    if let Err(error) = read_frames(&read, &pending).await {
        tracing::debug!(%error, "shim connection broken");
    }
    let waiting = {
        let mut pending = lock(&pending);
        pending.closed = true;
        std::mem::take(&mut pending.waiting)
    };
    drop(waiting);
    close.send_replace(true);
}

async fn read_frames(read: &OwnedReadHalf, pending: &Mutex<Pending>) -> io::Result<()> {
    let mut decoder = Decoder::new();
    loop {
        read.readable().await?;
        // The buffer lives only between two waits: an idle connection holds none.
        let mut buffer = [0; 4096];
        match read.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => decoder.push(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        while let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
            if let Some(answer) = lock(pending).waiting.remove(&frame.header.stream_id) {
                // A caller that gave up needs no answer.
                let _ = answer.send(frame.payload);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_shim::protocol::{Kind, Response, frame};
    use prost::Message as _;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixListener;

    /// Stream and method of the next request.
    async fn request(stream: &mut UnixStream) -> (u32, String) {
        let mut header = [0; 10];
        stream.read_exact(&mut header).await.unwrap();
        let header = coracle_shim::protocol::Header::parse(&header).unwrap();
        let mut payload = vec![0; header.len as usize];
        stream.read_exact(&mut payload).await.unwrap();
        let request = coracle_shim::protocol::Request::decode(payload.as_slice()).unwrap();
        (header.stream_id, request.method)
    }

    #[tokio::test]
    async fn answers_find_their_callers_in_any_order_and_death_fails_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let client = ShimClient::connect(&path).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();

        let wait_request = task::WaitRequest::default();
        let state_request = task::StateRequest::default();
        let wait = client.call_unbounded::<method::Wait>(&wait_request);
        let state = client.call::<method::State>(&state_request, Duration::from_secs(5));
        let serve = async {
            let requests = [request(&mut server).await, request(&mut server).await];
            let (second, _) = requests.iter().find(|(_, method)| method == "State").unwrap();
            let answer = task::StateResponse { pid: 7, ..Default::default() };
            let response = Response { status: None, payload: answer.encode_to_vec() };
            server.write_all(&frame::encode(Kind::Response, *second, &response)).await.unwrap();
            server
        };
        let mut wait = Box::pin(wait);
        let (state, server) = tokio::select! {
            biased;
            _ = &mut wait => panic!("Wait was not answered"),
            both = async { tokio::join!(state, serve) } => both,
        };
        assert_eq!(state.unwrap().pid, 7);
        drop(server);
        assert!(matches!(wait.await, Err(ShimError::Gone { method: "Wait" })));
        client.closed().await;
        let after = client.call::<method::State>(&state_request, Duration::from_secs(5)).await;
        assert!(matches!(after, Err(ShimError::Gone { .. })));
    }
}
