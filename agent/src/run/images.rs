//! `coracle images` on the agent's side: what CRI has no call for, answered by the image store.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use coracle_runtime::image::{
    ArchiveCompression, ArchiveFormat, Credentials, Image, ImageStore, Progress as StoreProgress, Reference,
    Registries,
};
use tokio::sync::mpsc;

use super::serve::Answers;
use super::{Node, foreign_images};
use crate::socket::{Answer, Progress};

/// Progress that a slow terminal has not taken yet; more is dropped, since only the latest matters.
const PROGRESS_BUFFER: usize = 64;

pub(super) async fn list(node: &Node, answers: &mut Answers) -> Result<()> {
    let Some(store) = node.engine.store() else {
        return foreign_images::list(&*node.engine.images, answers).await;
    };
    let mut images = store.list();
    images.sort_by(|a, b| a.repo_tags.cmp(&b.repo_tags));
    for image in images {
        answers.send(&Answer::Image(Box::new((&*image).into()))).await?;
    }
    Ok(())
}

/// The store of images, where it is ours.
fn own(node: &Node) -> Result<Arc<ImageStore>> {
    node.engine.store().cloned().context(foreign_images::NO_CALL)
}

pub(super) async fn pull(
    node: &Node,
    image: &str,
    auth_file: Option<&Path>,
    answers: &mut Answers,
) -> Result<()> {
    let credentials = auth_file.map(|path| credentials(path, image)).transpose()?.flatten();
    let Some(store) = node.engine.store().cloned() else {
        return foreign_images::pull(&*node.engine.images, image, credentials, answers).await;
    };
    let image = image.to_owned();
    let pulled = with_progress(answers, |send| {
        Box::pin(async move { Ok(store.pull(&image, credentials, send).await?) })
    })
    .await?;
    answers.send(&Answer::Message(pulled.id.clone())).await
}

/// The credentials that a docker config.json holds for an image's registry.
fn credentials(path: &Path, image: &str) -> Result<Option<Credentials>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut registries = Registries::default();
    registries
        .add_docker_config(&text)
        .with_context(|| format!("{} is not a docker config.json", path.display()))?;
    let reference: Reference = image.parse()?;
    Ok(registries.credentials(&reference.registry))
}

pub(super) async fn load(node: &Node, path: &Path, answers: &mut Answers) -> Result<()> {
    let store = own(node)?;
    let from = path.to_owned();
    let images =
        with_progress(answers, |send| Box::pin(async move { Ok(store.load(&from, send).await?) })).await?;
    for name in images.iter().flat_map(|image| names(image)) {
        answers.send(&Answer::Message(format!("loaded {name}"))).await?;
    }
    Ok(())
}

fn names(image: &Image) -> Vec<&String> {
    if image.repo_tags.is_empty() { vec![&image.id] } else { image.repo_tags.iter().collect() }
}

pub(super) async fn save(node: &Node, path: &Path, images: &[String], answers: &mut Answers) -> Result<()> {
    let name = path.to_string_lossy();
    let compression = match name.rsplit('.').next() {
        Some("gz" | "tgz") => ArchiveCompression::Gzip,
        Some("zst" | "tzst") => ArchiveCompression::Zstd,
        _ => ArchiveCompression::Plain,
    };
    let (store, to, images) = (own(node)?, path.to_owned(), images.to_vec());
    with_progress(answers, |send| {
        Box::pin(
            async move { Ok(store.save(&images, &to, ArchiveFormat::OciArchive, compression, send).await?) },
        )
    })
    .await?;
    answers.send(&Answer::Message(format!("saved to {}", path.display()))).await
}

pub(super) async fn remove(node: &Node, image: &str, answers: &mut Answers) -> Result<()> {
    let Some(store) = node.engine.store() else {
        return foreign_images::remove(&*node.engine.images, image, answers).await;
    };
    let Some(found) = store.resolve(image) else { bail!("no such image") };
    let is_name =
        found.repo_tags.len() > 1 && image.parse::<Reference>().is_ok_and(|name| name.tagged().is_some());
    if is_name {
        store.untag(image).await?
    } else {
        store.remove(image).await?
    }
    answers.send(&Answer::Message(format!("removed {image}"))).await
}

pub(super) async fn prune(node: &Node, all: bool, answers: &mut Answers) -> Result<()> {
    let store = own(node)?;
    let before = store.usage().await?.bytes;
    let removed = if all { store.prune_all().await? } else { store.prune(u64::MAX).await? };
    for name in removed.iter().flat_map(|image| names(image)) {
        answers.send(&Answer::Message(format!("removed {name}"))).await?;
    }
    let freed = before.saturating_sub(store.usage().await?.bytes);
    answers.send(&Answer::Message(format!("freed {}", crate::table::size(freed)))).await
}

type Work<T> = std::pin::Pin<Box<dyn Future<Output = Result<T>> + Send>>;
type Sink = Box<dyn FnMut(StoreProgress) + Send>;

/// Runs work while its progress goes to the command; the work ends when the command goes away.
async fn with_progress<T>(answers: &mut Answers, work: impl FnOnce(Sink) -> Work<T>) -> Result<T> {
    let (sender, mut receiver) = mpsc::channel(PROGRESS_BUFFER);
    let mut work = work(Box::new(move |progress| {
        let _ = sender.try_send(progress);
    }));
    let mut layers: Vec<(String, u64)> = Vec::new();
    loop {
        tokio::select! {
            // Cancel-safe: the work is polled in place and resumed by the next round.
            result = &mut work => return result,
            // Cancel-safe: a message is either received or stays in the channel.
            Some(progress) = receiver.recv() => {
                for progress in shown(progress, &mut layers) {
                    answers.send(&Answer::Progress(progress)).await?;
                }
            }
        }
    }
}

/// What a step of the store looks like to a person.
fn shown(progress: StoreProgress, layers: &mut Vec<(String, u64)>) -> Vec<Progress> {
    let at = |layer: usize, done: Option<u64>, layers: &[(String, u64)]| {
        layers.get(layer).map(|(item, total)| Progress {
            item: item.clone(),
            done: done.unwrap_or(*total),
            total: *total,
        })
    };
    match progress {
        StoreProgress::Layers { layers: all } => {
            *layers = all.iter().map(|(digest, size, _)| (short(&digest.to_string()), *size)).collect();
            let step =
                |(index, (_, _, here)): (usize, &(_, u64, bool))| at(index, (!here).then_some(0), layers);
            all.iter().enumerate().filter_map(step).collect()
        }
        StoreProgress::Fetched { layer, bytes } => at(layer, Some(bytes), layers).into_iter().collect(),
        StoreProgress::Complete { layer } => at(layer, None, layers).into_iter().collect(),
        StoreProgress::Unpacked { .. } | StoreProgress::Retry { .. } => Vec::new(),
    }
}

fn short(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}
