//! The bundle's OCI specification: gathers what the pure functions of [`crate::spec`] need, and writes changes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_cri::v1;
use oci_spec::runtime::Spec;

use super::{Container, relabel, volumes};
use crate::image::Image;
use crate::record::{ContainerPhase, write_by_rename};
use crate::sandbox::{self, Sandbox};
use crate::service::Engine;
use crate::service_error::ServiceError;
use crate::spec::mounts::{self, SandboxFiles};
use crate::spec::user::{self, ResolvedUser, UserFiles};
use crate::spec::{self, ImageDefaults, NamespaceRef, Namespaces, SpecInput, cdi, observe, resources};

/// The specification's name in a bundle.
const SPEC: &str = "config.json";

/// What the node's vendors give with these devices.
fn cdi_edits(names: &[String]) -> Result<(Vec<cdi::Edits>, HashMap<PathBuf, cdi::NodeFacts>), cdi::CdiError> {
    let folders = cdi::files::FOLDERS.map(Path::new);
    let edits = cdi::files::read(folders).edits(names)?;
    let seen = cdi::files::look(&edits);
    Ok((edits, seen))
}

/// A specification and what its making found out.
pub(super) struct Made {
    pub(super) spec: Spec,
    pub(super) user: ResolvedUser,
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> ServiceError {
    ServiceError::Spec(Box::new(error))
}

impl Engine {
    /// Makes the specification of a container whose root is mounted.
    pub(super) async fn container_spec(
        &self,
        sandbox: &Arc<Sandbox>,
        container: &Arc<Container>,
        image: &Image,
    ) -> Result<Made, ServiceError> {
        let mut config = container.record().config.clone();
        let pod = sandbox.record().config.clone();
        let rootfs = self.layout.rootfs(&container.id);
        let paths: Vec<String> = image.config.volumes.keys().cloned().collect();
        let user = sandbox::user_mapping(&pod).map_err(|what| ServiceError::Invalid { what })?;
        let label = spec::file_label(&config, &self.host);
        self.mount_images(&container.id, &sandbox.id, &mut config.mounts, (user, label.clone())).await?;
        let image_volumes = volumes::make(&rootfs, &self.layout.layer(&container.id), paths, user).await?;
        let mounts = mounts::merge(&config, &self.sandbox_files(sandbox, &pod), &image_volumes);
        if let Some(label) = label {
            let labelled = mounts.clone();
            let done = tokio::task::spawn_blocking(move || relabel::mounts(&labelled, &label)).await;
            done.map_err(|_| ServiceError::Panicked)?.map_err(refused)?;
        }
        let observed = observe::observe(&config, &mounts).map_err(refused)?;
        let context =
            config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
        let files = UserFiles::read(&rootfs).map_err(refused)?;
        let user = user::resolve(&context, &image.config.user, &files).map_err(refused)?;
        let namespaces = self.container_namespaces(sandbox, &context)?;
        let cgroups_path = self.cgroups.spec_path(&sandbox.cgroup_parent(), &container.id);
        let input = SpecInput {
            container_id: &container.id,
            sandbox_id: &sandbox.id,
            config: &config,
            sandbox: &pod,
            image: ImageDefaults {
                env: &image.config.env,
                entrypoint: &image.config.entrypoint,
                cmd: &image.config.cmd,
                working_dir: &image.config.working_dir,
            },
            image_name: config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default(),
            user: &user,
            namespaces: &namespaces,
            cgroups_path: &cgroups_path,
            rootfs: &rootfs,
            mounts: &mounts,
            observed: &observed,
            host: &self.host,
        };
        for notice in spec::notices(&input) {
            tracing::warn!(container = %container.id, "{notice}");
        }
        let mut spec = spec::container_spec(&input).map_err(refused)?;
        let devices = cdi::requested(&config).map_err(refused)?;
        if !devices.is_empty() {
            let given = tokio::task::spawn_blocking(move || cdi_edits(&devices)).await;
            let (edits, seen) = given.map_err(|_| ServiceError::Panicked)?.map_err(refused)?;
            cdi::apply(&mut spec, &edits, &seen).map_err(refused)?;
        }
        Ok(Made { spec, user })
    }

