//! Which users and groups of the host the pods with a user namespace of their own (hostUsers: false) are made of.
//!
//! Owned by [`super::PodResources`]. As a kubelet does it: every such pod has 65536 ids of its own, of those that
//! /etc/subuid and /etc/subgid give to the user `kubelet`, or else of all from 65536 on; they are written to the file
//! `userns` in the pod's folder and stay the pod's until that is gone. Blocking; one lock, held over small files.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_cri::v1::{IdMapping, NamespaceMode, UserNamespace};
use serde::{Deserialize, Serialize};

use crate::api::Pod;

/// Ids per pod.
const LENGTH: u32 = 65536;
/// The file in a pod's folder.
const FILE: &str = "userns";
/// Whose subordinate ids are used.
const OWNER: &str = "kubelet";

/// Why a pod cannot have a user namespace.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UserNamespaceError {
    /// The runtime cannot make one. The words are the kubelet's.
    #[error("can't set `spec.hostUsers: false`, {}", runtime_words(handler))]
    Runtime {
        /// The pod's handler; empty for the default one.
        handler: String,
    },
    /// All ids are given away.
    #[error("create user namespace: could not find an empty slot to allocate a user namespace")]
    Exhausted,
    /// What was written down of a pod is no mapping of this node.
    #[error("user namespace: {}: {why}; delete the pod", path.display())]
    Mapping {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The subordinate ids of the user `kubelet` cannot be used.
    #[error("/etc/subuid and /etc/subgid: {0}")]
    Subordinate(String),
    /// A file.
    #[error("create user namespace: {operation} {}: {error}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        error: std::sync::Arc<io::Error>,
    },
}

fn runtime_words(handler: &str) -> String {
    match handler {
        "" => "runtime does not support user namespaces".to_owned(),
        handler => format!("RuntimeClass handler {handler:?} does not support user namespaces"),
    }
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> UserNamespaceError + 'a {
    move |error| UserNamespaceError::Io { operation, path: path.to_owned(), error: error.into() }
}

/// The content of the file, as a kubelet writes it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    uid_mappings: Vec<WrittenMapping>,
    gid_mappings: Vec<WrittenMapping>,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// The ids that may be given to pods: the first, and how many times [`LENGTH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    slots: u32,
}

/// The ids of this node's pods.
#[derive(Debug)]
pub(super) struct UserNamespaces {
    pods_dir: PathBuf,
    /// Handlers of the runtime that have user namespaces.
    handlers: BTreeSet<String>,
    /// None until the first pod asks: few nodes have one.
    table: Mutex<Option<Table>>,
    /// Handlers that pods' RuntimeClasses name, by UID, until the pod has its ids.
    named: Mutex<BTreeMap<String, String>>,
}

#[derive(Debug)]
struct Table {
    range: Range,
    /// The first id of each pod, by UID.
    used: BTreeMap<String, u32>,
}

impl UserNamespaces {
    pub(super) fn new(pods_dir: PathBuf, handlers: BTreeSet<String>) -> Self {
        Self { pods_dir, handlers, table: Mutex::new(None), named: Mutex::default() }
    }

