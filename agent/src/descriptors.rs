//! The bound on open file descriptors: raised at the start of what serves, because each stream takes several. Children
//! get the former one back, since old programs of containers do work for each number that a descriptor may have.
//!
//! Set once, before any child is started, and only read afterwards.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

static FORMER: OnceLock<u64> = OnceLock::new();

/// Raises the soft limit to the hard one.
pub(crate) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let Some(soft) = limit.current.filter(|soft| limit.maximum.is_none_or(|hard| *soft < hard)) else {
        return;
    };
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => drop(FORMER.set(soft)),
        Err(error) => {
            tracing::warn!(%error, soft, "the limit of open files stays; fewer streams are served at once")
        }
    }
}

/// The soft limit that children are to have; none where it was not changed.
pub(crate) fn former() -> Option<u64> {
    FORMER.get().copied()
}
