//! A field that Kubernetes knows and a node does not use: its presence is kept, its content dropped.

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

/// Whether a field that no code of ours reads was set. Never encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unused {
    /// True if the field was there and not null.
    pub is_set: bool,
}

impl<'de> Deserialize<'de> for Unused {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not IgnoredAny: serde_ignored would report the field as unknown.
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Self { is_set: !value.is_null() })
    }
}

impl Serialize for Unused {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_none()
    }
}