    fn sandbox_files(&self, sandbox: &Sandbox, pod: &v1::PodSandboxConfig) -> SandboxFiles {
        let dir = self.layout.sandbox(&sandbox.id);
        let shm = match sandbox::namespaces(pod).ipc() {
            v1::NamespaceMode::Node => PathBuf::from("/dev/shm"),
            _ => self.layout.shm(&sandbox.id),
        };
        SandboxFiles {
            hostname: Some(dir.join("hostname")),
            hosts: Some(dir.join("hosts")),
            resolv_conf: Some(dir.join("resolv.conf")),
            shm: Some(shm),
        }
    }

    fn container_namespaces(
        &self,
        sandbox: &Sandbox,
        context: &v1::LinuxContainerSecurityContext,
    ) -> Result<Namespaces, ServiceError> {
        let pinned = |kind| match sandbox::pin(&self.layout, sandbox, kind) {
            Some(path) => NamespaceRef::Path(path),
            None => NamespaceRef::Host,
        };
        let options = context.namespace_options.clone().unwrap_or_default();
        let pid = match options.pid() {
            v1::NamespaceMode::Node => NamespaceRef::Host,
            v1::NamespaceMode::Container => NamespaceRef::Own,
            v1::NamespaceMode::Pod => match sandbox::pin(&self.layout, sandbox, "pid") {
                Some(path) => NamespaceRef::Path(path),
                None => {
                    let what = "the container wants the pod's PID namespace and the pod was made without one";
                    return Err(ServiceError::Invalid { what: what.into() });
                }
            },
            v1::NamespaceMode::Target => self.target_pid_namespace(&options.target_id)?,
        };
        Ok(Namespaces {
            net: pinned("net"),
            ipc: pinned("ipc"),
            uts: pinned("uts"),
            pid,
            user: pinned("user"),
        })
    }

    fn target_pid_namespace(&self, id: &str) -> Result<NamespaceRef, ServiceError> {
        let target = self.container(id)?;
        let record = target.record();
        match record.phase {
            ContainerPhase::Running { pid, .. } => {
                Ok(NamespaceRef::Path(PathBuf::from(format!("/proc/{pid}/ns/pid"))))
            }
            ref phase => Err(ServiceError::WrongState {
                id: id.to_owned(),
                state: super::phase_name(phase),
                wanted: "running",
            }),
        }
    }

    /// Writes the specification into the bundle, as a whole: commands that start meanwhile read it.
    pub(super) fn write_spec(&self, container: &Container, spec: &Spec) -> Result<(), ServiceError> {
        let text = serde_json::to_vec(spec).map_err(refused)?;
        write_by_rename(&self.layout.bundle(&container.id), "config.json.new", SPEC, &text)
            .map_err(ServiceError::file("write", self.spec_path(container)))
    }

    /// Reads the specification of the bundle.
    pub(crate) fn read_spec(&self, container: &Container) -> Result<Spec, ServiceError> {
        let path = self.spec_path(container);
        let text = fs::read(&path).map_err(ServiceError::file("read", &path))?;
        serde_json::from_slice(&text).map_err(refused)
    }

    /// Puts new limits into the specification; answers them as the maker's `update` takes them.
    pub(super) fn update_spec(
        &self,
        container: &Container,
        limits: &v1::LinuxContainerResources,
    ) -> Result<Vec<u8>, ServiceError> {
        let mut limits = resources::to_oci(limits, &self.host);
        let update = serde_json::to_vec(&limits).map_err(refused)?;
        let mut spec = self.read_spec(container)?;
        if let Some(linux) = spec.linux_mut() {
            // Devices and process limits are no part of an update.
            if let Some(old) = linux.resources() {
                limits.set_devices(old.devices().clone());
                limits.set_pids(*old.pids());
            }
            linux.set_resources(Some(limits));
        }
        self.write_spec(container, &spec)?;
        Ok(update)
    }

    fn spec_path(&self, container: &Container) -> PathBuf {
        self.layout.bundle(&container.id).join(SPEC)
    }
}
