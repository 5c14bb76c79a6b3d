//! What a pod needs on the node besides its processes: folders, cgroup, volumes, files, and the CRI messages that
//! describe its sandbox and containers.
//!
//! A pod's worker calls [`PodResources`]. Everything here is idempotent and safe against a kill at any point: what
//! is there is kept, what is missing is made. Disk work runs on blocking threads, a few pods at a time; one gate
//! per pod keeps the tail of a call whose caller has gone from overlapping the next call for the same pod.

mod config;
mod error;
mod files;
mod gates;
mod mounts;
mod user_namespaces;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use tokio::sync::Semaphore;

use crate::api::{Container, Pod, Quantity};
use crate::container_config::{self, ContainerInputs, CpuPolicy, HostFacts};
use crate::env::{self, EnvInputs};
use crate::events::{EventRecorder, EventType};
use crate::objects::ObjectSource;
use crate::pod_cgroup::{Extent, PodCgroups};
use crate::qos::PodCgroupLimits;
use crate::resolv::{self, NodeDns};
use crate::sandbox_config::{self, SandboxInputs};
use crate::volume::{self, Immutables, Layer, PodObjects, VolumeInputs};

pub use crate::container_config::ImageRef;
pub use config::PodResourcesConfig;
pub use error::{ConfigError, NameError, PrepareError, TeardownError};
use gates::Gates;
pub use mounts::MountError;
pub use user_namespaces::UserNamespaceError;
use user_namespaces::UserNamespaces;

/// So many pods have disk work done at once; more only make each of them later on a small machine.
const PODS_AT_ONCE: usize = 8;

/// The resources of this node's pods. Clones share them.
#[derive(Clone)]
pub struct PodResources(Arc<Inner>);

struct Inner {
    config: PodResourcesConfig,
    facts: HostFacts,
    objects: Immutables,
    events: EventRecorder,
    cgroups: PodCgroups,
    user_namespaces: UserNamespaces,
    gates: Gates,
    permits: Arc<Semaphore>,
}

