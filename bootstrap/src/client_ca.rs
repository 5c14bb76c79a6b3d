//! Who signs clients of the kubelet API, where a file says so. One task, which follows the file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use crate::credentials::folders;
use crate::error::JoinError;
use crate::folder_changes::{FolderChanges, SETTLE};
use crate::store::StoreError;
use crate::tls;

/// Certificates in PEM, as they change.
type Authorities = watch::Receiver<Arc<Vec<u8>>>;

/// The task and what it fills. The first reading has to succeed.
pub(crate) fn start(
    path: PathBuf,
) -> Result<(impl Future<Output = ()> + Send + 'static, Authorities), JoinError> {
    // From before the first reading on, so that no change comes between.
    let changes = FolderChanges::of(&folders(std::slice::from_ref(&path)));
    let (out, authorities) = watch::channel(Arc::new(read(&path)?));
    Ok((follow(path, changes, out), authorities))
}

async fn follow(path: PathBuf, mut changes: FolderChanges, out: watch::Sender<Arc<Vec<u8>>>) {
    loop {
        changes.next().await;
        tokio::time::sleep(SETTLE).await;
        match read(&path) {
            Ok(pem) => {
                out.send_if_modified(|known| {
                    let is_news = **known != pem;
                    if is_news {
                        *known = Arc::new(pem);
                    }
                    is_news
                });
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "clients' authorities cannot be used; the old ones stay");
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, JoinError> {
    let pem = std::fs::read(path).map_err(|source| StoreError {
        operation: "read",
        path: path.to_owned(),
        source,
    })?;
    tls::chain(&pem, &path.display().to_string())?;
    Ok(pem)
}
