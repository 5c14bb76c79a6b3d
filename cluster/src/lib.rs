//! A small client of Kubernetes API servers, for programs that hold few objects and few fields of them.
//!
//! A program describes what it reads as its own struct, says where that lives ([`Object`]), and gets verbs and
//! [`Cluster::watch`], which never ends and never errs:
//!
//! ```no_run
//! use coracle_cluster::{Access, Change, Cluster, Object, Resource, Scope};
//! use futures_util::StreamExt as _;
//!
//! #[derive(serde::Deserialize)]
//! struct Node {
//!     metadata: Metadata,
//! }
//! #[derive(serde::Deserialize)]
//! struct Metadata {
//!     name: String,
//! }
//! impl Object for Node {
//!     const RESOURCE: Resource = Resource::cluster_wide("", "v1", "nodes", "Node");
//! }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = Cluster::with(Access::plain("http://127.0.0.1:8001".parse()?));
//! let mut nodes = std::pin::pin!(cluster.watch::<Node>(Scope::all()));
//! while let Some(change) = nodes.next().await {
//!     if let Change::Listed(node) | Change::Applied(node) = change {
//!         println!("{}", node.metadata.name);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Credentials and servers come as a `tokio::sync::watch` of [`Access`]: whoever joined the cluster changes it, new
//! connections carry the new credentials, and watches go on from where they were.
//!
//! Concurrency: a [`Cluster`] is a cheap handle on one pool of connections; every connection has a task that ends
//! with its last stream. A watch runs in the task that polls it.

mod access;
mod backoff;
mod client;
mod connect;
mod error;
mod event;
mod gather;
mod items;
mod lines;
mod patience;
mod pool;
mod protobuf;
mod resource;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod watch;

pub use access::{Access, Bearer, Server, ServerError};
pub use backoff::Backoff;
pub use client::{Cluster, DeleteOptions, Patch};
pub use connect::ConnectError;
pub use error::ApiError;
pub use pool::{Connection, TransportError};
pub use resource::{Object, Resource, Scope};
pub use watch::Change;