impl PodResources {
    /// Looks at the machine once. Fails if its mount table cannot be read.
    ///
    /// ```no_run
    /// use std::sync::Arc;
    /// use coracle_kubelet_core::{clock::Clock, events::EventRecorder, objects::ObjectSource};
    /// use coracle_kubelet_core::node_ips::NodeIps;
    /// use coracle_kubelet_core::resources::{PodResources, PodResourcesConfig};
    ///
    /// # fn run(objects: Arc<dyn ObjectSource>) -> std::io::Result<()> {
    /// let mut config = PodResourcesConfig::new("/var/lib/kubelet");
    /// config.node_ips = NodeIps::given(["192.0.2.1".parse().expect("an address")]);
    /// let resources = PodResources::new(config, objects, EventRecorder::new(Clock::system(), 100))?;
    /// assert!(resources.pods_on_disk()?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(
        mut config: PodResourcesConfig,
        objects: Arc<dyn ObjectSource>,
        events: EventRecorder,
    ) -> io::Result<Self> {
        let facts = config::host_facts()?;
        config::fill_allocatable(&mut config.allocatable, &facts, &config.root_dir);
        let cgroups = PodCgroups::new(config.cgroup(), &facts)?;
        let handlers = config.user_namespace_handlers.clone();
        let user_namespaces = UserNamespaces::new(config.pods_dir(), handlers);
        Ok(Self(Arc::new(Inner {
            config,
            facts,
            objects: Immutables::new(objects),
            events,
            cgroups,
            user_namespaces,
            gates: Gates::default(),
            permits: Arc::new(Semaphore::new(PODS_AT_ONCE)),
        })))
    }

    /// Groups of a pod in which processes are counted. Lists folders: ask seldom.
    pub(crate) fn pids_groups(&self, pod: &Pod) -> Vec<PathBuf> {
        self.0.cgroups.pids_groups(pod)
    }

    /// Folders, cgroup, volumes. Idempotent; called on every sync before containers start, cheap when all is there.
    pub async fn prepare(&self, pod: &Arc<Pod>) -> Result<(), PrepareError> {
        self.0.objects.source().settle(pod).await;
        if pod.spec.host_users == Some(false) {
            // Whether it can be had is the handler's to say; that there is none is told with the sandbox.
            let _ = self.runtime_handler(pod).await;
        }
        let (inner, pod, uid) = (self.0.clone(), pod.clone(), pod.metadata.uid.clone());
        self.blocking(&uid, move || inner.prepare(&pod)).await.unwrap_or(Err(PrepareError::Interrupted))
    }

    /// The runtime handler of the pod's RuntimeClass; the error is what a person reads.
    pub async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        let handler = self.0.objects.source().runtime_handler(pod).await?;
        self.0.user_namespaces.note_handler(pod, &handler);
        Ok(handler)
    }

    /// The sandbox as the runtime is asked for it. Reads the node's resolv.conf; records DNS warnings as events.
    pub fn sandbox_config(&self, pod: &Pod, attempt: u32) -> Result<PodSandboxConfig, ConfigError> {
        self.0.sandbox_config(pod, attempt)
    }

    /// A container as the runtime is asked for it, with its files and binds made.
    ///
    /// `attempt` is the restart count; `sandbox_ips` are the pod's addresses, primary first, empty on the host's
    /// network.
    pub async fn container_config(
        &self,
        pod: &Pod,
        name: &str,
        attempt: u32,
        image: &ImageRef,
        sandbox_ips: &[IpAddr],
    ) -> Result<ContainerConfig, ConfigError> {
        self.0.objects.source().settle(pod).await;
        let (inner, pod, name, image) = (self.0.clone(), pod.clone(), name.to_owned(), image.clone());
        let (ips, uid) = (sandbox_ips.to_vec(), pod.metadata.uid.clone());
        let work = move || inner.container_config(&pod, &name, attempt, &image, ips);
        self.blocking(&uid, work).await.unwrap_or(Err(ConfigError::Interrupted))
    }

    /// Renders the volumes of a running pod anew whose configMaps, secrets or fields changed.
    pub async fn refresh(&self, pod: &Pod) -> Result<(), PrepareError> {
        self.0.objects.source().settle(pod).await;
        let (inner, pod) = (self.0.clone(), pod.clone());
        let uid = pod.metadata.uid.clone();
        self.blocking(&uid, move || inner.volumes(&pod)).await.unwrap_or(Err(PrepareError::Interrupted))
    }

    /// A number that changes when an object changed that the pod refers to.
    pub fn revision(&self, pod: &Pod) -> u64 {
        self.0.objects.source().revision(pod)
    }

    /// When (since boot) the volumes of the pod are to be rendered again for a token's sake.
    pub fn renewal(&self, uid: &str) -> Option<Duration> {
        self.0.objects.source().renewal(uid)
    }

    /// Unmounts and removes what the pod had, after its containers are gone. Idempotent; goes on after errors.
    pub async fn teardown(&self, uid: &str) -> Result<(), TeardownError> {
        let (inner, owned) = (self.0.clone(), uid.to_owned());
        let interrupted = || Err(TeardownError { interrupted: true, ..TeardownError::default() });
        self.blocking(uid, move || inner.teardown(&owned)).await.unwrap_or_else(interrupted)
    }

    /// What is wrong with the disk use of the pod: one eviction message for each emptyDir volume that is above its
    /// sizeLimit, for the pod, and for each container above its limit, with what the runtime says of `layers`. Walks
    /// volumes and logs, so it is for the caller to ask seldom.
    pub(crate) async fn storage_over_limit(&self, pod: &Pod, layers: Vec<Layer>) -> Vec<String> {
        let (inner, pod, uid) = (self.0.clone(), pod.clone(), pod.metadata.uid.clone());
        let work = move || {
            let pod_dir = inner.pod_dir(&pod.metadata.uid);
            let mut over = volume::over_limit(&pod, &pod_dir);
            over.extend(volume::over_storage_limit(&pod, &pod_dir, &inner.log_dir(&pod), &layers));
            over
        };
        self.blocking(&uid, work).await.unwrap_or_default()
    }

    /// The limits that the pod's cgroup is to have.
    pub(crate) fn limits(&self, pod: &Pod) -> PodCgroupLimits {
        self.0.cgroups.limits(pod)
    }

    /// Changes the pod's cgroup, which has been set to `from`: what becomes more, or all.
    pub(crate) async fn resize(
        &self,
        pod: &Arc<Pod>,
        from: &PodCgroupLimits,
        extent: Extent,
    ) -> Result<(), PrepareError> {
        let (inner, pod, from, uid) = (self.0.clone(), pod.clone(), from.clone(), pod.metadata.uid.clone());
        let work = move || inner.cgroups.resize(&pod, &from, extent).map_err(PrepareError::Cgroup);
        self.blocking(&uid, work).await.unwrap_or(Err(PrepareError::Interrupted))
    }

    /// Bytes of memory that the pod uses, where they are counted.
    pub(crate) async fn memory_use(&self, pod: &Arc<Pod>) -> Option<u64> {
        let (inner, pod, uid) = (self.0.clone(), pod.clone(), pod.metadata.uid.clone());
        self.blocking(&uid, move || inner.cgroups.memory_use(&pod)).await.flatten()
    }

    /// What a running container is to have, as the runtime is told.
    pub(crate) fn container_size(&self, pod: &Pod, container: &Container) -> LinuxContainerResources {
        container_config::container_size(pod, container, &self.0.facts, self.0.cpu())
    }

    /// What a pod has beside its containers and what they have together, as the runtime is told.
    pub(crate) fn sandbox_size(&self, pod: &Pod) -> [LinuxContainerResources; 2] {
        sandbox_config::sandbox_size(pod, self.0.cpu())
    }

    /// UIDs of pods that have a folder on this node, for finding those that nobody wants any more.
    pub fn pods_on_disk(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.0.config.pods_dir()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut uids = Vec::new();
        for entry in entries {
            uids.extend(entry?.file_name().into_string().ok());
        }
        Ok(uids)
    }

    /// Runs disk work of one pod; `None` if it panicked or the executor is going down.
    async fn blocking<T: Send + 'static>(
        &self,
        uid: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let gate = self.0.gates.enter(uid).await;
        let permit = self.0.permits.clone().acquire_owned().await.ok()?;
        let task = tokio::task::spawn_blocking(move || {
            // Held by the work and not by its caller, who may be dropped before the work is done.
            let _held = (gate, permit);
            work()
        });
        task.await.ok()
    }
}

