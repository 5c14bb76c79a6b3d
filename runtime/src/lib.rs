//! An embedded Kubernetes container runtime: images, sandboxes and containers behind the CRI traits.
//!
//! [`Runtime`] implements [`coracle_cri::RuntimeService`] and [`coracle_cri::ImageService`] in process. A program
//! that embeds it calls [`run_helper`] first thing in `main`, because two of the runtime's process kinds, the
//! maker (`oci`) and the image worker (`image-worker`), are fresh executions of the same binary.

mod cgroup;
mod cni;
mod config;
mod container;
mod event;
mod helper;
pub mod image;
mod log_losses;
pub mod maker;
pub mod memory;
mod netns;
mod record;
mod sandbox;
mod service;
mod service_error;
mod shim_client;
pub mod spec;
mod stats;
mod streaming;
mod sys;
#[cfg(feature = "testing")]
pub mod testing;

pub use cgroup::CgroupError;
pub use config::{
    BridgeNetwork, CgroupDriver, CniConfig, Config, ForeignShim, Handler, HandlerError, HandlerKind, Maker,
};
pub use helper::run_helper;
pub use log_losses::LogLoss;
pub use record::RecordError;
pub use service::{Recorded, Runtime, StartError, read_records};
