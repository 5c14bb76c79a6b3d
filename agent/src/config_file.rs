//! The settings file: `/etc/coracle/config.yaml` with the names of `coracle run`'s flags as keys.
//!
//! As k3s does it, each key becomes a flag in front of those of the command line, so that the command line
//! wins and one parser checks both. A list repeats its flag.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_yaml_ng::Value;

/// Read if it exists and no other is named.
pub(crate) const DEFAULT: &str = "/etc/coracle/config.yaml";

/// Puts the settings of the file behind the word `run`; other commands stay as they are.
pub(crate) fn expand(mut arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    if arguments.get(1).is_none_or(|word| word != "run") {
        return Ok(arguments);
    }
    let named = named_file(&arguments[2..]);
    let path = named.clone().unwrap_or_else(|| DEFAULT.into());
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            return Ok(arguments);
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read settings file {}", path.display()));
        }
    };
    let given: Vec<String> = arguments[2..].iter().filter_map(|word| flag_name(word)).collect();
    let flags = flags(&text, &path)?;
    // A list would otherwise grow by the file's values instead of being replaced.
    let kept = flags.into_iter().filter(|(name, _)| !given.contains(name)).map(|(_, flag)| flag.into());
    arguments.splice(2..2, kept);
    Ok(arguments)
}

fn flag_name(word: &OsStr) -> Option<String> {
    let word = word.to_str()?.strip_prefix("--")?;
    Some(word.split('=').next().unwrap_or(word).to_owned())
}

fn named_file(arguments: &[OsString]) -> Option<PathBuf> {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "--config" {
            return words.next().map(PathBuf::from);
        }
        if let Some(path) = word.to_str().and_then(|word| word.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    None
}

/// The flags that a settings file stands for, each with its name.
fn flags(text: &str, path: &Path) -> Result<Vec<(String, String)>> {
    let document: Value = serde_yaml_ng::from_str(text)
        .with_context(|| format!("settings file {} is not valid YAML", path.display()))?;
    let mapping = match document {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(mapping) => mapping,
        _ => bail!("settings file {} must be a mapping of flag names to values", path.display()),
    };
    let mut flags = Vec::new();
    for (key, value) in mapping {
        let Value::String(name) = key else {
            bail!("settings file {}: the key {key:?} is not the name of a flag", path.display());
        };
        let values = match value {
            Value::Sequence(values) => values,
            value => vec![value],
        };
        for value in values {
            let text = match value {
                Value::String(text) => text,
                Value::Bool(value) => value.to_string(),
                Value::Number(value) => value.to_string(),
                _ => bail!(
                    "settings file {}: {name} must be a text, a number, a boolean or a list of them",
                    path.display()
                ),
            };
            flags.push((name.clone(), format!("--{name}={text}")));
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str, arguments: &[&str]) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut words: Vec<OsString> = vec!["coracle".into(), "run".into()];
        words.extend(arguments.iter().map(OsString::from));
        words.push(format!("--config={}", file.path().display()).into());
        let mut expanded = expand(words).unwrap();
        expanded.pop();
        expanded.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn keys_become_flags_before_those_of_the_command_line() {
        assert_eq!(
            expanded(
                "manifests: /m\nseccomp-default: true\ncluster-dns: [10.0.0.10, 10.0.0.11]\n",
                &["--pod-max-pids=9"]
            ),
            [
                "coracle",
                "run",
                "--manifests=/m",
                "--seccomp-default=true",
                "--cluster-dns=10.0.0.10",
                "--cluster-dns=10.0.0.11",
                "--pod-max-pids=9"
            ]
        );
        assert_eq!(expanded("", &[]), ["coracle", "run"]);
    }

    #[test]
    fn a_list_of_the_command_line_replaces_that_of_the_file() {
        assert_eq!(
            expanded("cluster-dns: [1.1.1.1]", &["--cluster-dns", "9.9.9.9"]),
            ["coracle", "run", "--cluster-dns", "9.9.9.9"]
        );
    }

    #[test]
    fn a_file_that_is_no_mapping_is_an_error() {
        assert!(flags("- a", Path::new("f")).unwrap_err().to_string().contains("mapping"));
        assert!(flags("a: {b: c}", Path::new("f")).unwrap_err().to_string().contains("a must be"));
        assert!(flags("a: [", Path::new("f")).is_err());
    }
}
