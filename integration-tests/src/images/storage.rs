//! Writes images into the file system layout of the registry `distribution`, which then serves them as they are.
//!
//! Layout: docker/registry/v2 with `blobs` by digest and `repositories` of links to them, as the registry's
//! documentation of its file system driver has it. An image is written again when what it is made of has changed.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::configuration;
use super::rootfs::Rootfs;

/// Changes when images are made differently from the same inputs.
const RECIPE: u32 = 6;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The storage of a registry.
pub(super) struct Storage {
    folder: PathBuf,
    gzip: bool,
}

impl Storage {
    /// The storage in a folder.
    pub(super) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), gzip: false }
    }

    /// The same with compressed layers.
    pub(super) fn with_gzip(self) -> Self {
        Self { gzip: true, ..self }
    }

    /// Adds an image under `REPOSITORY:TAG` names, unless it is there and made of the same files.
    pub(super) fn add(
        &self,
        names: &[&str],
        inputs: &[&Path],
        make: impl FnOnce() -> Result<(Rootfs, Value)>,
    ) -> Result<()> {
        let stamp = stamp(inputs)?;
        let stamp_file = self.folder.join("stamps").join(names[0].replace('/', "_"));
        if std::fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
            return Ok(());
        }
        let (rootfs, config) = make().with_context(|| format!("cannot make the image {}", names[0]))?;
        let archive = rootfs.finish()?;
        let config = configuration(&config, &hex::encode(Sha256::digest(&archive)));
        let (layer, layer_type) = match self.gzip {
            true => (self.blob(&gzip(&archive)?)?, LAYER_GZIP),
            false => (self.blob(&archive)?, LAYER),
        };
        let config = self.blob(&serde_json::to_vec(&config)?)?;
        let manifest = self.blob(&serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(layer_type)],
        }))?)?;
        for name in names {
            let (repository, tag) = name.rsplit_once(':').context("an image has a tag")?;
            for blob in [&layer, &config] {
                self.link(repository, &format!("_layers/sha256/{}", blob.digest), blob)?;
            }
            self.link(repository, &format!("_manifests/revisions/sha256/{}", manifest.digest), &manifest)?;
            let index = format!("_manifests/tags/{tag}/index/sha256/{}", manifest.digest);
            self.link(repository, &index, &manifest)?;
            self.link(repository, &format!("_manifests/tags/{tag}/current"), &manifest)?;
        }
        write(&stamp_file, stamp.as_bytes())
    }

    /// The digest of an image that was added, without its algorithm.
    pub(super) fn digest(&self, name: &str) -> Result<String> {
        let (repository, tag) = name.rsplit_once(':').context("an image has a tag")?;
        let path = self.root().join("repositories").join(repository);
        let path = path.join("_manifests/tags").join(tag).join("current/link");
        let link =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(link.trim_start_matches("sha256:").to_owned())
    }

    fn blob(&self, bytes: &[u8]) -> Result<Blob> {
        let digest = hex::encode(Sha256::digest(bytes));
        let path = self.root().join("blobs/sha256").join(&digest[..2]).join(&digest).join("data");
        if !path.exists() {
            write(&path, bytes)?;
        }
        Ok(Blob { digest, size: bytes.len() })
    }

    fn link(&self, repository: &str, place: &str, blob: &Blob) -> Result<()> {
        let path = self.root().join("repositories").join(repository).join(place).join("link");
        write(&path, format!("sha256:{}", blob.digest).as_bytes())
    }

    fn root(&self) -> PathBuf {
        self.folder.join("docker/registry/v2")
    }
}

struct Blob {
    digest: String,
    size: usize,
}

impl Blob {
    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.size})
    }
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).context("cannot compress a layer")?;
    encoder.finish().context("cannot compress a layer")
}

/// What tells one state of the inputs from another.
fn stamp(inputs: &[&Path]) -> Result<String> {
    let mut stamp = format!("recipe {RECIPE}\n");
    for path in inputs {
        let metadata =
            std::fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
        let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        stamp.push_str(&format!("{} {} {changed:?}\n", path.display(), metadata.len()));
    }
    Ok(stamp)
}

/// Writes a file in one step, so that a registry that runs already sees the old or the new one.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let draft = path.with_extension(format!("draft{}", std::process::id()));
    std::fs::write(&draft, bytes).with_context(|| format!("cannot write {}", draft.display()))?;
    std::fs::rename(&draft, path).with_context(|| format!("cannot write {}", path.display()))
}
