//! Registry configuration in k3s' registries.yaml form, and Docker's config.json for credentials. Pure data; the
//! agent reads the files and hands text or values in.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::{Deserialize, Serialize};

/// Docker Hub as images name it, and the host that serves it.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_SERVER: &str = "registry-1.docker.io";

/// What Docker Hub is called in settings: by images, by its server, and by Docker's own config.json. What is set for
/// one holds for all.
const DOCKER_HUB_NAMES: [&str; 3] = [DOCKER_HUB, DOCKER_HUB_SERVER, "index.docker.io"];

/// The content of registries.yaml.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    /// By registry host, or `*` for all others.
    #[serde(deserialize_with = "null_entries")]
    pub mirrors: BTreeMap<String, Mirror>,
    /// By host of a registry or mirror endpoint, or `*`.
    #[serde(deserialize_with = "null_entries")]
    pub configs: BTreeMap<String, RegistryConfig>,
}

/// k3s' own examples name a registry without saying anything of it.
fn null_entries<'de, T, D>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    T: Default + Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    let entries: Option<BTreeMap<String, Option<T>>> = Option::deserialize(deserializer)?;
    Ok(entries.unwrap_or_default().into_iter().map(|(key, entry)| (key, entry.unwrap_or_default())).collect())
}

/// Where a registry's content is had instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mirror {
    /// URLs or hosts, tried in order before the registry itself.
    #[serde(alias = "endpoints")]
    pub endpoint: Vec<String>,
    /// Regular expressions on the repository's path, and what takes the place of what they match.
    pub rewrite: BTreeMap<String, String>,
}

/// How to talk to a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Who we are.
    pub auth: Option<AuthEntry>,
    /// Whom we trust.
    pub tls: Option<Tls>,
}

/// Credentials as registries.yaml and config.json write them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthEntry {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// `user:password` in base64.
    pub auth: String,
    /// An OAuth2 refresh token.
    #[serde(alias = "identitytoken")]
    pub identity_token: String,
    /// A bearer token for the registry itself.
    #[serde(alias = "registrytoken")]
    pub registry_token: String,
}

impl std::fmt::Debug for AuthEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthEntry").field("username", &self.username).finish_non_exhaustive()
    }
}

/// TLS of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM file of the CAs to trust beside the system's.
    pub ca_file: String,
    /// PEM file of our certificate.
    pub cert_file: String,
    /// PEM file of our key.
    pub key_file: String,
    /// Whether any certificate is taken.
    pub insecure_skip_verify: bool,
}

/// Credentials resolved to one form.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credentials {
    /// User and password, for basic authentication and token servers.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// An OAuth2 refresh token for token servers.
    Identity(String),
    /// A bearer token for the registry itself.
    Bearer(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl AuthEntry {
    /// One form of the credentials, `None` when they are empty.
    pub fn resolve(&self) -> Option<Credentials> {
        if !self.registry_token.is_empty() {
            return Some(Credentials::Bearer(self.registry_token.clone()));
        }
        if !self.identity_token.is_empty() {
            return Some(Credentials::Identity(self.identity_token.clone()));
        }
        if !self.username.is_empty() || !self.password.is_empty() {
            return Some(Credentials::Basic {
                username: self.username.clone(),
                password: self.password.clone(),
            });
        }
        // Some tools leave zero bytes at the end of the decoded text.
        let decoded = base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (username, password) = text.trim_end_matches('\0').split_once(':')?;
        Some(Credentials::Basic { username: username.to_owned(), password: password.to_owned() })
    }
}

/// A rewrite rule that is no regular expression.
#[derive(Debug, thiserror::Error)]
#[error("rewrite {pattern:?} in the registry configuration is not a regular expression")]
pub struct InvalidRewrite {
    /// The rule.
    pub pattern: String,
    /// What is wrong with it.
    #[source]
    pub source: regex_lite::Error,
}

/// One place to ask for a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// URL up to and with `/v2` or the mirror's own path, without a slash at its end.
    pub base: String,
    /// `host[:port]`, by which `configs` is looked up.
    pub host: String,
    /// Repository path there.
    pub repository: String,
    /// The registry that a mirror stands for, told to it as `ns`; empty for the registry itself.
    pub namespace: String,
}

impl Registries {
    /// Where to ask for `repository` of `registry`, in order.
    pub fn endpoints(&self, registry: &str, repository: &str) -> Result<Vec<Endpoint>, InvalidRewrite> {
        let mut endpoints = Vec::new();
        if let Some(mirror) = self.mirrors.get(registry).or_else(|| self.mirrors.get("*")) {
            let path = rewrite(&mirror.rewrite, repository)?;
            endpoints.extend(mirror.endpoint.iter().map(|e| self.endpoint(e, &path, registry)));
        }
        let own = if registry == DOCKER_HUB { DOCKER_HUB_SERVER } else { registry };
        let own = self.endpoint(own, repository, "");
        if !endpoints.iter().any(|e| e.base == own.base && e.repository == own.repository) {
            endpoints.push(own);
        }
        Ok(endpoints)
    }

