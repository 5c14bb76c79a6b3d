//! [`ImageStore`]: the agent's one handle on images.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::client;
use super::digest::Digest;
use super::error::{Failure, FailureKind, ImageError};
use super::index::Index;
use super::layer::LayerRecord;
use super::layout::{Layout, remove_any, write_durably};
use super::platform::Platform;
use super::protocol::{Progress, Request, Task};
use super::record::{Image, Record};
use super::recovery;
use super::reference::Reference;
use super::registries::{Credentials, Registries};
use super::unpack::Limits;
use super::{ArchiveCompression, ArchiveFormat};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The store's folder, made when missing.
    pub root: PathBuf,
    /// The executable that runs `image-worker`; the embedding program itself by default.
    pub helper: PathBuf,
    /// Mirrors, credentials and TLS.
    pub registries: Registries,
    /// Which images run here.
    pub platform: Platform,
    /// Bounds on what a layer unpacks to.
    pub limits: Limits,
    /// How long a registry may send nothing before the connection counts as stalled and is tried again.
    pub stall: Duration,
    /// Variables for the workers on top of this process' own, such as HTTPS_PROXY and NO_PROXY.
    pub environment: Vec<(OsString, OsString)>,
    /// How many workers run side by side.
    pub workers: usize,
}

impl Options {
    /// The defaults for a store in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            helper: PathBuf::from("/proc/self/exe"),
            registries: Registries::default(),
            platform: Platform::host(),
            limits: Limits::default(),
            stall: Duration::from_secs(30),
            environment: Vec::new(),
            workers: 3,
        }
    }
}

/// What images take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all layers, each counted once.
    pub bytes: u64,
    /// Inodes of all layers, each counted once.
    pub inodes: u64,
    /// Size of the file system.
    pub capacity: u64,
    /// Bytes of it that are free for us.
    pub available: u64,
}

/// Images on disk, one per machine and agent. Cheap to share by `Arc`.
///
/// ```no_run
/// use coracle_runtime::image::{ImageStore, Options};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// // `main` began with `coracle_runtime::run_helper()`, because workers are executions of this program.
/// let store = ImageStore::open(Options::new("/var/lib/example/images"))?;
/// let image = store.pull("busybox:1.37", None, |progress| println!("{progress:?}")).await?;
/// store.hold("container-1", &image.id)?;
/// println!("lowerdir={:?}", image.lower_dirs);
/// store.release("container-1").await?;
/// # Ok(())
/// # }
/// ```
pub struct ImageStore {
    /// For tasks that outlive the call that started them.
    this: Weak<Self>,
    layout: Layout,
    options: Options,
    index: Mutex<Index>,
    /// Held while records are written, so that they are written in the order of the index' changes.
    journal: tokio::sync::Mutex<()>,
    workers: Arc<Semaphore>,
    /// Layers that nobody needs, removed when no worker builds upon them.
    doomed: Mutex<BTreeSet<Digest>>,
    /// One pull at a time of each reference; the second finds everything here.
    pulling: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Bytes and inodes of all layers, until images change.
    used: Mutex<Option<(u64, u64)>>,
    serial: AtomicU64,
    _lock: File,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in between leaves at worst a name that points nowhere, which every reader copes with.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.into();
    move |source| ImageError::Store { path, source }
}

