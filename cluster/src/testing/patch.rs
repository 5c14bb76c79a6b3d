//! Applies patches as an API server does, as far as tests need: list keys of strategic patches are guessed. Pure.

use serde_json::Value;

/// A JSON merge patch (RFC 7386).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    for (key, value) in fields {
        if value.is_null() {
            if let Some(map) = target.as_object_mut() {
                map.shift_remove(key);
            }
        } else {
            merge(&mut target[key], value);
        }
    }
}

/// A strategic merge patch: lists of objects are merged by the first of these keys that they have.
pub(super) fn strategic(target: &mut Value, patch: &Value) {
    match patch {
        Value::Object(fields) => {
            if !target.is_object() {
                *target = Value::Object(serde_json::Map::new());
            }
            for (key, value) in fields.iter().filter(|(key, _)| !key.starts_with('$')) {
                if value.is_null() {
                    if let Some(map) = target.as_object_mut() {
                        map.shift_remove(key);
                    }
                } else {
                    strategic(&mut target[key], value);
                }
            }
        }
        Value::Array(items) => match list_key(items) {
            Some(key) if target.is_array() || target.is_null() => merge_list(target, items, key),
            _ => target.clone_from(patch),
        },
        _ => target.clone_from(patch),
    }
}

fn list_key(items: &[Value]) -> Option<&'static str> {
    ["type", "uid", "name", "ip"]
        .into_iter()
        .find(|key| !items.is_empty() && items.iter().all(|item| item.get(key).is_some()))
}

fn merge_list(target: &mut Value, items: &[Value], key: &str) {
    let mut held = target.as_array().cloned().unwrap_or_default();
    for item in items {
        let position = held.iter().position(|held| held.get(key) == item.get(key));
        if item["$patch"] == "delete" {
            if let Some(position) = position {
                held.remove(position);
            }
            continue;
        }
        match position {
            Some(position) => strategic(&mut held[position], item),
            None => held.push(item.clone()),
        }
    }
    *target = Value::Array(held);
}

/// A JSON patch (RFC 6902) of add, replace and remove. False if it does not fit.
pub(super) fn json(target: &mut Value, operations: &Value) -> bool {
    operations.as_array().is_some_and(|operations| operations.iter().all(|operation| one(target, operation)))
}

fn one(target: &mut Value, operation: &Value) -> bool {
    let path = operation["path"].as_str().unwrap_or_default();
    let Some((parent, last)) = path.rsplit_once('/') else { return false };
    let last = last.replace("~1", "/").replace("~0", "~");
    let Some(parent) = target.pointer_mut(parent) else { return false };
    let value = operation["value"].clone();
    match (operation["op"].as_str().unwrap_or_default(), parent) {
        ("add" | "replace", Value::Object(map)) => {
            map.insert(last, value);
            true
        }
        ("add", Value::Array(list)) if last == "-" => {
            list.push(value);
            true
        }
        ("remove", Value::Object(map)) => map.shift_remove(&last).is_some(),
        ("test", Value::Object(map)) => map.get(&last) == Some(&value),
        _ => false,
    }
}
