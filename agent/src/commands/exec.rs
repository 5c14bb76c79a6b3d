//! `coracle exec` and `coracle attach`: a container's streams on this terminal, by way of the agent.
//!
//! One thread runs it all, but for standard input, which a thread of its own reads: that thread is left behind where it
//! waits when the command has ended.

use std::io::{Read as _, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use coracle_kubelet_core::api::Container;
use coracle_streaming::Stream;
use coracle_streaming::channel::{ExecOptions, Outcome, Version};
use coracle_streaming::client::{self, ResizeSender};
use coracle_streaming::server::ExecProtocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::terminal::RawTerminal;
use crate::args::{AttachArgs, ContainerArgs, ExecArgs};
use crate::socket::{Agent, Request, Streams};

/// So much is read at a time.
const PIECE: usize = 8 * 1024;
/// Pieces of standard input that wait for the container.
const WAITING: usize = 2;

/// Runs a command in a container; its exit code is ours.
pub(crate) fn exec(args: &ExecArgs) -> Result<ExitCode> {
    let command = args.command.clone();
    let tty = |_: &Container| args.container.tty;
    run(&args.container, tty, |uid, container, streams| Request::Exec { uid, container, command, streams })
}

/// Attaches to what a container runs, until that ends. Whether there is a terminal was said when the container was
/// made: to take ours without one would leave the user no key that does anything.
pub(crate) fn attach(args: &AttachArgs) -> Result<ExitCode> {
    let tty = |container: &Container| {
        if args.container.tty && !container.tty {
            eprintln!("error: Unable to use a TTY - container {} did not allocate one", container.name);
        }
        container.tty
    };
    run(&args.container, tty, |uid, container, streams| Request::Attach { uid, container, streams })
}

/// `tty` says whether the container's side is a terminal.
fn run(
    args: &ContainerArgs,
    tty: impl FnOnce(&Container) -> bool,
    request: impl FnOnce(String, String, Streams) -> Request,
) -> Result<ExitCode> {
    let state_dir = &args.state.state_dir;
    Agent::require(state_dir)?;
    let records = super::pod_records(state_dir)?;
    let pod = &super::find_pod(&records, &args.pod)?.pod;
    let container = match (&args.container, pod.spec.containers.as_slice()) {
        (None, [first, others @ ..]) => {
            if !others.is_empty() {
                eprintln!("coracle: of several containers this is {}; choose with -c", first.name);
            }
            first.name.clone()
        }
        (wanted, _) => super::container_name(pod, wanted.as_deref())?,
    };
    let tty = pod.container(&container).is_some_and(tty);
    let streams = Streams { stdin: args.stdin, stdout: true, stderr: !tty, tty };
    let (stream, protocol) =
        Agent::require(state_dir)?.open(request(pod.metadata.uid.to_string(), container, streams))?;
    let version = Version::from_name(&protocol);
    let version = version.with_context(|| format!("the runtime speaks {protocol:?}, which is not known"))?;
    // What was asked for over the connection stays the agent's; the terminal is taken last.
    let terminal = if tty && args.stdin { RawTerminal::begin()? } else { None };
    if tty && args.stdin && terminal.is_none() {
        eprintln!("coracle: standard input is no terminal");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        converse(stream, ExecProtocol::Spdy(version), streams, terminal.as_ref()).await
    });
    drop(terminal);
    match outcome? {
        Outcome::Success => Ok(ExitCode::SUCCESS),
        // As a shell sees it: what does not fit is 255 at most.
        Outcome::Exited(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))),
        Outcome::Failed(message) => bail!(message),
    }
}

/// Connects this process's streams to the container's until the command has ended.
async fn converse(
    stream: UnixStream,
    protocol: ExecProtocol,
    wanted: Streams,
    terminal: Option<&RawTerminal>,
) -> Result<Outcome> {
    let Streams { stdin, stdout, stderr, tty } = wanted;
    let mut there = client::exec(stream, protocol, ExecOptions { stdin, stdout, stderr, tty })
        .await
        .context("the runtime does not take the streams")?;
    let input = async {
        if let Some(to) = there.stdin.take() {
            // A command that does not read its input any more goes on.
            let _ = pass_input(to).await;
        }
        std::future::pending::<()>().await;
    };
    let sizes = async {
        if let (Some(terminal), Some(to)) = (terminal, there.resize.take()) {
            let _ = pass_sizes(terminal, to).await;
        }
        std::future::pending::<()>().await;
    };
    let output = async {
        // Whoever reads what is printed may go first, and then the command's words are for nobody.
        let words = "cannot print what the command says";
        let stdout = async { print(there.stdout.take(), std::io::stdout()).await.context(words) };
        let stderr = async { print(there.stderr.take(), std::io::stderr()).await.context(words) };
        let end = async { there.exit.wait().await.context("the connection to the container broke") };
        tokio::try_join!(end, stdout, stderr).map(|(outcome, (), ())| outcome)
    };
    tokio::select! {
        // The command's end ends everything; what the others had begun is no matter then.
        outcome = output => outcome,
        () = input => unreachable!("input waits for ever at its end"),
        () = sizes => unreachable!("sizes wait for ever at their end"),
    }
}

async fn pass_input(mut to: Stream) -> std::io::Result<()> {
    let (pieces, mut incoming) = mpsc::channel::<Vec<u8>>(WAITING);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut piece = [0; PIECE];
        loop {
            match stdin.read(&mut piece) {
                Ok(count) if count > 0 && pieces.blocking_send(piece[..count].to_vec()).is_ok() => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    while let Some(piece) = incoming.recv().await {
        to.write_all(&piece).await?;
    }
    to.shutdown().await
}

/// Tells the terminal's size now and whenever it changes.
async fn pass_sizes(terminal: &RawTerminal, mut to: ResizeSender) -> std::io::Result<()> {
    let mut changes = signal(SignalKind::window_change())?;
    loop {
        if let Some(size) = terminal.size() {
            to.send(size).await?;
        }
        changes.recv().await;
    }
}

/// Prints until the end. A terminal that is slow holds the command up, as it should.
async fn print(from: Option<Stream>, mut to: impl Write) -> std::io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut piece = [0; PIECE];
    loop {
        let count = from.read(&mut piece).await?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&piece[..count])?;
        to.flush()?;
    }
}
