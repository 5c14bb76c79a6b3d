//! Wall time as the Kubernetes API writes it: RFC 3339 in UTC with whole seconds.

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

/// Seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub i64);

/// The text is not an RFC 3339 time.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not an RFC 3339 time such as 2026-01-31T12:00:00Z")]
pub struct ParseTimeError {
    text: String,
    #[source]
    source: jiff::Error,
}

impl Time {
    /// From nanoseconds since the epoch, as CRI counts; zero and less mean "not set".
    pub fn from_unix_nanos(nanos: i64) -> Option<Self> {
        (nanos > 0).then_some(Self(nanos / 1_000_000_000))
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_second(self.0) {
            Ok(timestamp) => write!(f, "{timestamp}"),
            Err(_) => f.write_str("0001-01-01T00:00:00Z"),
        }
    }
}

impl std::str::FromStr for Time {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        let timestamp: jiff::Timestamp =
            text.parse().map_err(|source| ParseTimeError { text: text.to_owned(), source })?;
        Ok(Self(timestamp.as_second()))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
