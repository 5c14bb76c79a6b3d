//! The image worker: a short-lived process that pulls, loads or saves for one request of the agent.
//!
//! [`worker_main`] is called by [`crate::run_helper`]. All TLS, HTTP, decompression and foreign parsing happens here
//! and in its unpack process, so what it allocates goes back to the machine and the agent stays small. It ends with
//! its task, or when its standard input ends because the agent is gone.

use std::ffi::OsString;
use std::io::{self, BufReader};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::confine;
use super::digest::Digest;
use super::error::{Failure, FailureKind};
use super::layout::Layout;
use super::manifest::Config;
use super::platform::Platform;
use super::protocol::{Event, Order, Progress, Report, Request, Task, receive, send};
use super::record::Record;
use super::reference::Reference;
use super::unpack::Limits;
use super::unpack::job::Job;
use crate::memory;

mod auth;
mod connect;
mod download;
mod http;
mod load;
mod pull;
mod remote;
mod save;
mod tls;
pub(crate) mod unpacker;

use remote::Remote;
use unpacker::Unpacker;

/// Runs the hidden subcommand `image-worker` with the arguments behind its name; returns the exit code.
pub fn worker_main(args: Vec<OsString>) -> i32 {
    memory::keep_heap_small();
    match args.as_slice() {
        [role, store] if role == "unpack" => unpacker::main(Path::new(store)),
        [] => run(),
        _ => 2,
    }
}

/// Tells the agent; an agent that is gone wants nothing more.
pub(crate) fn tell(event: &Event) {
    if send(&mut io::stdout().lock(), event).is_err() {
        std::process::exit(1);
    }
}

fn run() -> i32 {
    let request: Request = match receive(&mut BufReader::with_capacity(4 << 10, io::stdin())) {
        Ok(Some(request)) => request,
        Ok(None) => return 0,
        Err(error) => {
            tell(&Event::Failed(Failure::io("image worker: cannot read its request", &error)));
            return 1;
        }
    };
    match serve(request) {
        Ok(records) => {
            tell(&Event::Done(records));
            0
        }
        Err(failure) => {
            tell(&Event::Failed(failure));
            1
        }
    }
}

fn serve(request: Request) -> Result<Vec<Record>, Failure> {
    let starting = |error: io::Error| Failure::io("cannot start the image worker", &error);
    let Request { store, worker, platform, limits, task } = request;
    let unpacking = match task {
        Task::Save { .. } => None,
        _ => Some(unpacker::spawn(&store).map_err(starting)?),
    };
    // Capabilities belong to threads, so this comes before the first other one and after the unpacker's start.
    confine::fetcher().map_err(starting)?;
    std::thread::Builder::new().stack_size(64 << 10).spawn(end_with_input).map_err(starting)?;
    let unpacker = unpacking.map(Unpacker::attach).transpose().map_err(starting)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(starting)?;
    let mut session = Session { layout: Layout::new(store), worker, platform, limits, unpacker };
    runtime.block_on(session.serve(task))
}

/// Ends the process when the agent closes its end.
fn end_with_input() {
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    std::process::exit(1);
}

/// One request being served.
pub(crate) struct Session {
    pub(crate) layout: Layout,
    /// Prefix of our names in `tmp`.
    pub(crate) worker: String,
    pub(crate) platform: Platform,
    pub(crate) limits: Limits,
    unpacker: Option<Unpacker>,
}

