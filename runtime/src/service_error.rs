//! Why a call of the runtime service failed, and what gRPC code tells it.

use std::io;
use std::path::PathBuf;

use coracle_cri::{Code, Status};

use crate::cgroup::CgroupError;
use crate::cni::CniError;
use crate::netns::NamespaceError;
use crate::record::RecordError;
use crate::shim_client::ShimError;

/// A call of the runtime service failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    #[error("sandbox {id} does not exist")]
    NoSandbox { id: String },
    #[error("container {id} does not exist")]
    NoContainer { id: String },
    #[error("the request lacks {field}")]
    Missing { field: &'static str },
    #[error("{what}")]
    Invalid { what: String },
    #[error("name {name:?} is reserved for {id:?}")]
    NameTaken { name: String, id: String },
    #[error("sandbox {id} is not ready")]
    SandboxNotReady { id: String },
    #[error("container {id} is {state}, not {wanted}")]
    WrongState { id: String, state: &'static str, wanted: &'static str },
    #[error("image {name:?} is not here; pull it first")]
    NoImage { name: String },
    #[error("image {name:?}")]
    Image {
        name: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("container specification")]
    Spec(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{act} {path}")]
    File {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("start shim {path}")]
    ShimStart {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("shim {path} did not come up: {problem}")]
    ShimSilent { path: PathBuf, problem: String },
    #[error("container {id}: its processes did not end in {seconds} s after SIGKILL")]
    Unkillable { id: String, seconds: u64 },
    #[error("command {command:?} timed out: no end in {seconds} s")]
    ExecTimeout { command: String, seconds: u64 },
    #[error("start the streaming server on 127.0.0.1")]
    StreamingServer {
        #[source]
        source: io::Error,
    },
    #[error("maximum number of in-flight streaming requests exceeded")]
    TooManyStreams,
    #[error("sandbox {id}: no connection to {problem}")]
    NoConnection { id: String, problem: String },
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Cni(#[from] CniError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Shim(#[from] ShimError),
    #[error("{}", .0.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; "))]
    Several(Vec<ServiceError>),
    #[error("the task of the call panicked")]
    Panicked,
    #[error("the runtime is shutting down")]
    Closing,
}

impl ServiceError {
    /// All errors of a teardown as one result.
    pub(crate) fn all(mut errors: Vec<ServiceError>) -> Result<(), ServiceError> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(ServiceError::Several(errors)),
        }
    }

    /// Makes an error of a file system act.
    pub(crate) fn file(
        act: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> ServiceError {
        let path = path.into();
        move |source| ServiceError::File { act, path, source }
    }

    fn code(&self) -> Code {
        match self {
            ServiceError::NoSandbox { .. }
            | ServiceError::NoContainer { .. }
            | ServiceError::NoImage { .. } => Code::NotFound,
            ServiceError::Missing { .. } | ServiceError::Invalid { .. } => Code::InvalidArgument,
            ServiceError::NameTaken { .. } => Code::AlreadyExists,
            ServiceError::SandboxNotReady { .. } | ServiceError::WrongState { .. } => {
                Code::FailedPrecondition
            }
            ServiceError::ExecTimeout { .. } => Code::DeadlineExceeded,
            ServiceError::Shim(ShimError::Deadline { .. }) | ServiceError::Cni(CniError::Deadline { .. }) => {
                Code::DeadlineExceeded
            }
            ServiceError::TooManyStreams => Code::ResourceExhausted,
            ServiceError::Closing => Code::Unavailable,
            ServiceError::Panicked => Code::Internal,
            _ => Code::Unknown,
        }
    }
}

/// An error with all its causes on one line, for people.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Status {
        // What an image or a request holds is quoted, and may be long.
        coracle_cri::bounded(Status::new(error.code(), chain(&error)))
    }
}
