//! Manifests to objects: v1 Pod, ConfigMap and Secret, alone or in lists, from YAML or JSON.
//!
//! Called by the manifest folder and by whoever reads a manifest himself; pure. Nothing is guessed: a field
//! that v1 does not have, a value of the wrong type, a key that comes twice and a kind that a node does not
//! run are errors that name the place.

use std::fmt::Write as _;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::static_pod::ContentHash;
use super::yaml::{self, TextError};
use crate::api::{ByteString, ConfigMap, Pod, Secret};

/// Largest file that is read, as for a kubelet.
pub const MAX_BYTES: usize = 10 << 20;

/// Maps of free text, where null is an empty text for an API server, not an absent field.
const TEXT_MAPS: [&str; 5] = ["data", "stringData", "labels", "annotations", "nodeSelector"];

/// An object of a manifest, as written: neither defaulted nor validated.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A pod and what its UID is made from.
    Pod(Box<Pod>, ContentHash),
    /// A v1 ConfigMap.
    ConfigMap(Box<ConfigMap>),
    /// A v1 Secret, `stringData` merged into `data`.
    Secret(Box<Secret>),
}

/// What a text holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// In the order of the text.
    pub objects: Vec<Object>,
}

/// Why a text cannot be used. Display says the place, where there is one.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// More than [`MAX_BYTES`].
    #[error("larger than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// Neither YAML nor JSON.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A document that is a list, a number or a text.
    #[error("{0}an object with apiVersion and kind is expected")]
    NotAnObject(Place),
    /// No kind.
    #[error("{0}Object 'Kind' is missing")]
    NoKind(Place),
    /// No API version.
    #[error("{0}Object 'apiVersion' is missing")]
    NoApiVersion(Place),
    /// A kind that a node does not run from a file.
    #[error(
        "{place}{api_version} {kind} cannot be used here: only v1 Pod, ConfigMap, Secret and lists of them can"
    )]
    Kind {
        /// Where.
        place: Place,
        /// What was given.
        api_version: String,
        /// What was given.
        kind: String,
    },
    /// A value of the wrong type.
    #[error("{place}{path}: {message}")]
    Type {
        /// Where.
        place: Place,
        /// Path of the field.
        path: String,
        /// What is wrong with the value.
        message: String,
    },
    /// Fields that v1 does not have; all of them.
    #[error("{place}{}", UnknownFields(.fields))]
    UnknownFields {
        /// Where.
        place: Place,
        /// Their paths.
        fields: Vec<String>,
    },
}

/// Which object of a text is meant; nothing when it has but one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    document: Option<usize>,
    kind: String,
    name: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(document) = self.document {
            write!(f, "document {document}: ")?;
        }
        if !self.kind.is_empty() && !self.name.is_empty() {
            write!(f, "{} {:?}: ", self.kind, self.name)?;
        }
        Ok(())
    }
}

struct UnknownFields<'a>(&'a [String]);

impl std::fmt::Display for UnknownFields<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, field) in self.0.iter().enumerate() {
            write!(f, "{}unknown field {field:?}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Decodes every object of a text, or says why the first bad one is bad.
///
/// ```
/// use coracle_kubelet_core::source::{Object, decode};
///
/// let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}";
/// let decoded = decode(text.as_bytes())?;
/// assert!(matches!(&decoded.objects[..], [Object::Pod(pod, _)] if pod.metadata.name == "web"));
///
/// let typo = decode(text.replace("image", "imgae").as_bytes()).unwrap_err();
/// assert_eq!(typo.to_string(), r#"Pod "web": unknown field "spec.containers[0].imgae""#);
/// # Ok::<(), coracle_kubelet_core::source::DecodeError>(())
/// ```
pub fn decode(data: &[u8]) -> Result<Decoded, DecodeError> {
    if data.len() > MAX_BYTES {
        return Err(DecodeError::TooLarge);
    }
    let documents = yaml::parse(data)?;
    let several = documents.len() > 1;
    let mut decoded = Decoded::default();
    for (n, document) in documents.into_iter().enumerate() {
        let place = Place { document: several.then_some(n + 1), ..Place::default() };
        decode_document(document, &place, "", &mut decoded.objects)?;
    }
    Ok(decoded)
}

/// Decodes one object, or the items of a list whose items are `prefix[n]`.
fn decode_document(
    value: Value,
    place: &Place,
    prefix: &str,
    objects: &mut Vec<Object>,
) -> Result<(), DecodeError> {
    let Value::Object(mut map) = value else { return Err(DecodeError::NotAnObject(place.clone())) };
    let text = |map: &Map<String, Value>, key: &str| match map.get(key) {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    };
    let (api_version, kind) = (text(&map, "apiVersion"), text(&map, "kind"));
    if kind.is_empty() {
        return Err(DecodeError::NoKind(place.clone()));
    }
    if api_version.is_empty() {
        return Err(DecodeError::NoApiVersion(place.clone()));
    }
    let mut place = place.clone();
    place.kind.clone_from(&kind);
    if let Some(Value::String(name)) = map.get("metadata").and_then(|metadata| metadata.get("name")) {
        place.name.clone_from(name);
    }
    match (api_version.as_str(), kind.as_str()) {
        ("v1", "List" | "PodList" | "ConfigMapList" | "SecretList") if prefix.is_empty() => {
            decode_list(map, kind.strip_suffix("List").unwrap_or(""), &place, objects)
        }
        ("v1", "Pod") => {
            // What an observer wrote says nothing about what should run, and may be newer than we are.
            map.shift_remove("status");
            let mut value = Value::Object(map);
            drop_nulls(&mut value, false);
            octal_modes(value.pointer_mut("/spec/volumes"));
            let hash = ContentHash::of(&value);
            objects.push(Object::Pod(Box::new(typed(value, &place, prefix)?), hash));
            Ok(())
        }
        ("v1", "ConfigMap") => {
            let mut value = Value::Object(map);
            drop_nulls(&mut value, false);
            objects.push(Object::ConfigMap(Box::new(typed(value, &place, prefix)?)));
            Ok(())
        }
        ("v1", "Secret") => {
            let mut value = Value::Object(map);
            drop_nulls(&mut value, false);
            let mut secret: Secret = typed(value, &place, prefix)?;
            let plain = std::mem::take(&mut secret.string_data);
            secret.data.extend(plain.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes()))));
            objects.push(Object::Secret(Box::new(secret)));
            Ok(())
        }
        _ => Err(DecodeError::Kind { place: Place { kind: String::new(), ..place }, api_version, kind }),
    }
}

