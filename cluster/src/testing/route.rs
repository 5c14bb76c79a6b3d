//! What the fake API server answers to one request. No I/O: the store and a request in, an answer out.

use http::Method;
use serde_json::{Value, json};

use super::objects::{Objects, Selection};
use super::{Seen, patch};

/// An answer.
pub(super) enum Answer {
    Object(u16, Value),
    Watch(Watch),
}

/// A watch that was accepted.
pub(super) struct Watch {
    pub(super) collection: String,
    pub(super) selection: Selection,
    /// The events of the beginning.
    pub(super) first: Vec<Value>,
    pub(super) since: u64,
}

/// What a path names.
struct Target {
    collection: String,
    kind_path: String,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

/// A Status of failure.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
           "reason": reason, "code": code})
}

pub(super) fn parameter(query: &str, key: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let hex: Vec<u8> = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

pub(super) fn answer(objects: &mut Objects, request: &Seen, watch_list: bool) -> Answer {
    let Some(target) = target(&request.path) else {
        return Answer::Object(
            404,
            status(404, "NotFound", "the server could not find the requested resource"),
        );
    };
    if request.method == Method::GET && target.name.is_none() {
        return collection(objects, &target, &request.query, watch_list);
    }
    let (code, body) = match request.method {
        Method::GET => get(objects, &target),
        Method::POST => create(objects, &target, &request.body),
        Method::PUT => change(objects, &target, |held| {
            *held = request.body.clone();
            true
        }),
        Method::DELETE => delete(objects, &target, &request.body),
        _ => (405, status(405, "MethodNotAllowed", "the server does not allow this method")),
    };
    Answer::Object(code, body)
}

/// Patches need the content type beside the request.
pub(super) fn patched(objects: &mut Objects, request: &Seen, content_type: &str) -> Answer {
    let Some(target) = target(&request.path) else {
        return Answer::Object(
            404,
            status(404, "NotFound", "the server could not find the requested resource"),
        );
    };
    let (code, body) = change(objects, &target, |held| match content_type {
        "application/json-patch+json" => patch::json(held, &request.body),
        "application/strategic-merge-patch+json" => {
            patch::strategic(held, &request.body);
            true
        }
        _ => {
            patch::merge(held, &request.body);
            true
        }
    });
    Answer::Object(code, body)
}

fn target(path: &str) -> Option<Target> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let group = match *parts.first()? {
        "api" => 2,
        "apis" => 3,
        _ => return None,
    };
    if parts.len() <= group {
        return None;
    }
    let rest = parts.split_off(group);
    let prefix = format!("/{}", parts.join("/"));
    let (namespace, rest) = match rest.as_slice() {
        ["namespaces", namespace, rest @ ..]
            if !rest.is_empty() && !matches!(rest, ["status" | "finalize"]) =>
        {
            (Some((*namespace).to_owned()), rest)
        }
        rest => (None, rest),
    };
    let own = |index: usize| rest.get(index).map(|part| (*part).to_owned());
    let plural = own(0)?;
    Some(Target {
        collection: format!("{prefix}/{plural}"),
        kind_path: plural,
        namespace,
        name: own(1),
        subresource: own(2),
    })
}

impl Target {
    fn key(&self) -> (&str, &str, &str) {
        (
            &self.collection,
            self.namespace.as_deref().unwrap_or_default(),
            self.name.as_deref().unwrap_or_default(),
        )
    }

    fn missing(&self) -> (u16, Value) {
        let (_, _, name) = self.key();
        (404, status(404, "NotFound", &format!("{} \"{name}\" not found", self.kind_path)))
    }
}

fn get(objects: &Objects, target: &Target) -> (u16, Value) {
    let (collection, namespace, name) = target.key();
    objects.get(collection, namespace, name).map_or_else(|| target.missing(), |object| (200, object))
}

