//! The manifest folder: a task that turns its files into pods, ConfigMaps, Secrets and errors.
//!
//! Started by the agent. It is the only task of this module, owns all of its state, wakes for inotify alone
//! (and once or twice after a change, to see whether what vanished stays away), and publishes whole sets by
//! `watch`:
//!
//! | channel | from | to |
//! |---|---|---|
//! | `watch<PodSet>` | this task | dispatcher |
//! | [`ObjectSet`] | this task | volumes, environment, image puller |
//! | `watch<Arc<Vec<FileError>>>` | this task | whoever shows errors |
//!
//! A file counts when its writer closes it or when it is moved here. One that vanishes gets a moment to come
//! back, because editors save by removing and writing anew. Sub-folders, names that open with a dot or end
//! in `~`, `.swp` or `.swx` are not read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::PodSet;
use super::catalog::{Catalog, FileError, FileObjects, Rules, parse_file};
use super::decode::MAX_BYTES;
use super::folder_watch::{Attached, Change, FolderWatch};
use super::object_set::ObjectSet;
use super::validate::PodRules;
use crate::clock::Clock;

/// How long a file or the folder may be away before its pods are.
const GONE_GRACE: Duration = Duration::from_millis(250);
/// How long a new file must be quiet that nobody closed after writing (a link to an unnamed file), and an
/// empty one that nobody fills.
const QUIET: Duration = Duration::from_secs(2);
/// How soon a folder that cannot be watched is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Files up to this size are parsed at once (well under a millisecond); larger ones beside the other tasks.
const INLINE_BYTES: usize = 64 << 10;

/// What the folder is and whose pods it holds.
#[derive(Clone, Debug)]
pub struct ManifestDirConfig {
    /// The folder; it need not exist yet.
    pub path: PathBuf,
    /// Name of this node, which becomes part of each pod's name.
    pub node_name: String,
    /// Whether pods may refer to ConfigMaps, Secrets and the like; false once a control plane is joined.
    pub allow_object_references: bool,
    /// For `kubernetes.io/config.seen`.
    pub clock: Clock,
}

