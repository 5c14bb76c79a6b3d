//! Pod management without a kubelet: from pods that should run to containers that do, on any CRI runtime.
//!
//! Until its modules are complete this page names them as they land.

pub mod api;
pub mod clock;
pub mod events;
