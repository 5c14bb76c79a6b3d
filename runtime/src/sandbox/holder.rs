//! The holder of a PID namespace that a pod's containers share: a container of the shim whose only process is
//! the shim's executable as `hold`, which reaps orphans. Its id is the sandbox's. Another shim gets one for every pod,
//! as its sandbox's own task.
//!
//! Made and ended with its sandbox; no call of CRI shows it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::ContainerEventType;
use coracle_shim::protocol::{method, task};
use oci_spec::runtime::Mount;
use rustix::mount::mount_bind;

use super::Sandbox;
use crate::record::SandboxPhase;
use crate::service::Engine;
use crate::service_error::{ServiceError, chain};
use crate::shim_client::ShimError;
use crate::spec::{NamespaceRef, Namespaces};

/// How long the maker may take to make and start the holder.
const MAKE_BOUND: Duration = Duration::from_secs(60);

impl Engine {
    /// The bundle of a sandbox's holder.
    pub(crate) fn holder_bundle(&self, id: &str) -> PathBuf {
        self.layout.sandbox(id).join("holder")
    }

    /// Makes and starts the holder and pins its PID namespace.
    pub(crate) async fn start_holder(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), ServiceError> {
        let bundle = self.holder_bundle(&sandbox.id);
        fs::create_dir(&bundle).map_err(ServiceError::file("create", &bundle))?;
        let spec = self.holder_spec(sandbox)?;
        let path = bundle.join("config.json");
        fs::write(&path, spec).map_err(ServiceError::file("write", path))?;
        let shim = sandbox.tasks()?;
        let create = task::CreateTaskRequest {
            id: sandbox.id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            options: self.task_options(&sandbox.id),
            ..Default::default()
        };
        let pid = shim.call::<method::Create>(&create, MAKE_BOUND).await?.pid;
        let start = task::StartRequest { id: sandbox.id.clone(), ..Default::default() };
        shim.call::<method::Start>(&start, MAKE_BOUND).await?;
        // A pin cannot be fooled by a reused process id, a path below /proc can.
        let pin = self.layout.pins(&sandbox.id).join("pid");
        fs::create_dir_all(self.layout.pins(&sandbox.id))
            .and_then(|()| fs::File::create(&pin))
            .and_then(|_| Ok(mount_bind(format!("/proc/{pid}/ns/pid"), &pin)?))
            .map_err(ServiceError::file("pin", pin))?;
        self.watch_holder(sandbox);
        Ok(())
    }

    /// Without its first process the namespace takes no further one, so the pod must be made again.
    pub(crate) fn watch_holder(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let Ok(shim) = sandbox.tasks() else { return };
        let (engine, sandbox) = (self.clone(), sandbox.clone());
        self.watch(async move {
            let wait = task::WaitRequest { id: sandbox.id.clone(), ..Default::default() };
            let ended = shim.call_unbounded::<method::Wait>(&wait).await;
            if !matches!(ended, Err(ShimError::Gone { .. })) && sandbox.is_ready() {
                tracing::warn!(sandbox = %sandbox.id, "the first process of the pod's PID namespace ended");
                let changed = sandbox.change(&engine.layout, |record| record.phase = SandboxPhase::NotReady);
                if let Err(error) = changed {
                    tracing::warn!(sandbox = %sandbox.id, error = %chain(&error), "record not written");
                }
                engine.tell_sandbox(ContainerEventType::ContainerStoppedEvent, &sandbox);
            }
        });
    }

    /// Ends the holder. Idempotent.
    pub(crate) async fn end_holder(&self, sandbox: &Sandbox) -> Result<(), ServiceError> {
        if !self.holder_bundle(&sandbox.id).exists() {
            return Ok(());
        }
        let cgroup = self.cgroups.container_path(&sandbox.cgroup_parent(), &sandbox.id);
        self.end_task(sandbox, &sandbox.id, &cgroup).await?;
        let bundle = self.holder_bundle(&sandbox.id);
        match fs::remove_dir_all(&bundle) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ServiceError::file("remove", bundle)(error))
            }
            _ => Ok(()),
        }
    }

    /// The least that a process needs, with the shim's executable as the only file of its root.
    fn holder_spec(&self, sandbox: &Sandbox) -> Result<Vec<u8>, ServiceError> {
        let pinned = |kind| match super::pin(&self.layout, sandbox, kind) {
            Some(path) => NamespaceRef::Path(path),
            None => NamespaceRef::Host,
        };
        let namespaces = Namespaces {
            net: pinned("net"),
            ipc: pinned("ipc"),
            uts: pinned("uts"),
            pid: NamespaceRef::Own,
            user: pinned("user"),
        };
        let config = sandbox.record().config.clone();
        let cgroup = self.cgroups.spec_path(&sandbox.cgroup_parent(), &sandbox.id);
        let root = self.layout.holder_rootfs();
        let arguments = ["/coracle-shim", "hold"];
        let mut spec =
            crate::spec::hold_spec(&root, &arguments, &config, &sandbox.id, &namespaces, &cgroup, &self.host);
        let mut shim = Mount::default();
        shim.set_destination(PathBuf::from("/coracle-shim"))
            .set_typ(Some("bind".into()))
            .set_source(Some(self.config.shim.clone()))
            .set_options(Some(vec!["bind".into(), "ro".into()]));
        spec.mounts_mut().get_or_insert_default().push(shim);
        serde_json::to_vec(&spec).map_err(|error| ServiceError::Spec(Box::new(error)))
    }
}
