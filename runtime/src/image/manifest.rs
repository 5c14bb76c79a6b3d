//! Indexes, manifests and configs of images, OCI's and Docker's, in the fields that we read. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::{Failure, FailureKind};
use super::platform::Platform;
use super::record::{ImageConfig, nullable};

/// Media types that a registry is asked for, the widest first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";
/// The largest manifest, index or config taken; registries refuse manifests past 4 MiB themselves.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;

/// Points at content.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// An index or a manifest, told apart by what it has.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

/// The manifest of one image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What a manifest URL may answer.
#[derive(Clone, Debug)]
pub(crate) enum Parsed {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// Parses an index or a manifest.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, Failure> {
    let corrupt = |why: String| Failure::new(FailureKind::Corrupt, format!("manifest is malformed: {why}"));
    let document: Document = serde_json::from_slice(bytes).map_err(|error| corrupt(error.to_string()))?;
    match (document.manifests, document.config, document.layers) {
        (Some(manifests), _, _) => Ok(Parsed::Index(manifests)),
        (None, Some(config), Some(layers)) => Ok(Parsed::Manifest(Manifest { config, layers })),
        _ if document.schema_version == 1 => Err(Failure::new(
            FailureKind::Corrupt,
            "the registry serves this image in Docker's schema 1, which carries no verifiable config; push it anew",
        )),
        _ => Err(corrupt("it has neither manifests nor config and layers".to_owned())),
    }
}

/// Chooses the descriptor of an index that runs on `platform` best.
pub(crate) fn choose<'a>(index: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor, Failure> {
    let usable = index.iter().filter(|d| {
        // Attestations stand beside images with platform "unknown/unknown".
        !d.annotations.contains_key("vnd.docker.reference.type")
    });
    let ranked = usable.clone().filter_map(|d| Some((d.platform.as_ref()?, d)));
    let best = ranked.filter_map(|(p, d)| Some((platform.rank(p)?, d))).min_by_key(|(rank, _)| *rank);
    if let Some((_, descriptor)) = best {
        return Ok(descriptor);
    }
    // A layout of one image often says no platform; its config does.
    let mut plain = usable.clone().filter(|d| d.platform.is_none());
    if let (Some(only), None) = (plain.next(), plain.next()) {
        return Ok(only);
    }
    let offered: Vec<String> = usable
        .filter_map(|d| d.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(Platform::name)
        .collect();
    Err(Failure::new(
        FailureKind::NotFound,
        format!(
            "no match for platform {} in manifest (it has {}): not found",
            platform.name(),
            offered.join(", ")
        ),
    ))
}

/// An image config: what names its layers and what containers need.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) config: ImageConfig,
    pub(crate) rootfs: RootFs,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) diff_ids: Vec<Digest>,
}

impl Config {
    /// Parses a config that has `layers` layers.
    pub(crate) fn parse(bytes: &[u8], layers: usize) -> Result<Self, Failure> {
        let corrupt =
            |why: String| Failure::new(FailureKind::Corrupt, format!("image config is malformed: {why}"));
        let config: Self = serde_json::from_slice(bytes).map_err(|error| corrupt(error.to_string()))?;
        if config.rootfs.diff_ids.len() != layers {
            return Err(corrupt(format!(
                "it names {} layers, the manifest {layers}",
                config.rootfs.diff_ids.len()
            )));
        }
        Ok(config)
    }

    /// The names of the layers in the store, bottom first.
    pub(crate) fn chain(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.rootfs.diff_ids.len());
        for diff_id in &self.rootfs.diff_ids {
            chain.push(Digest::chain(chain.last(), diff_id));
        }
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_of_another_platform_says_what_it_has() {
        let digest = Digest::of(b"");
        let json = format!(
            r#"{{"schemaVersion":2,"manifests":[
              {{"digest":"{digest}","size":1,"platform":{{"os":"linux","architecture":"s390x"}}}},
              {{"digest":"{digest}","size":1,"platform":{{"os":"unknown","architecture":"unknown"}},
                "annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}}]}}"#
        );
        let Parsed::Index(index) = parse(json.as_bytes()).unwrap() else { panic!("an index") };
        let host = Platform { os: "linux".into(), architecture: "arm".into(), variant: "v7".into() };
        let failure = choose(&index, &host).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NotFound);
        assert!(
            failure.message.contains("linux/arm/v7") && failure.message.contains("linux/s390x"),
            "{failure}"
        );
    }

    #[test]
    fn go_nulls_are_empty() {
        let config = br#"{"config":{"Env":null,"Cmd":["a"],"Entrypoint":null,"Volumes":null,"Labels":null},
            "rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = Config::parse(config, 0).unwrap();
        assert_eq!(config.config.cmd, ["a"]);
        assert!(Config::parse(br#"{"rootfs":{"diff_ids":[]}}"#, 2).is_err());
    }
}
