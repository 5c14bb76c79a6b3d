//! One folder under inotify: what happened to which of its files, also when the folder itself comes and goes.
//!
//! Owned by the manifest folder's task. While the folder is missing, its nearest ancestor is watched instead;
//! nothing here polls. A symbolic link in the folder's place is followed, and its parent watched as well, so
//! that a link set to another folder is seen.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A file appeared; whoever made it may still write to it.
    Created(OsString),
    /// Someone writes to a file.
    Modified(OsString),
    /// A writer closed a file, or a whole file was moved here.
    Complete(OsString),
    /// A file was removed or moved away.
    Gone(OsString),
    /// The folder was removed, moved or unmounted, or something appeared where it should be.
    Folder,
    /// The kernel dropped events: anything may have changed.
    Lost,
}

/// Whether the folder is there.
#[derive(Debug)]
pub(super) enum Attached {
    /// It is, and was not watched before or another one was: read it.
    New,
    /// It is not there; an ancestor is watched.
    Missing,
    /// It is there and cannot be watched.
    Failed(io::Error),
}

/// The watch.
pub(super) struct FolderWatch {
    path: PathBuf,
    events: EventStream<Vec<u8>>,
    watches: Watches,
    folder: Option<WatchDescriptor>,
    ancestor: Option<WatchDescriptor>,
}

impl FolderWatch {
    /// Watches nothing yet.
    pub(super) fn new(path: PathBuf) -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream(vec![0; 4096])?;
        let watches = events.watches();
        Ok(Self { path, events, watches, folder: None, ancestor: None })
    }

    /// Watches the folder, or where it would appear.
    pub(super) fn attach(&mut self) -> Attached {
        // Twice, for a folder that appears between the two watches; a third time it would be seen.
        for _ in 0..3 {
            self.detach();
            let mask = WatchMask::CLOSE_WRITE
                | WatchMask::MOVED_TO
                | WatchMask::MOVED_FROM
                | WatchMask::DELETE
                | WatchMask::CREATE
                | WatchMask::MODIFY
                | WatchMask::DELETE_SELF
                | WatchMask::MOVE_SELF
                | WatchMask::ONLYDIR;
            match self.watches.add(&self.path, mask) {
                Ok(descriptor) => {
                    self.folder = Some(descriptor);
                    if self.path.is_symlink() {
                        self.watch_ancestor();
                    }
                    return Attached::New;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.watch_ancestor();
                    if !self.path.exists() {
                        return Attached::Missing;
                    }
                }
                Err(error) => {
                    // Not a folder, perhaps: its replacement is seen from above.
                    self.watch_ancestor();
                    return Attached::Failed(error);
                }
            }
        }
        Attached::Missing
    }

    fn detach(&mut self) {
        for descriptor in [self.folder.take(), self.ancestor.take()].into_iter().flatten() {
            // The kernel has removed the watch itself when its folder is gone.
            let _ = self.watches.remove(descriptor);
        }
    }

    fn watch_ancestor(&mut self) {
        let mask = WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let ancestors = self.path.ancestors().skip(1);
        for ancestor in ancestors {
            let ancestor = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
            if let Ok(descriptor) = self.watches.add(ancestor, mask) {
                self.ancestor = Some(descriptor);
                return;
            }
        }
    }

    /// Waits for changes, then returns all that there are. Cancel-safe: an event is taken out only once this
    /// no longer waits.
    pub(super) async fn changes(&mut self) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        while changes.is_empty() {
            let mut next = self.events.next().await;
            while let Some(event) = next {
                changes.extend(self.change(&event?));
                next = self.events.next().now_or_never().flatten();
            }
        }
        Ok(changes)
    }

    fn change(&self, event: &EventOwned) -> Option<Change> {
        let name = event.name.as_deref();
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            Some(Change::Lost)
        } else if self.folder.as_ref() == Some(&event.wd) {
            change_of(event.mask, name)
        } else if self.ancestor.as_ref() == Some(&event.wd) {
            is_on_the_way(&self.path, name).then_some(Change::Folder)
        } else {
            // A watch that is gone; its last events may still come.
            None
        }
    }
}

fn change_of(mask: EventMask, name: Option<&OsStr>) -> Option<Change> {
    if mask
        .intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT)
    {
        return Some(Change::Folder);
    }
    let name = name?.to_owned();
    // Sub-folders do not matter, but the link of a ConfigMap volume points to one.
    if mask.contains(EventMask::ISDIR) {
        return None;
    }
    if mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) {
        Some(Change::Complete(name))
    } else if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
        Some(Change::Gone(name))
    } else if mask.contains(EventMask::CREATE) {
        Some(Change::Created(name))
    } else if mask.contains(EventMask::MODIFY) {
        Some(Change::Modified(name))
    } else {
        None
    }
}

/// Whether an entry of the watched ancestor lies on the way to the folder. No name: the ancestor itself.
fn is_on_the_way(path: &Path, name: Option<&OsStr>) -> bool {
    name.is_none_or(|name| path.components().any(|component| component.as_os_str() == name))
}