impl std::fmt::Debug for PodResources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodResources").field("root_dir", &self.0.config.root_dir).finish_non_exhaustive()
    }
}

impl Inner {
    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.pods_dir().join(uid)
    }

    fn cpu(&self) -> CpuPolicy {
        CpuPolicy { enforce_quota: self.config.cpu_cfs_quota, period_us: self.config.cpu_cfs_quota_period_us }
    }

    fn prepare(&self, pod: &Pod) -> Result<(), PrepareError> {
        NameError::check_pod(pod)?;
        let pod_dir = self.pod_dir(&pod.metadata.uid);
        files::make_pod_dirs(&pod_dir, &self.log_dir(pod))
            .map_err(|(path, cause)| PrepareError::Directories { path, cause })?;
        self.cgroups.ensure(pod).map_err(PrepareError::Cgroup)?;
        // Written down here, off the event loop. Why a pod can have none is told with its sandbox.
        let _ = self.user_namespaces.of_pod(pod);
        self.volumes(pod)
    }

    fn log_dir(&self, pod: &Pod) -> PathBuf {
        sandbox_config::pod_log_dir(&self.config.log_root, pod)
    }

    fn objects(&self, pod: &Pod) -> PodObjects<'_> {
        self.objects.for_pod(pod.metadata.uid.clone())
    }

    fn volumes(&self, pod: &Pod) -> Result<(), PrepareError> {
        NameError::check_pod(pod)?;
        let pod_dir = self.pod_dir(&pod.metadata.uid);
        let objects = self.objects(pod);
        let inputs = VolumeInputs {
            pod_dir: &pod_dir,
            objects: &objects,
            allocatable: &self.config.allocatable,
            memory: self.allocatable_memory(),
        };
        // All of them are tried, so that one that waits for its source does not keep others from it.
        let mut first_error = None;
        for volume in &pod.spec.volumes {
            if let Err(cause) = volume::set_up(pod, volume, &inputs) {
                let error = PrepareError::Volume { volume: volume.name.clone(), cause };
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn allocatable_memory(&self) -> i64 {
        self.config.allocatable.get("memory").map_or(self.facts.memory_capacity, Quantity::value)
    }

    fn sandbox_config(&self, pod: &Pod, attempt: u32) -> Result<PodSandboxConfig, ConfigError> {
        let host = match &self.config.resolv_conf {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|cause| ConfigError::ResolvConf { path: path.clone(), cause })?;
                Some(resolv::parse_resolv_conf(&text))
            }
        };
        let node_ips = self.config.node_ips.for_pods();
        let node = NodeDns {
            host,
            cluster_dns: &self.config.cluster_dns,
            cluster_domain: &self.config.cluster_domain,
            node_ips: &node_ips,
        };
        let (dns, warnings) = resolv::pod_dns(pod, &node);
        for warning in warnings {
            self.events.pod(pod, None, EventType::Warning, warning.reason, warning.message);
        }
        let inputs = SandboxInputs {
            attempt,
            dns,
            log_root: &self.config.log_root,
            cluster_domain: &self.config.cluster_domain,
            cgroup_parent: self.cgroups.parent(pod),
            cpu: self.cpu(),
            user_namespace: self.user_namespaces.of_pod(pod)?,
        };
        Ok(sandbox_config::pod_sandbox_config(pod, inputs)?)
    }

    fn container_config(
        &self,
        pod: &Pod,
        name: &str,
        attempt: u32,
        image: &ImageRef,
        sandbox_ips: Vec<IpAddr>,
    ) -> Result<ContainerConfig, ConfigError> {
        NameError::check_pod(pod)?;
        let container = pod.container(name).ok_or_else(|| ConfigError::NoContainer(name.to_owned()))?;
        let pod_dir = self.pod_dir(&pod.metadata.uid);
        let node_ips = self.config.node_ips.for_pods();
        let mut pod_ips = if pod.spec.host_network { node_ips.to_vec() } else { sandbox_ips };
        config::prefer_family_of_node(&mut pod_ips, &node_ips);
        let env = env::environment(
            pod,
            container,
            &EnvInputs {
                objects: &self.objects(pod),
                pod_ips: &pod_ips,
                host_ips: &node_ips,
                allocatable: &self.config.allocatable,
                read_file_key: &|selector| volume::read_file_key(pod, &pod_dir, selector),
            },
        )?;
        let supports_rro = self.config.recursive_read_only;
        let mut mounts = mounts::volume_mounts(pod, container, &pod_dir, &env, supports_rro)?;
        if !container.volume_mounts.iter().any(|mount| mount.mount_path == files::ETC_HOSTS) {
            let domain = &self.config.cluster_domain;
            mounts.extend(files::etc_hosts(pod, &pod_dir, &pod_ips, domain, &self.config.hosts_file)?);
        }
        mounts.extend(files::termination_log(container, &pod_dir, attempt)?);
        let log_dir = self.log_dir(pod).join(name);
        files::make_dir(&log_dir, 0o755)
            .map_err(ConfigError::io("create container log directory", &log_dir))?;
        let seccomp_root = self.config.root_dir.join("seccomp");
        let inputs = ContainerInputs {
            attempt,
            image,
            env,
            mounts,
            devices: mounts::devices(container)?,
            facts: &self.facts,
            cpu: self.cpu(),
            seccomp_default: self.config.seccomp_default,
            seccomp_root: &seccomp_root.to_string_lossy(),
            user_namespace: self.user_namespaces.of_pod(pod)?,
        };
        Ok(container_config::container_config(pod, container, inputs)?)
    }

    fn teardown(&self, uid: &str) -> Result<(), TeardownError> {
        if let Err(name) = NameError::check("uid", uid) {
            return Err(TeardownError { name: Some(name), ..TeardownError::default() });
        }
        let cgroup = self.cgroups.remove(uid);
        let volumes = volume::tear_down(&self.pod_dir(uid));
        self.objects.release(uid);
        if volumes.is_empty() {
            self.user_namespaces.release(uid);
        }
        if cgroup.is_empty() && volumes.is_empty() {
            return Ok(());
        }
        Err(TeardownError { volumes, cgroup, ..TeardownError::default() })
    }
}

/// What a node can give to pods, by resource name.
pub type Allocatable = BTreeMap<String, Quantity>;

#[cfg(test)]
mod tests;
