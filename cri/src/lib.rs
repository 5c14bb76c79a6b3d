//! The Kubernetes Container Runtime Interface, version 1, in Rust.
//!
//! [`v1`] holds the messages, [`RuntimeService`] and [`ImageService`] the calls as object-safe traits.

mod redact;
mod service;
#[cfg(feature = "testing")]
pub mod testing;

/// The messages of `runtime.v1`, and the gRPC client and server stubs that tonic makes of its services.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

pub use service::{ImageService, RuntimeService, Stream};
pub use tonic::{Code, Status};
