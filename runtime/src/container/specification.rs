//! The OCI specification of a container: gathers what the pure functions of [`crate::spec`] need.
//!
//! TEMPORARY minimal form.

use std::sync::Arc;

use coracle_cri::v1;
use serde_json::{Value, json};

use super::Container;
use crate::image::Image;
use crate::sandbox::{self, Sandbox};
use crate::service::Engine;
use crate::service_error::ServiceError;
use crate::spec::user::{ResolvedUser, UserFiles};

pub(super) struct Made {
    pub(super) json: Vec<u8>,
    pub(super) user: ResolvedUser,
}

impl Engine {
    pub(super) fn container_spec(
        &self,
        sandbox: &Arc<Sandbox>,
        container: &Arc<Container>,
        image: &Image,
    ) -> Result<Made, ServiceError> {
        let config = container.record().config.clone();
        let root = self.layout.rootfs(&container.id);
        let files = UserFiles::read(&root).map_err(|e| ServiceError::Spec(Box::new(e)))?;
        let security = config.linux.clone().and_then(|l| l.security_context).unwrap_or_default();
        let user = crate::spec::user::resolve(&security, &image.config.user, &files)
            .map_err(|e| ServiceError::Spec(Box::new(e)))?;
        let mut args: Vec<String> = if config.command.is_empty() { image.config.entrypoint.clone() } else { config.command.clone() };
        if config.args.is_empty() && config.command.is_empty() { args.extend(image.config.cmd.clone()); } else { args.extend(config.args.clone()); }
        let mut env = image.config.env.clone();
        if env.is_empty() { env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()); }
        let mut namespaces = vec![json!({"type": "mount"})];
        for (kind, name) in [("net", "network"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")] {
            if let Some(path) = sandbox::pin(&self.layout, sandbox, kind) {
                namespaces.push(json!({"type": name, "path": path}));
            } else if kind == "pid" && security.namespace_options.clone().unwrap_or_default().pid() != v1::NamespaceMode::Node {
                namespaces.push(json!({"type": name}));
            }
        }
        let caps: Vec<Value> = ["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_KILL","CAP_SETUID","CAP_SETGID","CAP_NET_RAW"].iter().map(|c| json!(c)).collect();
        let mut resources = json!({});
        if let Some(r) = config.linux.as_ref().and_then(|l| l.resources.as_ref()) && r.memory_limit_in_bytes > 0 {
            resources["memory"] = json!({"limit": r.memory_limit_in_bytes});
        }
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"terminal": config.tty, "user": {"uid": user.uid, "gid": user.gid}, "args": args, "env": env, "cwd": "/",
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps}},
            "root": {"path": root},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=64k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            ],
            "linux": {
                "cgroupsPath": self.cgroups.spec_path(&sandbox.cgroup_parent(), &container.id),
                "resources": resources,
                "namespaces": namespaces,
            },
        });
        Ok(Made { json: spec.to_string().into_bytes(), user })
    }

    pub(super) fn update_spec(&self, _container: &Container, _resources: &v1::LinuxContainerResources) -> Result<Vec<u8>, ServiceError> {
        Ok(b"{}".to_vec())
    }
}
