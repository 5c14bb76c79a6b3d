//! Joining a Kubernetes cluster, and staying joined: bootstrap tokens, kubeconfigs, certificates and their renewal.
//!
//! `coracle join` calls [`join`], which obtains credentials and writes them. `coracle run` calls
//! [`Identity::start`], which reads them (or joins first), keeps them renewed, and hands out a
//! [`coracle_cluster::Cluster`] and a serving certificate:
//!
//! ```no_run
//! use coracle_bootstrap::{Identity, IdentityConfig, JoinConfig, Serving, Source, SubjectName};
//! use std::time::Duration;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut join = JoinConfig::new(
//!     "edge-1",
//!     "/var/lib/coracle/pki",
//!     Source::Token {
//!         token: "abcdef.0123456789abcdef".parse()?,
//!         ca_hashes: vec!["sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".parse()?],
//!     },
//! );
//! join.servers = vec!["https://10.0.0.1:6443".parse()?];
//! join.wait = Duration::MAX; // `coracle run` waits for its API server.
//! let (_addresses, addresses) = tokio::sync::watch::channel(vec![SubjectName::parse("edge-1")]);
//! let identity = Identity::start(IdentityConfig { join, serving: Serving::Request, addresses, client_ca_file: None }).await?;
//! let cluster = identity.cluster();
//! # Ok(())
//! # }
//! ```
//!
//! Under the `pki` folder, all of it mode 0600 and replaced as a whole:
//!
//! | file | holds |
//! |---|---|
//! | `kubeconfig` | servers, and where the rest is; written last by a join |
//! | `ca.crt` | the cluster's authorities, unless a kubeconfig named a file of its own |
//! | `kubelet-client.pem` | the client certificate and its key |
//! | `kubelet-server.pem` | the serving certificate and its key, once signed |
//! | `*.pending` | the key of a request that is not answered yet |
//!
//! Invariants: keys and tokens are never printed. A key and its certificate are one file. Wall time decides only what
//! certificates say; every pause is of boot time.

mod client_ca;
mod clock;
mod credentials;
mod csr;
mod der;
mod discovery;
mod error;
mod folder_changes;
mod identity;
mod join;
mod key;
mod kubeconfig;
mod reload;
mod renewal;
mod serving;
mod store;
mod sys;
#[cfg(test)]
mod tests;
mod timer;
mod tls;
mod token;
mod validity;
mod x509;

pub use clock::WallClock;
pub use credentials::CredentialsError;
pub use csr::CsrError;
pub use error::JoinError;
pub use identity::{Identity, IdentityConfig};
pub use join::{JoinConfig, Source, TokenSource, join};
pub use kubeconfig::KubeconfigError;
pub use serving::{Serving, ServingCertificate};
pub use store::StoreError;
pub use tls::TlsError;
pub use token::{CaHash, CaHashError, Token, TokenError};
pub use x509::{Certificate, SubjectName};
