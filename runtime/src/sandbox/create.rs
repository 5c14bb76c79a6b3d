//! Making a sandbox: record first, then cgroup, namespaces, files, shim and network, then readiness.
//!
//! Runs as one whole task per call. Whatever fails, everything made is given back before the error is told.

use std::fs;
use std::sync::Arc;

use coracle_cri::v1;
use coracle_cri::v1::ContainerEventType;

use super::check::check;
use super::{Sandbox, files, hostname, is_host_network, namespaces, reserved_name, user_mapping};
use crate::cni::{self, Attachment};
use crate::netns;
use crate::record::{SandboxPhase, SandboxRecord};
use crate::service::{Engine, new_id, wall_ns};
use crate::service_error::{ServiceError, chain};

impl Engine {
    /// Makes a sandbox and answers its id.
    pub(crate) async fn run_sandbox(
        self: &Arc<Self>,
        config: v1::PodSandboxConfig,
        handler: String,
    ) -> Result<String, ServiceError> {
        if config.metadata.is_none() {
            return Err(ServiceError::Missing { field: "metadata of the sandbox" });
        }
        let own = handler.is_empty() || handler == crate::service::HANDLER;
        if !own && self.config.handler(&handler).is_none() {
            return Err(ServiceError::Invalid {
                what: format!("no runtime for {handler:?} is configured; --runtime-handler configures one"),
            });
        }
        check(&config).map_err(|what| ServiceError::Invalid { what })?;
        let user = user_mapping(&config).map_err(|what| ServiceError::Invalid { what })?;
        if user.is_some() && !self.features_of(&handler).user_namespaces {
            let cause = if own {
                "user namespaces need Linux 5.19 and an OCI runtime that maps ids of mounts (ours and runc from 1.2 on do)"
                    .to_owned()
            } else {
                format!(
                    "the runtime of handler {handler:?} and this kernel map no ids of mounts (runc does from 1.2 on)"
                )
            };
            let what = format!("{cause}; leave hostUsers out or set it to true");
            return Err(ServiceError::Invalid { what });
        }
        let id = new_id()?;
        let name = reserved_name(&config);
        self.reserve_name(&name, &id)?;
        let sandbox = Arc::new(Sandbox::new(SandboxRecord::new(id.clone(), config, handler, wall_ns())));
        self.index().sandboxes.insert(id.clone(), sandbox.clone());
        let made = self.make_sandbox(&sandbox).await;
        if let Err(error) = made {
            let left = self.demolish_sandbox(&sandbox).await;
            for error in &left {
                tracing::warn!(sandbox = %id, error = %chain(error), "what a failed sandbox held was not all given back");
            }
            if left.is_empty() {
                self.index().sandboxes.remove(&id);
                self.release_name(&name, &id);
            } else if let Err(error) =
                sandbox.change(&self.layout, |record| record.phase = SandboxPhase::NotReady)
            {
                // It stays known all the same, so that its caller removes it and with that tries again.
                tracing::warn!(sandbox = %id, error = %chain(&error), "record not written");
            }
            return Err(error);
        }
        self.watch_shim(&sandbox);
        self.tell_sandbox(ContainerEventType::ContainerCreatedEvent, &sandbox);
        self.tell_sandbox(ContainerEventType::ContainerStartedEvent, &sandbox);
        Ok(id)
    }

    async fn make_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), ServiceError> {
        let dir = self.layout.sandbox(&sandbox.id);
        fs::create_dir(&dir).map_err(ServiceError::file("create", &dir))?;
        let config = sandbox.record().config.clone();
        let parent = sandbox.cgroup_parent();
        let parent_missing = !self.cgroups.exists(&self.cgroups.parent_path(&parent));
        sandbox.change(&self.layout, |record| record.owns_cgroup = parent_missing)?;
        self.cgroups.ensure_parent(&parent)?;
        netns::create(namespace_plan(&config), self.layout.pins(&sandbox.id)).await?;
        let user = user_mapping(&config).map_err(|what| ServiceError::Invalid { what })?;
        files::write(&self.layout, &sandbox.id, &config, user)?;
        if namespaces(&config).ipc() == v1::NamespaceMode::Pod {
            files::mount_shm(&self.layout.shm(&sandbox.id), self.config.shm_size)?;
        }
        let (shims, ips) = tokio::join!(self.start_shims(sandbox), self.join_network(sandbox, &config));
        sandbox.set_shims(Some(shims?));
        let ips = ips?;
        // Another shim takes the first task that it is given for the sandbox's own, as containerd gives it one.
        if namespaces(&config).pid() == v1::NamespaceMode::Pod || self.has_foreign_shim(&sandbox.id) {
            self.start_holder(sandbox).await?;
        }
        sandbox.change(&self.layout, |record| record.phase = SandboxPhase::Ready { ips })?;
        Ok(())
    }

    async fn join_network(
        &self,
        sandbox: &Sandbox,
        config: &v1::PodSandboxConfig,
    ) -> Result<Vec<String>, ServiceError> {
        if is_host_network(config) {
            return Ok(Vec::new());
        }
        let metadata = config.metadata.clone().unwrap_or_default();
        let attachment = Attachment {
            sandbox_id: sandbox.id.clone(),
            netns: self.layout.pins(&sandbox.id).join("net"),
            pod_namespace: metadata.namespace,
            pod_name: metadata.name,
            pod_uid: metadata.uid,
            capabilities: cni::capabilities(config),
        };
        Ok(self.cni.attach(&attachment).await?)
    }
}

/// Ports below 1024 for every user of the pod, and ping for every group, as containerd gives them: both are the pod's
/// own, so nothing of the node needs guarding. The groups come last, since a pod's own users do not have all of them.
const DEFAULT_SYSCTLS: &[(&str, &str)] =
    &[("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

fn namespace_plan(config: &v1::PodSandboxConfig) -> netns::Plan {
    let wanted = namespaces(config);
    let network = wanted.network() != v1::NamespaceMode::Node;
    let sysctls = config.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
    // It was checked before.
    let user = user_mapping(config).ok().flatten();
    let default_sysctls = match (network, user) {
        (false, _) => &[],
        (true, None) => DEFAULT_SYSCTLS,
        (true, Some(_)) => &DEFAULT_SYSCTLS[..1],
    };
    netns::Plan {
        network,
        ipc: wanted.ipc() != v1::NamespaceMode::Node,
        user,
        // The host's network comes with the host's name, as in every CRI runtime.
        hostname: network.then(|| hostname(config)),
        sysctls: sysctls.into_iter().collect(),
        default_sysctls,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(network: v1::NamespaceMode) -> Vec<&'static str> {
        let options = v1::NamespaceOption { network: network.into(), ..v1::NamespaceOption::default() };
        let security_context = v1::LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..v1::LinuxSandboxSecurityContext::default()
        };
        let linux = v1::LinuxPodSandboxConfig {
            security_context: Some(security_context),
            ..v1::LinuxPodSandboxConfig::default()
        };
        let config = v1::PodSandboxConfig { linux: Some(linux), ..v1::PodSandboxConfig::default() };
        namespace_plan(&config).default_sysctls.iter().map(|(name, _)| *name).collect()
    }

    #[test]
    fn only_a_network_of_the_pods_own_is_opened_to_its_users() {
        assert_eq!(
            names(v1::NamespaceMode::Pod),
            ["net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"]
        );
        assert!(names(v1::NamespaceMode::Node).is_empty());
    }
}
