//! The Kubernetes Container Runtime Interface, version 1, in Rust.
//!
//! [`v1`] holds the messages, [`RuntimeService`] and [`ImageService`] the calls as object-safe traits.

#[cfg(any(feature = "client", feature = "server"))]
mod calls;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
mod deadline;
mod redact;
#[cfg(feature = "server")]
pub mod server;
mod service;
#[cfg(feature = "testing")]
pub mod testing;

/// The messages of `runtime.v1`, and the gRPC client and server stubs that tonic makes of its services.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

#[cfg(feature = "client")]
pub use deadline::Deadlines;
pub use service::{ImageService, RuntimeService, Stream};
pub use tonic::{Code, Status};

/// The largest message either side takes: 16 MiB, as the kubelet and containerd have it.
#[cfg(any(feature = "client", feature = "server"))]
pub const MAX_MESSAGE: usize = 16 << 20;
