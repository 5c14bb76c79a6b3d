//! The fake's images: what is here, what a registry refuses, and who may pull what.
//!
//! Plain data under the fake's lock. References resolve as containerd resolves them: `busybox` is
//! `docker.io/library/busybox:latest`.

use std::collections::HashMap;

use tonic::Status;

use crate::v1::{AuthConfig, Image, ImageSpec, PodSandboxConfig};

/// One `PullImage` that arrived, with the credentials it brought.
#[derive(Debug, Clone, PartialEq)]
pub struct Pull {
    /// The reference as the request had it.
    pub image: String,
    /// Credentials of the request.
    pub auth: Option<AuthConfig>,
    /// The sandbox that the image is for.
    pub sandbox_config: Option<PodSandboxConfig>,
}

/// Images present and the rules of the registry.
#[derive(Default)]
pub(super) struct Images {
    pub(super) present: Vec<Image>,
    pub(super) refused: HashMap<String, Status>,
    pub(super) credentials: HashMap<String, (String, String)>,
    pub(super) pulls: Vec<Pull>,
}

impl Images {
    /// Finds an image by ID, with or without `sha256:`, or by any reference to it.
    pub(super) fn resolve(&self, reference: &str) -> Option<&Image> {
        if reference.is_empty() {
            return None;
        }
        let full = normalize(reference);
        self.present.iter().find(|image| {
            image.id == reference
                || image.id.strip_prefix("sha256:") == Some(reference)
                || image.repo_tags.contains(&full)
                || image.repo_digests.contains(&full)
        })
    }

    /// Adds an image, or replaces the one of its ID.
    pub(super) fn put(&mut self, image: Image) {
        self.present.retain(|present| present.id != image.id);
        for present in &mut self.present {
            present.repo_tags.retain(|tag| !image.repo_tags.contains(tag));
        }
        self.present.push(image);
    }

    /// What a registry answers to a pull; the ID of the image that is here then.
    pub(super) fn pull(&mut self, reference: &str, auth: Option<&AuthConfig>) -> Result<String, Status> {
        let full = normalize(reference);
        if let Some(status) = self.refused.get(&full) {
            return Err(status.clone());
        }
        if let Some((user, password)) = self.credentials.get(&full)
            && !auth.is_some_and(|auth| auth.username == *user && auth.password == *password)
        {
            return Err(Status::unknown(format!(
                "failed to pull and unpack image \"{full}\": failed to resolve reference \"{full}\": pull access \
                 denied, repository does not exist or may require authorization: authorization failed: no basic \
                 auth credentials"
            )));
        }
        let image = named(reference);
        let id = image.id.clone();
        self.put(image);
        Ok(id)
    }

    /// Removes every name of an image; whether it was here.
    pub(super) fn remove(&mut self, reference: &str) -> bool {
        let Some(id) = self.resolve(reference).map(|image| image.id.clone()) else { return false };
        self.present.retain(|image| image.id != id);
        true
    }

    /// Images that a filter lets through.
    pub(super) fn list(&self, filter: Option<&ImageSpec>) -> Vec<Image> {
        match filter.map(|spec| spec.image.as_str()).filter(|reference| !reference.is_empty()) {
            Some(reference) => self.resolve(reference).cloned().into_iter().collect(),
            None => self.present.clone(),
        }
    }
}

/// An image with an ID, a digest and a size that follow from its name alone.
pub(super) fn named(reference: &str) -> Image {
    let full = normalize(reference);
    let (repository, digest) = match full.split_once('@') {
        Some((repository, digest)) => (repository.to_owned(), digest.to_owned()),
        None => (without_tag(&full).to_owned(), format!("sha256:{}", hex(&full, "manifest"))),
    };
    let tagged = !full.contains('@');
    Image {
        id: format!("sha256:{}", hex(&full, "config")),
        repo_tags: if tagged { vec![full.clone()] } else { Vec::new() },
        repo_digests: vec![format!("{repository}@{digest}")],
        size: 1 << 20,
        spec: Some(ImageSpec { image: full, ..ImageSpec::default() }),
        ..Image::default()
    }
}

/// The full form of a reference. An image ID stays as it is.
pub(super) fn normalize(reference: &str) -> String {
    if reference.starts_with("sha256:") {
        return reference.to_owned();
    }
    let (first, rest) = reference.split_once('/').unwrap_or(("", reference));
    let has_host = first.contains('.') || first.contains(':') || first == "localhost";
    let named = match (has_host, first) {
        (true, _) => reference.to_owned(),
        (false, "") => format!("docker.io/library/{rest}"),
        (false, _) => format!("docker.io/{reference}"),
    };
    if named.contains('@') || without_tag(&named) != named { named } else { format!("{named}:latest") }
}

fn without_tag(reference: &str) -> &str {
    let name = reference.rfind('/').map_or(0, |slash| slash + 1);
    reference[name..].find(':').map_or(reference, |colon| &reference[..name + colon])
}

/// 64 hexadecimal digits that depend on the input only: FNV-1a four times over. Not a real digest.
fn hex(input: &str, salt: &str) -> String {
    (0u8..4)
        .map(|round| {
            let bytes = salt.bytes().chain([round]).chain(input.bytes());
            let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
            format!("{hash:016x}")
        })
        .collect()
}
