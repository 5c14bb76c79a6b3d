//! [`coracle_cri::ImageService`] on the image store, with the answers and error texts that a kubelet knows from
//! containerd. Called by kubelet-core in process or by a CRI server; any number of calls at once.

use std::collections::HashMap;
use std::time::SystemTime;

use async_trait::async_trait;
use coracle_cri::v1;
use coracle_cri::{Code, ImageService, Status};

use super::digest::Digest;
use super::error::{FailureKind, ImageError, chain};
use super::record::Image;
use super::registries::{AuthEntry, Credentials};
use super::store::ImageStore;

#[async_trait]
impl ImageService for ImageStore {
    async fn list_images(&self, request: v1::ListImagesRequest) -> Result<v1::ListImagesResponse, Status> {
        let name = request.filter.and_then(|filter| filter.image).map(|spec| spec.image).unwrap_or_default();
        let images = if name.is_empty() { self.list() } else { self.resolve(&name).into_iter().collect() };
        Ok(v1::ListImagesResponse { images: images.iter().map(|image| message(image)).collect() })
    }

    async fn image_status(&self, request: v1::ImageStatusRequest) -> Result<v1::ImageStatusResponse, Status> {
        let name = named(request.image)?;
        let Some(image) = self.resolve(&name) else { return Ok(v1::ImageStatusResponse::default()) };
        let info = if request.verbose { self.verbose(&image).await? } else { HashMap::new() };
        Ok(v1::ImageStatusResponse { image: Some(message(&image)), info })
    }

    async fn pull_image(&self, request: v1::PullImageRequest) -> Result<v1::PullImageResponse, Status> {
        let name = named(request.image)?;
        let credentials = request.auth.and_then(|auth| credentials(&auth));
        let image = self.pull(&name, credentials, |_| {}).await.map_err(|error| status(&error))?;
        Ok(v1::PullImageResponse { image_ref: image.id.clone() })
    }

    async fn remove_image(&self, request: v1::RemoveImageRequest) -> Result<v1::RemoveImageResponse, Status> {
        match self.remove(&named(request.image)?).await {
            Ok(()) | Err(ImageError::NotFound { .. }) => Ok(v1::RemoveImageResponse {}),
            Err(error) => Err(status(&error)),
        }
    }

    async fn image_fs_info(&self, _: v1::ImageFsInfoRequest) -> Result<v1::ImageFsInfoResponse, Status> {
        let usage = self.usage().await.map_err(|error| status(&error))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let file_system = v1::FilesystemUsage {
            timestamp: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.root().display().to_string() }),
            used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
            inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
        };
        // Writable layers lie on the same file system as images.
        Ok(v1::ImageFsInfoResponse {
            image_filesystems: vec![file_system.clone()],
            container_filesystems: vec![file_system],
        })
    }
}

impl ImageStore {
    /// What containerd tells of an image when asked for more.
    async fn verbose(&self, image: &Image) -> Result<HashMap<String, String>, Status> {
        let raw = self.raw_config(image).await.map_err(|error| status(&error))?;
        let spec: serde_json::Value = serde_json::from_slice(&raw)
            .map_err(|error| Status::internal(format!("image config of {}: {error}", image.id)))?;
        let chain = image.layers.last().map(Digest::to_string).unwrap_or_default();
        let info = serde_json::json!({"chainID": chain, "imageSpec": spec});
        Ok(HashMap::from([("info".to_owned(), info.to_string())]))
    }
}

fn named(spec: Option<v1::ImageSpec>) -> Result<String, Status> {
    match spec {
        Some(spec) if !spec.image.is_empty() => Ok(spec.image),
        _ => Err(Status::invalid_argument("image name is empty")),
    }
}

fn credentials(auth: &v1::AuthConfig) -> Option<Credentials> {
    AuthEntry {
        username: auth.username.clone(),
        password: auth.password.clone(),
        auth: auth.auth.clone(),
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
    }
    .resolve()
}

fn message(image: &Image) -> v1::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse().ok().map(|value| v1::Int64Value { value });
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes,
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        uid,
        spec: None,
        pinned: image.pinned,
    }
}

/// The status of an error: its kind as code, its whole chain as text.
fn status(error: &ImageError) -> Status {
    let code = match error.kind() {
        Some(FailureKind::NotFound) => Code::NotFound,
        Some(FailureKind::Unauthorized) => Code::Unauthenticated,
        Some(FailureKind::Network) => Code::Unavailable,
        Some(FailureKind::Digest | FailureKind::Corrupt) => Code::DataLoss,
        Some(FailureKind::Refused) => Code::FailedPrecondition,
        Some(FailureKind::NoSpace) => Code::ResourceExhausted,
        Some(FailureKind::Invalid) => Code::InvalidArgument,
        Some(FailureKind::Cancelled) => Code::Cancelled,
        Some(FailureKind::Io | FailureKind::Died) | None => Code::Unknown,
    };
    Status::new(code, chain(error))
}
