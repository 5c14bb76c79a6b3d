//! Images from files: OCI layouts and docker-archives, as folders or tars, plain, gzip or zstd, or a folder of such
//! files as air-gapped installs have it.
//!
//! Runs in the worker, one archive after another. Member names only key a table; no path is ever made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Blob, Session, tell};
use crate::image::decode;
use crate::image::digest::Digest;
use crate::image::error::{Failure, FailureKind};
use crate::image::manifest::{self, Config, MAX_DOCUMENT, Parsed};
use crate::image::protocol::{Event, Progress};
use crate::image::record::{Record, nullable};
use crate::image::reference::Reference;
use crate::image::tar::{Archive, Kind};

/// One entry of a docker-archive's manifest.json.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default, deserialize_with = "nullable")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    layers: Vec<String>,
}

/// The files of one archive, by normalised name; their content lies in `ingest` under its digest.
#[derive(Default)]
struct Members {
    files: BTreeMap<String, Blob>,
    /// Symlinks and hard links, by which `docker save` shares equal layers.
    links: BTreeMap<String, String>,
    /// What we brought into `ingest`, to be taken out again when no layer used it.
    brought: BTreeSet<Digest>,
}

/// Loads every image of a file, of a layout folder, or of each archive in a folder.
pub(super) async fn load(session: &mut Session, path: &Path) -> Result<Vec<Record>, Failure> {
    let mut records = Vec::new();
    for source in sources(path)? {
        let subject = source.display().to_string();
        let loaded = load_one(session, &source).await;
        records.extend(loaded.map_err(|f| Failure::new(f.kind, format!("{subject}: {}", f.message)))?);
    }
    Ok(records)
}

