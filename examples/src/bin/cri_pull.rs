//! Pulls an image into any CRI runtime: `cri_pull unix:///run/containerd/containerd.sock IMAGE`, prints its ID.
//!
//! Uses the crate `coracle-cri` alone.
#![allow(clippy::print_stdout, reason = "it is a command")]

use anyhow::Context as _;
use coracle_cri::ImageService as _;
use coracle_cri::client::Client;
use coracle_cri::v1::{ImageSpec, PullImageRequest};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let endpoint = words.next().context("usage: cri_pull unix:///PATH IMAGE")?;
    let image = words.next().context("usage: cri_pull unix:///PATH IMAGE")?;
    let image = ImageSpec { image, ..Default::default() };
    let request = PullImageRequest { image: Some(image), ..Default::default() };
    println!("{}", Client::new(&endpoint)?.pull_image(request).await?.image_ref);
    Ok(())
}
