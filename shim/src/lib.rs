//! The protocol that `coracle-shim` speaks: ttrpc frames and the messages of containerd's Task API v2.
//!
//! The shim's executable serves it, `coracle-runtime` calls it. The library does no I/O and keeps no state, so it
//! fits a blocking client, an async one and the shim's own poll loop alike. It promises nothing about threads because
//! every type is plain data.

pub mod protocol;
