//! `kubectl exec`, `attach` and `port-forward` on the wire, from either side.
//!
//! - [`spdy`] and [`websocket`]: codecs without I/O. Bytes in, frames out; bounded; never a panic.
//! - [`channel`]: what is said over them: protocol versions, exit codes, terminal sizes, forwarded ports. Pure.
//! - [`server`] and [`client`]: the headers of a request and its answer (pure), then streams over any upgraded
//!   connection that tokio can read and write.
//!
//! ```
//! use coracle_streaming::channel::{ExecOptions, Outcome, Version};
//! use coracle_streaming::server::{ExecProtocol, Timeouts};
//! use coracle_streaming::{client, server};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (near, far) = tokio::io::duplex(1024); // Two ends of an upgraded connection.
//! let options = ExecOptions { stdout: true, ..ExecOptions::default() };
//! let protocol = ExecProtocol::Spdy(Version::V4);
//!
//! let command = async {
//!     let mut session = server::exec(near, protocol, options, &Timeouts::default()).await?;
//!     let mut stdout = session.stdout.take().ok_or("stdout was asked for")?;
//!     stdout.write_all(b"hello").await?;
//!     stdout.shutdown().await?;
//!     session.exit.finish(&Outcome::Exited(3)).await?;
//!     Ok::<_, Box<dyn std::error::Error>>(())
//! };
//! let caller = async {
//!     let mut exec = client::exec(far, protocol, options).await?;
//!     let mut said = String::new();
//!     exec.stdout.take().ok_or("stdout was asked for")?.read_to_string(&mut said).await?;
//!     Ok::<_, Box<dyn std::error::Error>>((said, exec.exit.wait().await?))
//! };
//! let (ran, heard) = tokio::join!(command, caller);
//! ran?;
//! assert_eq!(heard?, ("hello".to_owned(), Outcome::Exited(3)));
//! # Ok(())
//! # }
//! ```
//!
//! [`relay`] stands between peers of different protocols. Between peers of one nothing is needed but copying bytes
//! after the upgrade.

pub mod channel;
pub mod client;
mod mux;
pub mod relay;
pub mod server;
pub mod spdy;
#[cfg(test)]
mod tests;
pub mod websocket;

pub use mux::{INBOX_LIMIT, OUT_LIMIT, Stream};
