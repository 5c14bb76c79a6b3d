//! The embedded runtime: what it holds, how it starts, and the index of sandboxes and containers.
//!
//! [`Runtime`] is the handle that embedders hold; [`Engine`] is shared with the tasks of running calls. The
//! index lock and the `watch` of each record are taken for moments and never across an await. An act that
//! must not be cut in half runs on a task of its own, so that a caller who goes away changes nothing.

mod adopt;
mod calls;
mod handlers;
mod images;
mod status;
mod sweep;

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cgroup::{CgroupError, Cgroups};
use crate::cni::Cni;
use crate::config::{Config, HandlerKind, Layout, Maker};
use crate::container::Container;
use crate::event::Events;
use crate::image::ImageStore;
use crate::log_losses::LogLosses;
use crate::record::RecordError;
use crate::sandbox::Sandbox;
use crate::service_error::ServiceError;
use crate::spec::host::HostFacts;
use crate::streaming::Streaming;
use crate::sys;

pub use status::{Recorded, read_records};

/// The runtime handler of our own maker, beside the empty default.
pub(crate) const HANDLER: &str = "coracle";

/// The runtime could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The cgroup trees of the host are not usable.
    #[error("cgroups")]
    Cgroup(#[from] CgroupError),
    /// A folder of the runtime cannot be made or used.
    #[error("prepare {path}")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another runtime has the state folder.
    #[error("{path} is in use by another runtime; give each its own --root and --state folder")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// No OCI runtime can make containers on this host.
    #[error("{0}")]
    NoMaker(String),
    /// The shim is not there.
    #[error("no executable coracle-shim at {path}; build the package coracle-shim or give its path")]
    NoShim {
        /// Where it was expected.
        path: PathBuf,
    },
    /// The image store cannot be opened.
    #[error("open the image store {path}")]
    Images {
        /// Its folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The records of the last run cannot be read.
    #[error("records")]
    Records(#[from] RecordError),
}

/// An embedded container runtime. Dropping it leaves every container running; the next one adopts them.
///
/// Its calls are those of [`coracle_cri::RuntimeService`] and [`coracle_cri::ImageService`].
///
/// ```no_run
/// use coracle_cri::RuntimeService as _;
/// use coracle_cri::v1::VersionRequest;
/// use coracle_runtime::{Config, Runtime};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     // Containers are made and images unpacked by executions of this very program.
///     coracle_runtime::run_helper();
///     let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
///     tokio.block_on(async {
///         let config = Config::new("/var/lib/coracle", "/run/coracle", "/usr/libexec/coracle-shim");
///         let runtime = Runtime::start(config).await?;
///         let version = runtime.version(VersionRequest::default()).await?;
///         assert_eq!(version.runtime_name, "coracle");
///         Ok(())
///     })
/// }
/// ```
pub struct Runtime {
    pub(crate) engine: Arc<Engine>,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.engine.closing.cancel();
    }
}

/// What all calls and background tasks share.
pub(crate) struct Engine {
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) cgroups: Cgroups,
    pub(crate) cni: Cni,
    pub(crate) events: Events,
    /// What this node can, for the specifications of containers.
    pub(crate) host: HostFacts,
    pub(crate) images: Arc<ImageStore>,
    /// The maker's executable and its first arguments.
    pub(crate) maker: Vec<String>,
    /// What the runtimes of others can.
    pub(crate) handlers: handlers::Handlers,
    pub(crate) index: Mutex<Index>,
    /// Every task that the runtime spawned.
    pub(crate) tasks: TaskTracker,
    /// Ends the watching tasks; acts under way finish.
    pub(crate) closing: CancellationToken,
    pub(crate) layer_usage: crate::stats::LayerUsage,
    pub(crate) streaming: Streaming,
    pub(crate) log_losses: LogLosses,
    _lock: fs::File,
}

/// Everything that exists, by id and by reserved name.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) sandboxes: HashMap<String, Arc<Sandbox>>,
    pub(crate) containers: HashMap<String, Arc<Container>>,
    /// Id by name, for both kinds; their names never collide because they have different numbers of parts.
    pub(crate) names: HashMap<String, String>,
}

