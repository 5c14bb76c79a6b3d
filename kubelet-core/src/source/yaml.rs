//! Text to JSON values: YAML and JSON, several documents, within bounds.
//!
//! Called by `decode` alone; pure. Stricter than YAML in two ways that save people hours: a key that comes
//! twice is an error, and so is an alias that blows a small text up to a big value.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Values that one text may hold once its aliases are written out. The largest ConfigMap an API server
/// takes has far fewer.
const MAX_VALUES: usize = 1_000_000;
/// Bytes of all strings together, likewise.
const MAX_STRING_BYTES: usize = 64 << 20;

/// The text is neither YAML nor JSON, or breaks a bound.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// No YAML.
    #[error("not valid YAML")]
    Yaml(#[source] serde_yaml_ng::Error),
    /// Starts like JSON and is none.
    #[error("not valid JSON")]
    Json(#[source] serde_json::Error),
    /// Bytes that are no text.
    #[error("not UTF-8 text (byte {0} is the first that is not)")]
    NotText(usize),
}

/// Every document of a text that is not empty, nulls still in it.
pub(super) fn parse(data: &[u8]) -> Result<Vec<Value>, TextError> {
    let text = std::str::from_utf8(data).map_err(|e| TextError::NotText(e.valid_up_to()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let budget = Budget { values: Cell::new(MAX_VALUES), bytes: Cell::new(MAX_STRING_BYTES) };
    // The same guess that kubectl makes: what opens with a brace is JSON, whose parser needs far less memory.
    // A YAML flow mapping opens with one as well, so text that is no JSON gets its second chance below.
    if text.trim_start().starts_with('{') {
        let json = parse_json(text, &budget);
        if json.is_ok() || text.trim_start()[1..].trim_start().starts_with('"') {
            return json;
        }
    }
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Seed(&budget).deserialize(document).map_err(TextError::Yaml)?;
        documents.push(value);
    }
    documents.retain(|value| !value.is_null());
    Ok(documents)
}

fn parse_json(text: &str, budget: &Budget) -> Result<Vec<Value>, TextError> {
    let mut documents = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let mut deserializer = serde_json::Deserializer::from_str(rest);
        let value = Seed(budget).deserialize(&mut deserializer).map_err(TextError::Json)?;
        documents.push(value);
        // The deserializer does not tell how far it read; a stream of one value does, without building it.
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<serde::de::IgnoredAny>();
        stream.next();
        rest = rest[stream.byte_offset()..].trim_start();
        rest = rest.strip_prefix("---").unwrap_or(rest).trim_start();
    }
    Ok(documents)
}

struct Budget {
    values: Cell<usize>,
    bytes: Cell<usize>,
}

impl Budget {
    fn take<E: serde::de::Error>(&self, bytes: usize) -> Result<(), E> {
        let (values, left) = (self.values.get().checked_sub(1), self.bytes.get().checked_sub(bytes));
        match (values, left) {
            (Some(values), Some(left)) => {
                self.values.set(values);
                self.bytes.set(left);
                Ok(())
            }
            _ => Err(E::custom("too large once its aliases are written out")),
        }
    }
}

#[derive(Clone, Copy)]
struct Seed<'b>(&'b Budget);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has too")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.0.take(0)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.0.take(0)?;
        Ok(Value::from(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.0.take(0)?;
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.0.take(0)?;
        serde_json::Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format_args!("{value} is no number that JSON has")))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.0.take(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.0.take(0)?;
        Ok(Value::Null)
    }

    /// A document that holds nothing.
    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.0.take(0)?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.0.take(0)?;
        let mut map = Map::new();
        let mut merged = Vec::new();
        while let Some(key) = access.next_key_seed(Key(self.0))? {
            let value = access.next_value_seed(self)?;
            if key == "<<" {
                merged.push(value);
            } else if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("key {key:?} is already set in this map")));
            } else {
                map.insert(key, value);
            }
        }
        for value in merged {
            merge(&mut map, value).map_err(A::Error::custom)?;
        }
        Ok(Value::Object(map))
    }

    fn visit_enum<A: serde::de::EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(A::Error::custom("a YAML tag of its own kind is not allowed here"))
    }
}

/// YAML's merge key: what the map does not set itself comes from the merged one.
fn merge(map: &mut Map<String, Value>, value: Value) -> Result<(), &'static str> {
    match value {
        Value::Object(other) => {
            for (key, value) in other {
                map.entry(key).or_insert(value);
            }
            Ok(())
        }
        Value::Array(items) => items.into_iter().try_for_each(|item| merge(map, item)),
        _ => Err("\"<<\" merges a map or a list of maps"),
    }
}

/// A key; numbers and booleans become text, as on the way from YAML to JSON everywhere in Kubernetes.
#[derive(Clone, Copy)]
struct Key<'b>(&'b Budget);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = String;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<String, E> {
        self.0.take(value.len())?;
        Ok(value.to_owned())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }
}