/// A layout folder or a file is one source; any other folder holds archives by their usual suffixes.
fn sources(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error: io::Error| Failure::io(&path.display().to_string(), &error);
    if !fs::metadata(path).map_err(failed)?.is_dir() || is_layout(path) {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let archive = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.zstd"];
        if archive.iter().any(|suffix| name.ends_with(suffix)) || is_layout(&entry) {
            found.push(entry);
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(Failure::new(
            FailureKind::Invalid,
            "the folder holds neither an OCI layout nor archives (.tar, .tar.gz, .tgz, .tar.zst)",
        ));
    }
    Ok(found)
}

fn is_layout(path: &Path) -> bool {
    path.join("oci-layout").is_file() || path.join("manifest.json").is_file()
}

async fn load_one(session: &mut Session, source: &Path) -> Result<Vec<Record>, Failure> {
    let mut members = Members::default();
    let gathered = if source.is_dir() {
        members.gather_folder(session, source, "")
    } else {
        members.gather_tar(session, source)
    };
    let result = match gathered {
        Ok(()) => install(session, &members).await,
        Err(failure) => Err(failure),
    };
    for digest in &members.brought {
        // Used blobs are gone already.
        let _ = fs::remove_file(session.layout.ingest(digest));
    }
    result
}

impl Members {
    fn gather_tar(&mut self, session: &Session, source: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
                Failure::new(FailureKind::Corrupt, format!("cannot read the archive: {error}"))
            }
            _ => Failure::io("cannot read the archive", &error),
        };
        let input = decode::decoder(File::open(source).map_err(failed)?).map_err(failed)?;
        let mut archive = Archive::new(BufReader::with_capacity(128 << 10, input));
        while let Some(entry) = archive.next().map_err(failed)? {
            let name = normalise(&String::from_utf8_lossy(&entry.path));
            match entry.kind {
                Kind::File => {
                    let blob = self.bring(session, &mut archive.content())?;
                    self.files.insert(name, blob);
                }
                Kind::Symlink => {
                    let link = String::from_utf8_lossy(&entry.link).into_owned();
                    let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                    self.links.insert(name.clone(), normalise(&format!("{dir}/{link}")));
                }
                Kind::HardLink => {
                    self.links.insert(name, normalise(&String::from_utf8_lossy(&entry.link)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn gather_folder(&mut self, session: &Session, dir: &Path, prefix: &str) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::io(&dir.display().to_string(), &error);
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = fs::metadata(entry.path()).map_err(failed)?;
            // A layout is three levels deep; whatever goes on for longer is something else.
            if kind.is_dir() && prefix.matches('/').count() < 4 {
                self.gather_folder(session, &entry.path(), &format!("{name}/"))?;
            } else if kind.is_file() {
                let mut file = File::open(entry.path()).map_err(failed)?;
                let blob = self.bring(session, &mut file)?;
                self.files.insert(name, blob);
            }
        }
        Ok(())
    }

    /// Brings content into `ingest` under its digest.
    fn bring(&mut self, session: &Session, content: &mut impl Read) -> Result<Blob, Failure> {
        let scratch = session.layout.tmp().join(format!("{}-load", session.worker));
        let failed = |error: io::Error| Failure::io("cannot store a blob of the archive", &error);
        let mut out = BufWriter::with_capacity(128 << 10, File::create(&scratch).map_err(failed)?);
        let mut hasher = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; 128 << 10];
        loop {
            let read = content.read(&mut buffer).map_err(|error| {
                Failure::new(FailureKind::Corrupt, format!("cannot read the archive: {error}"))
            })?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            out.write_all(&buffer[..read]).map_err(failed)?;
            size += read as u64;
            if size > session.limits.bytes {
                return Err(Failure::new(
                    FailureKind::Refused,
                    "a member of the archive is past the size limit",
                ));
            }
        }
        out.flush().map_err(failed)?;
        drop(out);
        let digest = Digest::from_hasher(hasher);
        fs::rename(&scratch, session.layout.ingest(&digest)).map_err(failed)?;
        self.brought.insert(digest.clone());
        Ok(Blob { digest, size })
    }

    fn find(&self, name: &str) -> Result<&Blob, Failure> {
        let mut name = normalise(name);
        for _ in 0..8 {
            if let Some(blob) = self.files.get(&name) {
                return Ok(blob);
            }
            match self.links.get(&name) {
                Some(target) => name.clone_from(target),
                None => break,
            }
        }
        Err(Failure::new(
            FailureKind::Corrupt,
            format!("the archive has no {name:?}, which its manifest names"),
        ))
    }

    /// The member that holds a digest, whatever its name.
    fn blob(&self, digest: &Digest) -> Option<&Blob> {
        self.files.values().find(|blob| blob.digest == *digest)
    }

    fn read(&self, session: &Session, blob: &Blob) -> Result<Vec<u8>, Failure> {
        if blob.size > MAX_DOCUMENT {
            return Err(Failure::new(
                FailureKind::Refused,
                "a manifest or config in the archive is past 8 MiB",
            ));
        }
        let path = session.layout.ingest(&blob.digest);
        fs::read(&path).map_err(|error| Failure::io(&path.display().to_string(), &error))
    }
}

/// A name without `.`, `..` and double slashes; a key, never a path.
fn normalise(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

async fn install(session: &mut Session, members: &Members) -> Result<Vec<Record>, Failure> {
    // Newer `docker save` writes both forms; the layout says more, but its names may be missing, so the older
    // form's names are what both sides agree on.
    if members.files.contains_key("manifest.json") {
        return install_docker(session, members).await;
    }
    if members.files.contains_key("index.json") {
        return install_layout(session, members).await;
    }
    Err(Failure::new(
        FailureKind::Invalid,
        "it is neither an OCI layout (no index.json) nor a docker-archive (no manifest.json)",
    ))
}

async fn install_docker(session: &mut Session, members: &Members) -> Result<Vec<Record>, Failure> {
    let bytes = members.read(session, members.find("manifest.json")?)?;
    let images: Vec<DockerImage> = serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(FailureKind::Corrupt, format!("manifest.json is malformed: {error}"))
    })?;
    let mut records = Vec::new();
    for image in images {
        let config = members.find(&image.config)?.clone();
        let layers = image.layers.iter().map(|name| members.find(name).cloned());
        let layers: Vec<Blob> = layers.collect::<Result<_, _>>()?;
        let tags = image.repo_tags.iter().filter_map(|tag| tag.parse::<Reference>().ok()?.tagged());
        let tags = tags.collect();
        records.push(install_image(session, members, &config, &layers, tags, Vec::new()).await?);
    }
    Ok(records)
}

async fn install_layout(session: &mut Session, members: &Members) -> Result<Vec<Record>, Failure> {
    let bytes = members.read(session, members.find("index.json")?)?;
    let Parsed::Index(index) = manifest::parse(&bytes)? else {
        return Err(Failure::new(FailureKind::Corrupt, "index.json is no index"));
    };
    let mut by_image: Vec<(Digest, Vec<String>)> = Vec::new();
    for descriptor in &index {
        if descriptor.platform.as_ref().is_some_and(|p| session.platform.rank(p).is_none()) {
            continue;
        }
        let name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        let name = name.iter().find_map(|key| descriptor.annotations.get(*key));
        // A bare tag, as the specification's own example has it, says no repository.
        let name =
            name.filter(|name| name.contains(['/', ':'])).and_then(|name| name.parse::<Reference>().ok());
        let name = name.and_then(|name| name.tagged());
        match by_image.iter_mut().find(|(digest, _)| *digest == descriptor.digest) {
            Some((_, names)) => names.extend(name),
            None => by_image.push((descriptor.digest.clone(), name.into_iter().collect())),
        }
    }
    if by_image.is_empty() && !index.is_empty() {
        manifest::choose(&index, &session.platform)?;
    }
    let mut records = Vec::new();
    for (digest, tags) in by_image {
        let manifest = resolve(session, members, digest.clone())?;
        let missing = |digest: &Digest| {
            Failure::new(FailureKind::Corrupt, format!("the layout lacks blob {digest}, or it is damaged"))
        };
        let config =
            members.blob(&manifest.config.digest).ok_or_else(|| missing(&manifest.config.digest))?.clone();
        let layers = manifest
            .layers
            .iter()
            .map(|layer| members.blob(&layer.digest).cloned().ok_or_else(|| missing(&layer.digest)));
        let layers: Vec<Blob> = layers.collect::<Result<_, _>>()?;
        let digests =
            tags.iter().filter_map(|tag| Some(tag.parse::<Reference>().ok()?.at(&digest))).collect();
        records.push(install_image(session, members, &config, &layers, tags, digests).await?);
    }
    Ok(records)
}

/// Follows nested indexes to this platform's manifest.
fn resolve(session: &Session, members: &Members, mut digest: Digest) -> Result<manifest::Manifest, Failure> {
    for _ in 0..4 {
        let blob = members.blob(&digest).ok_or_else(|| {
            Failure::new(FailureKind::Corrupt, format!("the layout lacks blob {digest}, or it is damaged"))
        })?;
        match manifest::parse(&members.read(session, blob)?)? {
            Parsed::Manifest(manifest) => return Ok(manifest),
            Parsed::Index(index) => {
                digest = manifest::choose(&index, &session.platform)?.digest.clone();
            }
        }
    }
    Err(Failure::new(FailureKind::Corrupt, "indexes are nested deeper than four levels"))
}

async fn install_image(
    session: &mut Session,
    members: &Members,
    config: &Blob,
    layers: &[Blob],
    tags: Vec<String>,
    digests: Vec<String>,
) -> Result<Record, Failure> {
    let raw = members.read(session, config)?;
    let parsed = Config::parse(&raw, layers.len())?;
    let jobs = session.jobs(&parsed, layers);
    let told = layers.iter().enumerate();
    let told =
        told.map(|(n, l)| (l.digest.clone(), l.size, !jobs.iter().any(|job| job.layer == n))).collect();
    tell(&Event::Progress(Progress::Layers { layers: told }));
    // Images of one archive share layers; the archive takes its own files away at the end.
    let jobs: Vec<_> =
        jobs.into_iter().map(|job| crate::image::unpack::job::Job { last_use: false, ..job }).collect();
    session.unpack_all(&jobs).await?;
    session.record(config.digest.clone(), &raw, parsed, tags, digests)
}