impl Runtime {
    /// Starts a runtime: prepares its folders, adopts what an earlier one left running, sweeps what it left
    /// broken.
    ///
    /// # Errors
    /// What keeps every pod from running. What keeps one pod from running becomes that pod's state.
    pub async fn start(config: Config) -> Result<Arc<Runtime>, StartError> {
        let layout = config.layout();
        let cgroups = Cgroups::detect(config.cgroup_driver)?;
        prepare_folders(&layout)?;
        let lock = take_lock(&layout).await?;
        let same_boot = check_boot(&layout)?;
        if !is_executable(&config.shim) {
            return Err(StartError::NoShim { path: config.shim.clone() });
        }
        let maker = choose_maker(&config)?;
        let handlers = handlers::ask(&config, &layout, &maker).await;
        let loaded = tokio::task::spawn_blocking(crate::spec::apparmor::load_default).await;
        if let Ok(Err(error)) = loaded {
            let error = crate::service_error::chain(&error);
            tracing::warn!(%error, "pods run without the default AppArmor profile");
        }
        let host = HostFacts::gather()
            .map_err(|source| StartError::Folder { path: PathBuf::from("/proc/self"), source })?;
        let images = images::open(&config).await?;
        prepare_holder(&layout)?;
        let cni = Cni::new(config.cni.clone(), layout.cni());
        let engine = Arc::new(Engine {
            layout,
            cgroups,
            cni,
            events: Events::new(),
            host,
            images,
            maker,
            handlers,
            index: Mutex::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            layer_usage: Default::default(),
            streaming: Streaming::new(),
            log_losses: LogLosses::new(),
            _lock: lock,
            config,
        });
        engine.adopt(same_boot).await?;
        Ok(Arc::new(Runtime { engine }))
    }

    /// Waits until acts under way are done, at most `bound`. Containers keep running.
    pub async fn close(&self, bound: std::time::Duration) {
        self.engine.closing.cancel();
        self.engine.tasks.close();
        if tokio::time::timeout(bound, self.engine.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.engine.tasks.len(), "runtime closes with calls under way");
        }
        // Spares the check of every layer after the next boot.
        match tokio::time::timeout(bound, self.engine.images.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %crate::service_error::chain(&error), "the image store is not closed well");
            }
            Err(_) => {
                tracing::warn!("images are still being fetched; their layers are checked at the next boot")
            }
        }
        self.engine.leave();
    }

    /// The image store, for what CRI has no call for: load, save and prune.
    pub fn images(&self) -> &Arc<ImageStore> {
        &self.engine.images
    }
}

impl Engine {
    /// Takes away what every start makes anew, when nothing that runs on needs it.
    fn leave(&self) {
        let index = self.index();
        if !index.sandboxes.is_empty() || !index.containers.is_empty() {
            return;
        }
        self.cgroups.remove_unused(&self.config.shim_cgroup);
        let state = &self.layout.state;
        if let Err(error) = crate::container::overlay::unmake_private(state) {
            tracing::warn!(%error, path = %state.display(), "the state folder stays a mount point");
        }
    }

    /// The maker of a handler's pods: its executable and first arguments.
    pub(crate) fn maker_of(&self, handler: &str) -> Vec<String> {
        match self.config.handler(handler).map(|handler| &handler.kind) {
            Some(HandlerKind::Maker(path)) => vec![path.to_string_lossy().into_owned()],
            _ => self.maker.clone(),
        }
    }

    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        // The maps are whole after every statement, so a panic of another holder left them usable.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox by id, or by a prefix of it that fits only one.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, ServiceError> {
        find(&self.index().sandboxes, id).ok_or_else(|| ServiceError::NoSandbox { id: id.to_owned() })
    }

    /// A container by id, or by a prefix of it that fits only one.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, ServiceError> {
        find(&self.index().containers, id).ok_or_else(|| ServiceError::NoContainer { id: id.to_owned() })
    }

    pub(crate) fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        let index = self.index();
        index.containers.values().filter(|container| container.sandbox_id == sandbox_id).cloned().collect()
    }

    pub(crate) fn reserve_name(&self, name: &str, id: &str) -> Result<(), ServiceError> {
        let mut index = self.index();
        match index.names.get(name) {
            Some(holder) if holder != id => {
                Err(ServiceError::NameTaken { name: name.to_owned(), id: holder.clone() })
            }
            _ => {
                index.names.insert(name.to_owned(), id.to_owned());
                Ok(())
            }
        }
    }

    pub(crate) fn release_name(&self, name: &str, id: &str) {
        let mut index = self.index();
        if index.names.get(name).is_some_and(|holder| holder == id) {
            index.names.remove(name);
        }
    }

    /// Runs an act to its end on a task of its own, whatever becomes of the caller.
    pub(crate) async fn whole<T, F>(self: &Arc<Self>, act: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        if self.closing.is_cancelled() {
            return Err(ServiceError::Closing);
        }
        self.tasks.spawn(act).await.unwrap_or(Err(ServiceError::Panicked))
    }

    /// Spawns a task that watches something until it ends or the runtime closes.
    pub(crate) fn watch<F: Future<Output = ()> + Send + 'static>(self: &Arc<Self>, watching: F) {
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                // Cancel-safe: what is watched is read anew at the next start.
                () = closing.cancelled() => {}
                () = watching => {}
            }
        });
    }
}

