//! Frames and messages between a runtime and a shim, as plain data.
//!
//! `coracle-runtime` and the executable `coracle-shim` both build on this module; it does no I/O and holds nothing,
//! so there is no concurrency rule to keep.
//!
//! The messages are written by field number after containerd's published definitions (`runtime/task/v2/shim.proto`,
//! `types/task/task.proto`, `events/task.proto` of `github.com/containerd/containerd/api` v1.12.0 and
//! `request.proto` of `github.com/containerd/ttrpc` v1.2.9); only what the wire needs is here.
//!
//! ```
//! use coracle_shim::protocol::{Decoder, Request, call, method, task};
//! use prost::Message;
//!
//! // A client's side of one call: the bytes to send on stream 1 …
//! let bytes = call::request::<method::State>(1, &task::StateRequest { id: "c1".into(), exec_id: String::new() }, None);
//! // … and what a server reads out of them.
//! let mut decoder = Decoder::new();
//! decoder.push(&bytes);
//! let frame = decoder.next_frame().expect("well formed").expect("complete");
//! let request = Request::decode(frame.payload.as_slice()).expect("a ttrpc request");
//! assert_eq!((request.service.as_str(), request.method.as_str()), ("containerd.task.v2.Task", "State"));
//! ```

pub mod bootstrap;
pub mod call;
pub mod events;
pub mod frame;
pub mod method;
pub mod metrics;
pub mod rpc;
pub mod shim;
pub mod task;
pub mod well_known;

pub use frame::{Decoder, Frame, FrameError, Header, Kind};
pub use method::Method;
pub use rpc::{Code, KeyValue, Request, Response, Status};
pub use well_known::{Any, Empty, Timestamp};

/// Version of what is ours in the protocol: the service [`shim`], the `cri://` log address, the exit record.
///
/// It grows when a newer runtime must treat an older shim otherwise; a release adopts the running shims of the last.
pub const PROTOCOL_VERSION: u32 = 1;

/// Scheme of a `stdout` or `stderr` address for which the shim writes a CRI log: `cri:///var/log/pods/…/0.log`.
///
/// What follows the scheme is the absolute path as it is, without percent-encoding. An address without a scheme is
/// the path of a named pipe.
pub const CRI_LOG_SCHEME: &str = "cri://";

/// Name of the record that the shim writes into a container's bundle when its first process has ended:
/// `{"version":1,"exit_status":N,"exited_at_unix_ns":N,"oom":bool}`, there whole or not at all.
pub const EXIT_RECORD: &str = "exit.json";
