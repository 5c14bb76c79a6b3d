//! What runs the containers of a node: our own runtime within this process, or another's at a socket. Held by
//! [`super::supervise`] and what it starts; above this file nobody asks which of the two it is, but for what CRI has no
//! call for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_cri::client::Client;
use coracle_cri::v1::{CgroupDriver as CriCgroupDriver, RuntimeConfigRequest, VersionRequest};
use coracle_cri::{Code, ImageService, RuntimeService};
use coracle_kubelet_core::pod_cgroup::CgroupDriver;
use coracle_runtime::image::ImageStore;
use coracle_runtime::{Config, Runtime};
use tokio::sync::Mutex;

use super::log_losses::Losses;

/// Between looks at a runtime that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Which runtime, and where its images are.
#[derive(Debug)]
pub(super) enum EngineSettings {
    /// Ours.
    Embedded(Box<Config>),
    /// Any other, by the endpoints of its services.
    Endpoints { runtime: String, images: String },
}

/// A runtime that answers.
#[derive(Clone)]
pub(super) struct Engine {
    pub(super) runtime: Arc<dyn RuntimeService>,
    pub(super) images: Arc<dyn ImageService>,
    embedded: Option<Arc<Runtime>>,
}

impl Engine {
    /// Starts ours, or waits for the other, which may be starting too.
    pub(super) async fn start(settings: EngineSettings) -> Result<Self> {
        match settings {
            EngineSettings::Embedded(mut config) => {
                config.descriptor_limit = crate::descriptors::former();
                let runtime = Runtime::start(*config).await.context("the container runtime cannot start")?;
                let embedded = Some(runtime.clone());
                Ok(Self { runtime: runtime.clone(), images: runtime, embedded })
            }
            EngineSettings::Endpoints { runtime, images } => {
                let runtime = Client::new(&runtime).context("--container-runtime-endpoint")?;
                // One connection serves both where it can.
                let images = match images.as_str() {
                    same if Client::new(same).is_ok_and(|client| client.socket() == runtime.socket()) => {
                        runtime.clone()
                    }
                    other => Client::new(other).context("--image-service-endpoint")?,
                };
                wait_for(&runtime).await?;
                Ok(Self { runtime: Arc::new(runtime), images: Arc::new(images), embedded: None })
            }
        }
    }

    /// The store of images, if it is ours.
    pub(super) fn store(&self) -> Option<&Arc<ImageStore>> {
        self.embedded.as_ref().map(|runtime| runtime.images())
    }

    /// News of output that logs refuse, if the runtime is ours; for the first who asks.
    pub(super) fn take_log_losses(&self) -> Option<Losses> {
        let losses = self.embedded.as_ref()?.take_log_losses()?;
        Some(Arc::new(Mutex::new(losses)))
    }

    /// How another runtime makes cgroups, if it tells; ours makes them as it is told.
    pub(super) async fn cgroup_driver(&self) -> Option<CgroupDriver> {
        if self.embedded.is_some() {
            return None;
        }
        let linux = self.runtime.runtime_config(RuntimeConfigRequest {}).await.ok()?.linux?;
        Some(match linux.cgroup_driver() {
            CriCgroupDriver::Systemd => CgroupDriver::Systemd,
            CriCgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
        })
    }

    /// Ends what ends with the agent; containers run on.
    pub(super) async fn close(self, limit: Duration) {
        if let Some(runtime) = self.embedded {
            runtime.close(limit).await;
        }
    }
}

/// Returns once the runtime answers; fails if it never will.
async fn wait_for(runtime: &Client) -> Result<()> {
    let mut told = false;
    loop {
        match runtime.version(VersionRequest { version: "0.1.0".to_owned() }).await {
            Ok(version) => {
                let (name, version) = (version.runtime_name, version.runtime_version);
                tracing::info!(name, version, "runs pods on a container runtime that was there");
                return Ok(());
            }
            Err(status) if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("{}; waiting for it", status.message());
                }
            }
            Err(status) => bail!(
                "what listens at {} is no container runtime that speaks CRI v1: {}",
                runtime.socket().display(),
                status.message()
            ),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
