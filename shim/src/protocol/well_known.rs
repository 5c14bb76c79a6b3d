//! The few of Google's well-known messages that the Task API uses. Plain data for both sides of the protocol.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `google.protobuf.Any`: a message of a type that is named beside it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Any {
    /// Name of the type. containerd's are bare names or `types.containerd.io/…` addresses.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message as its type encodes it; for containerd's OCI types that is JSON.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

impl Any {
    /// An OCI process (the JSON of `process` in config.json), as the `spec` of an exec.
    pub fn oci_process(json: Vec<u8>) -> Self {
        Self { type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(), value: json }
    }

    /// OCI resources (the JSON of `linux.resources` in config.json), as the `resources` of an update.
    pub fn linux_resources(json: Vec<u8>) -> Self {
        Self {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: json,
        }
    }
}

/// `google.protobuf.Timestamp`: UTC.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Timestamp {
    /// Seconds since 1970.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds within the second, never negative.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    /// From nanoseconds since 1970.
    pub fn from_unix_ns(ns: i64) -> Self {
        let nanos = i32::try_from(ns.rem_euclid(1_000_000_000)).expect("a remainder below 10^9 fits");
        Self { seconds: ns.div_euclid(1_000_000_000), nanos }
    }

    /// Nanoseconds since 1970, saturating where 64 bits do not hold them.
    pub fn unix_ns(&self) -> i64 {
        self.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nanos))
    }

    /// As the standard library's time; times before 1970 become 1970.
    pub fn to_system_time(&self) -> SystemTime {
        let seconds = u64::try_from(self.seconds).unwrap_or(0);
        UNIX_EPOCH + Duration::new(seconds, u32::try_from(self.nanos).unwrap_or(0).min(999_999_999))
    }
}

/// `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}