    /// What the pod's sandbox and containers are told; `None` for a pod that has the host's users.
    pub(super) fn of_pod(&self, pod: &Pod) -> Result<Option<UserNamespace>, UserNamespaceError> {
        if pod.spec.host_users != Some(false) {
            return Ok(None);
        }
        let mut held = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let table = match &mut *held {
            Some(table) => table,
            none => none.insert(self.begin()?),
        };
        let uid = &*pod.metadata.uid;
        let first = match table.used.get(uid) {
            Some(first) => *first,
            None => {
                self.check_handler(pod)?;
                let first = table.free().ok_or(UserNamespaceError::Exhausted)?;
                write(&self.pods_dir.join(uid), first)?;
                table.used.insert(uid.to_owned(), first);
                first
            }
        };
        let ids = vec![IdMapping { host_id: first, container_id: 0, length: LENGTH }];
        Ok(Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids }))
    }

    /// The handler that the pod's RuntimeClass names.
    pub(super) fn note_handler(&self, pod: &Pod, handler: &str) {
        if pod.spec.host_users == Some(false) {
            self.named().insert(pod.metadata.uid.to_string(), handler.to_owned());
        }
    }

    fn named(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the runtime can give the pod users of its own. One that has them was asked about before.
    fn check_handler(&self, pod: &Pod) -> Result<(), UserNamespaceError> {
        let named = self.named().get(&*pod.metadata.uid).cloned();
        let handler = named.or_else(|| pod.spec.runtime_class_name.clone()).unwrap_or_default();
        if self.handlers.contains(&handler) { Ok(()) } else { Err(UserNamespaceError::Runtime { handler }) }
    }

    /// The pod's folder is gone.
    pub(super) fn release(&self, uid: &str) {
        self.named().remove(uid);
        if let Some(table) = &mut *self.table.lock().unwrap_or_else(PoisonError::into_inner) {
            table.used.remove(uid);
        }
    }

    /// The range, and what pods of an earlier start have of it.
    fn begin(&self) -> Result<Table, UserNamespaceError> {
        let range = range(Path::new("/etc/subuid"), Path::new("/etc/subgid"))?;
        let mut table = Table { range, used: BTreeMap::new() };
        let entries = match std::fs::read_dir(&self.pods_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(table),
            entries => entries.map_err(failed("list", &self.pods_dir))?,
        };
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.pods_dir))?;
            let path = entry.path().join(FILE);
            let text = match std::fs::read_to_string(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text.map_err(failed("read", &path))?,
            };
            let first = table.read(&text).map_err(|why| UserNamespaceError::Mapping { path, why })?;
            table.used.insert(entry.file_name().to_string_lossy().into_owned(), first);
        }
        Ok(table)
    }
}

impl Table {
    /// The lowest ids that no pod has.
    fn free(&self) -> Option<u32> {
        let taken: BTreeSet<u32> = self.used.values().copied().collect();
        (0..self.range.slots).map(|slot| self.range.first + slot * LENGTH).find(|id| !taken.contains(id))
    }

    fn read(&self, text: &str) -> Result<u32, String> {
        let written: Written = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let ([uids], [gids]) = (&written.uid_mappings[..], &written.gid_mappings[..]) else {
            return Err("there must be one mapping of users and one of groups".to_owned());
        };
        if uids != gids || uids.container_id != 0 || uids.length != LENGTH || uids.host_id % LENGTH != 0 {
            return Err("it is not a mapping that this node makes".to_owned());
        }
        let first = uids.host_id;
        let last = u64::from(self.range.first) + u64::from(self.range.slots) * u64::from(LENGTH);
        if first < self.range.first || u64::from(first) >= last {
            return Err(format!("id {first} is out of range"));
        }
        if self.used.values().any(|used| *used == first) {
            return Err(format!("id {first} is another pod's"));
        }
        Ok(first)
    }
}

/// A power loss leaves the whole file or none.
fn write(pod_dir: &Path, first: u32) -> Result<(), UserNamespaceError> {
    let mapping = vec![WrittenMapping { host_id: first, container_id: 0, length: LENGTH }];
    let written = Written { uid_mappings: mapping.clone(), gid_mappings: mapping };
    let text = serde_json::to_string(&written).expect("numbers are JSON");
    let (path, draft) = (pod_dir.join(FILE), pod_dir.join(".userns"));
    let replace = || -> io::Result<()> {
        let mut file = std::fs::File::create(&draft)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, &path)?;
        std::fs::File::open(pod_dir)?.sync_all()
    };
    replace().map_err(failed("write", &path))
}

/// The ids that pods may have, by the kubelet's rules.
fn range(subuid: &Path, subgid: &Path) -> Result<Range, UserNamespaceError> {
    let (uids, gids) = (subordinate(subuid)?, subordinate(subgid)?);
    if uids != gids {
        return Err(UserNamespaceError::Subordinate(format!("mismatched ids of the user {OWNER:?}")));
    }
    let Some((first, length)) = uids else {
        return Ok(Range { first: LENGTH, slots: u32::MAX / LENGTH });
    };
    if first % LENGTH != 0 || length % LENGTH != 0 || first < LENGTH || length == 0 {
        let why =
            format!("{OWNER}:{first}:{length} must begin at a multiple of {LENGTH} and have such a length");
        return Err(UserNamespaceError::Subordinate(why));
    }
    Ok(Range { first, slots: length / LENGTH })
}

