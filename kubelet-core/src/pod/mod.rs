//! One pod from desired to gone: observe, plan, execute, report.
//!
//! The dispatcher runs one [`worker`] task per pod UID. The worker alone owns what is known of the pod:
//! each wake it observes the runtime, computes status and plan (both pure) and carries the plan out. An
//! event is only a reason to look again.
//!
//! ```text
//!            desired                         phase terminal, deadline,
//!   Syncing ────────► (observe, plan, act) ─────────────────────────► Terminating ──► Terminated
//!      │                                      deleted or removed          ▲               │ removed
//!      └──────────────────────────────────────────────────────────────────┘               ▼
//!                                                                                        gone
//! ```

pub(crate) mod edges;
pub(crate) mod execute;
pub(crate) mod kill;
pub(crate) mod labels;
pub(crate) mod observation;
pub(crate) mod observe;
pub(crate) mod plan;
pub(crate) mod resize;
pub(crate) mod restart;
pub(crate) mod rpc;
pub(crate) mod sandbox;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod termination;
pub(crate) mod worker;