fn find<T>(map: &HashMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if let Some(found) = map.get(id) {
        return Some(found.clone());
    }
    if id.is_empty() {
        return None;
    }
    let mut fitting = map.iter().filter(|(full, _)| full.starts_with(id));
    match (fitting.next(), fitting.next()) {
        (Some((_, found)), None) => Some(found.clone()),
        _ => None,
    }
}

/// Wall time in nanoseconds since 1970, as CRI tells times.
pub(crate) fn wall_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A fresh id: 64 hexadecimal digits, as every CRI runtime makes them.
pub(crate) fn new_id() -> Result<String, ServiceError> {
    let mut bytes = [0; 32];
    sys::random(&mut bytes).map_err(ServiceError::file("read", "/dev/urandom"))?;
    Ok(hex::encode(bytes))
}

fn prepare_folders(layout: &Layout) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let private = [layout.state.clone(), layout.root.clone()];
    let rest = [
        layout.sandboxes(),
        layout.containers(),
        layout.shims(),
        layout.maker_root(),
        layout.foreign_sockets(),
        layout.cni(),
        layout.layers(),
    ];
    for path in private.into_iter().chain(rest) {
        // Others may pass through to what is bind-mounted into their containers, and read nothing.
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(&path);
        made.map_err(|source| StartError::Folder { path, source })?;
    }
    crate::container::overlay::make_private(&layout.state)
        .map_err(|source| StartError::Folder { path: layout.state.clone(), source })
}

/// Takes the lock of the state folder. The runtime before may need a moment to end its tasks.
async fn take_lock(layout: &Layout) -> Result<fs::File, StartError> {
    use rustix::fs::{FlockOperation, flock};
    let path = layout.state.join("lock");
    let file = fs::File::create(&path).map_err(|source| StartError::Folder { path: path.clone(), source })?;
    for _ in 0..50 {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(file);
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    Err(StartError::Locked { path })
}

/// Whether the state folder is of this boot; notes this boot in it.
fn check_boot(layout: &Layout) -> Result<bool, StartError> {
    let folder = |path: &str| {
        let path = PathBuf::from(path);
        move |source| StartError::Folder { path, source }
    };
    let boot = "/proc/sys/kernel/random/boot_id";
    let now = fs::read_to_string(boot).map_err(folder(boot))?;
    let path = layout.state.join("boot_id");
    let same = match fs::read_to_string(&path) {
        Ok(noted) => noted == now,
        // A fresh state folder holds nothing to doubt.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(source) => return Err(StartError::Folder { path, source }),
    };
    Ok(same)
}

fn choose_maker(config: &Config) -> Result<Vec<String>, StartError> {
    let own = || vec![config.helper.to_string_lossy().into_owned(), "oci".to_owned()];
    match &config.maker {
        Maker::Own => Ok(own()),
        Maker::Path(path) if is_executable(path) => Ok(vec![path.to_string_lossy().into_owned()]),
        Maker::Path(path) => {
            Err(StartError::NoMaker(format!("the OCI runtime {} is not executable", path.display())))
        }
        Maker::Auto if crate::maker::kernel_supports_own_maker().is_ok() => Ok(own()),
        Maker::Auto => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            // crun refuses hosts that have controllers in both versions of cgroups, as old ones do.
            let found = ["runc", "crun"]
                .iter()
                .flat_map(|name| std::env::split_paths(&path).map(move |dir| dir.join(name)))
                .find(|candidate| is_executable(candidate));
            match found {
                Some(found) => {
                    tracing::info!(maker = %found.display(), "our own maker needs a newer kernel, using the host's OCI runtime");
                    Ok(vec![found.to_string_lossy().into_owned()])
                }
                None => Err(StartError::NoMaker(
                    "this kernel is older than Linux 5.12, which our own container maker needs, and neither runc \
                     nor crun is in PATH; install one (Debian and Ubuntu: apt-get install runc)"
                        .into(),
                )),
            }
        }
    }
}

fn is_executable(path: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The root of PID namespace holders: mount points and the file over which the shim is mounted.
fn prepare_holder(layout: &Layout) -> Result<(), StartError> {
    let root = layout.holder_rootfs();
    let made = ["proc", "dev", "sys"]
        .iter()
        .try_for_each(|dir| fs::create_dir_all(root.join(dir)))
        .and_then(|()| fs::File::create(root.join("coracle-shim")).map(drop));
    made.map_err(|source| StartError::Folder { path: root, source })
}