/// The one range of the user, if there is one.
fn subordinate(path: &Path) -> Result<Option<(u32, u32)>, UserNamespaceError> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(failed("read", path))?,
    };
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(OWNER)?.strip_prefix(':'));
    let Some(line) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        let why = format!("{} has several lines of the user {OWNER:?}; one is possible", path.display());
        return Err(UserNamespaceError::Subordinate(why));
    }
    let numbers = line.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let why =
        || UserNamespaceError::Subordinate(format!("{}: {OWNER}:{line} is not FIRST:COUNT", path.display()));
    numbers.map(Some).ok_or_else(why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": uid}, "spec": spec}))
            .unwrap()
    }

    fn first(all: &UserNamespaces, uid: &str) -> u32 {
        let pod = pod(uid, json!({"hostUsers": false}));
        std::fs::create_dir_all(all.pods_dir.join(uid)).unwrap();
        all.of_pod(&pod).unwrap().unwrap().uids[0].host_id
    }

    fn all(folder: &Path) -> UserNamespaces {
        UserNamespaces::new(folder.to_owned(), BTreeSet::from([String::new()]))
    }

    #[test]
    fn a_pod_keeps_its_ids_over_a_start_and_gives_them_back() {
        let folder = tempfile::tempdir().unwrap();
        let before = all(folder.path());
        assert_eq!(before.of_pod(&pod("none", json!({}))).unwrap(), None);
        let (a, b) = (first(&before, "a"), first(&before, "b"));
        assert_eq!((a, b), (65536, 131_072));
        assert_eq!(first(&before, "a"), a);
        let text = std::fs::read_to_string(folder.path().join("a/userns")).unwrap();
        assert_eq!(
            text,
            r#"{"uidMappings":[{"hostId":65536,"containerId":0,"length":65536}],"gidMappings":[{"hostId":65536,"containerId":0,"length":65536}]}"#
        );
        let after = all(folder.path());
        assert_eq!((first(&after, "b"), first(&after, "c")), (b, 196_608));
        std::fs::remove_dir_all(folder.path().join("a")).unwrap();
        after.release("a");
        assert_eq!(first(&after, "d"), a);
        std::fs::write(folder.path().join("b/userns"), text).unwrap();
        std::fs::write(folder.path().join("d/userns"), "{").unwrap();
        let error =
            all(folder.path()).of_pod(&pod("e", json!({"hostUsers": false}))).unwrap_err().to_string();
        assert!(error.starts_with("user namespace: ") && error.ends_with("delete the pod"), "{error}");
    }

    #[test]
    fn a_runtime_without_them_is_told_in_the_kubelets_words() {
        let none = UserNamespaces::new(PathBuf::from("/nonexistent"), BTreeSet::new());
        let told = |spec| none.of_pod(&pod("a", spec)).unwrap_err().to_string();
        assert_eq!(
            told(json!({"hostUsers": false})),
            "can't set `spec.hostUsers: false`, runtime does not support user namespaces"
        );
        none.note_handler(&pod("a", json!({"hostUsers": false})), "x");
        assert_eq!(
            told(json!({"hostUsers": false, "runtimeClassName": "a-class"})),
            "can't set `spec.hostUsers: false`, RuntimeClass handler \"x\" does not support user namespaces"
        );
    }

    #[test]
    fn subordinate_ids_are_the_kubelets_user_s() {
        let folder = tempfile::tempdir().unwrap();
        let (subuid, subgid) = (folder.path().join("subuid"), folder.path().join("subgid"));
        assert_eq!(range(&subuid, &subgid).unwrap(), Range { first: 65536, slots: 65535 });
        let both = |text: &str| {
            std::fs::write(&subuid, text).unwrap();
            std::fs::write(&subgid, text).unwrap();
        };
        both("other:1:2\nkubelet:131072:7208960\n");
        assert_eq!(range(&subuid, &subgid).unwrap(), Range { first: 131_072, slots: 110 });
        both("kubelet:100000:65536\n");
        assert!(range(&subuid, &subgid).is_err());
        both("kubelet:many\n");
        assert!(range(&subuid, &subgid).is_err());
        both("kubelet:65536:65536\n");
        std::fs::write(&subgid, "").unwrap();
        assert!(range(&subuid, &subgid).is_err());
    }
}
