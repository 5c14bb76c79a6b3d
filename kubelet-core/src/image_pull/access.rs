//! Who may use an image that is present: what is recorded of its pulls, what of that a pod has, and who need not ask.
//!
//! Called by the puller and the store of records; pure. Format and rules are those of the kubelet's
//! `pkg/kubelet/images/pullmanager`, so that a node may change between a kubelet and us.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::api::Time;
use crate::source::parse_image_name;

/// What a kubelet of 1.36 writes; it reads the older version too.
const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const OLDER_VERSION: &str = "kubelet.config.k8s.io/v1alpha1";
/// With so many Secrets recorded none is added that was only found alike.
const MOST_SECRETS: usize = 100;

/// Which images that are present need a pod's credentials nonetheless.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VerificationPolicy {
    /// None.
    NeverVerify,
    /// Those that were pulled for a pod; what came otherwise, such as from an archive, is for all pods.
    #[default]
    NeverVerifyPreloadedImages,
    /// All but these repositories: `docker.io/library/busybox`, `quay.io/org/*`.
    NeverVerifyAllowlistedImages(Vec<String>),
    /// All.
    AlwaysVerify,
}

/// Why a policy cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// There is no such policy.
    #[error(
        "there is no policy {0:?}, but NeverVerify, NeverVerifyPreloadedImages, NeverVerifyAllowlistedImages and AlwaysVerify"
    )]
    Unknown(String),
    /// A list for a policy that reads none.
    #[error("a list of images is only for the policy NeverVerifyAllowlistedImages")]
    ListUnread,
    /// An entry of the list is neither a repository nor the beginning of one.
    #[error("{0:?} is neither a repository without tag and digest nor the beginning of one that ends in /*")]
    Pattern(String),
}

impl VerificationPolicy {
    /// From the kubelet's names of policies and its list.
    pub fn new(name: &str, allowlist: Vec<String>) -> Result<Self, PolicyError> {
        let policy = match name {
            "NeverVerify" => Self::NeverVerify,
            "NeverVerifyPreloadedImages" => Self::NeverVerifyPreloadedImages,
            "AlwaysVerify" => Self::AlwaysVerify,
            "NeverVerifyAllowlistedImages" => {
                return match allowlist.iter().find(|pattern| !is_pattern(pattern)) {
                    Some(broken) => Err(PolicyError::Pattern(broken.clone())),
                    None => Ok(Self::NeverVerifyAllowlistedImages(allowlist)),
                };
            }
            _ => return Err(PolicyError::Unknown(name.to_owned())),
        };
        if allowlist.is_empty() { Ok(policy) } else { Err(PolicyError::ListUnread) }
    }

    /// Whether it matters what is recorded.
    pub(super) fn reads_records(&self) -> bool {
        *self != Self::NeverVerify
    }

    fn must_verify(&self, image: &str, was_pulled: bool) -> bool {
        match self {
            Self::NeverVerify => false,
            Self::NeverVerifyPreloadedImages => was_pulled,
            Self::NeverVerifyAllowlistedImages(patterns) => {
                let repository = without_tag(image).unwrap_or(image);
                !patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                    Some(beginning) => repository.starts_with(beginning),
                    None => repository == pattern,
                })
            }
            Self::AlwaysVerify => true,
        }
    }
}

fn is_pattern(pattern: &str) -> bool {
    match pattern.strip_suffix("/*") {
        Some(beginning) => !beginning.is_empty() && pattern.trim() == pattern && !beginning.contains('*'),
        None => without_tag(pattern) == Some(pattern),
    }
}

/// An image as a pod names it, without tag and digest; none if it is no name.
fn without_tag(image: &str) -> Option<&str> {
    let name = parse_image_name(image).ok()?;
    let rest = image.split_once('@').map_or(image, |(rest, _)| rest);
    // The tag may be one that was filled in.
    let tagged = name.tag.and_then(|tag| rest.strip_suffix(tag.as_str())?.strip_suffix(':'));
    Some(tagged.unwrap_or(rest))
}

/// A pull has begun. It stays after a crash, and then says that the image may have come by it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PullIntent {
    kind: String,
    api_version: String,
    /// As the pod names it.
    pub(super) image: String,
}

impl PullIntent {
    pub(super) fn new(image: &str) -> Self {
        let (kind, api_version) = ("ImagePullIntent".to_owned(), API_VERSION.to_owned());
        Self { kind, api_version, image: image.to_owned() }
    }

    pub(super) fn decode(json: &[u8]) -> Option<Self> {
        let intent: Self = serde_json::from_slice(json).ok()?;
        is_known("ImagePullIntent", &intent.kind, &intent.api_version).then_some(intent)
    }
}

/// By which credentials an image was pulled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PulledRecord {
    kind: String,
    api_version: String,
    last_updated_time: Option<Time>,
    /// The runtime's ID of the image.
    #[serde(default)]
    pub(super) image_ref: String,
    /// By repository as pods name it: one image may have several, each with credentials of its own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    credential_mapping: BTreeMap<String, Access>,
}

/// Who may use an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Access {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<PullSecret>,
    /// Of a kubelet's plugins that take tokens; ours take none, so these are only kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<PullServiceAccount>,
    /// Every pod may: it took no credentials, or the node's own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
}

/// A Secret and what was used of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PullSecret {
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) credential_hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PullServiceAccount {
    uid: String,
    namespace: String,
    name: String,
}

impl PullSecret {
    /// In the order that records are sorted by.
    fn coordinates(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.name, &self.uid)
    }
}

impl Access {
    /// By a pull with a Secret's credentials, or with none that a pod brought.
    pub(super) fn by(secret: Option<PullSecret>) -> Self {
        let node_pods_accessible = secret.is_none();
        Self { kubernetes_secrets: secret.into_iter().collect(), node_pods_accessible, ..Self::default() }
    }

