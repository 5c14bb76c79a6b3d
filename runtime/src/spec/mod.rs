//! CRI configurations to OCI runtime specs.

pub mod capabilities;
pub mod signal;
pub mod user;