/// Why a folder cannot be watched at all.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No inotify instance is to be had.
    #[error("cannot watch {path}: no inotify instance; raise the sysctl fs.inotify.max_user_instances")]
    Inotify {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A running manifest folder. Dropping it ends its task; the pods run on.
#[derive(Debug)]
pub struct ManifestDir {
    pods: watch::Receiver<PodSet>,
    objects: Arc<ObjectSet>,
    errors: watch::Receiver<Arc<Vec<FileError>>>,
    task: JoinHandle<()>,
}

impl ManifestDir {
    /// Reads the folder, then goes on watching it. When this returns, [`pods`](Self::pods) holds what the
    /// folder says, so that nothing that runs is taken for removed.
    ///
    /// ```no_run
    /// # use coracle_kubelet_core::{clock::Clock, source::{ManifestDir, ManifestDirConfig}};
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let source = ManifestDir::start(ManifestDirConfig {
    ///     path: "/etc/coracle/manifests".into(),
    ///     node_name: "gateway-7".into(),
    ///     allow_object_references: true,
    ///     clock: Clock::system(),
    /// })
    /// .await?;
    /// for pod in source.pods().borrow().values() {
    ///     println!("{}", pod.full_name());
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn start(config: ManifestDirConfig) -> Result<Self, SourceError> {
        let watch = FolderWatch::new(config.path.clone())
            .map_err(|source| SourceError::Inotify { path: config.path.clone(), source })?;
        let (pods, pods_receiver) = watch::channel(PodSet::default());
        let (errors, errors_receiver) = watch::channel(Arc::default());
        let objects = Arc::new(ObjectSet::default());
        let rules = Rules {
            node_name: config.node_name,
            pods: PodRules { allow_object_references: config.allow_object_references },
        };
        let mut task = Task {
            path: config.path,
            rules: Arc::new(rules),
            clock: config.clock,
            catalog: Catalog::default(),
            pending: BTreeMap::new(),
            folder_due: None,
            pods,
            objects: objects.clone(),
            errors,
        };
        let mut watch = watch;
        task.attach(&mut watch, true).await;
        task.publish();
        let task = tokio::spawn(task.run(watch));
        Ok(Self { pods: pods_receiver, objects, errors: errors_receiver, task })
    }

    /// The pods that should run. Changes only when a pod appears, changes or goes.
    pub fn pods(&self) -> watch::Receiver<PodSet> {
        self.pods.clone()
    }

    /// The ConfigMaps and Secrets beside them.
    pub fn objects(&self) -> Arc<ObjectSet> {
        self.objects.clone()
    }

    /// One error for each file that is not, or not wholly, in use.
    pub fn errors(&self) -> watch::Receiver<Arc<Vec<FileError>>> {
        self.errors.clone()
    }
}

impl Drop for ManifestDir {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    path: PathBuf,
    rules: Arc<Rules>,
    clock: Clock,
    catalog: Catalog,
    /// Files to look at again, and when.
    pending: BTreeMap<String, Pending>,
    /// When to look for the folder again.
    folder_due: Option<Instant>,
    pods: watch::Sender<PodSet>,
    objects: Arc<ObjectSet>,
    errors: watch::Sender<Arc<Vec<FileError>>>,
}

#[derive(Clone, Copy, Debug)]
enum Pending {
    /// Vanished; gone if it is still away then.
    Gone(Instant),
    /// Made and not closed, or empty.
    Quiet(Instant),
}

impl Pending {
    fn due(&self) -> Instant {
        match self {
            Pending::Gone(due) | Pending::Quiet(due) => *due,
        }
    }
}

/// What reading a file gave.
enum Read {
    Missing,
    /// It holds nothing, not even a comment.
    Empty,
    Parsed(Result<FileObjects, String>),
}

impl Task {
    async fn run(mut self, mut watch: FolderWatch) {
        loop {
            let due = self.pending.values().map(Pending::due).chain(self.folder_due).min();
            tokio::select! {
                // Cancel-safe: unread events stay in the kernel's queue.
                changes = watch.changes() => match changes {
                    Ok(changes) => self.apply(changes, &mut watch).await,
                    Err(error) => {
                        // Reading an inotify descriptor does not fail; if it does, look anew a little later.
                        tracing::error!(path = %self.path.display(), %error, "cannot read inotify events");
                        self.folder_due = Some(Instant::now() + RETRY);
                        sleep_until(Instant::now() + RETRY).await;
                    }
                },
                // Cancel-safe: the deadline is computed anew.
                () = wait_until(due) => self.settle(&mut watch).await,
            }
            self.publish();
        }
    }

    async fn apply(&mut self, changes: Vec<Change>, watch: &mut FolderWatch) {
        for change in changes {
            match change {
                Change::Folder => self.attach(watch, false).await,
                Change::Lost => self.scan().await,
                // The link that a ConfigMap volume swaps: any file behind it may be another one now.
                Change::Complete(name) if name.as_encoded_bytes().starts_with(b"..") => self.scan().await,
                Change::Complete(name) => {
                    if let Some(name) = readable(&name) {
                        self.pending.remove(name);
                        self.load(name, false).await;
                    }
                }
                Change::Created(name) => {
                    if let Some(name) = readable(&name) {
                        // A link is whole at once; another new file is when its writer closes it.
                        if self.is_link(name) {
                            self.load(name, false).await;
                        } else {
                            self.pending.insert(name.to_owned(), Pending::Quiet(Instant::now() + QUIET));
                        }
                    }
                }
                Change::Modified(name) => {
                    if let Some(Pending::Quiet(due)) = readable(&name).and_then(|n| self.pending.get_mut(n)) {
                        *due = Instant::now() + QUIET;
                    }
                }
                Change::Gone(name) => {
                    if let Some(name) = readable(&name) {
                        self.pending.insert(name.to_owned(), Pending::Gone(Instant::now() + GONE_GRACE));
                    }
                }
            }
        }
    }

    /// Looks again at what is due.
    async fn settle(&mut self, watch: &mut FolderWatch) {
        let now = Instant::now();
        if self.folder_due.is_some_and(|due| due <= now) {
            self.folder_due = None;
            self.attach(watch, true).await;
        }
        let due: Vec<String> =
            self.pending.iter().filter(|(_, p)| p.due() <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            self.pending.remove(&name);
            self.load(&name, true).await;
        }
    }

    /// Watches the folder anew and reads it. A missing one loses its pods only if `last` says that it had
    /// its moment to come back.
    async fn attach(&mut self, watch: &mut FolderWatch, last: bool) {
        match watch.attach() {
            Attached::New => {
                self.folder_due = None;
                self.catalog.set_folder_error(None);
                self.scan().await;
            }
            Attached::Missing if last => {
                self.catalog.retain(&[]);
                self.pending.clear();
                let message = "the folder does not exist; its pods start once it does";
                self.catalog.set_folder_error(Some(message.to_owned()));
            }
            Attached::Missing => {
                self.folder_due = Some(Instant::now() + GONE_GRACE);
            }
            Attached::Failed(error) => {
                let cure = match error.raw_os_error() {
                    Some(libc::ENOTDIR) => "; put a folder in its place",
                    Some(libc::ENOSPC) => "; raise the sysctl fs.inotify.max_user_watches",
                    _ => "",
                };
                self.catalog.set_folder_error(Some(format!("cannot watch the folder: {error}{cure}")));
                self.folder_due = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Reads the whole folder.
    async fn scan(&mut self) {
        let names = match list(&self.path) {
            Ok(names) => names,
            Err(error) => {
                // The pods stay: a disk that does not answer says nothing about what should run.
                self.catalog.set_folder_error(Some(format!("cannot read the folder: {error}")));
                self.folder_due = Some(Instant::now() + RETRY);
                return;
            }
        };
        for gone in self.catalog.names().filter(|name| !names.contains(name)) {
            self.pending.entry(gone).or_insert(Pending::Gone(Instant::now() + GONE_GRACE));
        }
        for name in names {
            self.load(&name, false).await;
        }
    }

    /// Reads one file. What is not there, or is empty, gets its moment first unless this `is_last`.
    async fn load(&mut self, name: &str, is_last: bool) {
        let read = self.read(name).await;
        match read {
            Read::Missing if is_last => self.catalog.remove(name),
            Read::Missing => {
                self.pending.insert(name.to_owned(), Pending::Gone(Instant::now() + GONE_GRACE));
            }
            Read::Empty if !is_last => {
                self.pending.insert(name.to_owned(), Pending::Quiet(Instant::now() + QUIET));
            }
            Read::Empty => {
                let message = "the file is empty; remove it if nothing of it should run";
                self.catalog.put(name, Err(message.to_owned()));
            }
            Read::Parsed(objects) => self.catalog.put(name, objects),
        }
    }

    async fn read(&self, name: &str) -> Read {
        let data = match read_file(&self.path.join(name)) {
            Ok(Some(data)) => data,
            Ok(None) => return Read::Missing,
            Err(message) => return Read::Parsed(Err(message)),
        };
        if data.iter().all(u8::is_ascii_whitespace) {
            return Read::Empty;
        }
        let seen = self.clock.now().wall_nanos;
        if data.len() <= INLINE_BYTES {
            return Read::Parsed(parse_file(&data, &self.rules, seen));
        }
        let rules = self.rules.clone();
        let parsed = tokio::task::spawn_blocking(move || parse_file(&data, &rules, seen)).await;
        Read::Parsed(parsed.unwrap_or_else(|error| Err(format!("cannot be parsed: {error}"))))
    }

    fn is_link(&self, name: &str) -> bool {
        let metadata = std::fs::symlink_metadata(self.path.join(name));
        metadata.is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
    }

    /// Publishes what changed: objects first, so that a pod finds those that came with it.
    fn publish(&mut self) {
        let view = self.catalog.view(&self.path);
        self.objects.replace(view.objects);
        self.pods.send_if_modified(|pods| {
            // A UID stands for its content.
            let differs = !pods.keys().eq(view.pods.keys());
            if differs {
                *pods = Arc::new(view.pods);
            }
            differs
        });
        self.errors.send_if_modified(|errors| {
            for error in view.errors.iter().filter(|error| !errors.contains(error)) {
                tracing::warn!(path = %error.path.display(), error = %error.message, "manifest not in use");
            }
            let differs = **errors != view.errors;
            if differs {
                *errors = Arc::new(view.errors);
            }
            differs
        });
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The name of a file that is read, or nothing for one that is not.
fn readable(name: &OsStr) -> Option<&str> {
    let name = name.to_str()?;
    let ignored = name.starts_with(['.', '#'])
        || name.ends_with('~')
        || name.ends_with(".swp")
        || name.ends_with(".swx");
    (!ignored).then_some(name)
}

/// Names of the files of a folder.
fn list(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let (Some(name), false) = (readable(&entry.file_name()), is_dir) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A file's bytes, `None` if there is no such file.
fn read_file(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    // Without blocking, so that a FIFO put here stops nobody.
    let opened =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err("neither a file nor a link to one".to_owned());
    }
    if metadata.len() > MAX_BYTES as u64 {
        return Err(super::decode::DecodeError::TooLarge.to_string());
    }
    let mut data = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut data).map_err(unreadable)?;
    Ok(Some(data))
}

#[cfg(test)]
mod tests;
