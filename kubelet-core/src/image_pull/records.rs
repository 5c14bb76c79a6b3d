//! Records of pulls on the disk: `pulling/` says what is being pulled, `pulled/` by which credentials an image came.
//!
//! Called by the puller, whose blocking threads write, and by the garbage collector. Nothing is held in memory but the
//! names of what is being pulled; a record is read when a container starts. Files and folders are the kubelet's. One
//! lock makes changes of the files one after the other; readers take none, for every change is a rename.
//!
//! Invariant: the record of a pull is there before its intent goes, and readers look for the intent first. So an image
//! that a pull brought is never taken for one that was there before.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::access::{Access, Known, PullIntent, PulledRecord, sha256_hex};
use crate::api::Time;

const PREFIX: &str = "sha256-";
/// Ends the name of a file that is being written.
const DRAFT: &str = ".tmp";

/// The records of a node; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct PullRecords(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pulling: PathBuf,
    pulled: PathBuf,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    /// How many pulls of an image are under way.
    counts: HashMap<String, usize>,
    /// Counts what was recorded, also where the record said it already.
    changes: u64,
}

/// What was recorded at a time.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// Names of files.
    pub(crate) names: Vec<String>,
    changes: u64,
}

impl PullRecords {
    /// Records in a folder, which is made with the first of them.
    pub(crate) fn new(folder: &Path) -> Self {
        let running = Mutex::default();
        Self(Arc::new(Inner { pulling: folder.join("pulling"), pulled: folder.join("pulled"), running }))
    }

    /// What is recorded of an image by the name that a pod gives it and the runtime's ID.
    pub(super) fn look_up(&self, image: &str, image_ref: &str) -> Known {
        let intent = read(&self.0.pulling.join(file_name(image)));
        let record = match read(&self.0.pulled.join(file_name(image_ref))) {
            Ok(json) => json.map(|json| PulledRecord::decode(&json)),
            Err(_) => Some(None),
        };
        match record {
            Some(None) => return Known::Unreadable,
            Some(Some(record)) if record.image_ref == image_ref => return Known::Pulled(record),
            _ => {}
        }
        match intent.map(|json| json.map(|json| PullIntent::decode(&json))) {
            Ok(None) => Known::Nothing,
            Ok(Some(Some(intent))) if intent.image == image => Known::Begun,
            Ok(Some(Some(_))) => Known::Nothing,
            Ok(Some(None)) | Err(_) => Known::Unreadable,
        }
    }

    /// Records that a pull begins.
    pub(super) async fn begin(&self, image: &str) -> io::Result<Intent> {
        let (records, image) = (self.clone(), image.to_owned());
        blocking(move || {
            let mut running = records.lock();
            if !running.counts.contains_key(&image) {
                write(&records.0.pulling, &image, &PullIntent::new(&image))?;
            }
            *running.counts.entry(image.clone()).or_default() += 1;
            drop(running);
            Ok(Intent { records, image, is_over: false })
        })
        .await
    }

    /// Records that an image of this name may be used so; nothing is written if that is known.
    pub(super) async fn grant(
        &self,
        image: &str,
        image_ref: &str,
        access: Access,
        now: Time,
    ) -> io::Result<()> {
        let (records, image, image_ref) = (self.clone(), image.to_owned(), image_ref.to_owned());
        blocking(move || records.change(&image, &image_ref, Some(access), now)).await
    }

    fn change(&self, image: &str, image_ref: &str, access: Option<Access>, now: Time) -> io::Result<()> {
        let mut running = self.lock();
        running.changes += 1;
        let known = read(&self.0.pulled.join(file_name(image_ref))).ok().flatten();
        let known = known.and_then(|json| PulledRecord::decode(&json));
        let (mut record, is_new) = match known.filter(|record| record.image_ref == image_ref) {
            Some(record) => (record, false),
            None => (PulledRecord::new(image_ref), true),
        };
        let is_changed = access.is_some_and(|access| record.grant(image, access));
        if !is_new && !is_changed {
            return Ok(());
        }
        record.stamp(now);
        write(&self.0.pulled, image_ref, &record)
    }

    /// The images whose pull a run before this one did not end.
    pub(super) fn unfinished(&self) -> Vec<String> {
        let files = names(&self.0.pulling).into_iter();
        let json = files.filter_map(|name| read(&self.0.pulling.join(name)).ok().flatten());
        json.filter_map(|json| Some(PullIntent::decode(&json)?.image)).collect()
    }

