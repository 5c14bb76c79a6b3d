//! Adapters between a worker's needs and the modules that serve them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};

use crate::api::{Container, Pod};
use crate::container_config::ImageRef;
use crate::image_pull::{ImagePuller, PullError};
use crate::pod::edges::{Images, Resources, StepError};
use crate::pod_cgroup::Extent;
use crate::qos::PodCgroupLimits;
use crate::resources::PodResources;
use crate::volume::Layer;

#[async_trait]
impl Images for ImagePuller {
    async fn ensure(
        &self,
        pod: &Arc<Pod>,
        container: &Container,
        sandbox: &PodSandboxConfig,
    ) -> Result<ImageRef, PullError> {
        ImagePuller::ensure(self, pod, container, sandbox).await
    }
}

/// An error's own reason and words.
fn step(reason: &str, error: &dyn std::error::Error) -> StepError {
    StepError { reason: reason.to_owned(), message: error.to_string() }
}

#[async_trait]
impl Resources for PodResources {
    async fn prepare(&self, pod: &Arc<Pod>) -> Result<(), StepError> {
        PodResources::prepare(self, pod).await.map_err(|error| step(error.reason(), &error))
    }

    async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        PodResources::runtime_handler(self, pod).await
    }

    fn sandbox_config(&self, pod: &Pod, attempt: u32) -> Result<PodSandboxConfig, StepError> {
        PodResources::sandbox_config(self, pod, attempt).map_err(|error| step(error.reason(), &error))
    }

    async fn container_config(
        &self,
        pod: &Pod,
        name: &str,
        attempt: u32,
        image: &ImageRef,
        ips: &[IpAddr],
    ) -> Result<ContainerConfig, StepError> {
        let config = PodResources::container_config(self, pod, name, attempt, image, ips).await;
        config.map_err(|error| step(error.reason(), &error))
    }

    async fn refresh(&self, pod: &Pod) -> Result<(), StepError> {
        PodResources::refresh(self, pod).await.map_err(|error| step(error.reason(), &error))
    }

    fn revision(&self, pod: &Pod) -> u64 {
        PodResources::revision(self, pod)
    }

    fn renewal(&self, uid: &str) -> Option<Duration> {
        PodResources::renewal(self, uid)
    }

    async fn over_limit(&self, pod: &Pod, layers: Vec<Layer>) -> Vec<String> {
        self.storage_over_limit(pod, layers).await
    }

    fn limits(&self, pod: &Pod) -> PodCgroupLimits {
        PodResources::limits(self, pod)
    }

    async fn resize(&self, pod: &Arc<Pod>, from: &PodCgroupLimits, extent: Extent) -> Result<(), StepError> {
        let resized = PodResources::resize(self, pod, from, extent).await;
        resized.map_err(|error| step(error.reason(), &error))
    }

    async fn memory_use(&self, pod: &Arc<Pod>) -> Option<u64> {
        PodResources::memory_use(self, pod).await
    }

    fn container_size(&self, pod: &Pod, container: &Container) -> LinuxContainerResources {
        PodResources::container_size(self, pod, container)
    }

    fn sandbox_size(&self, pod: &Pod) -> [LinuxContainerResources; 2] {
        PodResources::sandbox_size(self, pod)
    }

    async fn on_disk(&self) -> Result<Vec<String>, StepError> {
        let resources = self.clone();
        let listed = tokio::task::spawn_blocking(move || resources.pods_on_disk()).await;
        let listed = listed.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        listed.map_err(|error| step("FailedSync", &error))
    }

    async fn teardown(&self, uid: &str) -> Result<(), StepError> {
        PodResources::teardown(self, uid).await.map_err(|error| step("FailedSync", &error))
    }
}
