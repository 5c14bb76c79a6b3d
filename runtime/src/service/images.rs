//! The calls of CRI's ImageService, handed to the image store, and what the store cannot know: the usage of
//! writable layers.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_cri::v1;
use coracle_cri::v1::{
    ImageFsInfoRequest, ImageFsInfoResponse, ImageStatusRequest, ImageStatusResponse, ListImagesRequest,
    ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse,
    StreamImagesRequest, StreamImagesResponse,
};
use coracle_cri::{ImageService, Status, Stream};
use futures_util::StreamExt as _;

use super::{Runtime, StartError, wall_ns};
use crate::config::Config;
use crate::image::{ImageError, ImageStore, Options};
use crate::stats;

/// Images in one piece of a streamed list.
const PIECE: usize = 200;

pub(super) async fn open(config: &Config) -> Result<Arc<ImageStore>, StartError> {
    let mut options = Options::new(config.images_dir());
    options.helper = config.helper.clone();
    options.registries = config.registries.clone();
    options.stall = config.pull_stall;
    let path = config.images_dir();
    let opened = tokio::task::spawn_blocking(move || open_store(&options)).await;
    match opened {
        Ok(Ok(store)) => Ok(store),
        Ok(Err(error)) => Err(StartError::Images { path, source: Box::new(error) }),
        Err(panic) => Err(StartError::Images { path, source: Box::new(panic) }),
    }
}

/// The runtime before may need a moment to end its tasks, which keep its store open.
fn open_store(options: &Options) -> Result<Arc<ImageStore>, ImageError> {
    for _ in 0..50 {
        match ImageStore::open(options.clone()) {
            Err(ImageError::InUse { .. }) => std::thread::sleep(std::time::Duration::from_millis(100)),
            result => return result,
        }
    }
    ImageStore::open(options.clone())
}

#[async_trait]
impl ImageService for Runtime {
    async fn list_images(&self, request: ListImagesRequest) -> Result<ListImagesResponse, Status> {
        self.engine.images.list_images(request).await
    }

    async fn stream_images(
        &self,
        request: StreamImagesRequest,
    ) -> Result<Stream<StreamImagesResponse>, Status> {
        let list = ListImagesRequest { filter: request.filter };
        let images = self.engine.images.list_images(list).await?.images;
        let pieces: Vec<_> =
            images.chunks(PIECE).map(|piece| Ok(StreamImagesResponse { images: piece.to_vec() })).collect();
        Ok(futures_util::stream::iter(pieces).boxed())
    }

    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
        self.engine.images.image_status(request).await
    }

    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, Status> {
        self.engine.images.pull_image(request).await
    }

    async fn remove_image(&self, request: RemoveImageRequest) -> Result<RemoveImageResponse, Status> {
        self.engine.images.remove_image(request).await
    }

    async fn image_fs_info(&self, request: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, Status> {
        let mut info = self.engine.images.image_fs_info(request).await?;
        let (bytes, inodes) = stats::layers(&self.engine).await;
        let mountpoint = self.engine.layout.layers().to_string_lossy().into_owned();
        info.container_filesystems = vec![v1::FilesystemUsage {
            timestamp: wall_ns(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint }),
            used_bytes: Some(v1::UInt64Value { value: bytes }),
            inodes_used: Some(v1::UInt64Value { value: inodes }),
        }];
        Ok(info)
    }
}