    /// Ends a pull that a run before this one began. It brought the image if `image_ref` names one; by which
    /// credentials nobody knows.
    pub(super) async fn finish(&self, image: String, image_ref: Option<String>, now: Time) -> io::Result<()> {
        let records = self.clone();
        blocking(move || {
            if let Some(image_ref) = image_ref {
                records.change(&image, &image_ref, None, now)?;
            }
            remove(&records.0.pulling, &file_name(&image))
        })
        .await
    }

    /// What is recorded now.
    pub(crate) fn recorded(&self) -> Recorded {
        let changes = self.lock().changes;
        Recorded { names: names(&self.0.pulled), changes }
    }

    /// Removes those of the `recorded` whose image is not among the `present`, which were listed after them. Leaves it
    /// to the next time if something was recorded since: an image that was pulled again is present after all.
    pub(crate) fn prune<'a>(&self, recorded: &Recorded, present: impl Iterator<Item = &'a str>) {
        if recorded.names.is_empty() {
            return;
        }
        let present: BTreeSet<String> = present.map(file_name).collect();
        let running = self.lock();
        if running.changes == recorded.changes {
            for name in recorded.names.iter().filter(|name| !present.contains(*name)) {
                self.remove_record(name);
            }
        }
    }

    /// Records an image as pulled.
    #[cfg(test)]
    pub(crate) fn put(&self, image_ref: &str) {
        self.change("", image_ref, None, Time(0)).expect("invariant: a test's folder can be written");
    }

    fn remove_record(&self, name: &str) {
        if let Err(error) = remove(&self.0.pulled, name) {
            tracing::warn!(name, %error, "the record of a pull stays, though its image is gone");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        // A panic under the lock leaves a count too high at worst, and so an intent too many.
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One pull of the image less; the last takes the intent with it if its end is known.
    fn end(&self, image: &str, is_known: bool) {
        let mut running = self.lock();
        match running.counts.get_mut(image) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                running.counts.remove(image);
                if is_known && let Err(error) = remove(&self.0.pulling, &file_name(image)) {
                    tracing::warn!(image, %error, "the record of a pull that ended stays");
                }
            }
        }
    }
}

/// A pull that has begun. Dropped without a word of its end, its file stays for the next start to look into.
#[derive(Debug)]
pub(super) struct Intent {
    records: PullRecords,
    image: String,
    is_over: bool,
}

impl Intent {
    /// The pull brought this image, by credentials that nobody knows if there is no `access`. The record is under way
    /// when this returns, though nobody waits for it.
    pub(super) fn pulled(
        mut self,
        image_ref: &str,
        access: Option<Access>,
        now: Time,
    ) -> impl Future<Output = ()> + use<> {
        let image_ref = image_ref.to_owned();
        self.is_over = true;
        let written = tokio::task::spawn_blocking(move || {
            match self.records.change(&self.image, &image_ref, access, now) {
                Ok(()) => self.records.end(&self.image, true),
                // The intent says that the image came by a pull, now and after a restart.
                Err(error) => {
                    tracing::error!(image = self.image, %error, "a pull is not recorded: the image needs credentials each time");
                }
            }
        });
        async move {
            // Only a panic could have kept it from ending, and that was told.
            let _ = written.await;
        }
    }

    /// The pull brought nothing.
    pub(super) async fn failed(mut self) {
        self.is_over = true;
        let _ = tokio::task::spawn_blocking(move || self.records.end(&self.image, true)).await;
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        // The lock is held by who writes to the disk, so that no async thread waits for it.
        if !self.is_over
            && let Ok(handle) = tokio::runtime::Handle::try_current()
        {
            let (records, image) = (self.records.clone(), std::mem::take(&mut self.image));
            handle.spawn_blocking(move || records.end(&image, false));
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn file_name(name: &str) -> String {
    format!("{PREFIX}{}", sha256_hex(name.as_bytes()))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(PREFIX) && !name.ends_with(DRAFT)).collect()
}

/// The file's content; none if there is no such file.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file; a power loss leaves the one or the other.
fn write(folder: &Path, name: &str, content: &impl Serialize) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join(file_name(name));
    let draft = folder.join(format!("{}{DRAFT}", file_name(name)));
    let mut json = serde_json::to_vec(content)?;
    json.push(b'\n');
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&json)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    std::fs::File::open(folder)?.sync_all()
}

fn remove(folder: &Path, name: &str) -> io::Result<()> {
    match std::fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
