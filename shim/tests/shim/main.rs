//! The executable against a real OCI runtime: Debian's runc as maker, busybox as container.
//!
//! Runs as root with `runc` and `/bin/busybox` (Debian's `busybox-static`). Each test has a folder, cgroups and a shim
//! of its own and takes them away at its end, so that tests run side by side.
//!
//! `CORACLE_SHIM_TEST_MAKER="/path/to/coracle oci"` runs them with another maker.
//!
//! What a shim costs in memory, for thirty of them: `cargo run -p coracle-shim --example memory`.
#![allow(clippy::unwrap_used, reason = "in a test's helpers as in the tests")]

mod attach;
mod exec;
mod harness;
mod lifecycle;
mod logs;
mod robustness;
