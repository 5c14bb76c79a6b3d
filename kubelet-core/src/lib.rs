//! Pod management without a kubelet: from pods that should run to containers that do, on any CRI runtime.
//!
//! A program starts one [`kubelet::Kubelet`] on a [`coracle_cri::RuntimeService`] and feeds it with pods, mostly
//! from a [`source::ManifestDir`]. The tasks inside:
//!
//! | task | owns | hears by | tells by |
//! |---|---|---|---|
//! | dispatcher | which pods have a worker | `watch` of the desired pods, pulses of the runtime watch | `watch` and bell to each worker |
//! | worker, one per pod UID | everything known of its pod | its `watch`, its bell, probe verdicts, objects, one timer | reports of its status |
//! | probe, one per probe of a container | its schedule | `watch` of the container's present run | verdicts |
//! | runtime watch | what the runtime listed last | events of the runtime, or listings | pulses |
//! | publisher | the map of statuses | reports | `watch` of the map |
//! | [`joined`]: pods of the API | which of them run here | one filtered watch | `watch` of the desired pods |
//! | [`joined`]: keeper | what is on disk of the pods and objects | `watch` of the desired pods, of the map, of objects | a file |
//! | [`joined`]: preemption | - | `watch` of the pods that make room for critical ones | commands to the dispatcher |
//! | [`joined`]: writer of statuses, writer of events | what the API has | `watch` of the map, the recorder | requests |
//! | [`objects`], one per followed object | - | its watch | `watch` of a count |
//! | garbage collector, log rotation | what is to be cleaned up and when | statuses | - |
//!
//! Planning and status ([`source`]'s catalog, `pod/plan.rs`, `pod/status.rs`) are pure.

pub mod admission;
mod allocation;
pub mod api;
pub mod backoff;
pub mod clock;
pub mod container_config;
pub mod container_log;
mod dispatcher;
pub mod env;
mod event_writer;
pub mod events;
pub mod eviction;
pub mod gc;
mod hook;
pub mod hosts;
pub mod image_pull;
pub mod joined;
mod kept;
pub mod kubelet;
pub mod log_rotation;
pub mod node;
pub mod node_ips;
pub mod objects;
mod pod;
pub mod pod_cgroup;
mod preemption;
mod probe;
pub mod qos;
pub mod resolv;
pub mod resources;
mod runtime_watch;
pub mod sandbox_config;
pub mod server;
pub mod source;
mod status_writer;
pub mod streams;
mod sys;
pub mod volume;
