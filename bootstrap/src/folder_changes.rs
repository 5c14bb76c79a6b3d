//! Waits for changes in folders that hold credentials, without polling: inotify. Owned by the task that reads them.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};

/// Several files change together: so long after the first they are read.
pub(crate) const SETTLE: Duration = Duration::from_millis(300);

/// The changes in some folders from now on.
pub(crate) struct FolderChanges {
    /// `None` where the kernel refuses to watch, which has been told.
    events: Option<EventStream<[u8; 1024]>>,
}

impl FolderChanges {
    /// Nothing is watched, and nothing ever changes.
    pub(crate) fn none() -> Self {
        Self { events: None }
    }

    /// Watches these folders, not those below them.
    pub(crate) fn of(folders: &[PathBuf]) -> Self {
        let follow = || -> std::io::Result<_> {
            let inotify = Inotify::init()?;
            for folder in folders {
                let mask =
                    WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::DELETE | WatchMask::ONLYDIR;
                inotify.watches().add(folder, mask)?;
            }
            inotify.into_event_stream([0; 1024])
        };
        let events = follow().map_err(|error| {
            tracing::warn!(%error, "files of credentials cannot be watched; restart after changing them");
        });
        Self { events: events.ok() }
    }

    /// Returns once something has changed. Cancel-safe: events stay in the kernel's queue.
    pub(crate) async fn next(&mut self) {
        let ended = match &mut self.events {
            Some(stream) => stream.next().await.is_none(),
            None => true,
        };
        if ended {
            std::future::pending::<()>().await;
        }
    }
}
