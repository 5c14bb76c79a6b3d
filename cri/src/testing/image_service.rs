//! The fake as an [`ImageService`], and what tests say about images.

use async_trait::async_trait;
use tonic::Status;

use super::FakeRuntime;
use super::calls::Method;
use super::images::{self, Pull};
use super::runtime_service::batches;
use crate::service::{ImageService, Stream};
use crate::v1::*;

impl FakeRuntime {
    /// Puts an image on the node, as if it had been pulled; its ID.
    pub fn add_image(&self, reference: &str) -> String {
        let image = images::named(reference);
        let id = image.id.clone();
        self.put_image(image);
        id
    }

    /// Puts an image on the node with all that it says (user, size, names). Names move to it from others.
    pub fn put_image(&self, image: Image) {
        self.lock().images.put(image);
        self.note_change();
    }

    /// Every image on the node.
    pub fn images(&self) -> Vec<Image> {
        self.lock().images.present.clone()
    }

    /// Every pull of this image answers `status` from now on.
    pub fn refuse_pull(&self, reference: &str, status: Status) {
        self.lock().images.refused.insert(images::normalize(reference), status);
    }

    /// Ends [`refuse_pull`](Self::refuse_pull) for this image.
    pub fn allow_pull(&self, reference: &str) {
        self.lock().images.refused.remove(&images::normalize(reference));
    }

    /// Pulls of this image fail unless they bring this user name and password.
    pub fn require_credentials(&self, reference: &str, username: &str, password: &str) {
        let credentials = (username.to_owned(), password.to_owned());
        self.lock().images.credentials.insert(images::normalize(reference), credentials);
    }

    /// Every pull that arrived, with its credentials.
    pub fn pulls(&self) -> Vec<Pull> {
        self.lock().images.pulls.clone()
    }
}

#[async_trait]
impl ImageService for FakeRuntime {
    async fn list_images(&self, request: ListImagesRequest) -> Result<ListImagesResponse, Status> {
        self.call(Method::ListImages, "", |state| {
            let wanted = request.filter.and_then(|filter| filter.image);
            Ok(ListImagesResponse { images: state.images.list(wanted.as_ref()) })
        })
        .await
    }

    async fn stream_images(
        &self,
        request: StreamImagesRequest,
    ) -> Result<Stream<StreamImagesResponse>, Status> {
        self.call(Method::StreamImages, "", |state| {
            let wanted = request.filter.and_then(|filter| filter.image);
            Ok(batches(state.images.list(wanted.as_ref()), |images| StreamImagesResponse { images }))
        })
        .await
    }

    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
        let reference = request.image.map(|image| image.image).unwrap_or_default();
        self.call(Method::ImageStatus, &reference, |state| {
            let image = state.images.resolve(&reference).cloned();
            Ok(ImageStatusResponse { image, ..Default::default() })
        })
        .await
    }

    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, Status> {
        let reference = request.image.map(|image| image.image).unwrap_or_default();
        let pull = Pull {
            image: reference.clone(),
            auth: request.auth.clone(),
            sandbox_config: request.sandbox_config,
        };
        self.lock().images.pulls.push(pull);
        self.call(Method::PullImage, &reference, |state| {
            let image_ref = state.images.pull(&reference, request.auth.as_ref())?;
            Ok(PullImageResponse { image_ref })
        })
        .await
    }

    async fn remove_image(&self, request: RemoveImageRequest) -> Result<RemoveImageResponse, Status> {
        let reference = request.image.map(|image| image.image).unwrap_or_default();
        self.call(Method::RemoveImage, &reference, |state| {
            state.images.remove(&reference);
            Ok(RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(&self, _request: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, Status> {
        self.call(Method::ImageFsInfo, "", |state| {
            let mut info = state.fs_info.clone();
            let now = state.clock.unix_nanos();
            let usages = info.image_filesystems.iter_mut().chain(&mut info.container_filesystems);
            usages.for_each(|usage| usage.timestamp = now);
            Ok(info)
        })
        .await
    }
}
