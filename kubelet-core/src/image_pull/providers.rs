//! Credential provider plugins: programs that are asked for registry credentials, as a kubelet asks them.
//!
//! The puller asks before a pull; each plugin runs for at most a minute and its answer is kept for as long as it says.
//! Config and protocol are those of `--image-credential-provider-config` and `credentialprovider.kubelet.k8s.io/v1`.
//! One short lock guards the answers and is never held while a plugin runs.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;

use super::credentials::{Credential, Keyring, matches_registry};
use crate::clock::Clock;

const CONFIG_VERSION: &str = "kubelet.config.k8s.io/v1";
const PROTOCOL: &str = "credentialprovider.kubelet.k8s.io/v1";
/// A plugin that takes longer is killed.
const LIMIT: Duration = Duration::from_secs(60);
/// The longest answer that is read.
const ANSWER_BYTES: usize = 1 << 20;

/// Why a configuration of plugins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProviderConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is not what a kubelet reads.
    #[error("{} is not a CredentialProviderConfig", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_yaml_ng::Error,
    },
    /// Something in it cannot be done here.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What, and what to do.
        problem: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    api_version: String,
    kind: String,
    providers: Vec<ProviderConfig>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProviderConfig {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    #[serde(default)]
    token_attributes: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

/// The plugins of a node, read once.
#[derive(Clone, Debug, Default)]
pub struct CredentialProviders(Vec<Provider>);

#[derive(Clone, Debug)]
struct Provider {
    config: ProviderConfig,
    program: PathBuf,
    keep: Duration,
}

impl CredentialProviders {
    /// Reads the configuration and looks for the programs.
    pub fn load(path: &Path, folder: &Path) -> Result<Self, ProviderConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ProviderConfigError::Read { path: path.to_owned(), source })?;
        let config: Config = serde_yaml_ng::from_str(&text)
            .map_err(|source| ProviderConfigError::Format { path: path.to_owned(), source })?;
        let bad = |problem: String| ProviderConfigError::Content { path: path.to_owned(), problem };
        if config.api_version != CONFIG_VERSION || config.kind != "CredentialProviderConfig" {
            return Err(bad(format!("it must be a CredentialProviderConfig of {CONFIG_VERSION}")));
        }
        let mut providers = Vec::with_capacity(config.providers.len());
        for config in config.providers {
            let name = &config.name;
            if name.is_empty() || name.contains('/') || name.starts_with('.') {
                return Err(bad(format!("{name:?} cannot name a program in {}", folder.display())));
            }
            if config.api_version != PROTOCOL {
                return Err(bad(format!("provider {name}: apiVersion must be {PROTOCOL}")));
            }
            if config.token_attributes.is_some() {
                return Err(bad(format!(
                    "provider {name}: tokenAttributes are not supported; use a plugin with credentials of its own"
                )));
            }
            let program = folder.join(name);
            if !program.is_file() {
                return Err(bad(format!("plugin binary executable {} did not exist", program.display())));
            }
            let keep = parse_duration(&config.default_cache_duration).ok_or_else(|| {
                bad(format!("provider {name}: defaultCacheDuration must be a time such as 12h"))
            })?;
            providers.push(Provider { config, program, keep });
        }
        Ok(Self(providers))
    }
}

/// Go's form of a duration, such as `1h30m` or `10s`.
fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    api_version: &'static str,
    kind: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PluginAnswer {
    api_version: String,
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Login>>,
}

#[derive(Deserialize)]
struct Login {
    username: String,
    password: String,
}

/// Credentials by what they are for.
type Logins = Vec<(String, Credential)>;

/// Asks plugins and remembers what they said.
#[derive(Default)]
pub(super) struct Plugins {
    providers: Vec<Provider>,
    /// By provider and key of its answer, until when (since boot).
    answers: Mutex<HashMap<(String, String), (Duration, Logins)>>,
}

impl Plugins {
    pub(super) fn new(providers: CredentialProviders) -> Self {
        Self { providers: providers.0, answers: Mutex::default() }
    }

    /// What the plugins know for an image; one that fails is told in the log and left out.
    pub(super) async fn keyring(&self, image: &str, repository: &str, clock: &Clock) -> Keyring {
        let mut keyring = Keyring::default();
        for provider in &self.providers {
            if !provider.config.match_images.iter().any(|pattern| matches_registry(pattern, repository)) {
                continue;
            }
            let logins = match self.remembered(provider, image, repository, clock) {
                Some(logins) => logins,
                None => match self.ask(provider, image, repository, clock).await {
                    Ok(logins) => logins,
                    Err(error) => {
                        tracing::warn!(
                            provider = provider.config.name,
                            image,
                            error,
                            "no credentials from a plugin"
                        );
                        continue;
                    }
                },
            };
            for (registry, credential) in logins {
                keyring.add(&registry, credential);
            }
        }
        keyring
    }

