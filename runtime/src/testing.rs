//! What tests and benches of images need and no product does: hostile tars, small images, a registry with faults.
//! Behind the feature `testing`.

mod image;
mod registry;
mod tarball;

pub use crate::image::parsers;
pub use image::{LayerCompression, TestImage};
pub use registry::{Fault, Registry, RegistryOptions, Request};
pub use tarball::{Member, Tarball};
