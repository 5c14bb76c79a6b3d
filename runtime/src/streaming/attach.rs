//! A session of attach: a copy of the output of a container's first process from now on, and its input. Its task ends
//! with the output or with the client, and the container goes on.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1;
use coracle_shim::protocol::{method, shim, task};
use coracle_streaming::channel::{ExecOptions, Outcome};
use coracle_streaming::server::{ExecProtocol, Resizes};
use tokio::net::unix::pipe;

use super::copy::{self, Gauge};
use super::serve::Io;
use super::session::{Line, Session, Streams};
use crate::container::Container;
use crate::container::process::{output_pipe, pipe_address};
use crate::sandbox::Shims;
use crate::service::Engine;
use crate::service_error::{ServiceError, chain};
use crate::shim_client::ShimClient;

/// How long a shim may take for one call.
const CALL_BOUND: Duration = Duration::from_secs(20);

/// What the client of an attachment that was cut off is told.
const STALLED: &str =
    "detached: the client took no output for half a minute, and the container must not wait for it";

/// Attaches the client of a request.
pub(super) async fn run(
    engine: Arc<Engine>,
    client: (Io, Line),
    protocol: ExecProtocol,
    request: v1::AttachRequest,
) {
    let v1::AttachRequest { stdin, stdout, stderr, tty, .. } = request;
    let options = ExecOptions { stdin, stdout, stderr, tty };
    let (session, streams) = match Session::begin(client, protocol, options).await {
        Ok(begun) => begun,
        Err(error) => {
            tracing::debug!(container = %request.container_id, %error, "nobody attached");
            return;
        }
    };
    let mut attachment = match Attachment::new(&engine, &request.container_id) {
        Ok(attachment) => attachment,
        Err(error) => {
            return session.finish(&failure(&error)).await;
        }
    };
    let outcome = tokio::select! {
        outcome = attachment.carry(streams) => Some(outcome),
        () = session.client_gone() => None,
    };
    if stdin {
        attachment.end_input().await;
    }
    match outcome {
        Some(Ok(())) => session.finish(&Outcome::Success).await,
        Some(Err(error)) => session.finish(&failure(&error)).await,
        None => {}
    }
}

fn failure(error: &ServiceError) -> Outcome {
    Outcome::Failed(format!("error attaching to container: {}", chain(error)))
}

struct Attachment {
    container: Arc<Container>,
    shims: Shims,
    /// The container's named pipe, if it has input.
    input: Option<pipe::Sender>,
    /// The first client's input is the last, and there is no terminal through which one might come back.
    once: bool,
}

impl Attachment {
    fn new(engine: &Arc<Engine>, id: &str) -> Result<Self, ServiceError> {
        let container = engine.container(id)?;
        engine.expect_running(&container)?;
        let shims = engine.sandbox(&container.sandbox_id)?.shims()?;
        let (has_input, once) = {
            let record = container.record();
            let config = &record.config;
            (config.stdin, config.stdin && config.stdin_once && !config.tty)
        };
        let path = engine.layout.stdin(&container.id);
        let input = match has_input.then(|| pipe::OpenOptions::new().open_sender(&path)) {
            None => None,
            Some(Ok(input)) => Some(input),
            // Its end was told already, or it was made by a release that knew no input.
            Some(Err(error)) if is_closed(&error) => None,
            Some(Err(error)) => return Err(ServiceError::file("open", path)(error)),
        };
        Ok(Self { container, shims, input, once })
    }

    /// Carries bytes until the output ends, or the input of a client that may come back.
    async fn carry(&mut self, mut streams: Streams) -> Result<(), ServiceError> {
        let (stdout, stdout_end) = streams.stdout.is_some().then(output_pipe).transpose()?.unzip();
        let (stderr, stderr_end) = streams.stderr.is_some().then(output_pipe).transpose()?.unzip();
        let reads = stdout.is_some() || stderr.is_some();
        if reads {
            let request = shim::AttachRequest {
                id: self.container.id.clone(),
                stdout: stdout_end.as_ref().map(pipe_address).unwrap_or_default(),
                stderr: stderr_end.as_ref().map(pipe_address).unwrap_or_default(),
            };
            self.shims.own.call::<method::Attach>(&request, CALL_BOUND).await?;
        }
        drop((stdout_end, stderr_end));
        let gauge = Gauge::default();
        let (container, shim, once) = (&self.container, self.shims.tasks(), self.once);
        let outputs = async {
            if !reads {
                return container.ended().await;
            }
            tokio::join!(
                copy::output(stdout, streams.stdout.take(), &gauge),
                copy::output(stderr, streams.stderr.take(), &gauge)
            );
        };
        let input = self.input.take();
        let detached = async {
            match streams.stdin.take() {
                Some(stdin) if input.is_some() => copy::input(Some(stdin), input).await,
                _ => pending().await,
            }
            // As with every CRI runtime: input that ends once ends the process's, else it ends the attachment.
            if once {
                close_input(shim, &container.id).await;
                pending::<()>().await;
            }
        };
        let sizes = async {
            sizes(shim, &container.id, streams.resize.take()).await;
            pending::<()>().await;
        };
        tokio::select! {
            () = outputs => {}
            () = detached => {}
            () = sizes => unreachable!("sizes wait for ever at their end"),
        }
        if gauge.stalled() {
            return Err(ServiceError::Invalid { what: STALLED.to_owned() });
        }
        Ok(())
    }

    /// Ends the process's input after its only client, however that left.
    async fn end_input(&self) {
        if self.once {
            close_input(self.shims.tasks(), &self.container.id).await;
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENXIO)
}

/// Says that nobody will write to the input any more. A process that ended meanwhile has none.
async fn close_input(shim: &ShimClient, id: &str) {
    let request = task::CloseIORequest { id: id.to_owned(), exec_id: String::new(), stdin: true };
    if let Err(error) = shim.call::<method::CloseIO>(&request, CALL_BOUND).await {
        tracing::debug!(container = %id, %error, "input not closed");
    }
}

async fn sizes(shim: &ShimClient, id: &str, resizes: Option<Resizes>) {
    let Some(mut resizes) = resizes else { return };
    while let Some(size) = resizes.next().await {
        shim.resize(id, "", size.width, size.height).await;
    }
}
