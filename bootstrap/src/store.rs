//! The folder of credentials: files of mode 0600, replaced as a whole, synced. One process writes it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::key::Key;

/// A file of credentials could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct StoreError {
    /// What was tried.
    pub operation: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// `<root>/pki`.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    folder: PathBuf,
}

impl Store {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// How to reach the cluster, written by a join.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// Certificate and key in one file, so that both change at once.
    pub(crate) fn client(&self) -> PathBuf {
        self.folder.join("kubelet-client.pem")
    }

    pub(crate) fn server(&self) -> PathBuf {
        self.folder.join("kubelet-server.pem")
    }

    /// The key of a request that is not answered yet.
    pub(crate) fn pending(&self, of: &str) -> PathBuf {
        self.folder.join(format!("{of}.pending"))
    }

    pub(crate) fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError { operation: "read", path: path.to_owned(), source }),
        }
    }

    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let draft = path.with_extension("draft");
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            let _ = fs::remove_file(&draft);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&draft, path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| StoreError { operation: "write", path: path.to_owned(), source })
    }

    pub(crate) fn remove(&self, path: &Path) -> Result<(), StoreError> {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError { operation: "remove", path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    /// The key of a pending request, made if there is none: a restart finds the request it made by it.
    pub(crate) fn pending_key(&self, of: &str) -> Result<Key, StoreError> {
        let path = self.pending(of);
        if let Some(key) = self.read(&path)?.and_then(|pem| Key::from_pem(&pem)) {
            return Ok(key);
        }
        let source = || io::Error::other("the kernel gives no randomness");
        let key = Key::generate().ok_or_else(|| StoreError {
            operation: "make a key for",
            path: path.clone(),
            source: source(),
        })?;
        self.write(&path, key.pem().as_bytes())?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn credentials_are_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(&folder.path().join("pki"));
        let key = store.pending_key("client").unwrap();
        assert_eq!(store.pending_key("client").unwrap().public_key_info(), key.public_key_info());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&store.pending("client")), mode(&folder.path().join("pki"))), (0o600, 0o700));
        store.remove(&store.pending("client")).unwrap();
        store.remove(&store.pending("client")).unwrap();
        assert_ne!(store.pending_key("client").unwrap().public_key_info(), key.public_key_info());
    }
}
