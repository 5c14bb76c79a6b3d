//! The calls of CRI's ImageService, handed to the image store.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_cri::v1;
use coracle_cri::v1::{
    ImageFsInfoRequest, ImageFsInfoResponse, ImageStatusRequest, ImageStatusResponse, ListImagesRequest,
    ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse,
    StreamImagesRequest, StreamImagesResponse,
};
use coracle_cri::{Code, ImageService, Status, Stream};
use futures_util::StreamExt as _;

use super::{Runtime, StartError, wall_ns};
use crate::config::Config;
use crate::image::{AuthEntry, FailureKind, Image, ImageError, ImageStore, Options};
use crate::service_error::chain;
use crate::stats;

/// Images in one piece of a streamed list.
const PIECE: usize = 200;

pub(super) async fn open(config: &Config) -> Result<Arc<ImageStore>, StartError> {
    let mut options = Options::new(config.images_dir());
    options.helper = config.helper.clone();
    options.registries = config.registries.clone();
    let path = config.images_dir();
    let opened = tokio::task::spawn_blocking(move || open_store(options)).await;
    match opened {
        Ok(Ok(store)) => Ok(store),
        Ok(Err(error)) => Err(StartError::Images { path, source: Box::new(error) }),
        Err(panic) => Err(StartError::Images { path, source: Box::new(panic) }),
    }
}

/// The runtime before may need a moment to end its tasks, which keep its store open.
fn open_store(options: Options) -> Result<Arc<ImageStore>, ImageError> {
    for _ in 0..50 {
        match ImageStore::open(options.clone()) {
            Err(ImageError::InUse { .. }) => std::thread::sleep(std::time::Duration::from_millis(100)),
            result => return result,
        }
    }
    ImageStore::open(options)
}

fn status(error: ImageError) -> Status {
    let code = match error.kind() {
        Some(FailureKind::NotFound) => Code::NotFound,
        Some(FailureKind::Unauthorized) => Code::Unauthenticated,
        Some(FailureKind::Network) => Code::Unavailable,
        Some(FailureKind::NoSpace) => Code::ResourceExhausted,
        Some(FailureKind::Digest | FailureKind::Corrupt) => Code::DataLoss,
        Some(FailureKind::Refused) => Code::FailedPrecondition,
        Some(FailureKind::Invalid) => Code::InvalidArgument,
        Some(FailureKind::Cancelled) => Code::Cancelled,
        Some(FailureKind::Io | FailureKind::Died) | None => Code::Unknown,
    };
    Status::new(code, chain(&error))
}

fn name(spec: Option<v1::ImageSpec>) -> Result<String, Status> {
    match spec {
        Some(spec) if !spec.image.is_empty() => Ok(spec.image),
        _ => Err(Status::invalid_argument("the request names no image")),
    }
}

/// An image as CRI tells it.
fn message(image: &Image) -> v1::Image {
    // Of "user:group" kubelets want the user alone, as a number or as a name.
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok();
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        spec: None,
        pinned: image.pinned,
    }
}

impl Runtime {
    fn images_matching(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        match filter.and_then(|filter| filter.image).filter(|image| !image.image.is_empty()) {
            Some(wanted) => self.engine.images.resolve(&wanted.image).iter().map(|image| message(image)).collect(),
            None => self.engine.images.list().iter().map(|image| message(image)).collect(),
        }
    }
}

#[async_trait]
impl ImageService for Runtime {
    async fn list_images(&self, request: ListImagesRequest) -> Result<ListImagesResponse, Status> {
        Ok(ListImagesResponse { images: self.images_matching(request.filter) })
    }

    async fn stream_images(&self, request: StreamImagesRequest) -> Result<Stream<StreamImagesResponse>, Status> {
        let images = self.images_matching(request.filter);
        let pieces: Vec<_> =
            images.chunks(PIECE).map(|piece| Ok(StreamImagesResponse { images: piece.to_vec() })).collect();
        Ok(futures_util::stream::iter(pieces).boxed())
    }

    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
        let Some(image) = self.engine.images.resolve(&name(request.image)?) else {
            return Ok(ImageStatusResponse::default());
        };
        let mut info = HashMap::new();
        if request.verbose {
            let raw = self.engine.images.raw_config(&image).await.map_err(status)?;
            let spec: serde_json::Value = serde_json::from_slice(&raw).unwrap_or_default();
            let chain_id = image.layers.last().map(ToString::to_string);
            let text = serde_json::json!({"chainID": chain_id, "imageSpec": spec});
            info.insert("info".to_owned(), text.to_string());
        }
        Ok(ImageStatusResponse { image: Some(message(&image)), info })
    }

    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, Status> {
        let auth = request.auth.and_then(|auth| {
            AuthEntry {
                username: auth.username,
                password: auth.password,
                auth: auth.auth,
                identity_token: auth.identity_token,
                registry_token: auth.registry_token,
            }
            .resolve()
        });
        let image = self.engine.images.pull(&name(request.image)?, auth, |_| {}).await.map_err(status)?;
        Ok(PullImageResponse { image_ref: image.id.clone() })
    }

    async fn remove_image(&self, request: RemoveImageRequest) -> Result<RemoveImageResponse, Status> {
        match self.engine.images.remove(&name(request.image)?).await {
            Ok(()) | Err(ImageError::NotFound { .. }) => Ok(RemoveImageResponse {}),
            Err(error) => Err(status(error)),
        }
    }

    async fn image_fs_info(&self, _request: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, Status> {
        let usage = self.engine.images.usage().await.map_err(status)?;
        let timestamp = wall_ns();
        let filesystem = |path: &std::path::Path, bytes, inodes| v1::FilesystemUsage {
            timestamp,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: path.to_string_lossy().into_owned() }),
            used_bytes: Some(v1::UInt64Value { value: bytes }),
            inodes_used: Some(v1::UInt64Value { value: inodes }),
        };
        let (bytes, inodes) = stats::layers(&self.engine).await;
        Ok(ImageFsInfoResponse {
            image_filesystems: vec![filesystem(self.engine.images.root(), usage.bytes, usage.inodes)],
            container_filesystems: vec![filesystem(&self.engine.layout.layers(), bytes, inodes)],
        })
    }
}
