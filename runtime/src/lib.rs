//! An embedded Kubernetes container runtime: images, sandboxes and containers behind the CRI traits.
//!
//! [`Runtime`] implements [`coracle_cri::RuntimeService`] and [`coracle_cri::ImageService`] in process. A program
//! that embeds it calls [`run_helper`] first thing in `main`, because two of the runtime's process kinds, the
//! maker (`oci`) and the image worker (`image-worker`), are fresh executions of the same binary.

mod helper;
pub mod image;
pub mod maker;
pub mod spec;

pub use helper::run_helper;
