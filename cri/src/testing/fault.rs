//! Faults that a test injects into calls of the fake.
//!
//! Built by tests, consumed by the fake before and after it acts; plain data, no I/O.

use std::time::Duration;

use tonic::Status;

use super::calls::Method;

/// A fault for the calls of one method, built with one of the constructors and narrowed by
/// [`on`](Fault::on) and [`times`](Fault::times).
///
/// ```
/// use coracle_cri::testing::{Fault, Method};
/// use coracle_cri::Status;
///
/// // The first two pulls of this image meet a registry that is not there.
/// let fault = Fault::fail(Method::PullImage, Status::unavailable("connection refused")).on("nginx").times(2);
/// # let _ = fault;
/// ```
#[derive(Debug, Clone)]
pub struct Fault {
    pub(super) method: Method,
    pub(super) subject: Option<String>,
    pub(super) left: Option<u32>,
    pub(super) kind: Kind,
}

/// What a fault does to a call.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Fail(Status),
    LoseResponse(Status),
    Delay(Duration),
    Hang,
}

impl Fault {
    fn new(method: Method, kind: Kind) -> Self {
        Fault { method, subject: None, left: None, kind }
    }

    /// The call fails and has no effect.
    pub fn fail(method: Method, status: Status) -> Self {
        Self::new(method, Kind::Fail(status))
    }

    /// The call takes effect, and its caller is told `status` all the same, as when a connection breaks.
    pub fn lose_response(method: Method, status: Status) -> Self {
        Self::new(method, Kind::LoseResponse(status))
    }

    /// The call takes effect after `delay` of tokio's clock.
    pub fn delay(method: Method, delay: Duration) -> Self {
        Self::new(method, Kind::Delay(delay))
    }

    /// The call waits until [`FakeRuntime::release`](super::FakeRuntime::release), then goes on.
    pub fn hang(method: Method) -> Self {
        Self::new(method, Kind::Hang)
    }

    /// Only calls whose ID or name (pod, container, `pod/container` or image reference) is `subject`.
    #[must_use]
    pub fn on(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Only the next `times` calls; without it every call until
    /// [`clear_faults`](super::FakeRuntime::clear_faults).
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.left = Some(times);
        self
    }

    /// Whether the fault applies to a call, whose subject goes by any of `names`; counts the use.
    pub(super) fn take(&mut self, method: Method, names: &[&str]) -> Option<Kind> {
        if self.method != method || self.left == Some(0) {
            return None;
        }
        if self.subject.as_deref().is_some_and(|subject| !names.contains(&subject)) {
            return None;
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        Some(self.kind.clone())
    }
}
