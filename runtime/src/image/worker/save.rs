//! Images to files: OCI layouts and docker-archives, as folders or tars. Runs in the worker.
//!
//! Layers are written uncompressed from their folders by their recipes, and compared with their diff IDs on the way,
//! so a saved image keeps its ID. A tar is first measured, then written in one pass: no layer is kept twice.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Session;
use crate::image::digest::Digest;
use crate::image::error::{Failure, FailureKind};
use crate::image::layer::LayerRecord;
use crate::image::layout::Layout;
use crate::image::record::Record;
use crate::image::reference::Reference;
use crate::image::{ArchiveCompression, ArchiveFormat, recipe};

/// Where members of an archive go.
enum Target {
    Folder(PathBuf),
    Tar(Box<dyn Finish>),
}

/// A stream that must be told its end.
trait Finish: Write {
    fn finish(self: Box<Self>) -> io::Result<()>;
}

impl Finish for BufWriter<File> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        (*self).into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

impl Finish for flate2::write::GzEncoder<BufWriter<File>> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        Box::new((*self).finish()?).finish()
    }
}

impl Finish for zstd::stream::write::Encoder<'static, BufWriter<File>> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        Box::new((*self).finish()?).finish()
    }
}

/// Bytes that are a member of the archive.
enum Content {
    Bytes(Vec<u8>),
    /// A layer by its chain ID, with the size of its tar.
    Layer(Digest, u64),
}

/// Saves images; what is half written under a temporary name is removed.
pub(super) fn save(
    session: &Session,
    path: &Path,
    format: ArchiveFormat,
    compression: ArchiveCompression,
    images: &[Record],
) -> Result<(), Failure> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => Failure::new(FailureKind::Corrupt, error.to_string()),
        _ => Failure::io(&path.display().to_string(), &error),
    };
    let members = members(&session.layout, format, images)?;
    let partial = path.with_added_extension("partial");
    let _ = crate::image::layout::remove_any(&partial);
    let written = match format {
        ArchiveFormat::OciLayout => write_all(&session.layout, Target::Folder(partial.clone()), &members),
        _ => {
            tar_target(&partial, compression).and_then(|target| write_all(&session.layout, target, &members))
        }
    };
    let named = written.and_then(|()| fs::rename(&partial, path));
    if named.is_err() {
        let _ = crate::image::layout::remove_any(&partial);
    }
    named.map_err(failed)
}

fn tar_target(path: &Path, compression: ArchiveCompression) -> io::Result<Target> {
    let file = BufWriter::with_capacity(128 << 10, File::create_new(path)?);
    Ok(Target::Tar(match compression {
        ArchiveCompression::Plain => Box::new(file),
        ArchiveCompression::Gzip => {
            Box::new(flate2::write::GzEncoder::new(file, flate2::Compression::default()))
        }
        ArchiveCompression::Zstd => Box::new(zstd::stream::write::Encoder::new(file, 3)?),
    }))
}

/// Every member in the order of the archive, each once.
fn members(
    layout: &Layout,
    format: ArchiveFormat,
    images: &[Record],
) -> Result<Vec<(String, Content)>, Failure> {
    let mut members: Vec<(String, Content)> = Vec::new();
    let mut descriptors = Vec::new();
    let mut docker = Vec::new();
    for image in images {
        let config_path = layout.config(&image.id);
        let config = fs::read(&config_path)
            .map_err(|error| Failure::io(&config_path.display().to_string(), &error))?;
        let config_size = config.len();
        add(&mut members, &image.id, Content::Bytes(config));
        let mut layers = Vec::new();
        let mut names = Vec::new();
        for chain in &image.layers {
            let (diff_id, size) = measure(layout, chain)?;
            layers.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar",
                               "digest": diff_id, "size": size}));
            names.push(blob_name(&diff_id));
            add(&mut members, &diff_id, Content::Layer(chain.clone(), size));
        }
        docker.push(json!({"Config": blob_name(&image.id), "RepoTags": image.repo_tags, "Layers": names}));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": image.id, "size": config_size},
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(&manifest);
        descriptors.extend(describe(image, &digest, manifest.len()));
        add(&mut members, &digest, Content::Bytes(manifest));
    }
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                       "manifests": descriptors});
    members.push(("index.json".to_owned(), Content::Bytes(index.to_string().into_bytes())));
    members.push(("oci-layout".to_owned(), Content::Bytes(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())));
    // Docker writes the layout beside its own manifest too, so one archive serves both kinds of reader.
    if format == ArchiveFormat::DockerArchive {
        members
            .push(("manifest.json".to_owned(), Content::Bytes(Value::from(docker).to_string().into_bytes())));
    }
    Ok(members)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn add(members: &mut Vec<(String, Content)>, digest: &Digest, content: Content) {
    let name = blob_name(digest);
    if !members.iter().any(|(known, _)| *known == name) {
        members.push((name, content));
    }
}

