//! Why a node could not join: every variant says what to do.

use std::path::PathBuf;

use coracle_cluster::ApiError;

use crate::credentials::CredentialsError;
use crate::csr::CsrError;
use crate::kubeconfig::KubeconfigError;
use crate::store::StoreError;
use crate::tls::TlsError;
use crate::token::TokenError;

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No server was named.
    #[error("no server was given: say --server https://HOST:6443")]
    NoServer,
    /// A token without a pin proves nothing.
    #[error(
        "no hash of the cluster's certificate authority was given: say --ca-cert-hash sha256:…, as `kubeadm token create --print-join-command` prints it"
    )]
    NoHash,
    /// There are no credentials and nothing to get some with.
    #[error(
        "this node has joined no cluster ({} does not exist): run `coracle join`, or give --server with --token-file, --bootstrap-kubeconfig or --kubeconfig", path.display()
    )]
    NotJoined {
        /// Where credentials would be.
        path: PathBuf,
    },
    /// What answers is something else.
    #[error("{server} answers, but not as a Kubernetes API server does: check host and port (mostly 6443)")]
    NotApiServer {
        /// The server.
        server: String,
    },
    /// The cluster does not offer joining by token.
    #[error(
        "{server} has no ConfigMap kube-public/cluster-info with a kubeconfig: this cluster does not offer joining by token; use --bootstrap-kubeconfig"
    )]
    NoClusterInfo {
        /// The server.
        server: String,
    },
    /// Nobody may look without credentials.
    #[error(
        "{server} lets nobody read kube-public/cluster-info without credentials, which joining by token needs; use --bootstrap-kubeconfig"
    )]
    Anonymous {
        /// The server.
        server: String,
    },
    /// No signature by this token.
    #[error(
        "the token {id} is not known to {server}: it has expired, or is of another cluster; make a new one with `kubeadm token create --print-join-command`"
    )]
    UnknownToken {
        /// The token's public half.
        id: String,
        /// The server.
        server: String,
    },
    /// The signature is by another secret.
    #[error(
        "the second half of token {id} is wrong, or the server is not of the cluster that made it: check the token and --server"
    )]
    Signature {
        /// The token's public half.
        id: String,
    },
    /// There is nobody to trust.
    #[error(
        "kube-public/cluster-info holds no certificate-authority-data: this cluster cannot be joined by token"
    )]
    NoAuthority,
    /// The pin is of another authority.
    #[error(
        "the certificate authority of {server} is {found}, not {wanted}: check --ca-cert-hash, and that --server is the right cluster"
    )]
    Pin {
        /// The server.
        server: String,
        /// Pins of what it said.
        found: String,
        /// The pins given.
        wanted: String,
    },
    /// It said one thing to strangers and another to friends.
    #[error("{server} changed kube-public/cluster-info between two reads: try again")]
    Changed {
        /// The server.
        server: String,
    },
    /// The credentials for joining are unknown.
    #[error(
        "the API server does not know the credentials for joining: the token has expired; make a new one with `kubeadm token create --print-join-command`"
    )]
    Unauthorized(#[source] ApiError),
    /// The credentials for joining do not suffice.
    #[error(
        "the credentials for joining may not request certificates: bind their group to the ClusterRole system:node-bootstrapper (kubeadm does so for its tokens)"
    )]
    Forbidden(#[source] ApiError),
    /// Another machine has the name.
    #[error(
        "a node {name:?} is in the cluster and Ready: give this one another name (--hostname-override), or, if it is this machine, `kubectl delete node {name}` first"
    )]
    NameTaken {
        /// The node's name.
        name: String,
    },
    /// The clock is wrong.
    #[error("the clock says {now}, the API server's {server}: set the clock (NTP), then join again")]
    Clock {
        /// Our clock.
        now: String,
        /// Its clock.
        server: String,
    },
    /// Nobody approved in time.
    #[error("nobody has approved the certificate request within {seconds} s: kubectl get csr")]
    NotApproved {
        /// How long was waited.
        seconds: u64,
    },
    /// The request for a certificate failed.
    #[error(transparent)]
    Csr(CsrError),
    /// The API server did not answer, or not as wanted.
    #[error("cannot join")]
    Api(#[source] ApiError),
    /// The kubeconfig.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// Credentials that were given or held.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The file with the token.
    #[error("cannot read the bootstrap token of {origin}")]
    TokenFile {
        /// The file.
        origin: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What stands in it.
    #[error("{origin} holds no bootstrap token")]
    Token {
        /// The file.
        origin: String,
        /// Why.
        #[source]
        source: TokenError,
    },
    /// Certificates and keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<CsrError> for JoinError {
    fn from(error: CsrError) -> Self {
        match error {
            CsrError::Api(error) if error.is_unauthorized() => Self::Unauthorized(error),
            CsrError::Api(error) if error.is_forbidden() => Self::Forbidden(error),
            error => Self::Csr(error),
        }
    }
}
