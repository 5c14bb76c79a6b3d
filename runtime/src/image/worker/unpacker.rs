//! The unpack process, and the handle that the worker has on it.
//!
//! The worker starts it before it has threads and orders layers in their order; a blob may be ordered while it is
//! still being downloaded. Inside: one thread reads orders, the main thread unpacks, a third makes finished layers
//! durable while the next one is unpacked. Each process ends when its input does, so neither outlives the agent.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::image::confine;
use crate::image::error::{Failure, FailureKind};
use crate::image::layout::Layout;
use crate::image::protocol::{Order, Report, receive, send};
use crate::image::unpack::LayerError;
use crate::image::unpack::job::{self, Job};
use crate::memory::Code;

/// Bytes unpacked between two reports.
const REPORT_EVERY: u64 = 4 << 20;

/// The worker's handle on the unpack process. Dropping it ends the process.
pub(crate) struct Unpacker {
    pub(crate) orders: Orders,
    pub(crate) reports: Reports,
}

/// Where orders go. Shared by the downloads of one image.
pub(crate) struct Orders(RefCell<Option<ChildStdin>>);

/// Where reports come from.
pub(crate) struct Reports {
    child: Child,
    receiver: UnboundedReceiver<Report>,
}

/// Starts the process for a store.
pub(crate) fn spawn(store: &Path) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .args(["image-worker", "unpack"])
        .arg(store)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Never written to but by a panic; it keeps the agent's pipe open until this process is gone too, so that
        // the agent sweeps only after the last file was written.
        .stderr(Stdio::from(io::stdout().as_fd().try_clone_to_owned()?))
        .spawn()
}

impl Unpacker {
    /// Takes over a started process.
    pub(crate) fn attach(mut child: Child) -> io::Result<Self> {
        let orders = Orders(RefCell::new(child.stdin.take()));
        let output = child.stdout.take().expect("stdout is piped");
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        std::thread::Builder::new().name("image-reports".to_owned()).stack_size(128 << 10).spawn(
            move || {
                let mut output = BufReader::new(output);
                while let Ok(Some(report)) = receive(&mut output) {
                    if sender.send(report).is_err() {
                        return;
                    }
                }
            },
        )?;
        Ok(Self { orders, reports: Reports { child, receiver } })
    }
}

impl Orders {
    /// Sends an order; a process that is gone is noticed by [`Reports::next`].
    pub(crate) fn send(&self, order: &Order) {
        let mut orders = self.0.borrow_mut();
        if orders.as_mut().is_some_and(|orders| send(orders, order).is_err()) {
            *orders = None;
        }
    }
}

