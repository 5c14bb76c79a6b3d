//! The objects of the fake API server with their history. Plain data.

use std::collections::BTreeMap;

use serde_json::{Value, json};

type Key = (String, String, String);

/// A change that watches tell.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) collection: String,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

/// All objects by collection, namespace and name.
#[derive(Default)]
pub(super) struct Objects {
    held: BTreeMap<Key, Value>,
    history: Vec<Change>,
    version: u64,
    compacted: u64,
    created: u64,
}

/// What is asked for of a collection.
#[derive(Clone, Default)]
pub(super) struct Selection {
    pub(super) namespace: Option<String>,
    pub(super) fields: String,
    pub(super) labels: String,
}

impl Selection {
    pub(super) fn matches(&self, object: &Value) -> bool {
        let meta = &object["metadata"];
        let in_namespace =
            self.namespace.as_ref().is_none_or(|namespace| meta["namespace"] == namespace.as_str());
        let pairs = |text: &str| -> Vec<(String, bool, String)> {
            let parts = text.split(',').filter(|part| !part.is_empty());
            let split = parts.map(|part| match part.split_once("!=") {
                Some((key, value)) => (key.to_owned(), false, value.to_owned()),
                None => {
                    let (key, value) = part.split_once('=').unwrap_or((part, ""));
                    (key.to_owned(), true, value.trim_start_matches('=').to_owned())
                }
            });
            split.collect()
        };
        let field = |path: &str| {
            path.split('.').fold(object, |value, part| &value[part]).as_str().unwrap_or_default().to_owned()
        };
        in_namespace
            && pairs(&self.fields).iter().all(|(key, equal, value)| (field(key) == *value) == *equal)
            && pairs(&self.labels).iter().all(|(key, equal, value)| {
                (meta["labels"][key].as_str().unwrap_or_default() == value) == *equal
            })
    }
}

impl Objects {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn compacted(&self) -> u64 {
        self.compacted
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
    }

    pub(super) fn put(&mut self, collection: &str, mut object: Value) -> Value {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        if object["metadata"]["name"].as_str().unwrap_or_default().is_empty() {
            let prefix = object["metadata"]["generateName"].as_str().unwrap_or("unnamed-").to_owned();
            object["metadata"]["name"] = format!("{prefix}{:05x}", self.created + 0x1000).into();
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let key = (collection.to_owned(), namespace, name);
        let before = self.held.get(&key).cloned();
        self.version += 1;
        let meta = &mut object["metadata"];
        match &before {
            Some(before) => {
                meta["uid"] = before["metadata"]["uid"].clone();
                meta["creationTimestamp"] = before["metadata"]["creationTimestamp"].clone();
            }
            None => {
                self.created += 1;
                if meta["uid"].is_null() {
                    meta["uid"] = format!("00000000-0000-4000-8000-{:012x}", self.created).into();
                }
                if meta["creationTimestamp"].is_null() {
                    let seconds = self.created % 60;
                    meta["creationTimestamp"] = format!("2026-01-01T00:00:{seconds:02}Z").into();
                }
            }
        }
        meta["resourceVersion"] = self.version.to_string().into();
        self.held.insert(key, object.clone());
        self.note(collection, before, Some(object.clone()));
        object
    }

    pub(super) fn remove(&mut self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let mut before = self.held.remove(&(collection.to_owned(), namespace.to_owned(), name.to_owned()))?;
        self.version += 1;
        before["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.note(collection, Some(before.clone()), None);
        Some(before)
    }

    pub(super) fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        self.held.get(&(collection.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(super) fn all(&self, collection: &str) -> Vec<Value> {
        self.held.iter().filter(|(key, _)| key.0 == collection).map(|(_, object)| object.clone()).collect()
    }

    /// What changed in a collection since a version, as watch events, and the version they lead to.
    pub(super) fn events(&self, collection: &str, selection: &Selection, since: u64) -> (Vec<Value>, u64) {
        let mut events = Vec::new();
        for change in
            self.history.iter().filter(|change| change.version > since && change.collection == collection)
        {
            let before = change.before.as_ref().filter(|object| selection.matches(object));
            let after = change.after.as_ref().filter(|object| selection.matches(object));
            let (kind, mut object) = match (before, after) {
                (None, Some(after)) => ("ADDED", after.clone()),
                (Some(_), Some(after)) => ("MODIFIED", after.clone()),
                (Some(before), None) => ("DELETED", before.clone()),
                (None, None) => continue,
            };
            object["metadata"]["resourceVersion"] = change.version.to_string().into();
            events.push(json!({"type": kind, "object": object}));
        }
        (events, self.version)
    }

    fn note(&mut self, collection: &str, before: Option<Value>, after: Option<Value>) {
        let change = Change { version: self.version, collection: collection.to_owned(), before, after };
        self.history.push(change);
    }
}
