//! A session of exec: a process in a container, its streams a client's. Its task ends with the process or with the
//! client, who takes the process along.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;

use coracle_cri::v1;
use coracle_streaming::channel::{ExecOptions, Outcome};
use coracle_streaming::server::{ExecProtocol, Resizes};

use super::copy::{self, Gauge};
use super::serve::Io;
use super::session::{Line, Session, Streams};
use crate::container::process::{RunningExec, Stdio, input_pipe, output_pipe};
use crate::service::Engine;
use crate::service_error::{ServiceError, chain};

/// Runs the command of a request.
pub(super) async fn run(
    engine: Arc<Engine>,
    client: (Io, Line),
    protocol: ExecProtocol,
    request: v1::ExecRequest,
) {
    let v1::ExecRequest { stdin, stdout, stderr, tty, .. } = request;
    let options = ExecOptions { stdin, stdout, stderr, tty };
    let (session, streams) = match Session::begin(client, protocol, options).await {
        Ok(begun) => begun,
        Err(error) => {
            tracing::debug!(container = %request.container_id, %error, "no exec");
            return;
        }
    };
    let outcome = tokio::select! {
        outcome = command(&engine, &request, streams) => outcome,
        // The command is dropped, which kills its process.
        () = session.client_gone() => return,
    };
    let outcome = match outcome {
        Ok(0) => Outcome::Success,
        Ok(code) => Outcome::Exited(code),
        Err(error) => Outcome::Failed(format!("error executing command in container: {}", chain(&error))),
    };
    session.finish(&outcome).await;
}

/// The exit code of the command, once all its output is on its way.
async fn command(
    engine: &Arc<Engine>,
    request: &v1::ExecRequest,
    mut streams: Streams,
) -> Result<i32, ServiceError> {
    let container = engine.container(&request.container_id)?;
    let (input, stdin) = streams.stdin.is_some().then(input_pipe).transpose()?.unzip();
    let (from_stdout, stdout) = streams.stdout.is_some().then(output_pipe).transpose()?.unzip();
    let (from_stderr, stderr) = streams.stderr.is_some().then(output_pipe).transpose()?.unzip();
    let stdio = Stdio { stdin, stdout, stderr, terminal: request.tty };
    let running = engine.start_exec(&container, &request.cmd, stdio).await?;
    let gauge = Gauge::default();
    let outputs = async {
        tokio::join!(
            copy::output(from_stdout, streams.stdout.take(), &gauge),
            copy::output(from_stderr, streams.stderr.take(), &gauge)
        )
    };
    // A process may end with its input unread; what becomes of the input is no matter then.
    let inputs = async {
        tokio::join!(copy::input(streams.stdin.take(), input), sizes(&running, streams.resize.take()));
        pending::<()>().await;
    };
    let code = tokio::select! {
        code = end(&running, outputs, &gauge) => code?,
        () = inputs => unreachable!("input waits for ever at its end"),
    };
    running.forget().await;
    Ok(code)
}

async fn end(
    running: &RunningExec,
    outputs: impl Future<Output = ((), ())>,
    gauge: &Gauge,
) -> Result<i32, ServiceError> {
    let (mut outputs, mut wait) = (pin!(outputs), pin!(running.wait()));
    // Both arms keep their place.
    let code = tokio::select! {
        code = &mut wait => code?,
        _ = &mut outputs => return wait.await,
    };
    tokio::select! {
        _ = outputs => {}
        () = gauge.silent() => {}
    }
    Ok(code)
}

async fn sizes(running: &RunningExec, resizes: Option<Resizes>) {
    let Some(mut resizes) = resizes else { return };
    while let Some(size) = resizes.next().await {
        running.resize(size.width, size.height).await;
    }
}