    fn remembered(
        &self,
        provider: &Provider,
        image: &str,
        repository: &str,
        clock: &Clock,
    ) -> Option<Logins> {
        let now = clock.now().boot;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|_, (until, _)| now < *until);
        let registry = repository.split('/').next().unwrap_or(repository);
        let mut keys = [image, registry, ""].into_iter();
        keys.find_map(|key| {
            answers.get(&(provider.config.name.clone(), key.to_owned())).map(|(_, l)| l.clone())
        })
    }

    async fn ask(
        &self,
        provider: &Provider,
        image: &str,
        repository: &str,
        clock: &Clock,
    ) -> Result<Logins, String> {
        let answer = run(provider, image).await?;
        if answer.api_version != PROTOCOL {
            return Err(format!("it answers in {:?} instead of {PROTOCOL}", answer.api_version));
        }
        let key = match answer.cache_key_type.as_str() {
            "Image" => image,
            "Registry" => repository.split('/').next().unwrap_or(repository),
            "Global" => "",
            other => return Err(format!("it answers with the unknown cacheKeyType {other:?}")),
        };
        let login = |(registry, login): (String, Login)| {
            // Without a pod's token a plugin speaks for the node.
            let Login { username, password } = login;
            (registry, Credential { username, password, secret: None })
        };
        let logins: Logins = answer.auth.unwrap_or_default().into_iter().map(login).collect();
        let keep = answer.cache_duration.as_deref().and_then(parse_duration).unwrap_or(provider.keep);
        if !keep.is_zero() {
            let key = (provider.config.name.clone(), key.to_owned());
            let until = clock.now().boot + keep;
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.insert(key, (until, logins.clone()));
        }
        Ok(logins)
    }
}

/// Runs a plugin. What it says is secret: errors name only where it went wrong.
async fn run(provider: &Provider, image: &str) -> Result<PluginAnswer, String> {
    let question = Question { api_version: PROTOCOL, kind: "CredentialProviderRequest", image };
    let question = serde_json::to_vec(&question).map_err(|error| error.to_string())?;
    let mut child = tokio::process::Command::new(&provider.program)
        .args(&provider.config.args)
        .envs(provider.config.env.iter().map(|variable| (&variable.name, &variable.value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let stdin = child.stdin.take();
    let talk = async {
        if let Some(mut stdin) = stdin {
            // One that does not read its input may answer nonetheless.
            let _ = stdin.write_all(&question).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(LIMIT, talk).await;
    let output = output.map_err(|_| format!("it did not answer within {} s", LIMIT.as_secs()))?;
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("it ended with {}", output.status));
    }
    if output.stdout.len() > ANSWER_BYTES {
        return Err("its answer is longer than 1 MiB".to_owned());
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("its answer is not JSON (line {}, column {})", error.line(), error.column()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn durations_are_go_s() {
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration("0"), Some(Duration::ZERO));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert!(["", "5", "1d", "h"].iter().all(|text| parse_duration(text).is_none()));
    }

    #[tokio::test]
    async fn a_plugin_is_asked_once_and_its_answer_kept() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("acme");
        let script = format!(
            "#!/bin/sh\ncat > /dev/null\necho asked >> {}/count\necho '{{\"kind\":\"CredentialProviderResponse\",\
             \"apiVersion\":\"{PROTOCOL}\",\"cacheKeyType\":\"Registry\",\"auth\":{{\"registry.acme.example\":\
             {{\"username\":\"u\",\"password\":\"'$SECRET'\"}}}}}}'\n",
            dir.path().display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("config.yaml");
        let text = format!(
            "apiVersion: {CONFIG_VERSION}\nkind: CredentialProviderConfig\nproviders:\n- name: acme\n  \
             matchImages: ['*.acme.example']\n  defaultCacheDuration: 1h\n  apiVersion: {PROTOCOL}\n  \
             env: [{{name: SECRET, value: p}}]\n"
        );
        std::fs::write(&config, text).unwrap();
        let plugins = Plugins::new(CredentialProviders::load(&config, dir.path()).unwrap());
        let clock = Clock::system();
        for image in ["registry.acme.example/a:1", "registry.acme.example/b:1"] {
            let repository = image.split(':').next().unwrap();
            let found = plugins.keyring(image, repository, &clock).await.lookup(repository);
            assert_eq!((found[0].username.as_str(), found[0].password.as_str()), ("u", "p"));
        }
        let keyring = plugins.keyring("docker.io/library/a", "docker.io/library/a", &clock).await;
        assert!(keyring.lookup("docker.io/library/a").is_empty());
        assert_eq!(std::fs::read_to_string(dir.path().join("count")).unwrap(), "asked\n");

        std::fs::remove_file(&program).unwrap();
        let missing = CredentialProviders::load(&config, dir.path()).unwrap_err();
        assert!(missing.to_string().contains("did not exist"), "{missing}");
    }
}
