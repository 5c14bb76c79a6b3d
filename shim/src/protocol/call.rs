//! One unary call, typed: the bytes of a request, the answer out of a response. For clients; no I/O.

use prost::Message;

use super::method::TASK_SERVICE;
use super::{Code, KeyValue, Kind, Method, Request, Response, Status, frame};

/// Who is called, where that is not a shim of ours: which version of the Task API it speaks, and in which of
/// containerd's namespaces its containers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// [`TASK_SERVICE`] or [`TASK_SERVICE_V3`](super::method::TASK_SERVICE_V3).
    pub task_service: &'static str,
    /// The namespace, which containerd's shims ask for.
    pub namespace: String,
}

/// As [`request`], to another's shim.
pub fn request_to<M: Method>(
    peer: &Peer,
    stream_id: u32,
    message: &M::Request,
    timeout_ns: Option<i64>,
) -> Vec<u8> {
    let service = if M::SERVICE == TASK_SERVICE { peer.task_service } else { M::SERVICE };
    let request = Request {
        service: service.into(),
        method: M::NAME.into(),
        payload: message.encode_to_vec(),
        timeout_nano: timeout_ns.unwrap_or(0),
        metadata: vec![KeyValue { key: NAMESPACE_HEADER.into(), value: peer.namespace.clone() }],
    };
    frame::encode(Kind::Request, stream_id, &request)
}

/// The header that names containerd's namespace.
pub const NAMESPACE_HEADER: &str = "containerd-namespace-ttrpc";

/// The frame that calls `M` on a stream of the caller's choice (odd, growing per connection).
///
/// `timeout_ns` bounds the maker that the call may start; `None` is without bound.
pub fn request<M: Method>(stream_id: u32, message: &M::Request, timeout_ns: Option<i64>) -> Vec<u8> {
    let request = Request {
        service: M::SERVICE.into(),
        method: M::NAME.into(),
        payload: message.encode_to_vec(),
        timeout_nano: timeout_ns.unwrap_or(0),
        metadata: Vec::new(),
    };
    frame::encode(Kind::Request, stream_id, &request)
}

/// The answer of `M` out of a response frame's payload.
///
/// # Errors
/// The status that the shim answered, or [`Code::Internal`] when the payload is not such an answer.
pub fn response<M: Method>(payload: &[u8]) -> Result<M::Response, Status> {
    let garbled = |error: prost::DecodeError| {
        Status::new(Code::Internal, format!("answer to {} is not understood: {error}", M::NAME))
    };
    let response = Response::decode(payload).map_err(garbled)?;
    match response.status {
        Some(status) if status.code != Code::Ok as i32 => Err(status),
        _ => M::Response::decode(response.payload.as_slice()).map_err(garbled),
    }
}
