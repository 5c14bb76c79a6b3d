//! What the manifest folder says, file by file, and what of it counts.
//!
//! Owned by the manifest folder's task; pure, so every rule about broken, renamed and conflicting files is
//! tested without a file. A file that turned bad keeps its last good objects. (A kubelet keeps them as well
//! when inotify tells it of the change, and drops them at its next listing, up to 20 s later. Here there is
//! no listing, and a file caught in the middle of a rewrite must not stop a pod, so they stay until the
//! file is mended or removed; the error stands as long.)

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decode::{Object, decode};
use super::defaults::{default_pod, default_secret};
use super::object_set::Objects;
use super::static_pod::{StaticPodContext, make_static};
use super::validate::{PodRules, validate_config_map, validate_pod, validate_secret};
use crate::api::{ConfigMap, Pod, Secret};

/// One clear error about one file of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong and where.
    pub message: String,
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.message)
    }
}

/// What holds for every file of a folder.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) node_name: String,
    pub(super) pods: PodRules,
}

/// All files of the folder.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    files: BTreeMap<String, File>,
    /// An error about the folder itself.
    folder_error: Option<String>,
}

#[derive(Debug, Default)]
struct File {
    /// The last good ones.
    objects: FileObjects,
    error: Option<String>,
}

/// Everything of one file.
#[derive(Debug, Default)]
pub(super) struct FileObjects {
    pods: Vec<Arc<Pod>>,
    config_maps: Vec<Arc<ConfigMap>>,
    secrets: Vec<Arc<Secret>>,
}

/// What of all files counts.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) pods: BTreeMap<Arc<str>, Arc<Pod>>,
    pub(super) objects: Objects,
    pub(super) errors: Vec<FileError>,
}

impl Catalog {
    /// Names of all files known.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.files.keys().cloned()
    }

    /// A file is there and holds this, or cannot be used and says why.
    pub(super) fn put(&mut self, name: &str, parsed: Result<FileObjects, String>) {
        let file = self.files.entry(name.to_owned()).or_default();
        match parsed {
            Ok(mut objects) => {
                // The same content was seen before, also when the rest of the file changed.
                for pod in &mut objects.pods {
                    let known = file.objects.pods.iter().find(|old| old.metadata.uid == pod.metadata.uid);
                    if let Some(known) = known {
                        *pod = known.clone();
                    }
                }
                *file = File { objects, error: None };
            }
            Err(error) => file.error = Some(error),
        }
    }

    /// A file is gone.
    pub(super) fn remove(&mut self, name: &str) {
        self.files.remove(name);
    }

    /// Only these files are there.
    pub(super) fn retain(&mut self, names: &[String]) {
        self.files.retain(|name, _| names.contains(name));
    }

    /// The folder cannot be read, or can again. The files stay as they were.
    pub(super) fn set_folder_error(&mut self, error: Option<String>) {
        self.folder_error = error;
    }

    /// Joins all files; the first file by name wins where two name the same object.
    pub(super) fn view(&self, folder: &Path) -> View {
        let mut view = View::default();
        let mut pods: BTreeMap<(String, String), String> = BTreeMap::new();
        let mut from: BTreeMap<(&str, (String, String)), String> = BTreeMap::new();
        if let Some(message) = &self.folder_error {
            view.errors.push(FileError { path: folder.to_owned(), message: message.clone() });
        }
        for (name, file) in &self.files {
            let path = folder.join(name);
            let mut conflicts = Vec::new();
            for pod in &file.objects.pods {
                let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
                match pods.entry(key) {
                    Entry::Occupied(first) => {
                        conflicts.push(conflict("pod", first.key(), folder, first.get()));
                    }
                    Entry::Vacant(place) => {
                        place.insert(name.clone());
                        view.pods.insert(pod.metadata.uid.clone(), pod.clone());
                    }
                }
            }
            for object in &file.objects.config_maps {
                let key = (object.metadata.namespace.clone(), object.metadata.name.clone());
                match from.entry(("ConfigMap", key.clone())) {
                    Entry::Occupied(first) => {
                        conflicts.push(conflict("ConfigMap", &key, folder, first.get()))
                    }
                    Entry::Vacant(place) => {
                        place.insert(name.clone());
                        view.objects.config_maps.insert(key, object.clone());
                    }
                }
            }
            for object in &file.objects.secrets {
                let key = (object.metadata.namespace.clone(), object.metadata.name.clone());
                match from.entry(("Secret", key.clone())) {
                    Entry::Occupied(first) => conflicts.push(conflict("Secret", &key, folder, first.get())),
                    Entry::Vacant(place) => {
                        place.insert(name.clone());
                        view.objects.secrets.insert(key, object.clone());
                    }
                }
            }
            let messages: Vec<String> = file.error.iter().cloned().chain(conflicts).collect();
            if !messages.is_empty() {
                view.errors.push(FileError { path, message: messages.join("; ") });
            }
        }
        view
    }
}

fn conflict(kind: &str, (namespace, name): &(String, String), folder: &Path, first: &str) -> String {
    format!(
        "{kind} {namespace}/{name} is already defined in {}; the one of this file is ignored",
        folder.join(first).display()
    )
}

/// Everything of one file, or the one error that says why nothing of it counts.
pub(super) fn parse_file(data: &[u8], rules: &Rules, seen_unix_nanos: i64) -> Result<FileObjects, String> {
    let decoded = decode(data).map_err(|error| with_sources(&error))?;
    let context = StaticPodContext { node_name: &rules.node_name, seen_unix_nanos };
    let mut objects = FileObjects::default();
    for object in decoded.objects {
        match object {
            Object::Pod(mut pod, hash) => {
                let name = pod.metadata.name.clone();
                default_pod(&mut pod);
                make_static(&mut pod, hash, &context);
                accept("Pod", &name, &validate_pod(&pod, rules.pods))?;
                objects.pods.push(Arc::from(pod));
            }
            Object::ConfigMap(mut config_map) => {
                default_namespace(&mut config_map.metadata.namespace);
                accept("ConfigMap", &config_map.metadata.name, &validate_config_map(&config_map))?;
                objects.config_maps.push(Arc::from(config_map));
            }
            Object::Secret(mut secret) => {
                default_namespace(&mut secret.metadata.namespace);
                default_secret(&mut secret);
                accept("Secret", &secret.metadata.name, &validate_secret(&secret))?;
                objects.secrets.push(Arc::from(secret));
            }
        }
    }
    Ok(objects)
}

fn default_namespace(namespace: &mut String) {
    if namespace.is_empty() {
        "default".clone_into(namespace);
    }
}

/// The API server's own sentence for an object that it refuses.
fn accept(kind: &str, name: &str, errors: &[super::validate::FieldError]) -> Result<(), String> {
    match errors {
        [] => Ok(()),
        [error] => Err(format!("{kind} {name:?} is invalid: {error}")),
        errors => {
            let listed: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Err(format!("{kind} {name:?} is invalid: [{}]", listed.join(", ")))
        }
    }
}

/// An error with its causes, on one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