fn decode_list(
    mut map: Map<String, Value>,
    item_kind: &str,
    place: &Place,
    objects: &mut Vec<Object>,
) -> Result<(), DecodeError> {
    let unknown: Vec<String> = map
        .keys()
        .filter(|key| !["apiVersion", "kind", "metadata", "items"].contains(&key.as_str()))
        .cloned()
        .collect();
    if !unknown.is_empty() {
        return Err(DecodeError::UnknownFields { place: place.clone(), fields: unknown });
    }
    let items = match map.shift_remove("items") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items,
        Some(_) => {
            let (path, message) = ("items".to_owned(), "a list is expected".to_owned());
            return Err(DecodeError::Type { place: place.clone(), path, message });
        }
    };
    for (n, mut item) in items.into_iter().enumerate() {
        if let (Some(map), false) = (item.as_object_mut(), item_kind.is_empty()) {
            // The items of a typed list need not repeat what they are.
            map.entry("apiVersion").or_insert_with(|| "v1".into());
            map.entry("kind").or_insert_with(|| item_kind.into());
        }
        let place = Place { document: place.document, ..Place::default() };
        decode_document(item, &place, &format!("items[{n}]"), objects)?;
    }
    Ok(())
}

/// Decodes a value into its type, naming the path of what does not fit.
fn typed<T: DeserializeOwned>(value: Value, place: &Place, prefix: &str) -> Result<T, DecodeError> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let result =
        serde_ignored::deserialize(deserializer, |path| unknown.push(joined(prefix, &field_path(&path))));
    match result {
        Err(error) => Err(DecodeError::Type {
            place: place.clone(),
            path: joined(prefix, &track.path().to_string()),
            message: error.to_string(),
        }),
        Ok(_) if !unknown.is_empty() => {
            Err(DecodeError::UnknownFields { place: place.clone(), fields: unknown })
        }
        Ok(object) => Ok(object),
    }
}

fn joined(prefix: &str, path: &str) -> String {
    if prefix.is_empty() { path.to_owned() } else { format!("{prefix}.{path}") }
}

/// `spec.containers[0].image`, the form in which an API server names a field.
fn field_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => {
            let mut text = field_path(parent);
            // Writing to a String cannot fail.
            let _ = write!(text, "[{index}]");
            text
        }
        Path::Map { parent, key } => {
            let text = field_path(parent);
            if text.is_empty() { key.clone() } else { format!("{text}.{key}") }
        }
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            field_path(parent)
        }
    }
}

/// Removes members that are null, which for Kubernetes is the same as not there.
pub(super) fn drop_nulls(value: &mut Value, in_text_map: bool) {
    match value {
        Value::Object(map) => {
            if in_text_map {
                for value in map.values_mut().filter(|value| value.is_null()) {
                    *value = Value::String(String::new());
                }
            } else {
                map.retain(|_, value| !value.is_null());
            }
            for (key, value) in map.iter_mut() {
                drop_nulls(value, TEXT_MAPS.contains(&key.as_str()));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| drop_nulls(item, false)),
        _ => {}
    }
}

/// Turns the modes of volume files from texts such as `0644` into numbers.
///
/// YAML 1.1, which Kubernetes reads, takes `defaultMode: 0644` for octal; YAML 1.2 takes it for a text. Nobody
/// writes a mode any other way, so here the old reading holds.
fn octal_modes(value: Option<&mut Value>) {
    match value {
        Some(Value::Object(map)) => {
            for (key, value) in map.iter_mut() {
                let octal = match (key.as_str(), &*value) {
                    ("mode" | "defaultMode", Value::String(text)) if text.starts_with('0') => {
                        i64::from_str_radix(text, 8).ok()
                    }
                    _ => None,
                };
                match octal {
                    Some(mode) => *value = Value::from(mode),
                    None => octal_modes(Some(value)),
                }
            }
        }
        Some(Value::Array(items)) => items.iter_mut().for_each(|item| octal_modes(Some(item))),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
