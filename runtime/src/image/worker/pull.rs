//! A pull: resolve the name, fetch the config, fetch layers side by side while the unpacker works behind them.
//! Runs in the worker's one async task; downloads are futures of it, so nothing is spawned and all ends with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use futures_util::stream::{self, StreamExt};

use super::download::{self, Wanted};
use super::remote::{Ask, Remote};
use super::unpacker::{Orders, Unpacker};
use super::{Blob, Session, relay, tell};
use crate::image::digest::Digest;
use crate::image::error::{Failure, FailureKind};
use crate::image::manifest::{self, ACCEPT, Config, Manifest, Parsed};
use crate::image::protocol::{Event, Order, Progress, Report};
use crate::image::record::Record;
use crate::image::reference::Reference;
use crate::image::unpack::job::Job;
use crate::memory;

/// Layers fetched side by side, as many as Docker and containerd fetch.
const SIDE_BY_SIDE: usize = 3;
/// Bytes between two words about a download.
const TELL_EVERY: u64 = 1 << 20;
/// Indexes within indexes.
const MAX_NESTING: usize = 4;

/// Pulls an image and returns its record.
pub(super) async fn pull(
    session: &mut Session,
    reference: &Reference,
    remote: &Remote,
) -> Result<Record, Failure> {
    let resolving = |failure: Failure| {
        Failure::new(
            failure.kind,
            format!("failed to resolve reference {:?}: {}", reference.to_string(), failure.message),
        )
    };
    let (top, manifest) = resolve(session, reference, remote).await.map_err(resolving)?;
    let id = manifest.config.digest.clone();
    let raw = read_config(session, remote, &id).await?;
    let config = Config::parse(&raw, manifest.layers.len())?;
    check_platform(session, &raw)?;
    let blobs = manifest.layers.iter().map(|layer| Blob { digest: layer.digest.clone(), size: layer.size });
    let blobs: Vec<Blob> = blobs.collect();
    let jobs = session.jobs(&config, &blobs);
    let known = |layer: usize| !jobs.iter().any(|job| job.layer == layer);
    let told = blobs.iter().enumerate().map(|(layer, blob)| (blob.digest.clone(), blob.size, known(layer)));
    tell(&Event::Progress(Progress::Layers { layers: told.collect() }));
    // What resolving needed, downloading does not.
    memory::give_back();
    let fetched = fetch_layers(session, remote, &jobs, &blobs).await;
    if fetched.as_ref().is_err_and(|failure| failure.kind == FailureKind::NoSpace) {
        // What cannot be used must not keep the disk full for the rest of the node.
        for job in &jobs {
            let _ = fs::remove_file(session.layout.ingest(&job.blob));
        }
    }
    fetched?;
    // A reference with both means the digest; the tag may mean something else by now.
    let tags = reference.tagged().filter(|_| reference.digest.is_none()).into_iter().collect();
    session.record(id, &raw, config, tags, vec![reference.at(&top)])
}

/// Finds this platform's manifest, and the digest of what the reference itself names.
async fn resolve(
    session: &Session,
    reference: &Reference,
    remote: &Remote,
) -> Result<(Digest, Manifest), Failure> {
    let mut name = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.clone(),
        (None, None) => "latest".to_owned(),
    };
    let mut wanted = reference.digest.clone();
    let mut top = None;
    for _ in 0..MAX_NESTING {
        let ask = Ask { kind: "manifests", name: &name, accept: Some(ACCEPT), from: 0 };
        let bytes = remote.document(ask, wanted.as_ref()).await?;
        let digest = Digest::of(&bytes);
        top.get_or_insert(digest);
        match manifest::parse(&bytes)? {
            Parsed::Manifest(manifest) => {
                return Ok((top.expect("set above"), manifest));
            }
            Parsed::Index(index) => {
                let chosen = manifest::choose(&index, &session.platform)?;
                name = chosen.digest.to_string();
                wanted = Some(chosen.digest.clone());
            }
        }
    }
    Err(Failure::new(FailureKind::Corrupt, format!("indexes are nested deeper than {MAX_NESTING} levels")))
}

