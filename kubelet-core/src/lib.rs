//! Pod management without a kubelet: from pods that should run to containers that do, on any CRI runtime.
//!
//! Until its modules are complete this page names them as they land.

pub mod api;
pub mod clock;
pub mod container_config;
pub mod env;
pub mod events;
pub mod gc;
pub mod hosts;
pub mod image_pull;
pub mod log_rotation;
pub mod objects;
pub mod pod_cgroup;
pub mod qos;
pub mod resolv;
pub mod resources;
pub mod sandbox_config;
pub mod source;
mod sys;
pub mod volume;
pub mod backoff;
mod hook;
mod pod;
mod probe;
mod dispatcher;
mod runtime_watch;
pub mod kubelet;
