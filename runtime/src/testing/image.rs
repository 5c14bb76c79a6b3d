//! Small images made in memory.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::Tarball;
use crate::image::Digest;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerCompression {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl LayerCompression {
    /// Compresses bytes.
    pub fn compress(self, plain: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => plain.to_vec(),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(plain).expect("writing to memory does not fail");
                encoder.finish().expect("writing to memory does not fail")
            }
            Self::Zstd => zstd::encode_all(plain, 1).expect("writing to memory does not fail"),
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An image, or an index of images, with all its blobs.
#[derive(Clone, Debug, Default)]
pub struct TestImage {
    /// Every blob by its digest: layers, config, manifests.
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    layers: Vec<(Digest, Digest, LayerCompression)>,
    config: Value,
    architecture: Option<(String, String)>,
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::of(bytes)
}

impl TestImage {
    /// An image without layers for this machine's platform.
    pub fn new() -> Self {
        Self { config: json!({}), ..Self::default() }
    }

    /// Adds a layer from a finished tar.
    #[must_use]
    pub fn layer(mut self, tar: &[u8], compression: LayerCompression) -> Self {
        let blob = compression.compress(tar);
        let digest = digest_of(&blob);
        self.layers.push((digest.clone(), digest_of(tar), compression));
        self.blobs.insert(digest, blob);
        self
    }

    /// Replaces a layer's blob without changing what the manifest says of it.
    #[must_use]
    pub fn damage(mut self, layer: usize, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let digest = self.layers[layer].0.clone();
        if let Some(blob) = self.blobs.get_mut(&digest) {
            change(blob);
        }
        self
    }

    /// Says a wrong diff ID of a layer.
    #[must_use]
    pub fn wrong_diff_id(mut self, layer: usize) -> Self {
        self.layers[layer].1 = digest_of(b"something else");
        self
    }

    /// Sets the `config` object of the image config.
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Sets architecture and variant.
    #[must_use]
    pub fn platform(mut self, architecture: &str, variant: &str) -> Self {
        self.architecture = Some((architecture.to_owned(), variant.to_owned()));
        self
    }

    fn platform_parts(&self) -> (String, String) {
        let host = crate::image::Platform::host();
        self.architecture.clone().unwrap_or((host.architecture, host.variant))
    }

    /// Digests of the layers' blobs, bottom first.
    pub fn layer_digests(&self) -> Vec<Digest> {
        self.layers.iter().map(|(blob, ..)| blob.clone()).collect()
    }

    /// The image config.
    pub fn config_bytes(&self) -> Vec<u8> {
        let (architecture, variant) = self.platform_parts();
        let diff_ids: Vec<&Digest> = self.layers.iter().map(|(_, diff_id, _)| diff_id).collect();
        let mut config = json!({
            "architecture": architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        if !variant.is_empty() {
            config["variant"] = variant.into();
        }
        serde_json::to_vec(&config).expect("a config is plain data")
    }

    /// The image's ID.
    pub fn id(&self) -> Digest {
        digest_of(&self.config_bytes())
    }

    /// The manifest, OCI's.
    pub fn manifest_bytes(&self) -> Vec<u8> {
        let config = self.config_bytes();
        let layers = self.layers.iter().map(|(digest, _, compression)| {
            json!({"mediaType": compression.media_type(), "digest": digest, "size": self.blobs[digest].len()})
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": digest_of(&config), "size": config.len()},
            "layers": layers.collect::<Vec<_>>(),
        });
        serde_json::to_vec(&manifest).expect("a manifest is plain data")
    }

    /// All blobs with config and manifest among them.
    pub fn all_blobs(&self) -> BTreeMap<Digest, Vec<u8>> {
        let mut blobs = self.blobs.clone();
        for bytes in [self.config_bytes(), self.manifest_bytes()] {
            blobs.insert(digest_of(&bytes), bytes);
        }
        blobs
    }

    /// The descriptor of this image in an index.
    pub fn descriptor(&self) -> Value {
        let manifest = self.manifest_bytes();
        let (architecture, variant) = self.platform_parts();
        let mut platform = json!({"os": "linux", "architecture": architecture});
        if !variant.is_empty() {
            platform["variant"] = variant.into();
        }
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest_of(&manifest),
               "size": manifest.len(), "platform": platform})
    }

    /// An index of images.
    pub fn index_bytes(images: &[&TestImage]) -> Vec<u8> {
        let manifests: Vec<Value> = images.iter().map(|image| image.descriptor()).collect();
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                           "manifests": manifests});
        serde_json::to_vec(&index).expect("an index is plain data")
    }

    /// The members of an OCI layout with this image under a name.
    pub fn layout(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let mut descriptor = self.descriptor();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        files.extend(
            self.all_blobs()
                .into_iter()
                .map(|(digest, blob)| (format!("blobs/sha256/{}", digest.hex()), blob)),
        );
        files
    }

    /// Writes an OCI layout to a folder.
    pub fn write_layout(&self, dir: &Path, name: &str) -> std::io::Result<()> {
        std::fs::create_dir_all(dir.join("blobs/sha256"))?;
        self.layout(name).into_iter().try_for_each(|(file, bytes)| std::fs::write(dir.join(file), bytes))
    }

    /// An OCI layout as a tar.
    pub fn layout_tar(&self, name: &str) -> Vec<u8> {
        let files = self.layout(name);
        files.iter().fold(Tarball::new(), |tar, (file, bytes)| tar.file(file, bytes)).finish()
    }

    /// A docker-archive in the older form: a folder per layer, equal layers shared by symlinks, manifest last.
    pub fn docker_archive(&self, names: &[&str]) -> Vec<u8> {
        let config = self.config_bytes();
        let config_name = format!("{}.json", digest_of(&config).hex());
        let mut tar = Tarball::new().file(&config_name, &config);
        let mut layers = Vec::new();
        let mut seen: BTreeMap<&Digest, String> = BTreeMap::new();
        for (number, (digest, ..)) in self.layers.iter().enumerate() {
            let dir = format!("{:064x}", number + 1);
            let member = format!("{dir}/layer.tar");
            tar = tar.dir(&format!("{dir}/"));
            tar = match seen.get(digest) {
                Some(first) => tar.symlink(&member, &format!("../{first}")),
                None => tar.file(&member, &self.blobs[digest]),
            };
            seen.entry(digest).or_insert_with(|| member.clone());
            layers.push(member);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": names, "Layers": layers}]);
        tar.file("manifest.json", manifest.to_string().as_bytes()).finish()
    }
}