/// A layer of an image to be installed.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Session {
    async fn serve(&mut self, task: Task) -> Result<Vec<Record>, Failure> {
        match task {
            Task::Load { path } => load::load(self, &path).await,
            Task::Pull { reference, credentials, registries, stall } => {
                let reference = reference.parse::<Reference>();
                let reference = reference.map_err(|error| Failure::of(FailureKind::Invalid, &error))?;
                let stall = Duration::try_from_secs_f64(stall).unwrap_or(Duration::MAX);
                let remote = Remote::new(&reference, &registries, credentials, stall)?;
                // The authorities of the machine were read, and are held in a tenth of their text.
                memory::give_back();
                pull::pull(self, &reference, &remote).await.map(|record| vec![record])
            }
            Task::Save { path, format, compression, images } => {
                save::save(self, &path, format, compression, &images).map(|()| Vec::new())
            }
        }
    }

    pub(crate) fn unpacker(&mut self) -> &mut Unpacker {
        self.unpacker.as_mut().expect("a task that unpacks has an unpacker")
    }

    /// The unpack jobs of the layers that are not here yet.
    pub(crate) fn jobs(&self, config: &Config, blobs: &[Blob]) -> Vec<Job> {
        let chain = config.chain();
        let missing = (0..chain.len()).filter(|&layer| !self.layout.has_layer(&chain[layer]));
        let missing: Vec<usize> = missing.collect();
        let job = |&layer: &usize| Job {
            layer,
            blob: blobs[layer].digest.clone(),
            link: format!("{}-blob-{}", self.worker, blobs[layer].digest.hex()),
            diff_id: config.rootfs.diff_ids[layer].clone(),
            chain: chain[layer].clone(),
            parents: chain[..layer].to_vec(),
            scratch: format!("{}-{}", self.worker, chain[layer].hex()),
            limits: self.limits,
            last_use: !missing
                .iter()
                .any(|&later| later > layer && blobs[later].digest == blobs[layer].digest),
        };
        missing.iter().map(job).collect()
    }

    /// Unpacks layers whose blobs are complete and verified.
    async fn unpack_all(&mut self, jobs: &[Job]) -> Result<(), Failure> {
        for job in jobs {
            link(&self.layout, job)?;
            let orders = &self.unpacker().orders;
            orders.send(&Order::Job(Box::new(job.clone())));
            orders.send(&Order::Verified { layer: job.layer });
        }
        let mut left = jobs.len();
        while left > 0 {
            if relay(self.unpacker().reports.next().await?)? {
                left -= 1;
            }
        }
        Ok(())
    }

    /// Stores an image's config and makes its record, once its layers are here.
    pub(crate) fn record(
        &self,
        id: Digest,
        raw: &[u8],
        config: Config,
        repo_tags: Vec<String>,
        repo_digests: Vec<String>,
    ) -> Result<Record, Failure> {
        let path = self.layout.config(&id);
        if !path.exists() {
            let written = super::layout::write_durably(&path, raw);
            written.map_err(|error| Failure::io(&path.display().to_string(), &error))?;
        }
        let layers = config.chain();
        let mut size_bytes = raw.len() as u64;
        for chain in &layers {
            let path = self.layout.layer(chain);
            let layer = super::layer::LayerRecord::read(&path);
            size_bytes += layer.map_err(|error| Failure::io(&path.display().to_string(), &error))?.bytes;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Record {
            version: 1,
            id,
            repo_tags,
            repo_digests,
            size_bytes,
            layers,
            config: config.config,
            added_at: now.as_secs(),
            pinned: false,
            removed: false,
        })
    }
}

/// Gives the worker a name of its own for a blob.
pub(crate) fn link(layout: &Layout, job: &Job) -> Result<(), Failure> {
    let link = layout.tmp().join(&job.link);
    match std::fs::hard_link(layout.ingest(&job.blob), &link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Failure::io(&link.display().to_string(), &error))
        }
        _ => Ok(()),
    }
}

/// Passes an unpacker's report on to the agent; `true` when a layer is complete.
pub(crate) fn relay(report: Report) -> Result<bool, Failure> {
    match report {
        Report::Unpacked { layer, bytes } => {
            tell(&Event::Progress(Progress::Unpacked { layer, bytes }));
            Ok(false)
        }
        Report::Complete { layer } => {
            tell(&Event::Progress(Progress::Complete { layer }));
            Ok(true)
        }
        Report::Failed { failure, .. } => Err(failure),
    }
}