impl ImageStore {
    /// Opens a store: takes its lock, sweeps what a crash left, checks layers after an unclean boot.
    ///
    /// Blocks on the file system; call it from `spawn_blocking` where that matters. Fails when another process has
    /// the store open or when it cannot be read or written.
    pub fn open(options: Options) -> Result<Arc<Self>, ImageError> {
        let layout = Layout::new(&options.root);
        layout.create().map_err(|(path, source)| ImageError::Store { path, source })?;
        let lock = File::create(layout.lock()).map_err(at(layout.lock()))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(ImageError::InUse { path: options.root }),
            Err(error) => return Err(at(layout.lock())(error.into())),
        }
        let mut index = Index::default();
        for record in recovery::recover(&layout).map_err(at(layout.root()))? {
            index.insert(&layout, record);
        }
        Ok(Arc::new_cyclic(|this| Self {
            this: this.clone(),
            workers: Arc::new(Semaphore::new(options.workers.max(1))),
            layout,
            options,
            index: Mutex::new(index),
            journal: tokio::sync::Mutex::new(()),
            doomed: Mutex::default(),
            pulling: Mutex::default(),
            used: Mutex::default(),
            serial: AtomicU64::new(0),
            _lock: lock,
        }))
    }

    /// The images of the store in a folder, as its records say. Takes no lock and changes nothing, for whoever looks
    /// while no process has the store open; layers are not looked at.
    pub fn peek(root: &Path) -> Result<Vec<Arc<Image>>, ImageError> {
        let layout = Layout::new(root);
        let mut index = Index::default();
        for record in recovery::peek(&layout).map_err(at(layout.records()))? {
            index.insert(&layout, record);
        }
        Ok(index.list())
    }

    /// The image that a name, ID or digest means here; never one that is torn or removed.
    pub fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        let index = guard(&self.index);
        index.get(&index.find(name)?)
    }

    /// Every image.
    pub fn list(&self) -> Vec<Arc<Image>> {
        guard(&self.index).list()
    }

    /// Marks an image as used by `owner` (a container), so that its layers stay until [`ImageStore::release`].
    ///
    /// Holds live in memory: whoever adopts containers after a restart holds again. `image_id` may name an image
    /// that was removed while held.
    pub fn hold(&self, owner: &str, image_id: &str) -> Result<Arc<Image>, ImageError> {
        let mut index = guard(&self.index);
        let id = index.find(image_id).or_else(|| image_id.parse().ok());
        let held = id.and_then(|id| index.hold(owner, &id));
        held.ok_or_else(|| ImageError::NotFound { name: image_id.to_owned() })
    }

    /// Ends a hold. An image removed meanwhile goes with its last holder.
    pub async fn release(&self, owner: &str) -> Result<(), ImageError> {
        let freed = guard(&self.index).release(owner);
        match freed {
            Some(id) => self.drop_image(&id).await,
            None => Ok(()),
        }
    }

    /// Pulls an image. What is here already costs one request: whether these credentials may have it is for the registry
    /// to say, also of a reference with a digest.
    ///
    /// When the caller stops waiting, the worker is ended; what was downloaded stays for the next attempt.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<Arc<Image>, ImageError> {
        let reference: Reference = reference.parse()?;
        let name = reference.to_string();
        let turn = self.turn(&name);
        let _turn = turn.lock().await;
        let registries = Box::new(self.options.registries.clone());
        let task = Task::Pull {
            reference: name.clone(),
            credentials,
            registries,
            stall: self.options.stall.as_secs_f64(),
        };
        let failed = |source| ImageError::Pull { reference: name.clone(), source };
        let images = self.work(task, progress).await?.map_err(failed)?;
        let lost = || failed(Failure::new(FailureKind::Died, "the image worker told no image"));
        images.into_iter().next().ok_or_else(lost)
    }

    /// Loads the images of an OCI layout or docker-archive, as a folder or a file, or of a folder of such files.
    pub async fn load(
        &self,
        path: &Path,
        progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        let task = Task::Load { path: path.to_owned() };
        let failed = |source| ImageError::Load { path: path.to_owned(), source };
        self.work(task, progress).await?.map_err(failed)
    }

    /// Saves images under their names to a file or, as [`ArchiveFormat::OciLayout`], a folder.
    pub async fn save(
        &self,
        names: &[String],
        path: &Path,
        format: ArchiveFormat,
        compression: ArchiveCompression,
        progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<(), ImageError> {
        let mut images = Vec::new();
        for name in names {
            let index = guard(&self.index);
            let record = index.find(name).and_then(|id| index.record(&id));
            images.push(record.ok_or_else(|| ImageError::NotFound { name: name.clone() })?);
        }
        let task = Task::Save { path: path.to_owned(), format, compression, images };
        let failed = |source| ImageError::Save { path: path.to_owned(), source };
        self.work(task, progress).await?.map(drop).map_err(failed)
    }

    /// Removes an image, or only the name when it has others. Layers that containers hold stay until they end.
    pub async fn remove(&self, name: &str) -> Result<(), ImageError> {
        let missing = || ImageError::NotFound { name: name.to_owned() };
        let id = guard(&self.index).find(name).ok_or_else(missing)?;
        self.remove_id(&id).await
    }

    /// Takes one tag away; removes the image with its last tag.
    pub async fn untag(&self, name: &str) -> Result<(), ImageError> {
        let missing = || ImageError::NotFound { name: name.to_owned() };
        let tag = name.parse::<Reference>()?.tagged().ok_or_else(missing)?;
        let found = {
            let index = guard(&self.index);
            index.find(&tag).and_then(|id| index.record(&id))
        };
        let mut record = found.ok_or_else(missing)?;
        record.repo_tags.retain(|other| *other != tag);
        if record.repo_tags.is_empty() {
            self.remove_id(&record.id).await
        } else {
            self.commit(vec![record]).await
        }
    }

    pub(super) async fn remove_id(&self, id: &Digest) -> Result<(), ImageError> {
        let (record, held) = {
            let index = guard(&self.index);
            (index.record(id), index.holders(id) > 0)
        };
        let Some(mut record) = record else { return Ok(()) };
        if held {
            record.removed = true;
            return self.commit(vec![record]).await;
        }
        self.drop_image(id).await
    }

    /// Says of an image whether garbage collection leaves it alone. Written only when it changes.
    pub async fn pin(&self, id: &str, pinned: bool) -> Result<(), ImageError> {
        let missing = || ImageError::NotFound { name: id.to_owned() };
        let record = {
            let index = guard(&self.index);
            index.find(id).and_then(|id| index.record(&id)).ok_or_else(missing)?
        };
        if record.pinned == pinned {
            return Ok(());
        }
        self.commit(vec![Record { pinned, ..record }]).await
    }

    /// Removes images that nobody holds and nobody pinned, oldest use first, until at least `bytes` are freed. Returns
    /// what was removed.
    pub async fn prune(&self, bytes: u64) -> Result<Vec<Arc<Image>>, ImageError> {
        self.prune_of(bytes, false).await
    }

    /// Removes every image that nobody holds, also the pinned ones.
    pub async fn prune_all(&self) -> Result<Vec<Arc<Image>>, ImageError> {
        self.prune_of(u64::MAX, true).await
    }

    async fn prune_of(&self, bytes: u64, with_pinned: bool) -> Result<Vec<Arc<Image>>, ImageError> {
        let mut removed = Vec::new();
        let mut freed = self.sweep_unnamed().await?;
        let candidates = guard(&self.index).unused(with_pinned);
        for id in candidates {
            if freed >= bytes {
                break;
            }
            let image = {
                let index = guard(&self.index);
                if index.holders(&id) > 0 { None } else { index.get(&id) }
            };
            let Some(image) = image else { continue };
            let before = self.usage().await?.bytes;
            self.drop_image(&id).await?;
            freed += before.saturating_sub(self.usage().await?.bytes);
            removed.push(image);
        }
        Ok(removed)
    }

    /// Removes unused images when the file system is fuller than `high` per cent, until it is at most `low` full.
    pub async fn prune_above(&self, high: u8, low: u8) -> Result<Vec<Arc<Image>>, ImageError> {
        let usage = self.usage().await?;
        let used = usage.capacity.saturating_sub(usage.available);
        let share = |percent: u8| usage.capacity / 100 * u64::from(percent.min(100));
        if used <= share(high) {
            return Ok(Vec::new());
        }
        self.prune(used - share(low.min(high))).await
    }

    /// What images take, and what is free.
    pub async fn usage(&self) -> Result<Usage, ImageError> {
        let root = self.layout.root();
        let stat = rustix::fs::statvfs(root).map_err(|error| at(root)(error.into()))?;
        let known = *guard(&self.used);
        let (bytes, inodes) = match known {
            Some(known) => known,
            None => {
                let layers = guard(&self.index).layers();
                let layout = self.layout.clone();
                let counted = blocking(move || {
                    let records =
                        layers.iter().filter_map(|chain| LayerRecord::read(&layout.layer(chain)).ok());
                    Ok(records.fold((0, 0), |(bytes, inodes), l| (bytes + l.bytes, inodes + l.inodes)))
                });
                let counted = counted.await.map_err(at(root))?;
                *guard(&self.used).insert(counted)
            }
        };
        let (capacity, available) = (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize);
        Ok(Usage { bytes, inodes, capacity, available })
    }

    /// The image config as its digest has it, for those who want more than [`super::ImageConfig`].
    pub async fn raw_config(&self, image: &Image) -> Result<Vec<u8>, ImageError> {
        let path = self.layout.config(&image.id.parse()?);
        let read = path.clone();
        blocking(move || fs::read(read)).await.map_err(at(path))
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// Waits for running workers and notes that the store was closed well, which spares the check at the next boot.
    pub async fn close(&self) -> Result<(), ImageError> {
        let all = u32::try_from(self.options.workers.max(1)).unwrap_or(u32::MAX);
        let _all = self.workers.acquire_many(all).await;
        let layout = self.layout.clone();
        blocking(move || recovery::mark_closed(&layout)).await.map_err(at(self.layout.boot()))
    }

    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut pulling = guard(&self.pulling);
        pulling.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = pulling.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        pulling.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// Runs a task in a worker and names what it brought. The outer error is the store's, the inner the worker's.
    async fn work(
        &self,
        task: Task,
        progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<Result<Vec<Arc<Image>>, Failure>, ImageError> {
        let store = self.this.upgrade().expect("a store is only had by its Arc");
        // Dropped with this future, which tells the task below that nobody waits.
        let (waiting, mut abandoned) = oneshot::channel::<()>();
        let task = tokio::spawn(async move { store.supervise(task, progress, &mut abandoned).await });
        let result = task.await;
        drop(waiting);
        result.unwrap_or_else(|error| Ok(Err(Failure::new(FailureKind::Died, error.to_string()))))
    }

    /// Runs a worker to its end or the caller's, and cleans up after it in either case.
    async fn supervise(
        &self,
        task: Task,
        progress: impl FnMut(Progress),
        abandoned: &mut oneshot::Receiver<()>,
    ) -> Result<Result<Vec<Arc<Image>>, Failure>, ImageError> {
        let permit = self.workers.clone().acquire_owned().await.expect("the semaphore is never closed");
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let worker = format!("w{}-{serial}", std::process::id());
        let request = Request {
            store: self.layout.root().to_owned(),
            worker: worker.clone(),
            platform: self.options.platform.clone(),
            limits: self.options.limits,
            task,
        };
        let outcome = client::run(&self.options, &request, progress, abandoned).await;
        // After success there are links to blobs left at most.
        let layout = self.layout.clone();
        let swept = blocking(move || layout.sweep_tmp(&format!("{worker}-"))).await;
        if let Err(error) = swept {
            tracing::warn!(%error, "leftovers of an image worker stay until the next start");
        }
        let named = match outcome {
            Ok(records) => self.name(records).await.map(Ok),
            Err(failure) => Ok(Err(failure)),
        };
        drop(permit);
        self.remove_doomed().await?;
        named
    }

    /// Gives new images their names, taking those from the images that had them.
    async fn name(&self, records: Vec<Record>) -> Result<Vec<Arc<Image>>, ImageError> {
        let mut images = Vec::new();
        for mut record in records {
            let mut names = record.repo_tags.clone();
            names.extend(record.repo_digests.iter().cloned());
            let changed = {
                let index = guard(&self.index);
                if let Some(known) = index.record(&record.id).filter(|known| !known.removed) {
                    merge(&mut record.repo_tags, known.repo_tags);
                    merge(&mut record.repo_digests, known.repo_digests);
                    record.pinned |= known.pinned;
                }
                let mut changed = vec![record.clone()];
                changed.extend(index.losing(&record.id, &names));
                changed
            };
            let id = record.id.clone();
            self.commit(changed).await?;
            images.extend(guard(&self.index).get(&id));
        }
        Ok(images)
    }

    /// Writes records, then shows them in the index.
    async fn commit(&self, records: Vec<Record>) -> Result<(), ImageError> {
        let _journal = self.journal.lock().await;
        for record in records {
            let path = self.layout.record(&record.id);
            let bytes = serde_json::to_vec(&record).expect("an image record is plain data");
            let write = path.clone();
            blocking(move || write_durably(&write, &bytes)).await.map_err(at(path))?;
            guard(&self.doomed).retain(|chain| !record.layers.contains(chain));
            guard(&self.index).insert(&self.layout, record);
            guard(&self.used).take();
        }
        Ok(())
    }

    /// Removes an image that nobody holds.
    async fn drop_image(&self, id: &Digest) -> Result<(), ImageError> {
        {
            let _journal = self.journal.lock().await;
            let (record, config) = (self.layout.record(id), self.layout.config(id));
            let path = record.clone();
            blocking(move || remove_any(&record).and_then(|()| remove_any(&config)))
                .await
                .map_err(at(path))?;
            guard(&self.used).take();
            let mut index = guard(&self.index);
            if let Some(image) = index.forget(id) {
                let kept = index.layers();
                guard(&self.doomed)
                    .extend(image.layers.iter().filter(|chain| !kept.contains(chain)).cloned());
            }
        }
        self.remove_doomed().await
    }

    /// Removes layers that no image has any more, unless a worker may be building upon them.
    async fn remove_doomed(&self) -> Result<(), ImageError> {
        if guard(&self.doomed).is_empty() {
            return Ok(());
        }
        let all = u32::try_from(self.options.workers.max(1)).unwrap_or(u32::MAX);
        // The last worker to end comes here too.
        let Ok(_all) = self.workers.try_acquire_many(all) else { return Ok(()) };
        let kept = guard(&self.index).layers();
        let doomed = std::mem::take(&mut *guard(&self.doomed));
        let doomed: Vec<Digest> = doomed.into_iter().filter(|chain| !kept.contains(chain)).collect();
        let layout = self.layout.clone();
        let removed = blocking(move || {
            recovery::doom_layers(&layout, &doomed)?;
            recovery::remove_doomed(&layout)
        });
        removed.await.map_err(at(self.layout.layers()))
    }

    /// Removes broken downloads, and layers and configs that belong to no image. Returns the bytes freed.
    async fn sweep_unnamed(&self) -> Result<u64, ImageError> {
        let all = u32::try_from(self.options.workers.max(1)).unwrap_or(u32::MAX);
        let Ok(_all) = self.workers.try_acquire_many(all) else { return Ok(0) };
        let kept = guard(&self.index).layers();
        let ids: BTreeSet<Digest> = guard(&self.index).ids();
        let layout = self.layout.clone();
        blocking(move || recovery::sweep_unnamed(&layout, &kept, &ids)).await.map_err(at(self.layout.root()))
    }
}

fn merge(into: &mut Vec<String>, others: Vec<String>) {
    for other in others {
        if !into.contains(&other) {
            into.push(other);
        }
    }
}

/// Runs file system work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