    /// Adds what `new` says; false if it is said already.
    fn add(&mut self, new: Self) -> bool {
        if self.node_pods_accessible {
            return false;
        }
        if new.node_pods_accessible {
            *self = new;
            return true;
        }
        let mut changed = false;
        for secret in new.kubernetes_secrets {
            if self.kubernetes_secrets.contains(&secret) {
                continue;
            }
            self.kubernetes_secrets.retain(|old| old.coordinates() != secret.coordinates());
            self.kubernetes_secrets.push(secret);
            changed = true;
        }
        self.kubernetes_secrets.sort_unstable_by(|a, b| a.coordinates().cmp(&b.coordinates()));
        changed
    }
}

impl PulledRecord {
    /// Of an image that was pulled, by credentials that nobody knows.
    pub(super) fn new(image_ref: &str) -> Self {
        Self {
            kind: "ImagePulledRecord".to_owned(),
            api_version: API_VERSION.to_owned(),
            last_updated_time: None,
            image_ref: image_ref.to_owned(),
            credential_mapping: BTreeMap::new(),
        }
    }

    pub(super) fn decode(json: &[u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(json).ok()?;
        is_known("ImagePulledRecord", &record.kind, &record.api_version).then_some(record)
    }

    /// Notes that an image of this name may be used so; false if that is recorded already.
    pub(super) fn grant(&mut self, image: &str, access: Access) -> bool {
        let Some(repository) = without_tag(image) else { return false };
        match self.credential_mapping.get_mut(repository) {
            Some(known) => known.add(access),
            None => self.credential_mapping.insert(repository.to_owned(), access).is_none(),
        }
    }

    /// For writing, now.
    pub(super) fn stamp(&mut self, now: Time) {
        (self.api_version, self.last_updated_time) = (API_VERSION.to_owned(), Some(now));
    }
}

fn is_known(wanted: &str, kind: &str, version: &str) -> bool {
    kind == wanted && [API_VERSION, OLDER_VERSION].contains(&version)
}

/// What the records say of an image that is present.
#[derive(Debug)]
pub(super) enum Known {
    /// It came by no pull for a pod.
    Nothing,
    /// A pull for a pod has begun and is not recorded as done.
    Begun,
    /// It was pulled.
    Pulled(PulledRecord),
    /// There is a record that cannot be read.
    Unreadable,
}

/// Whether a pod may use an image that is present.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Without more ado.
    Use,
    /// Only if the registry lets it.
    Pull,
    /// If it has one of these.
    Compare(Access),
}

/// What can be said before the pod's credentials are looked up.
pub(super) fn decide(policy: &VerificationPolicy, image: &str, known: Known) -> Decision {
    let record = match known {
        Known::Unreadable => return Decision::Pull,
        Known::Nothing if !policy.must_verify(image, false) => return Decision::Use,
        _ if !policy.must_verify(image, true) => return Decision::Use,
        Known::Nothing | Known::Begun => return Decision::Pull,
        Known::Pulled(record) => record,
    };
    let mut mapping = record.credential_mapping;
    match without_tag(image).and_then(|repository| mapping.remove(repository)) {
        Some(access) if access.node_pods_accessible => Decision::Use,
        Some(access) if !access.kubernetes_secrets.is_empty() => Decision::Compare(access),
        _ => Decision::Pull,
    }
}

/// What the pod's credentials say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Comparison<'a> {
    /// It has one that the image was pulled by.
    Has,
    /// It has one that is alike, by content or by name; this is to be recorded too.
    HasAlike(&'a PullSecret),
    /// None of them.
    HasNot,
}

/// Compares the Secrets that the image was pulled by with those of the pod.
pub(super) fn compare<'a>(
    recorded: &Access,
    of_pod: impl IntoIterator<Item = &'a PullSecret>,
) -> Comparison<'a> {
    let is_full = recorded.kubernetes_secrets.len() >= MOST_SECRETS;
    let of_pod: Vec<&PullSecret> = of_pod.into_iter().collect();
    // First: an entry that is merely alike would be recorded, and the records would be written anew by turns.
    if of_pod.iter().any(|secret| recorded.kubernetes_secrets.contains(secret)) {
        return Comparison::Has;
    }
    for secret in of_pod {
        for old in &recorded.kubernetes_secrets {
            let is_same = old.coordinates() == secret.coordinates();
            // A kubelet that could not make the hash leaves it empty.
            let is_alike = !old.credential_hash.is_empty() && old.credential_hash == secret.credential_hash;
            match (is_alike, is_same) {
                (true, true) => return Comparison::Has,
                (true, false) if is_full => return Comparison::Has,
                (true, false) => return Comparison::HasAlike(secret),
                // The Secret was changed since.
                (false, true) if !is_full => return Comparison::HasAlike(secret),
                (false, _) => {}
            }
        }
    }
    Comparison::HasNot
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The hash by which records know a credential: of the kubelet's JSON of it, with what Go escapes in JSON.
pub(super) fn credential_hash(username: &str, password: &str, email: &str) -> String {
    let mut json = String::from("{");
    for (key, value) in [("username", username), ("password", password), ("email", email)] {
        if value.is_empty() {
            continue;
        }
        if json.len() > 1 {
            json.push(',');
        }
        let _ = write!(json, "\"{key}\":{}", serde_json::Value::from(value));
    }
    json.push('}');
    for (character, escaped) in [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        if json.contains(character) {
            json = json.replace(character, escaped);
        }
    }
    sha256_hex(json.as_bytes())
}

#[cfg(test)]
mod tests;
