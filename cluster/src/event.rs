//! Decodes watch events and list items straight from their text into the caller's type. Pure.

use std::borrow::Cow;

use serde::Deserialize;

use crate::resource::{Object, Resource};

/// One line of a watch.
pub(crate) enum Event<K> {
    Applied(K),
    Deleted(K),
    /// Nothing but a version; `listed` closes the initial events.
    Bookmark {
        listed: bool,
    },
    /// The server ends the watch.
    Error {
        code: u16,
        reason: String,
        message: String,
    },
    Unreadable(Unreadable),
}

/// An object that does not fit the caller's type.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) error: serde_json::Error,
}

impl Unreadable {
    pub(crate) fn tell(&self, resource: &Resource) {
        tracing::warn!(
            kind = resource.kind,
            object = self.name,
            error = %self.error,
            "an object of the API server cannot be read and is passed over"
        );
    }
}

/// Decodes a line; the version is where a watch goes on after it.
pub(crate) fn decode<K: Object>(line: &[u8]) -> (Event<K>, Option<String>) {
    let head = match serde_json::from_slice::<Head<'_>>(line) {
        Ok(head) => head,
        Err(error) => {
            let (name, uid) = ("(unknown)".to_owned(), String::new());
            return (Event::Unreadable(Unreadable { name, uid, error }), None);
        }
    };
    let object = &head.object;
    let version = object.metadata.resource_version.as_deref().map(str::to_owned);
    let event = match head.kind.as_ref() {
        "BOOKMARK" => Event::Bookmark {
            listed: object.metadata.annotations.as_ref().is_some_and(|a| a.listed.as_deref() == Some("true")),
        },
        "ERROR" => Event::Error {
            code: object.code.unwrap_or(0),
            reason: object.reason.as_deref().unwrap_or_default().to_owned(),
            message: object.message.as_deref().unwrap_or_default().to_owned(),
        },
        kind => match serde_json::from_slice::<Body<K>>(line) {
            Ok(body) if kind == "DELETED" => Event::Deleted(body.object),
            Ok(body) => Event::Applied(body.object),
            Err(error) => Event::Unreadable(head.object.metadata.unreadable(error)),
        },
    };
    (event, version)
}

/// Decodes one item of a list.
pub(crate) fn object<K: Object>(text: &[u8]) -> Result<K, Unreadable> {
    serde_json::from_slice(text).map_err(|error| {
        serde_json::from_slice::<HeadObject<'_>>(text).map_or_else(
            |_| Unreadable { name: "(unknown)".to_owned(), uid: String::new(), error: unit_error() },
            |object| object.metadata.unreadable(error),
        )
    })
}

fn unit_error() -> serde_json::Error {
    serde::de::Error::custom("its metadata cannot be read")
}

#[derive(Deserialize)]
struct Body<K> {
    object: K,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: HeadObject<'a>,
}

/// What an object, a bookmark and a Status have that matters here.
#[derive(Deserialize)]
struct HeadObject<'a> {
    #[serde(borrow, default)]
    metadata: HeadMeta<'a>,
    code: Option<u16>,
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMeta<'a> {
    #[serde(borrow)]
    resource_version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    annotations: Option<Annotations<'a>>,
}

#[derive(Deserialize)]
struct Annotations<'a> {
    #[serde(rename = "k8s.io/initial-events-end", borrow)]
    listed: Option<Cow<'a, str>>,
}

impl HeadMeta<'_> {
    fn unreadable(&self, error: serde_json::Error) -> Unreadable {
        let name = self.name.as_deref().unwrap_or("(unnamed)");
        let name = match self.namespace.as_deref().filter(|namespace| !namespace.is_empty()) {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        };
        Unreadable { name, uid: self.uid.as_deref().unwrap_or_default().to_owned(), error }
    }
}
