//! One sandbox in memory, and the acts on sandboxes: make, stop, remove.
//!
//! The record lives in a `watch`: readers borrow it for a moment, waiters subscribe. `operation` lets one act
//! at a time change the sandbox; reading needs it never.

pub(crate) mod check;
mod create;
mod files;
mod foreign;
mod holder;
mod shim;
mod stop;

pub(crate) use foreign::foreign_options;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use coracle_cri::v1;
use tokio::sync::watch;

use crate::config::Layout;
use crate::netns::UserMapping;
use crate::record::{RecordError, SandboxPhase, SandboxRecord};
use crate::service_error::ServiceError;
use crate::shim_client::ShimClient;

/// The shims of a sandbox.
#[derive(Clone)]
pub(crate) struct Shims {
    /// Ours.
    pub(crate) own: ShimClient,
    /// One of another kind, which runs the containers then.
    pub(crate) foreign: Option<ShimClient>,
}

impl Shims {
    /// The one that runs the containers.
    pub(crate) fn tasks(&self) -> &ShimClient {
        self.foreign.as_ref().unwrap_or(&self.own)
    }
}

/// A sandbox.
pub(crate) struct Sandbox {
    pub(crate) id: String,
    record: watch::Sender<SandboxRecord>,
    shims: Mutex<Option<Shims>>,
    /// Held by the act that changes the sandbox.
    pub(crate) operation: tokio::sync::Mutex<()>,
}

impl Sandbox {
    pub(crate) fn new(record: SandboxRecord) -> Sandbox {
        Sandbox {
            id: record.id.clone(),
            record: watch::Sender::new(record),
            shims: Mutex::new(None),
            operation: tokio::sync::Mutex::new(()),
        }
    }

    /// The record. The borrow must not live across an await.
    pub(crate) fn record(&self) -> watch::Ref<'_, SandboxRecord> {
        self.record.borrow()
    }

    /// Changes the record, first on disk and then in memory.
    pub(crate) fn change(
        &self,
        layout: &Layout,
        change: impl FnOnce(&mut SandboxRecord),
    ) -> Result<(), RecordError> {
        let mut next = self.record.borrow().clone();
        change(&mut next);
        next.store(layout)?;
        self.record.send_replace(next);
        Ok(())
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.record.borrow().phase, SandboxPhase::Ready { .. })
    }

    pub(crate) fn is_visible(&self) -> bool {
        !matches!(self.record.borrow().phase, SandboxPhase::Creating)
    }

    /// The connections to the shims of a ready sandbox.
    pub(crate) fn shims(&self) -> Result<Shims, ServiceError> {
        let shims = self.shims.lock().unwrap_or_else(PoisonError::into_inner);
        shims.clone().ok_or_else(|| ServiceError::SandboxNotReady { id: self.id.clone() })
    }

    /// Our shim, which keeps the logs.
    pub(crate) fn shim(&self) -> Result<ShimClient, ServiceError> {
        Ok(self.shims()?.own)
    }

    /// The shim that runs the containers.
    pub(crate) fn tasks(&self) -> Result<ShimClient, ServiceError> {
        Ok(self.shims()?.tasks().clone())
    }

    pub(crate) fn set_shims(&self, shims: Option<Shims>) {
        *self.shims.lock().unwrap_or_else(PoisonError::into_inner) = shims;
    }

    /// The name that no other sandbox may have.
    pub(crate) fn reserved_name(&self) -> String {
        reserved_name(&self.record().config)
    }

    pub(crate) fn cgroup_parent(&self) -> String {
        cgroup_parent(&self.record().config).to_owned()
    }
}

pub(crate) fn reserved_name(config: &v1::PodSandboxConfig) -> String {
    let metadata = config.metadata.clone().unwrap_or_default();
    format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
}

pub(crate) fn cgroup_parent(config: &v1::PodSandboxConfig) -> &str {
    match config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()) {
        Some(parent) if !parent.is_empty() => parent,
        // A caller that keeps no cgroups of its own: all its pods below one of ours.
        _ => "/coracle",
    }
}

/// Which namespaces the pod wants, with the defaults of an absent message.
pub(crate) fn namespaces(config: &v1::PodSandboxConfig) -> v1::NamespaceOption {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
}

/// Whether the pod has a user namespace, and what its ids are on the host. `Err` says what is wrong with the request,
/// by the rules of every CRI runtime.
pub(crate) fn user_mapping(config: &v1::PodSandboxConfig) -> Result<Option<UserMapping>, String> {
    let Some(user) = namespaces(config).userns_options else { return Ok(None) };
    match user.mode() {
        v1::NamespaceMode::Node => return Ok(None),
        v1::NamespaceMode::Pod => {}
        other => return Err(format!("a user namespace of mode {} is not possible", other.as_str_name())),
    }
    if is_host_network(config) {
        return Err("a pod on the host's network cannot have a user namespace".to_owned());
    }
    let one = |list: &[v1::IdMapping], what: &str| match list {
        [mapping] if mapping.container_id == 0 && mapping.length > 0 => Ok((mapping.host_id, mapping.length)),
        [_] => Err(format!("the mapping of {what} must begin at 0 and have a length")),
        _ => Err(format!("a user namespace needs one mapping of {what}, not {}", list.len())),
    };
    Ok(Some(UserMapping { uids: one(&user.uids, "users")?, gids: one(&user.gids, "groups")? }))
}

pub(crate) fn is_host_network(config: &v1::PodSandboxConfig) -> bool {
    namespaces(config).network() == v1::NamespaceMode::Node
}

/// The host name that the pod sees: its own, or the node's on the host's network.
pub(crate) fn hostname(config: &v1::PodSandboxConfig) -> String {
    if !config.hostname.is_empty() {
        return config.hostname.clone();
    }
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The pin of one kind of namespace, if the sandbox has its own.
pub(crate) fn pin(layout: &Layout, sandbox: &Sandbox, kind: &str) -> Option<PathBuf> {
    let path = layout.pins(&sandbox.id).join(kind);
    path.exists().then_some(path)
}
