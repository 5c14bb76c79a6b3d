//! Exec, attach and port-forward: a server on 127.0.0.1 for requests that CRI has answered with a URL.
//!
//! `service::calls` hands requests in and gives their URLs out. The server begins with the first of them, so that a
//! node that nobody looks into has none, and stays: one listening socket and one parked task. Each URL holds a token
//! that works once and for a minute. Every session is a task that ends with its client, its process or the runtime;
//! what it holds does not depend on how much it carries.

mod attach;
mod copy;
mod exec;
mod forward;
mod serve;
mod session;
mod tokens;

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use coracle_cri::v1;
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, Semaphore};

use self::tokens::Tokens;
use crate::service::Engine;
use crate::service_error::ServiceError;
use crate::sys;

/// Sessions at a time. Each may hold some 100 KiB.
const SESSIONS: usize = 512;

/// A request that waits for its client.
#[derive(Debug)]
pub(crate) enum Ticket {
    Exec(v1::ExecRequest),
    Attach(v1::AttachRequest),
    PortForward(v1::PortForwardRequest),
}

impl Ticket {
    /// The first part of the path of its URL.
    fn kind(&self) -> &'static str {
        match self {
            Ticket::Exec(_) => "exec",
            Ticket::Attach(_) => "attach",
            Ticket::PortForward(_) => "portforward",
        }
    }
}

/// The streaming server of one runtime.
pub(crate) struct Streaming {
    port: OnceCell<u16>,
    tokens: Mutex<Tokens<Ticket>>,
    sessions: Arc<Semaphore>,
}

impl Streaming {
    pub(crate) fn new() -> Streaming {
        Streaming {
            port: OnceCell::new(),
            tokens: Mutex::default(),
            sessions: Arc::new(Semaphore::new(SESSIONS)),
        }
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Tokens<Ticket>> {
        // The queue is whole after every statement, so a panic of another holder left it usable.
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Where the client of a request finds its streams.
    pub(crate) async fn streaming_url(self: &Arc<Self>, ticket: Ticket) -> Result<String, ServiceError> {
        if self.closing.is_cancelled() {
            return Err(ServiceError::Closing);
        }
        let port = self.streaming.port.get_or_try_init(|| self.start_streaming()).await?;
        let mut bytes = [0; 16];
        sys::random(&mut bytes).map_err(ServiceError::file("read", "/dev/urandom"))?;
        let token = hex::encode(bytes);
        let url = format!("http://127.0.0.1:{port}/{}/{token}", ticket.kind());
        self.streaming
            .tokens()
            .insert(token, ticket, Instant::now())
            .map_err(|_| ServiceError::TooManyStreams)?;
        Ok(url)
    }

    async fn start_streaming(self: &Arc<Self>) -> Result<u16, ServiceError> {
        let listen = |source| ServiceError::StreamingServer { source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(listen)?;
        let port = listener.local_addr().map_err(listen)?.port();
        tracing::info!(port, "streaming server listens on 127.0.0.1");
        self.watch(serve::serve(self.clone(), listener));
        Ok(port)
    }
}

/// Which streams a request asks for, as every CRI runtime checks it.
pub(crate) fn check_streams(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Result<(), ServiceError> {
    let invalid = |what: &str| Err(ServiceError::Invalid { what: what.to_owned() });
    if tty && stderr {
        return invalid("tty and stderr cannot both be true");
    }
    if !stdin && !stdout && !stderr {
        return invalid("one of stdin, stdout, or stderr must be set");
    }
    Ok(())
}