/// One descriptor for each tag, or one without a name.
fn describe(image: &Record, digest: &Digest, size: usize) -> Vec<Value> {
    let descriptor = |annotations: Value| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
               "annotations": annotations})
    };
    if image.repo_tags.is_empty() {
        return vec![descriptor(json!({}))];
    }
    let named = image.repo_tags.iter().map(|tag| {
        let short = tag.parse::<Reference>().ok().and_then(|reference| reference.tag);
        descriptor(json!({"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": short}))
    });
    named.collect()
}

/// Counts and verifies what a layer's recipe makes.
fn measure(layout: &Layout, chain: &Digest) -> Result<(Digest, u64), Failure> {
    struct Meter(Sha256, u64);
    impl Write for Meter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            self.1 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let path = layout.layer(chain);
    let failed = |error: io::Error| Failure::io(&path.display().to_string(), &error);
    let wanted = LayerRecord::read(&path).map_err(failed)?.diff_id;
    let mut meter = Meter(Sha256::new(), 0);
    recipe::replay(&path, &mut meter).map_err(failed)?;
    let Meter(hasher, size) = meter;
    if Digest::from_hasher(hasher) == wanted {
        return Ok((wanted, size));
    }
    Err(Failure::new(
        FailureKind::Corrupt,
        format!(
            "layer {wanted} cannot be written back as it came (it names a file twice, or was changed); pull the image again"
        ),
    ))
}

fn write_all(layout: &Layout, target: Target, members: &[(String, Content)]) -> io::Result<()> {
    match target {
        Target::Folder(folder) => {
            fs::create_dir_all(folder.join("blobs/sha256"))?;
            for (name, content) in members {
                let mut file = BufWriter::new(File::create_new(folder.join(name))?);
                copy(layout, content, &mut file)?;
                file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            }
            Ok(())
        }
        Target::Tar(mut out) => {
            for dir in ["blobs/", "blobs/sha256/"] {
                out.write_all(&header(dir, b'5', 0o755, 0))?;
            }
            for (name, content) in members {
                let size = match content {
                    Content::Bytes(bytes) => bytes.len() as u64,
                    Content::Layer(_, size) => *size,
                };
                out.write_all(&header(name, b'0', 0o644, size))?;
                copy(layout, content, &mut out)?;
                out.write_all(&vec![0; (512 - size % 512) as usize % 512])?;
            }
            out.write_all(&[0; 1024])?;
            out.finish()
        }
    }
}

fn copy(layout: &Layout, content: &Content, out: &mut impl Write) -> io::Result<()> {
    match content {
        Content::Bytes(bytes) => out.write_all(bytes),
        Content::Layer(chain, _) => recipe::replay(&layout.layer(chain), out),
    }
}

/// A ustar header; names here are short and plain, sizes past 8 GiB take GNU's base-256 form.
fn header(name: &str, flag: u8, mode: u32, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    if size < 1 << 33 {
        put(124, format!("{size:011o}").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[flag]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