/// The config from the store, if an image of this ID is or was here, else from the registry.
async fn read_config(session: &Session, remote: &Remote, id: &Digest) -> Result<Vec<u8>, Failure> {
    if let Ok(raw) = fs::read(session.layout.config(id))
        && Digest::of(&raw) == *id
    {
        return Ok(raw);
    }
    let ask = Ask { kind: "blobs", name: id.as_str(), accept: None, from: 0 };
    remote.document(ask, Some(id)).await
}

/// A manifest without an index says its platform only in the config. Containers of another architecture would fail
/// with a riddle ("exec format error"), so say it here.
fn check_platform(session: &Session, raw: &[u8]) -> Result<(), Failure> {
    let Ok(image) = serde_json::from_slice::<crate::image::Platform>(raw) else { return Ok(()) };
    let host = &session.platform;
    if image.architecture.is_empty() || image.os.is_empty() || host.rank(&image).is_some() {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::NotFound,
        format!(
            "the image is built for {}, this machine is {}: no match for platform",
            image.name(),
            host.name()
        ),
    ))
}

async fn fetch_layers(
    session: &mut Session,
    remote: &Remote,
    jobs: &[Job],
    blobs: &[Blob],
) -> Result<(), Failure> {
    let layout = session.layout.clone();
    let keep_free = session.limits.keep_free;
    let Unpacker { orders, reports } = session.unpacker();
    // One blob may be several layers (an empty one often is): fetch it once, for the first.
    let mut by_blob: BTreeMap<&Digest, Vec<&Job>> = BTreeMap::new();
    for job in jobs {
        orders.send(&Order::Job(Box::new(job.clone())));
        by_blob.entry(&job.blob).or_default().push(job);
    }
    let mut groups: Vec<Vec<&Job>> = by_blob.into_values().collect();
    groups.sort_by_key(|group| group[0].layer);
    let orders = &*orders;
    let fetches = groups.into_iter().map(|group| {
        let layout = &layout;
        async move { fetch(layout, remote, orders, &group, blobs[group[0].layer].size, keep_free).await }
    });
    let mut fetches = stream::iter(fetches).buffer_unordered(SIDE_BY_SIDE);
    let mut left = jobs.len();
    let mut fetching = true;
    let mut verified = BTreeSet::new();
    while left > 0 {
        tokio::select! {
            // Cancel-safe: a stream's `next` keeps its futures.
            fetched = fetches.next(), if fetching => match fetched {
                Some(fetched) => verified.extend(fetched?),
                None => fetching = false,
            },
            // Cancel-safe by its own word.
            report = reports.next() => match report? {
                Report::Failed { layer, failure } => {
                    // Damaged bytes cannot be unpacked either; what the digest says of them is the better word.
                    while !verified.contains(&layer) && failure.kind != FailureKind::NoSpace {
                        let Some(fetched) = fetches.next().await else { break };
                        verified.extend(fetched?);
                    }
                    return Err(failure);
                }
                report => if relay(report)? {
                    left -= 1;
                },
            },
        }
    }
    Ok(())
}

/// Fetches one blob for the layers that are made of it, and returns their numbers.
async fn fetch(
    layout: &crate::image::layout::Layout,
    remote: &Remote,
    orders: &Orders,
    group: &[&Job],
    size: u64,
    keep_free: u64,
) -> Result<Vec<usize>, Failure> {
    let layers = group.iter().map(|job| job.layer).collect();
    let needless = || group.iter().all(|job| layout.has_layer(&job.chain));
    let Some(file) = download::lock(layout, &group[0].blob, needless).await? else {
        group.iter().for_each(|job| orders.send(&Order::Skip { layer: job.layer }));
        return Ok(layers);
    };
    super::link(layout, group[0])?;
    let wanted = Wanted { digest: &group[0].blob, size, keep_free };
    let layer = group[0].layer;
    let mut told = 0;
    let grown = |bytes: u64, readable: bool| {
        if bytes.abs_diff(told) < TELL_EVERY && bytes < size {
            return;
        }
        if told == 0 {
            // What connecting needed, reading on does not.
            memory::give_back();
        }
        told = bytes;
        tell(&Event::Progress(Progress::Fetched { layer, bytes }));
        if readable {
            group.iter().for_each(|job| orders.send(&Order::Grown { layer: job.layer, bytes }));
        }
    };
    download::download(remote, &wanted, file, grown).await?;
    group.iter().for_each(|job| orders.send(&Order::Verified { layer: job.layer }));
    Ok(layers)
}
