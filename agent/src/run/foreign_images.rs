//! `coracle images` on a runtime that is not ours: what CRI has calls for.

use anyhow::Result;
use coracle_cri::ImageService;
use coracle_cri::v1::{
    AuthConfig, Image, ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest, RemoveImageRequest,
};
use coracle_runtime::image::Credentials;

use super::serve::Answers;
use crate::socket::{Answer, ImageRecord};

/// What cannot be done, and what can.
pub(super) const NO_CALL: &str =
    "CRI has no call for that; use the tool of this node's runtime, such as `ctr --namespace k8s.io images`";

pub(super) async fn list(images: &dyn ImageService, answers: &mut Answers) -> Result<()> {
    let mut found = images.list_images(ListImagesRequest { filter: None }).await?.images;
    found.sort_by(|a, b| a.repo_tags.cmp(&b.repo_tags));
    for image in found {
        let Image { id, repo_tags: tags, repo_digests: digests, size: size_bytes, .. } = image;
        answers.send(&Answer::Image(Box::new(ImageRecord { id, tags, digests, size_bytes }))).await?;
    }
    Ok(())
}

pub(super) async fn pull(
    images: &dyn ImageService,
    image: &str,
    credentials: Option<Credentials>,
    answers: &mut Answers,
) -> Result<()> {
    let auth = credentials.map(|credentials| match credentials {
        Credentials::Basic { username, password } => AuthConfig { username, password, ..Default::default() },
        Credentials::Identity(identity_token) => AuthConfig { identity_token, ..Default::default() },
        Credentials::Bearer(registry_token) => AuthConfig { registry_token, ..Default::default() },
    });
    let image = Some(spec(image));
    let pulled = images.pull_image(PullImageRequest { image, auth, sandbox_config: None }).await?;
    answers.send(&Answer::Message(pulled.image_ref)).await
}

pub(super) async fn remove(images: &dyn ImageService, image: &str, answers: &mut Answers) -> Result<()> {
    let request = ImageStatusRequest { image: Some(spec(image)), verbose: false };
    anyhow::ensure!(images.image_status(request).await?.image.is_some(), "no such image");
    images.remove_image(RemoveImageRequest { image: Some(spec(image)) }).await?;
    answers.send(&Answer::Message(format!("removed {image}"))).await
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..ImageSpec::default() }
}
