//! Adapters between a worker's needs and the modules that serve them.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_cri::ImageService;
use coracle_cri::v1::{ContainerConfig, PodSandboxConfig};

use crate::api::{Container, Pod};
use crate::container_config::ImageRef;
use crate::events::EventRecorder;
use crate::pod::edges::{Images, Resources, StepError};
use crate::resources::PodResources;

/// Pulls images by the containers' policies.
pub(super) fn pulling(images: Arc<dyn ImageService>, events: EventRecorder) -> Arc<dyn Images> {
    Arc::new(Pulling { images, events })
}

struct Pulling {
    images: Arc<dyn ImageService>,
    events: EventRecorder,
}

#[async_trait]
impl Images for Pulling {
    async fn ensure(
        &self,
        pod: &Arc<Pod>,
        container: &Container,
        sandbox: &PodSandboxConfig,
    ) -> Result<ImageRef, StepError> {
        use coracle_cri::v1::{ImageSpec, ImageStatusRequest, PullImageRequest};
        let _ = (pod, &self.events);
        let spec = ImageSpec { image: container.image.clone(), ..ImageSpec::default() };
        let failed = |reason: &str, s: coracle_cri::Status| StepError {
            reason: reason.to_owned(),
            message: s.message().to_owned(),
        };
        let status = |spec: ImageSpec| {
            self.images.image_status(ImageStatusRequest { image: Some(spec), verbose: false })
        };
        if let Some(image) = status(spec.clone()).await.map_err(|s| failed("ImageInspectError", s))?.image {
            return Ok(ImageRef::from(&image));
        }
        let request =
            PullImageRequest { image: Some(spec.clone()), auth: None, sandbox_config: Some(sandbox.clone()) };
        self.images.pull_image(request).await.map_err(|s| failed("ErrImagePull", s))?;
        let image = status(spec).await.map_err(|s| failed("ImageInspectError", s))?.image;
        Ok(image.as_ref().map(ImageRef::from).unwrap_or_default())
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

    async fn teardown(&self, uid: &str) -> Result<(), StepError> {
        PodResources::teardown(self, uid).await.map_err(|error| step("FailedSync", &error))
    }
}
