//! `kubectl exec`, `attach` and `port-forward` on the wire, from either side.
//!
//! - [`spdy`] and [`websocket`]: codecs without I/O. Bytes in, frames out; bounded; never a panic.
//! - [`channel`]: what is said over them: protocol versions, exit codes, terminal sizes, forwarded ports. Pure.
//! - [`server`] and [`client`]: the headers of a request and its answer (pure), then streams over any upgraded
//!   connection that tokio can read and write.
//!
//! Who relays between two peers that speak the same protocol needs none of this: after the upgrade it copies bytes.

pub mod channel;
pub mod client;
mod mux;
pub mod server;
pub mod spdy;
#[cfg(test)]
mod tests;
pub mod websocket;

pub use mux::{INBOX_LIMIT, OUT_LIMIT, Stream};
