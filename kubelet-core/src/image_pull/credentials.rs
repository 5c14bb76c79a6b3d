//! Registry credentials of a pod's secrets, and which of them an image is asked with.
//!
//! Called by the puller; pure. The rules are those of Kubernetes' `pkg/credentialprovider`: an entry names a
//! host, which may hold wildcards in each of its parts, and perhaps a path that the image's must begin with;
//! the most specific entry comes first; several may match and are tried in turn.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use coracle_cri::v1::AuthConfig;
use serde::Deserialize;

use super::access::{PullSecret, credential_hash};
use crate::api::Secret;

/// Docker Hub's own name for itself in configuration files.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// Why a secret holds no credentials. Never says what it holds.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CredentialError {
    #[error("{key} is not valid JSON (line {line}, column {column})")]
    Json { key: &'static str, line: usize, column: usize },
    #[error("the auth field of {registry:?} is not base64 of user:password")]
    Auth { registry: String },
}

#[derive(Deserialize)]
struct DockerConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    email: String,
}

/// One credential.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Credential {
    pub(super) username: String,
    pub(super) password: String,
    /// Whose it is; none if it serves every pod of the node.
    pub(super) secret: Option<PullSecret>,
}

impl Credential {
    /// For the runtime.
    pub(super) fn auth(&self) -> AuthConfig {
        let (username, password) = (self.username.clone(), self.password.clone());
        AuthConfig { username, password, ..AuthConfig::default() }
    }
}

/// Credentials by what they are for.
#[derive(Default)]
pub(super) struct Keyring(BTreeMap<String, Vec<Credential>>);