fn collection(objects: &Objects, target: &Target, query: &str, watch_list: bool) -> Answer {
    let selection = Selection {
        namespace: target.namespace.clone(),
        fields: parameter(query, "fieldSelector").unwrap_or_default(),
        labels: parameter(query, "labelSelector").unwrap_or_default(),
    };
    let chosen: Vec<Value> =
        objects.all(&target.collection).into_iter().filter(|object| selection.matches(object)).collect();
    let expired = || Answer::Object(410, status(410, "Expired", "The provided version is too old"));
    if parameter(query, "watch").as_deref() == Some("true") {
        let initial = parameter(query, "sendInitialEvents").as_deref() == Some("true");
        if initial && !watch_list {
            let message =
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Answer::Object(422, status(422, "Invalid", message));
        }
        let since = parameter(query, "resourceVersion").and_then(|version| version.parse::<u64>().ok());
        if !initial && since.is_some_and(|since| since < objects.compacted()) {
            return expired();
        }
        let mut first = Vec::new();
        if initial {
            first.extend(chosen.into_iter().map(|object| json!({"type": "ADDED", "object": object})));
            first.push(bookmark(objects.version(), true));
        }
        let since = if initial { objects.version() } else { since.unwrap_or(objects.version()) };
        return Answer::Watch(Watch { collection: target.collection.clone(), selection, first, since });
    }
    let limit = parameter(query, "limit").and_then(|limit| limit.parse::<usize>().ok()).unwrap_or(usize::MAX);
    let token = parameter(query, "continue").unwrap_or_default();
    let (version, start) = match token.split_once('-') {
        Some((version, start)) => (version.parse().unwrap_or(0), start.parse().unwrap_or(0)),
        None => (objects.version(), 0),
    };
    if version < objects.compacted() {
        return expired();
    }
    let mut metadata = json!({"resourceVersion": version.to_string()});
    let end = chosen.len().min(start + limit.min(chosen.len()));
    if end < chosen.len() {
        metadata["continue"] = format!("{version}-{end}").into();
    }
    let items = if chosen.is_empty() { Value::Null } else { chosen[start..end].to_vec().into() };
    Answer::Object(200, json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
}

pub(super) fn bookmark(version: u64, listed: bool) -> Value {
    let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
    if listed {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"type": "BOOKMARK", "object": {"kind": "Bookmark", "apiVersion": "v1", "metadata": metadata}})
}

fn create(objects: &mut Objects, target: &Target, body: &Value) -> (u16, Value) {
    let mut object = body.clone();
    if target.subresource.is_some() {
        return (201, object);
    }
    if let Some(namespace) = &target.namespace {
        object["metadata"]["namespace"] = namespace.as_str().into();
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let namespace = target.namespace.as_deref().unwrap_or_default();
    if !name.is_empty() && objects.get(&target.collection, namespace, &name).is_some() {
        let message = format!("{} \"{name}\" already exists", target.kind_path);
        return (409, status(409, "AlreadyExists", &message));
    }
    (201, objects.put(&target.collection, object))
}

fn change(objects: &mut Objects, target: &Target, apply: impl FnOnce(&mut Value) -> bool) -> (u16, Value) {
    let (collection, namespace, name) = target.key();
    let Some(before) = objects.get(collection, namespace, name) else { return target.missing() };
    let mut after = before.clone();
    if !apply(&mut after) {
        return (422, status(422, "Invalid", "the patch does not fit"));
    }
    let differs = |field: &str| {
        !after["metadata"][field].is_null() && after["metadata"][field] != before["metadata"][field]
    };
    if differs("resourceVersion") || differs("uid") {
        return (409, status(409, "Conflict", "the object has been modified"));
    }
    // Of an object with the subresource status, each path changes its own half only.
    match target.subresource.as_deref() {
        Some("status") => {
            let status = after["status"].clone();
            let metadata = after["metadata"].clone();
            after.clone_from(&before);
            after["status"] = status;
            after["metadata"] = metadata;
        }
        Some("approval" | "ephemeralcontainers") => {}
        _ if !before["status"].is_null() => after["status"] = before["status"].clone(),
        _ => {}
    }
    if after == before {
        return (200, before);
    }
    (200, objects.put(collection, after))
}

fn delete(objects: &mut Objects, target: &Target, options: &Value) -> (u16, Value) {
    let (collection, namespace, name) = target.key();
    let Some(mut held) = objects.get(collection, namespace, name) else { return target.missing() };
    let wanted = &options["preconditions"]["uid"];
    if !wanted.is_null() && *wanted != held["metadata"]["uid"] {
        return (409, status(409, "Conflict", "the UID in the precondition does not match"));
    }
    let own = held["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
    let grace = options["gracePeriodSeconds"].as_u64().unwrap_or(own);
    let runs = target.kind_path == "pods" && held["spec"]["nodeName"].is_string();
    if runs && grace > 0 {
        held["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        held["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        return (200, objects.put(collection, held));
    }
    (200, objects.remove(collection, namespace, name).unwrap_or(held))
}
