//! Makes the example images offline: an OCI image layout in a tar, from one static program of ours.
//!
//! `demo` and the benches call it. Format: the OCI image specification 1.1; the name is given by the
//! annotation that containerd and k3s read from air-gap archives.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

/// The name of the image.
pub const NAME: &str = "example.coracle/example:1";

/// A blob of the layout.
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: hex::encode(Sha256::digest(&bytes)), bytes }
    }

    fn descriptor(&self, media_type: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len()})
    }
}

/// Writes the archive to `path`, with the executable `program` as `/example`.
pub fn write(program: &Path, path: &Path) -> Result<()> {
    write_as(NAME, 0, program, path)
}

/// The same by another name, with so many files more that unpacking it takes its time.
pub fn write_as(name: &str, files: u32, program: &Path, path: &Path) -> Result<()> {
    let program = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let layer = Blob::new(layer(&program, files)?);
    let config = Blob::new(serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/example"], "Cmd": ["sleep"], "WorkingDir": "/",
            "Env": ["PATH=/"],
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
    }))?);
    let manifest = Blob::new(serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
    }))?);
    let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    entry["annotations"] =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "1"});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;

    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = tar::Builder::new(file);
    add(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add(&mut archive, "index.json", 0o644, &index)?;
    for blob in [&layer, &config, &manifest] {
        add(&mut archive, &format!("blobs/sha256/{}", blob.digest), 0o644, &blob.bytes)?;
    }
    archive.into_inner()?;
    Ok(())
}

fn layer(program: &[u8], files: u32) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, "example", 0o755, program)?;
    add(&mut archive, "etc/passwd", 0o644, b"root:x:0:0:root:/:/example\nuser:x:1000:1000::/:/example\n")?;
    add(&mut archive, "etc/group", 0o644, b"root:x:0:\nuser:x:1000:\n")?;
    for number in 0..files {
        add(&mut archive, &format!("data/{number}"), 0o644, &number.to_le_bytes().repeat(4096))?;
    }
    Ok(archive.into_inner()?)
}

fn add<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, name, bytes)?;
    Ok(())
}

/// The architecture as Go and OCI name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
