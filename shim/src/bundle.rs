//! What the shim reads in an OCI bundle. Called when a container is created; blocks only on a small file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

/// What of a bundle's config.json the shim has to know.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Whether the container has a PID namespace of its own, so that the kernel ends its processes with its first.
    pub(crate) own_pid_namespace: bool,
    /// The container's cgroup, as the maker is told it.
    pub(crate) cgroups_path: String,
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    linux: Linux,
}

#[derive(Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: String,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: Option<String>,
}

#[derive(Default, Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The sandbox that a CRI runtime's container belongs to.
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// Whose containers share a shim with that of this bundle.
pub(crate) fn group(bundle: &Path) -> Option<String> {
    let text = fs::read(bundle.join("config.json")).ok()?;
    serde_json::from_slice::<Annotated>(&text).ok()?.annotations.remove(SANDBOX)
}

/// Reads a bundle. A config.json that is not understood is the maker's to refuse.
pub(crate) fn read(bundle: &Path) -> Facts {
    let text = fs::read(bundle.join("config.json")).unwrap_or_default();
    let Config { linux } = serde_json::from_slice(&text).unwrap_or_default();
    let is_own =
        |namespace: &Namespace| namespace.kind == "pid" && namespace.path.as_deref().unwrap_or("").is_empty();
    Facts { own_pid_namespace: linux.namespaces.iter().any(is_own), cgroups_path: linux.cgroups_path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_namespace_is_own_without_a_path() {
        let dir = tempfile::tempdir().unwrap();
        for (text, own) in [
            (r#"{"linux":{"namespaces":[{"type":"mount"},{"type":"pid"}],"cgroupsPath":"/a"}}"#, true),
            (
                r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}],"cgroupsPath":"/a"}}"#,
                false,
            ),
            (r#"{"linux":{"namespaces":[{"type":"mount"}],"cgroupsPath":"/a"}}"#, false),
        ] {
            fs::write(dir.path().join("config.json"), text).unwrap();
            let facts = read(dir.path());
            assert_eq!((facts.own_pid_namespace, facts.cgroups_path.as_str()), (own, "/a"), "{text}");
        }
        fs::write(dir.path().join("config.json"), "nonsense").unwrap();
        assert!(!read(dir.path()).own_pid_namespace);
    }
}
