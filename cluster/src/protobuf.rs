//! The little of Kubernetes' protobuf form that is read here: the version of an object and the words of a refusal.
//!
//! An object in it takes half the bytes of its JSON, which counts where the same answer comes every ten seconds. The
//! form: four magic bytes, then a `runtime.Unknown` around the message of the kind (apimachinery's
//! `pkg/runtime/serializer/protobuf`, `generated.proto` of `pkg/runtime` and of `pkg/apis/meta/v1`).

use kube::core::Status;
use kube::core::response::StatusDetails;
use prost::Message as _;

/// What an answer in this form begins with.
const MAGIC: &[u8] = b"k8s\0";

/// What is sent to have it, and JSON from a server without it.
pub(crate) const ACCEPT: &str = "application/vnd.kubernetes.protobuf,application/json";

#[derive(prost::Message)]
struct Unknown {
    #[prost(bytes = "bytes", tag = "2")]
    raw: bytes::Bytes,
}

/// Any object: its metadata comes first in every kind.
#[derive(prost::Message)]
struct AnyObject {
    #[prost(message, tag = "1")]
    metadata: Option<Metadata>,
}

#[derive(prost::Message)]
struct Metadata {
    #[prost(string, tag = "6")]
    resource_version: String,
}

#[derive(prost::Message)]
struct Refusal {
    #[prost(string, tag = "3")]
    message: String,
    #[prost(string, tag = "4")]
    reason: String,
    #[prost(message, tag = "5")]
    details: Option<Details>,
}

#[derive(prost::Message)]
struct Details {
    #[prost(uint32, tag = "5")]
    retry_after_seconds: u32,
}

/// The message inside, if the answer has this form.
fn message(answer: &[u8]) -> Option<bytes::Bytes> {
    Unknown::decode(answer.strip_prefix(MAGIC)?).ok().map(|unknown| unknown.raw)
}

/// The version of the object that this answer is, if it has this form.
pub(crate) fn resource_version(answer: &[u8]) -> Option<String> {
    let object = AnyObject::decode(message(answer)?).ok()?;
    object.metadata.map(|metadata| metadata.resource_version)
}

/// The refusal that this answer is, if it has this form.
pub(crate) fn status(answer: &[u8]) -> Option<Status> {
    let refusal = Refusal::decode(message(answer)?).ok()?;
    let mut status = Status { message: refusal.message, reason: refusal.reason, ..Status::default() };
    if let Some(details) = refusal.details {
        status.details = Some(StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: details.retry_after_seconds,
        });
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a 1.36 server answered for a lease, and for one that it did not have.
    const LEASE: &[u8] =
        b"k8s\0\x0a\x1f\x0a\x16coordination.k8s.io/v1\x12\x05Lease\x12\xab\x01\x0a\x8e\x01\x0a\x06node-0\
        \x12\0\x1a\x0fkube-node-lease\"\0*$af9e0aba-052e-4271-b49a-b08164029e1f2\x032908\0B\x08\x08\x8b\
        \x84\x89\xd8\x06\x10\0j8\x0a\x04Node\x1a\x06node-0\"$60efd543-a16b-4c50-92b6-001c7c82b776*\x02v1\
        \x12\x18\x0a\x06node-0\x10(\"\x0c\x08\x95\x84\x89\xd8\x06\x10\x88\xeb\xf7\xac\x02\x1a\0\"\0";
    const REFUSAL: &[u8] =
        b"k8s\0\x0a\x0c\x0a\x02v1\x12\x06Status\x12t\x0a\x06\x0a\0\x12\0\x1a\0\x12\x07Failure\x1a+leases.c\
        oordination.k8s.io \"gone\" not found\"\x08NotFound*'\x0a\x04gone\x12\x13coordination.k8s.io\x1a\
        \x06leases(\x002\x000\x94\x03\x1a\0\"\0";

    #[test]
    fn what_an_api_server_writes_is_read() {
        assert_eq!(resource_version(LEASE).as_deref(), Some("290"));
        let status = status(REFUSAL).unwrap();
        let message = "leases.coordination.k8s.io \"gone\" not found";
        assert_eq!((status.message.as_str(), status.reason.as_str()), (message, "NotFound"));
    }

    #[test]
    fn what_has_another_form_is_left_to_others() {
        for answer in [&b"{}"[..], b"", b"k8s", b"k8s\0\xff"] {
            assert_eq!(resource_version(answer), None);
            assert!(status(answer).is_none());
        }
        for length in 0..LEASE.len() {
            let _ = resource_version(&LEASE[..length]);
        }
    }
}
