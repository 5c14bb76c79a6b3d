//! Reads CDI specifications and looks at the device nodes that they name. Called while a container is made, off the
//! async threads; nothing is kept, because drivers write new specifications at any time.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::{Edits, NodeFacts, Registry, Specification, is_kind};

/// Where vendors put them; the last counts most.
pub const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Reads what lies in the folders, in this order. What cannot be read is told, and its devices are not there.
pub fn read<'a>(folders: impl IntoIterator<Item = &'a Path>) -> Registry {
    let mut registry = Registry::default();
    for folder in folders {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let mut specifications = Vec::new();
        for path in paths {
            match load(&path) {
                Ok(Some(specification)) => specifications.push(specification),
                Ok(None) => {}
                Err(problem) => {
                    tracing::warn!(path = %path.display(), %problem, "a CDI specification is left out");
                }
            }
        }
        for device in registry.add(specifications) {
            tracing::warn!(%device, folder = %folder.display(), "two CDI specifications have this device; nobody gets it");
        }
    }
    registry
}

/// A specification, or none if the file is of another kind.
fn load(path: &Path) -> Result<Option<Specification>, String> {
    let yaml = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => false,
        Some("yaml" | "yml") => true,
        _ => return Ok(None),
    };
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let specification: Specification = if yaml {
        serde_yaml_ng::from_slice(&text).map_err(|error| error.to_string())?
    } else {
        serde_json::from_slice(&text).map_err(|error| error.to_string())?
    };
    let major = specification.cdi_version.trim_start_matches('v').split('.').next().unwrap_or_default();
    if !["0", "1"].contains(&major) {
        return Err(format!("version {:?} is not known", specification.cdi_version));
    }
    if !is_kind(&specification.kind) {
        return Err(format!("kind {:?} is not vendor/class", specification.kind));
    }
    Ok(Some(specification))
}

/// What is at the paths of the edits' device nodes.
pub fn look(edits: &[Edits]) -> HashMap<PathBuf, NodeFacts> {
    let nodes = edits.iter().flat_map(|edit| &edit.device_nodes);
    nodes.filter_map(|node| Some((node.host().clone(), facts(node.host())?))).collect()
}

fn facts(path: &Path) -> Option<NodeFacts> {
    let metadata = fs::metadata(path).ok()?;
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => "b",
        kind if kind.is_char_device() => "c",
        kind if kind.is_fifo() => "p",
        _ => return None,
    };
    let number = metadata.rdev();
    let (major, minor) = (rustix::fs::major(number).into(), rustix::fs::minor(number).into());
    Some(NodeFacts { kind, major, minor, mode: metadata.mode() & 0o7777 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_the_later_folder_wins() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("etc"), dir.path().join("run"));
        fs::create_dir(&first).unwrap();
        fs::create_dir(&second).unwrap();
        let yaml = "cdiVersion: 0.6.0\nkind: v.com/gpu\ndevices:\n- name: '0'\n  containerEdits: {env: [A=1]}\n\
                    - name: '1'\n  containerEdits: {env: [A=2]}\n";
        fs::write(first.join("a.yaml"), yaml).unwrap();
        fs::write(first.join("torn.json"), "{").unwrap();
        fs::write(first.join("newer.json"), r#"{"cdiVersion":"2.0.0","kind":"v.com/gpu","devices":[]}"#)
            .unwrap();
        let json = r#"{"cdiVersion":"1.0.0","kind":"v.com/gpu",
            "devices":[{"name":"1","containerEdits":{"env":["A=3"]}}]}"#;
        fs::write(second.join("b.json"), json).unwrap();
        let registry = read([first.as_path(), second.as_path()]);
        let env = |name: &str| {
            let edits = registry.edits(&[format!("v.com/gpu={name}")]).unwrap();
            edits.into_iter().flat_map(|edit| edit.env).collect::<Vec<_>>()
        };
        assert_eq!((env("0"), env("1")), (vec!["A=1".to_owned()], vec!["A=3".to_owned()]));
    }

    #[test]
    fn a_node_is_looked_at() {
        let null = facts(Path::new("/dev/null")).unwrap();
        assert_eq!((null.kind, null.major, null.minor), ("c", 1, 3));
        assert_eq!(facts(Path::new("/etc/passwd")), None);
    }
}
