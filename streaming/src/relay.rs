//! Between two peers that speak different protocols, such as a WebSocket client and a runtime whose streaming server
//! knows SPDY only: streams are copied, half-closes, sizes and ends told on. Called by whoever serves requests for
//! someone else's containers; the session's task is the caller's. Peers of one protocol need none of it: there,
//! copying the connection's bytes does.

use std::future::pending;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::task::JoinSet;

use crate::client::{ClientExec, Forwarder};
use crate::server::{ExecSession, Forward, ForwardSession};

/// Copies until the end and tells it on. Streams that only one side has are nobody's.
async fn pass(from: Option<impl AsyncRead + Unpin>, to: Option<impl AsyncWrite + Unpin>) -> io::Result<()> {
    let (Some(mut from), Some(mut to)) = (from, to) else { return Ok(()) };
    copy(&mut from, &mut to).await?;
    to.shutdown().await
}

/// Runs a session's command by way of `there`, and returns when it has ended or its client is gone. In the latter
/// case `there` is hung up on, as if the client had done so itself.
pub async fn exec(mut session: ExecSession, mut there: ClientExec) -> io::Result<()> {
    let stdin = pass(session.stdin.take(), there.stdin.take());
    let sizes = async {
        let (Some(mut from), Some(mut to)) = (session.resize.take(), there.resize.take()) else { return };
        while let Some(size) = from.next().await {
            if to.send(size).await.is_err() {
                return;
            }
        }
    };
    // A command may end with its input unread; what becomes of the input is no matter then.
    let input = async {
        let _ = tokio::join!(stdin, sizes);
        pending::<()>().await;
    };
    let output = async {
        let stdout = pass(there.stdout.take(), session.stdout.take());
        let stderr = pass(there.stderr.take(), session.stderr.take());
        let (outcome, stdout, stderr) = tokio::join!(there.exit.wait(), stdout, stderr);
        stdout.and(stderr).and(outcome)
    };
    // Only one of the three goes on: the others belong to a session that is over.
    let outcome = tokio::select! {
        outcome = output => outcome?,
        () = session.exit.client_gone() => return Err(io::ErrorKind::BrokenPipe.into()),
        () = input => unreachable!("input waits for ever at its end"),
    };
    session.exit.finish(&outcome).await
}

/// Forwards a session's connections by way of `there`, until its client is gone.
pub async fn forward(mut session: ForwardSession, there: Forwarder) {
    let there = Arc::new(there);
    let mut connections = JoinSet::new();
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            next = session.next() => match next {
                Some(connection) => drop(connections.spawn(connect(connection, there.clone()))),
                None => break,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

async fn connect(mut here: Forward, there: Arc<Forwarder>) -> io::Result<()> {
    let broken = format!("error forwarding port {}", here.port);
    let (mut data, error) = match there.connect(here.port).await {
        Ok(forwarded) => forwarded.into_parts(),
        Err(error) => return here.fail(&format!("{broken}: {error}")).await,
    };
    // Whoever resets the connection here wants nothing more of it there.
    let broken_off = here.data.broken();
    let said = {
        let ((here_read, here_write), (there_read, there_write)) = (split(&mut here.data), split(&mut data));
        let up = async {
            // The client's end is told on; the other direction lasts until the pod's.
            let _ = pass(Some(here_read), Some(there_write)).await;
            pending::<()>().await;
        };
        let down = async {
            let ((), said) = tokio::join!(
                async {
                    let _ = pass(Some(there_read), Some(here_write)).await;
                },
                error
            );
            said
        };
        tokio::select! {
            said = down => Some(said),
            () = broken_off => None,
            () = up => unreachable!("up waits for ever at its end"),
        }
    };
    match said {
        Some(Ok(None)) => here.finish().await,
        Some(Ok(Some(message))) => here.fail(&message).await,
        Some(Err(error)) => here.fail(&format!("{broken}: {error}")).await,
        None => {
            data.reset();
            here.finish().await
        }
    }
}
