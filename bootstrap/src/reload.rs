//! Follows the files of credentials: whoever changes them, the next connection carries what they say. One task.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cluster::Access;
use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::sync::{Notify, watch};

use crate::credentials::{Files, Loaded, folders};
use crate::x509::Certificate;

/// Several files change together.
const SETTLE: Duration = Duration::from_millis(300);

/// Who hears of new credentials.
pub(crate) struct Out {
    pub(crate) access: watch::Sender<Arc<Access>>,
    pub(crate) ca: watch::Sender<Arc<Vec<u8>>>,
    pub(crate) client: watch::Sender<Option<Certificate>>,
}

pub(crate) async fn run(files: Files, mut loaded: Loaded, bell: Arc<Notify>, out: Out) {
    let mut watched: Vec<PathBuf> = Vec::new();
    let mut events = None;
    let mut failing = false;
    loop {
        let wanted = folders(&loaded.files);
        if wanted != watched {
            events = follow(&wanted);
            watched = wanted;
        }
        let renewed = tokio::select! {
            // Cancel-safe: a permit of the bell stays.
            () = bell.notified() => true,
            // Cancel-safe: events stay in the kernel's queue.
            () = next(&mut events) => false,
        };
        if !renewed {
            tokio::time::sleep(SETTLE).await;
        }
        match files.load() {
            Ok(now) => {
                failing = false;
                if now.digest != loaded.digest {
                    tracing::info!(kubeconfig = %files.kubeconfig.display(), "credentials changed");
                    out.access.send_replace(Arc::new(now.access.clone()));
                    if now.ca != loaded.ca {
                        out.ca.send_replace(Arc::new(now.ca.clone()));
                    }
                    out.client.send_replace(now.leaf.clone());
                }
                loaded = now;
            }
            Err(error) if !failing => {
                failing = true;
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "changed credentials cannot be used; the old ones stay");
            }
            Err(_) => {}
        }
    }
}

fn follow(folders: &[PathBuf]) -> Option<EventStream<[u8; 1024]>> {
    let follow = || -> std::io::Result<_> {
        let inotify = Inotify::init()?;
        for folder in folders {
            let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::DELETE | WatchMask::ONLYDIR;
            inotify.watches().add(folder, mask)?;
        }
        inotify.into_event_stream([0; 1024])
    };
    follow()
        .map_err(|error| tracing::warn!(%error, "files of credentials cannot be watched; restart after changing them"))
        .ok()
}

async fn next(events: &mut Option<EventStream<[u8; 1024]>>) {
    let ended = match events {
        Some(stream) => stream.next().await.is_none(),
        None => true,
    };
    if ended {
        std::future::pending::<()>().await;
    }
}
