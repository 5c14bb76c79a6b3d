//! Follows the files of credentials: whoever changes them, the next connection carries what they say. One task.

use std::path::PathBuf;
use std::sync::Arc;

use coracle_cluster::Access;
use tokio::sync::{Notify, watch};

use crate::credentials::{Files, Loaded, folders};
use crate::folder_changes::{FolderChanges, SETTLE};
use crate::x509::Certificate;

/// Who hears of new credentials.
pub(crate) struct Out {
    pub(crate) access: watch::Sender<Arc<Access>>,
    pub(crate) ca: watch::Sender<Arc<Vec<u8>>>,
    pub(crate) client: watch::Sender<Option<Certificate>>,
}

pub(crate) async fn run(files: Files, mut loaded: Loaded, bell: Arc<Notify>, out: Out) {
    let mut watched: Vec<PathBuf> = Vec::new();
    let mut changes = FolderChanges::none();
    let mut failing = false;
    loop {
        let wanted = folders(&loaded.files);
        if wanted != watched {
            changes = FolderChanges::of(&wanted);
            watched = wanted;
        }
        let renewed = tokio::select! {
            // Cancel-safe: a permit of the bell stays.
            () = bell.notified() => true,
            // Cancel-safe: events stay in the kernel's queue.
            () = changes.next() => false,
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
                    if now.authority.ca != loaded.authority.ca {
                        out.ca.send_replace(Arc::new(now.authority.ca.clone()));
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
