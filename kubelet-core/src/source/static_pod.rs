//! A pod of a file becomes a static pod of this node: its name, UID, annotations and tolerations.
//!
//! Called by the manifest folder between defaulting and validation; pure. The rules are those of a kubelet
//! (`pkg/kubelet/config/common.go`) with two differences, both for the sake of pods that run on:
//! the UID depends on the content alone, so that a file may be renamed, reformatted or commented without a
//! restart, and it has the form of a UUID; a UID that the file gives itself is not used, because two files
//! may give the same one.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::api::{Pod, PodStatus, Toleration};

/// Where a static pod runs and when it was seen.
#[derive(Clone, Debug)]
pub struct StaticPodContext<'a> {
    /// Name of this node.
    pub node_name: &'a str,
    /// Wall time in nanoseconds since the epoch, for `kubernetes.io/config.seen`.
    pub seen_unix_nanos: i64,
}

/// What a pod's UID is made from: its content without formatting, order of keys, nulls and status.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash(u128);

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({:032x})", self.0)
    }
}

/// FNV-1a with 128 bits, the hash a kubelet uses here. Whoever can write a manifest may already run anything
/// on the node, so nothing is gained by a collision.
struct Fnv(u128);

impl Fnv {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(Self::PRIME);
        }
    }

    /// Every value is written with its type and length, so that no two values write the same bytes.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.write(b"n"),
            Value::Bool(value) => self.write(if *value { b"t" } else { b"f" }),
            Value::Number(number) => self.text(b"#", &number.to_string()),
            Value::String(text) => self.text(b"s", text),
            Value::Array(items) => {
                self.text(b"[", &items.len().to_string());
                items.iter().for_each(|item| self.value(item));
            }
            Value::Object(map) => {
                self.text(b"{", &map.len().to_string());
                let mut members: Vec<_> = map.iter().collect();
                members.sort_unstable_by_key(|(key, _)| *key);
                for (key, value) in members {
                    self.text(b"k", key);
                    self.value(value);
                }
            }
        }
    }

    fn text(&mut self, tag: &[u8], text: &str) {
        self.write(tag);
        self.write(&(text.len() as u64).to_le_bytes());
        self.write(text.as_bytes());
    }
}

impl ContentHash {
    /// Hash of a decoded document.
    pub fn of(value: &Value) -> Self {
        let mut hash = Fnv(Fnv::OFFSET);
        hash.value(value);
        Self(hash.0)
    }

    /// The UID that content has on a node: a UUID of version 8, whose bits are the maker's own.
    pub fn uid(self, node_name: &str) -> Arc<str> {
        let mut hash = Fnv(self.0);
        hash.text(b"host", node_name);
        let bits = hash.0;
        let bits = bits & !(0xf << 76) | (0x8 << 76);
        let bits = bits & !(0x3 << 62) | (0x2 << 62);
        let hex = format!("{bits:032x}");
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        Arc::from(parts.join("-"))
    }
}

/// Makes a pod of a file this node's own.
pub fn make_static(pod: &mut Pod, hash: ContentHash, context: &StaticPodContext<'_>) {
    let uid = hash.uid(context.node_name);
    // A pod without a name stays without one, so that validation says so.
    if !pod.metadata.name.is_empty() {
        pod.metadata.name = format!("{}-{}", pod.metadata.name, context.node_name.to_lowercase());
    }
    if pod.metadata.namespace.is_empty() {
        "default".clone_into(&mut pod.metadata.namespace);
    }
    // What an API server made of the object elsewhere does not hold here.
    pod.metadata.resource_version.clear();
    pod.metadata.generation = None;
    pod.metadata.creation_timestamp = None;
    pod.metadata.deletion_timestamp = None;
    pod.metadata.deletion_grace_period_seconds = None;
    pod.metadata.managed_fields.clear();
    for (key, value) in [
        ("kubernetes.io/config.hash", uid.to_string()),
        ("kubernetes.io/config.source", "file".to_owned()),
        ("kubernetes.io/config.seen", seen(context.seen_unix_nanos)),
    ] {
        pod.metadata.annotations.insert(key.to_owned(), value);
    }
    pod.metadata.uid = uid;
    context.node_name.clone_into(&mut pod.spec.node_name);
    let tolerate_all =
        Toleration { operator: "Exists".into(), effect: "NoExecute".into(), ..Toleration::default() };
    if !pod.spec.tolerations.contains(&tolerate_all) {
        pod.spec.tolerations.push(tolerate_all);
    }
    pod.status = PodStatus { phase: "Pending".into(), ..PodStatus::default() };
}

fn seen(unix_nanos: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(unix_nanos)).map(|t| t.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> StaticPodContext<'static> {
        StaticPodContext { node_name: "Gateway-7", seen_unix_nanos: 1_700_000_000_123_000_000 }
    }

    #[test]
    fn a_static_pod_is_named_for_its_node() {
        let mut pod = Pod::default();
        pod.metadata.name = "web".into();
        pod.metadata.uid = "given".into();
        let hash = ContentHash::of(&Value::Null);
        make_static(&mut pod, hash, &context());
        assert_eq!(pod.metadata.name, "web-gateway-7");
        assert_eq!(pod.metadata.namespace, "default");
        assert_eq!(pod.spec.node_name, "Gateway-7");
        assert_eq!(pod.metadata.uid, hash.uid("Gateway-7"));
        assert_eq!(pod.metadata.annotations["kubernetes.io/config.hash"], *pod.metadata.uid);
        assert_eq!(pod.metadata.annotations["kubernetes.io/config.source"], "file");
        assert_eq!(pod.metadata.annotations["kubernetes.io/config.seen"], "2023-11-14T22:13:20.123Z");
        assert_eq!(pod.spec.tolerations.len(), 1);
        assert_eq!(pod.status.phase, "Pending");
    }

    #[test]
    fn a_uid_is_a_uuid_that_follows_the_content_and_the_node() {
        let value: Value = serde_json::json!({"a": [1, "x"], "b": null});
        let other: Value = serde_json::json!({"b": null, "a": [1, "x"]});
        let uid = ContentHash::of(&value).uid("n");
        assert_eq!(uid, ContentHash::of(&other).uid("n"), "the order of keys does not count");
        assert_ne!(uid, ContentHash::of(&value).uid("m"));
        assert_ne!(uid, ContentHash::of(&serde_json::json!({"a": [1, "y"], "b": null})).uid("n"));
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'8');
        assert!(b"89ab".contains(&uid.as_bytes()[19]));
        // A change of this value restarts every static pod on an update: it must not change unnoticed.
        assert_eq!(&*uid, "5de953d6-24af-86e2-9d0e-06ab0fa2d3ae");
    }
}