    fn endpoint(&self, url: &str, repository: &str, namespace: &str) -> Endpoint {
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            // As k3s: plain http for the machine itself unless TLS is configured, else https.
            None if is_loopback(url) && self.tls(url.split('/').next().unwrap_or(url)).is_none() => {
                ("http", url)
            }
            None => ("https", url),
        };
        let rest = rest.trim_end_matches('/');
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let base = match path {
            "" => format!("{scheme}://{host}/v2"),
            path => format!("{scheme}://{host}/{path}"),
        };
        Endpoint {
            base,
            host: host.to_owned(),
            repository: repository.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// A part of what is set for a host, by any of its names, or else for all hosts.
    fn config<'a, T>(&'a self, host: &str, part: impl Fn(&'a RegistryConfig) -> Option<T>) -> Option<T> {
        let others = if DOCKER_HUB_NAMES.contains(&host) { &DOCKER_HUB_NAMES[..] } else { &[] };
        let names = [host].into_iter().chain(others.iter().copied());
        let mut named = names.filter_map(|name| self.configs.get(name)).peekable();
        if named.peek().is_none() {
            return self.configs.get("*").and_then(part);
        }
        named.find_map(part)
    }

    /// TLS of a host.
    pub fn tls(&self, host: &str) -> Option<&Tls> {
        self.config(host, |config| config.tls.as_ref())
    }

    /// Credentials for a host.
    pub fn credentials(&self, host: &str) -> Option<Credentials> {
        self.config(host, |config| config.auth.as_ref()?.resolve())
    }

    /// Adds the credentials of Docker's config.json where none are given yet.
    pub fn add_docker_config(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
        #[derive(Deserialize)]
        struct DockerConfig {
            #[serde(default)]
            auths: BTreeMap<String, AuthEntry>,
        }
        let config: DockerConfig = serde_json::from_slice(json)?;
        for (server, auth) in config.auths {
            let host = server.split_once("://").map_or(server.as_str(), |(_, rest)| rest);
            let host = host.split('/').next().unwrap_or(host);
            self.configs.entry(host.to_owned()).or_default().auth.get_or_insert(auth);
        }
        Ok(())
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.split('/').next().unwrap_or(host);
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name == "::1" || name.starts_with("127.")
}

/// Rewrites a repository path by the first rule that matches, as k3s does.
fn rewrite(rules: &BTreeMap<String, String>, repository: &str) -> Result<String, InvalidRewrite> {
    for (pattern, result) in rules {
        let expression = regex_lite::Regex::new(pattern)
            .map_err(|source| InvalidRewrite { pattern: pattern.clone(), source })?;
        if expression.is_match(repository) {
            return Ok(expression.replace_all(repository, result.as_str()).into_owned());
        }
    }
    Ok(repository.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_before_the_registry() {
        let registries: Registries = serde_json::from_value(serde_json::json!({
            "mirrors": {
                "docker.io": {"endpoint": ["http://mirror.local:5000", "https://cache.local/v2/hub/"],
                              "rewrite": {"^library/(.*)": "public/$1"}},
                "*": {"endpoint": ["https://all.local"]},
            },
        }))
        .unwrap();
        let bases = |registry: &str, repository: &str| -> Vec<String> {
            let endpoints = registries.endpoints(registry, repository).unwrap();
            endpoints.iter().map(|e| format!("{}/{} {}", e.base, e.repository, e.namespace)).collect()
        };
        assert_eq!(
            bases("docker.io", "library/busybox"),
            [
                "http://mirror.local:5000/v2/public/busybox docker.io",
                "https://cache.local/v2/hub/public/busybox docker.io",
                "https://registry-1.docker.io/v2/library/busybox ",
            ]
        );
        assert_eq!(bases("q.io", "a/b"), ["https://all.local/v2/a/b q.io", "https://q.io/v2/a/b "]);
        let own = Registries::default().endpoints("127.0.0.1:5000", "a").unwrap();
        assert_eq!(own[0].base, "http://127.0.0.1:5000/v2");
    }

    #[test]
    fn credentials_come_in_every_form() {
        let mut registries = Registries::default();
        let docker =
            br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"q.io":{"identitytoken":"t"}}}"#;
        registries.add_docker_config(docker).unwrap();
        let basic = Credentials::Basic { username: "u".into(), password: "p".into() };
        for name in ["docker.io", "registry-1.docker.io", "index.docker.io"] {
            assert_eq!(registries.credentials(name), Some(basic.clone()), "{name}");
        }
        assert_eq!(registries.credentials("q.io"), Some(Credentials::Identity("t".into())));
        assert_eq!(registries.credentials("other.io"), None);
    }

    #[test]
    fn what_is_set_for_one_name_of_docker_hub_holds_for_all() {
        let mut registries: Registries = serde_json::from_str(
            r#"{"configs":{"docker.io":{"tls":{"ca_file":"/ca"}},"*":{"auth":{"username":"all","password":"p"}}}}"#,
        )
        .unwrap();
        registries
            .add_docker_config(br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#)
            .unwrap();
        let basic = |name: &str| Credentials::Basic { username: name.into(), password: "p".into() };
        for name in DOCKER_HUB_NAMES {
            assert_eq!(registries.credentials(name), Some(basic("u")), "{name}");
            assert_eq!(registries.tls(name).unwrap().ca_file, "/ca", "{name}");
        }
        assert_eq!(registries.credentials("q.io"), Some(basic("all")));
    }

    #[test]
    fn empty_entries_are_taken() {
        let registries: Registries =
            serde_json::from_str(r#"{"mirrors":{"docker.io":null},"configs":null}"#).unwrap();
        assert_eq!(registries.mirrors["docker.io"], Mirror::default());
    }

    #[test]
    fn unknown_fields_are_errors() {
        assert!(serde_json::from_str::<Registries>(r#"{"mirrors":{"a":{"endpiont":[]}}}"#).is_err());
    }
}