impl Reports {
    /// The next report; an error when the process ended before its work was done. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Report, Failure> {
        match self.receiver.recv().await {
            Some(report) => Ok(report),
            None => {
                let status = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
                Err(Failure::new(
                    FailureKind::Died,
                    format!("the process that unpacks layers ended early ({status})"),
                ))
            }
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        // It may be amid a large file; nothing it does needs an orderly end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How much of a blob is there.
#[derive(Default)]
struct Growth {
    state: Mutex<GrowthState>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct GrowthState {
    bytes: u64,
    verified: bool,
    /// The layer came from elsewhere meanwhile.
    skipped: bool,
}

impl Growth {
    fn lock(&self) -> MutexGuard<'_, GrowthState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut GrowthState)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until more than `bytes` are there or the blob is complete.
    fn more_than(&self, bytes: u64) -> GrowthState {
        let state = self
            .changed
            .wait_while(self.lock(), |state| state.bytes <= bytes && !state.verified && !state.skipped);
        *state.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Reads a blob behind its download.
struct GrowingBlob {
    file: File,
    growth: Arc<Growth>,
    at: u64,
}

impl Read for GrowingBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.growth.more_than(self.at);
        let there = if state.verified { u64::MAX } else { state.bytes - self.at };
        let length = buffer.len().min(usize::try_from(there).unwrap_or(usize::MAX));
        let read = self.file.read(&mut buffer[..length])?;
        self.at += read as u64;
        Ok(read)
    }
}

type Growths = Arc<Mutex<HashMap<usize, Arc<Growth>>>>;

fn growth_of(growths: &Growths, layer: usize) -> Arc<Growth> {
    let mut growths = growths.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    growths.entry(layer).or_default().clone()
}

/// The unpack process' own entry. Ends with 0 when its orders end.
pub(crate) fn main(store: &Path) -> i32 {
    let code = Code::find();
    if let Err(error) = confine::unpacker(store) {
        let failure = Failure::io("cannot confine the process that unpacks layers", &error);
        let _ = send(&mut io::stdout(), &Report::Failed { layer: 0, failure });
        return 1;
    }
    let (to_main, jobs) = channel();
    let growths = Growths::default();
    let reader = {
        let growths = growths.clone();
        std::thread::Builder::new().stack_size(128 << 10).spawn(move || read_orders(&to_main, &growths))
    };
    if reader.is_err() {
        return 1;
    }
    match run(&Layout::new("/"), &jobs, &growths, &code) {
        Ok(()) => 0,
        Err(()) => 1,
    }
}

fn read_orders(to_main: &Sender<Job>, growths: &Growths) {
    let mut input = BufReader::new(io::stdin());
    while let Ok(Some(order)) = receive(&mut input) {
        match order {
            Order::Job(job) => {
                if to_main.send(*job).is_err() {
                    return;
                }
            }
            Order::Grown { layer, bytes } => {
                growth_of(growths, layer).update(|state| state.bytes = state.bytes.max(bytes))
            }
            Order::Verified { layer } => growth_of(growths, layer).update(|state| state.verified = true),
            Order::Skip { layer } => growth_of(growths, layer).update(|state| state.skipped = true),
        }
    }
    // The worker has ended, or is gone: nobody waits for what is unfinished, wherever the main thread is.
    std::process::exit(0);
}

fn report(report: &Report) -> Result<(), ()> {
    send(&mut io::stdout().lock(), report).map_err(drop)
}

fn failed(layer: usize, error: &LayerError) -> Result<(), ()> {
    report(&Report::Failed { layer, failure: Failure::of(error.kind(), error) })?;
    Err(())
}

fn run(layout: &Layout, jobs: &Receiver<Job>, growths: &Growths, code: &Code) -> Result<(), ()> {
    let mut committer: Option<Committer> = None;
    for job in jobs {
        let committer = match &mut committer {
            Some(committer) => committer,
            none => none.insert(Committer::start(layout.clone())?),
        };
        // A layer under this one must be found under its name.
        committer.wait_for(&job)?;
        let growth = growth_of(growths, job.layer);
        // What starting and finishing needed, unpacking does not.
        code.give_back();
        // The blob's file exists from the first byte on.
        if growth.more_than(0).skipped {
            report(&Report::Complete { layer: job.layer })?;
            continue;
        }
        if let Err(error) = unpack(layout, &job, &growth) {
            return failed(job.layer, &error);
        }
        // Nothing is named before its blob has proved to be what it should.
        growth.more_than(u64::MAX);
        committer.commit(job)?;
    }
    committer.map_or(Ok(()), Committer::finish)
}

fn unpack(layout: &Layout, job: &Job, growth: &Arc<Growth>) -> Result<(), LayerError> {
    let file = File::open(layout.tmp().join(&job.link)).map_err(LayerError::Store)?;
    let blob = GrowingBlob { file, growth: growth.clone(), at: 0 };
    let mut reported = 0;
    job::unpack(layout, job, blob, |bytes| {
        if bytes - reported >= REPORT_EVERY {
            reported = bytes;
            // A worker that is gone is noticed by the reader of its orders.
            let _ = report(&Report::Unpacked { layer: job.layer, bytes });
        }
    })
}

/// Syncs and names finished layers on a thread of its own.
struct Committer {
    jobs: Sender<Job>,
    done: Receiver<usize>,
    pending: usize,
    thread: JoinHandle<Result<(), ()>>,
}

impl Committer {
    fn start(layout: Layout) -> Result<Self, ()> {
        let (jobs, queue) = channel::<Job>();
        let (finished, done) = channel();
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            while let Ok(first) = queue.recv() {
                // All that finished meanwhile is served by one sync.
                let batch: Vec<Job> = std::iter::once(first).chain(queue.try_iter()).collect();
                if let Err(error) = job::commit(&layout, &batch) {
                    return failed(batch[0].layer, &error);
                }
                for job in &batch {
                    report(&Report::Complete { layer: job.layer })?;
                    finished.send(job.layer).map_err(drop)?;
                }
            }
            Ok(())
        });
        Ok(Self { jobs, done, pending: 0, thread: thread.map_err(drop)? })
    }

    fn commit(&mut self, job: Job) -> Result<(), ()> {
        self.pending += 1;
        self.jobs.send(job).map_err(drop)
    }

    /// Waits until what `job` builds upon has its name.
    fn wait_for(&mut self, job: &Job) -> Result<(), ()> {
        while self.pending > 0 && !job.parents.is_empty() {
            self.done.recv().map_err(drop)?;
            self.pending -= 1;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), ()> {
        drop(self.jobs);
        self.thread.join().map_err(drop)?
    }
}
