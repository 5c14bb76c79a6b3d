//! What runs the pods of handlers that are not ours, and what it can by its own word: asked once, before the runtime
//! serves, and plain data from then on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use coracle_cri::v1::RuntimeHandlerFeatures;
use coracle_shim::protocol::bootstrap::RuntimeInfo;
use prost::Message as _;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::config::{Config, Handler, HandlerKind, Layout};
use crate::sandbox::foreign_options;
use crate::service::Engine;

/// How long a program may take to say what it can.
const ANSWER: Duration = Duration::from_secs(10);

/// The name of our own handler, for pods that name none. It is asked only where it has another's maker.
const OWN: &str = "";

/// By the name of the handler.
pub(crate) type Handlers = HashMap<String, RuntimeHandlerFeatures>;

/// What an OCI runtime says of itself, as far as CRI tells it on.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Told {
    mount_options: Vec<String>,
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    namespaces: Vec<String>,
    mount_extensions: MountExtensions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MountExtensions {
    idmap: Extension,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Extension {
    enabled: bool,
}

impl Told {
    fn features(&self) -> RuntimeHandlerFeatures {
        let has = |list: &[String], word: &str| list.iter().any(|one| one == word);
        RuntimeHandlerFeatures {
            recursive_read_only_mounts: has(&self.mount_options, "rro"),
            user_namespaces: has(&self.linux.namespaces, "user") && self.linux.mount_extensions.idmap.enabled,
        }
    }
}

/// Asks what is behind each handler. One that is not installed is told of, and its pods are refused; one that does not
/// know the question is promised nothing that it would silently leave out.
pub(super) async fn ask(config: &Config, layout: &Layout, maker: &[String]) -> Handlers {
    let mut handlers = Handlers::new();
    if !is_own(maker) {
        let path = PathBuf::from(&maker[0]);
        let told = told(&path, &HandlerKind::Maker(path.clone()), config, layout).await.unwrap_or_default();
        handlers.insert(OWN.to_owned(), told.features());
    }
    for Handler { name, kind } in &config.handlers {
        let told = match program(kind) {
            Some(path) => told(&path, kind, config, layout).await.unwrap_or_default(),
            None => {
                let missing = match kind {
                    HandlerKind::Maker(path) => path.display().to_string(),
                    HandlerKind::Shim(shim) => shim.runtime_type.clone(),
                };
                tracing::warn!(handler = %name, %missing, "pods of this runtime handler cannot run: it is not installed");
                Told::default()
            }
        };
        handlers.insert(name.clone(), told.features());
    }
    handlers
}

/// Whether containers are made by this program itself.
fn is_own(maker: &[String]) -> bool {
    maker.get(1).is_some_and(|word| word == "oci")
}

fn program(kind: &HandlerKind) -> Option<PathBuf> {
    match kind {
        HandlerKind::Maker(path) => super::is_executable(path).then(|| path.clone()),
        HandlerKind::Shim(shim) => {
            let folders = std::env::var_os("PATH").unwrap_or_default();
            shim.find(std::env::split_paths(&folders))
        }
    }
}

async fn told(path: &Path, kind: &HandlerKind, config: &Config, layout: &Layout) -> Option<Told> {
    let json = match kind {
        HandlerKind::Maker(_) => output(path, "features", &[]).await?,
        HandlerKind::Shim(shim) => {
            let options = foreign_options(shim, config, layout).encode_to_vec();
            let answer = output(path, "-info", &options).await?;
            RuntimeInfo::decode(answer.as_slice()).ok()?.features?.value
        }
    };
    serde_json::from_slice(&json).ok()
}

async fn output(path: &Path, question: &str, input: &[u8]) -> Option<Vec<u8>> {
    let mut command = Command::new(path);
    command.arg(question).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().ok()?;
    let answered = async {
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not want to know ends its side.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(ANSWER, answered).await.ok()?.ok()?;
    output.status.success().then_some(output.stdout)
}

impl Engine {
    /// What pods of a handler may ask for.
    pub(crate) fn features_of(&self, handler: &str) -> RuntimeHandlerFeatures {
        let maps_ids = self.host.idmapped_mounts && self.host.kernel >= (5, 19);
        let ours = RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: true };
        let told = self.handlers.get(handler).or_else(|| self.handlers.get(OWN)).copied().unwrap_or(ours);
        RuntimeHandlerFeatures {
            recursive_read_only_mounts: told.recursive_read_only_mounts && self.host.recursive_readonly,
            // Images are shown with other owners by mounts that map ids, below an overlay (Linux 5.19).
            user_namespaces: told.user_namespaces && maps_ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_maps_mounts_has_user_namespaces() {
        let told = |text: &str| serde_json::from_str::<Told>(text).unwrap().features();
        let new = r#"{"ociVersionMax": "1.2.1", "mountOptions": ["ro", "rro"], "linux": {"namespaces": ["mount", "user"],
            "mountExtensions": {"idmap": {"enabled": true}}, "seccomp": {"enabled": true}}}"#;
        assert_eq!(
            told(new),
            RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: true }
        );
        for old in [
            "{}",
            r#"{"linux": {"namespaces": ["user"]}}"#,
            r#"{"linux": {"namespaces": ["user"], "mountExtensions": {"idmap": {"enabled": false}}}}"#,
            r#"{"linux": {"namespaces": ["mount"], "mountExtensions": {"idmap": {"enabled": true}}}}"#,
        ] {
            assert_eq!(told(old), RuntimeHandlerFeatures::default(), "{old}");
        }
    }

    #[tokio::test]
    async fn the_maker_of_pods_that_name_no_handler_is_asked_unless_it_is_our_own() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("maker");
        let text = "#!/bin/sh\ntest $1 = features && echo '{\"mountOptions\": [\"rro\"]}'\n";
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let config = Config::new(folder.path().join("root"), folder.path().join("state"), "/shim");
        let script = script.to_string_lossy().into_owned();
        let handlers = ask(&config, &config.layout(), std::slice::from_ref(&script)).await;
        let able = RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: false };
        assert_eq!(handlers.get(OWN), Some(&able));
        assert!(ask(&config, &config.layout(), &[script, "oci".to_owned()]).await.is_empty());
    }

    #[tokio::test]
    async fn a_program_that_does_not_answer_promises_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(folder.path().join("root"), folder.path().join("state"), "/shim");
        config.handlers = vec!["false=/bin/false".parse().unwrap(), "none=/no/such".parse().unwrap()];
        let handlers = ask(&config, &config.layout(), &["/bin/false".to_owned()]).await;
        for name in ["false", "none", OWN] {
            assert_eq!(handlers[name], RuntimeHandlerFeatures::default(), "{name}");
        }
    }
}
