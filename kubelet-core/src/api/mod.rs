//! The Kubernetes API types that a node needs, with only the fields it uses.
//!
//! Every module reads them; nothing here does I/O. Manifests and the API server's answers are decoded into
//! these structs, statuses are encoded from them. Unknown fields are ignored by serde; a manifest source
//! reports them through `serde_ignored`.

mod bytes;
mod container;
mod intstr;
mod meta;
mod node;
mod pod;
mod quantity;
mod status;
mod time;
mod unused;
mod volume;

pub use bytes::ByteString;
pub use container::*;
pub use intstr::IntOrString;
pub use meta::*;
pub use node::*;
pub use pod::*;
pub use quantity::{ParseQuantityError, Quantity};
pub use status::*;
pub use time::{ParseTimeError, Time};
pub use unused::Unused;
pub use volume::*;

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &i32) -> bool {
    *value == 0
}

fn is_unused(_: &Unused) -> bool {
    true
}

impl Pod {
    /// `namespace/name`, as logs and tables print it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Init, regular and ephemeral containers, in that order.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers).chain(&self.spec.ephemeral_containers)
    }

    /// The container of that name, of whatever kind.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|c| c.name == name)
    }
}

impl Container {
    /// An init container with restart policy `Always` runs on beside the regular ones (a sidecar).
    pub fn is_restartable_init(&self) -> bool {
        self.restart_policy.as_deref() == Some("Always")
    }
}

#[cfg(test)]
mod tests;
