//! Deadlines of runtime calls: a runtime that hangs fails the step, never the worker.
//!
//! Every call of a worker goes through [`bounded`]. The bounds are the kubelet's: two minutes, twice that for
//! a sandbox, and the grace period on top for a stop.

use std::future::Future;
use std::time::Duration;

use coracle_cri::{Code, Status};

/// How long the runtime may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For a call that changes something.
    pub call: Duration,
    /// For making a sandbox, which may wait for its network.
    pub sandbox: Duration,
    /// For a call that only looks.
    pub query: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(120),
            sandbox: Duration::from_secs(240),
            query: Duration::from_secs(30),
        }
    }
}

/// Runs a call for at most `limit`; past it the call is dropped and `DeadlineExceeded` returned.
pub(crate) async fn bounded<T>(
    what: &str,
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => {
            Err(Status::deadline_exceeded(format!("the runtime did not answer {what} within {limit:?}")))
        }
    }
}

/// Like `Ok(())` what is gone already.
pub(crate) fn gone_is_fine<T>(answer: Result<T, Status>) -> Result<(), Status> {
    match answer {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(status),
    }
}