impl Keyring {
    /// Adds what a secret of either Docker type holds; secrets of other types hold nothing. Pods know it by
    /// `namespace` and `name`.
    pub(super) fn add_secret(
        &mut self,
        (namespace, name): (&str, &str),
        secret: &Secret,
    ) -> Result<(), CredentialError> {
        let bytes = |key: &str| secret.data.get(key).map(|value| &value.0[..]).filter(|b| !b.is_empty());
        let entries = match secret.r#type.as_str() {
            "kubernetes.io/dockerconfigjson" => match bytes(".dockerconfigjson") {
                Some(data) => parse::<DockerConfigJson>(".dockerconfigjson", data)?.auths,
                None => return Ok(()),
            },
            "kubernetes.io/dockercfg" => match bytes(".dockercfg") {
                Some(data) => parse(".dockercfg", data)?,
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        self.add_entries(entries, |entry| {
            Some(PullSecret {
                uid: secret.metadata.uid.to_string(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                credential_hash: credential_hash(&entry.username, &entry.password, &entry.email),
            })
        })
    }

    /// Adds what Docker's config.json holds.
    pub(super) fn add_docker_config(&mut self, json: &[u8]) -> Result<(), CredentialError> {
        self.add_entries(parse::<DockerConfigJson>("config.json", json)?.auths, |_| None)
    }

    fn add_entries(
        &mut self,
        entries: BTreeMap<String, Entry>,
        source: impl Fn(&Entry) -> Option<PullSecret>,
    ) -> Result<(), CredentialError> {
        for (registry, entry) in entries {
            let entry = decoded(&registry, entry)?;
            let secret = source(&entry);
            self.add(&registry, Credential { username: entry.username, password: entry.password, secret });
        }
        Ok(())
    }

    /// Adds one credential for a registry.
    pub(super) fn add(&mut self, registry: &str, credential: Credential) {
        self.0.entry(key_of(registry)).or_default().push(credential);
    }

    /// What to ask with for an image of this registry and repository, best first.
    pub(super) fn lookup(&self, repository: &str) -> Vec<Credential> {
        let found: Vec<Credential> = self
            .0
            .iter()
            .rev()
            .filter(|(key, _)| matches(key, repository))
            .flat_map(|(_, credentials)| credentials.clone())
            .collect();
        if !found.is_empty() || !repository.starts_with("docker.io/") {
            return found;
        }
        self.0.get(DEFAULT_REGISTRY).cloned().unwrap_or_default()
    }
}

fn parse<T: for<'de> Deserialize<'de>>(key: &'static str, data: &[u8]) -> Result<T, CredentialError> {
    // The parser's own message may quote the secret.
    serde_json::from_slice(data).map_err(|error| CredentialError::Json {
        key,
        line: error.line(),
        column: error.column(),
    })
}

/// The entry with what its `auth` field says, if it has one.
fn decoded(registry: &str, mut entry: Entry) -> Result<Entry, CredentialError> {
    if !entry.auth.is_empty() {
        const LENIENT: GeneralPurposeConfig =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        (entry.username, entry.password) = GeneralPurpose::new(&STANDARD, LENIENT)
            .decode(entry.auth.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.split_once(':').map(|(user, password)| (user.into(), password.into())))
            .ok_or_else(|| CredentialError::Auth { registry: registry.to_owned() })?;
    }
    Ok(entry)
}

/// Host and path of an entry, without scheme and the version that Docker's own entry ends in.
fn key_of(registry: &str) -> String {
    let rest = registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://"));
    let rest = rest.unwrap_or(registry);
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let path = ["/v1/", "/v2/"]
        .iter()
        .find_map(|version| path.strip_prefix(version))
        .map_or_else(|| path.to_owned(), |rest| format!("/{rest}"));
    if path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

/// Whether a pattern as it stands in configurations matches a repository.
pub(super) fn matches_registry(pattern: &str, repository: &str) -> bool {
    matches(&key_of(pattern), repository)
}

/// Whether credentials for `key` serve a repository: the port alike, each part of the host matched, the path
/// a beginning.
fn matches(key: &str, repository: &str) -> bool {
    let split = |text: &'_ str| {
        let (host, path) = text.find('/').map_or((text, ""), |at| text.split_at(at));
        let (host, port) = host.rsplit_once(':').unwrap_or((host, ""));
        (host.to_owned(), port.to_owned(), path.to_owned())
    };
    let (key_host, key_port, key_path) = split(key);
    let (host, port, path) = split(repository);
    let (globs, parts): (Vec<&str>, Vec<&str>) = (key_host.split('.').collect(), host.split('.').collect());
    key_port == port
        && globs.len() == parts.len()
        && path.starts_with(&key_path)
        && globs.iter().zip(&parts).all(|(glob, part)| glob_matches(glob.as_bytes(), part.as_bytes()))
}

/// Go's `filepath.Match` as far as host names need it: `*`, `?` and `[a-z]`. A broken pattern matches nothing.
fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    match (glob, text) {
        ([], text) => text.is_empty(),
        ([b'*', rest @ ..], text) => (0..=text.len()).any(|skip| glob_matches(rest, &text[skip..])),
        ([b'?', rest @ ..], [_, text @ ..]) => glob_matches(rest, text),
        ([b'[', rest @ ..], [byte, text @ ..]) => match class(rest, *byte) {
            Some((true, rest)) => glob_matches(rest, text),
            _ => false,
        },
        ([literal, rest @ ..], [byte, text @ ..]) => literal == byte && glob_matches(rest, text),
        (_, []) => false,
    }
}

/// Whether a byte is in the class that opens here, and what follows the class.
fn class(glob: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let end = glob.iter().position(|b| *b == b']').filter(|end| *end > 0)?;
    let (negated, mut members) = match &glob[..end] {
        [b'^', members @ ..] => (true, members),
        members => (false, members),
    };
    let mut found = false;
    while let [low, rest @ ..] = members {
        members = match rest {
            [b'-', high, rest @ ..] => {
                found |= (*low..=*high).contains(&byte);
                rest
            }
            _ => {
                found |= *low == byte;
                rest
            }
        };
    }
    Some((found != negated, &glob[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ByteString;

    fn secret(kind: &str, key: &str, data: &str) -> Secret {
        let mut secret = Secret { r#type: format!("kubernetes.io/{kind}"), ..Secret::default() };
        secret.data.insert(key.to_owned(), ByteString(data.as_bytes().to_vec()));
        secret
    }

    /// A keyring whose entries have their registry as user.
    fn keyring(registries: &[&str]) -> Keyring {
        let mut keyring = Keyring::default();
        for registry in registries {
            let data =
                format!(r#"{{"auths": {{"{registry}": {{"username": "{registry}", "password": "p"}}}}}}"#);
            keyring.add_secret(("d", "s"), &secret("dockerconfigjson", ".dockerconfigjson", &data)).unwrap();
        }
        keyring
    }

    fn users(registries: &[&str], repository: &str) -> Vec<String> {
        keyring(registries).lookup(repository).into_iter().map(|found| found.username).collect()
    }

    #[test]
    fn credentials_match_by_host_port_and_path() {
        for (registry, repository, matches) in [
            ("quay.io", "quay.io/org/app", true),
            ("https://quay.io", "quay.io/org/app", true),
            ("https://quay.io/v2/", "quay.io/org/app", true),
            ("quay.io/org", "quay.io/org/app", true),
            ("quay.io/v1/org", "quay.io/org/app", true),
            ("quay.io/other", "quay.io/org/app", false),
            ("quay.io", "quay.io:5000/org/app", false),
            ("r.x:5000", "r.x:5000/app", true),
            ("*.azurecr.io", "mine.azurecr.io/app", true),
            ("*.azurecr.io", "a.mine.azurecr.io/app", false),
            ("*.io", "quay.io/app", true),
            ("*", "quay.io/app", false),
            ("pre*post.io", "pre-x-post.io/app", true),
            ("q?ay.io", "quay.io/app", true),
            ("[a-q]uay.io", "quay.io/app", true),
            ("[^q]uay.io", "quay.io/app", false),
            ("[quay.io", "quay.io/app", false),
            ("docker.io", "docker.io/library/app", true),
            ("https://index.docker.io/v1/", "docker.io/library/app", true),
            ("https://index.docker.io/v1/", "quay.io/app", false),
        ] {
            assert_eq!(!users(&[registry], repository).is_empty(), matches, "{registry} for {repository}");
        }
    }

    #[test]
    fn the_most_specific_comes_first_and_all_are_tried() {
        let registries = ["gcr.io", "gcr.io/etcd-development", "*.io", "quay.io"];
        assert_eq!(
            users(&registries, "gcr.io/etcd-development/etcd"),
            ["gcr.io/etcd-development", "gcr.io", "*.io"]
        );
    }

    #[test]
    fn both_types_of_secret_and_the_auth_field_are_read() {
        let mut keyring = Keyring::default();
        // user:pass:word, once padded and once not.
        for auth in ["dXNlcjpwYXNzOndvcmQ=", "dXNlcjpwYXNzOndvcmQ"] {
            let data = format!(r#"{{"r.x": {{"auth": "{auth}", "email": "e"}}}}"#);
            keyring.add_secret(("d", "s"), &secret("dockercfg", ".dockercfg", &data)).unwrap();
        }
        keyring.add_secret(("d", "s"), &secret("tls", ".dockercfg", "not read")).unwrap();
        let found = keyring.lookup("r.x/app");
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|found| (&*found.username, &*found.password) == ("user", "pass:word")));
        let hash = credential_hash("user", "pass:word", "e");
        assert!(found.iter().all(|found| found.secret.as_ref().unwrap().credential_hash == hash));
    }

    #[test]
    fn errors_do_not_repeat_what_they_are_about() {
        let error = |kind: &str, key: &str, data: &str| {
            Keyring::default().add_secret(("d", "s"), &secret(kind, key, data)).unwrap_err().to_string()
        };
        assert_eq!(
            error("dockerconfigjson", ".dockerconfigjson", "{hunter2"),
            ".dockerconfigjson is not valid JSON (line 1, column 2)"
        );
        assert_eq!(
            error("dockercfg", ".dockercfg", r#"{"r.x": {"auth": "aHVudGVyMg=="}}"#),
            "the auth field of \"r.x\" is not base64 of user:password"
        );
    }
}
