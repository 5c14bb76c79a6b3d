//! The settings file: `/etc/coracle/config.yaml` with the names of `coracle run`'s flags as keys.
//!
//! As k3s does it, each key becomes a flag in front of those of the command line, so that the command line
//! wins and one parser checks both. A list repeats its flag. Other commands take the keys that they have as flags,
//! so that they look where the agent does.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::CommandFactory as _;
use serde_yaml_ng::Value;

use crate::args::Cli;

/// Read if it exists and no other is named.
pub(crate) const DEFAULT: &str = "/etc/coracle/config.yaml";

/// What `join` takes from the file: where things lie and what the node is called. Which cluster it joins, and by what,
/// is for its command line to say.
const OF_JOIN: [&str; 3] = ["data-dir", "cert-dir", "hostname-override"];

/// Puts the settings of the file behind the command's name.
pub(crate) fn expand(mut arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(taken) = arguments.get(1).and_then(|word| Taken::by(word.to_str()?)) else {
        return Ok(arguments);
    };
    let own = words_of_ours(&arguments[2..]);
    let named = named_file(own);
    let path = named.clone().unwrap_or_else(|| DEFAULT.into());
    let may_lack = named.is_none() || taken.writes_file;
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && may_lack => return Ok(arguments),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read settings file {}", path.display()));
        }
    };
    let given: Vec<String> = own.iter().filter_map(|word| flag_name(word)).collect();
    let flags = flags(&text, &path)?;
    // A list would otherwise grow by the file's values instead of being replaced.
    let is_kept = |name: &String| !given.contains(name) && taken.takes(name);
    let kept = flags.into_iter().filter(|(name, _)| is_kept(name)).map(|(_, flag)| flag.into());
    arguments.splice(2..2, kept);
    Ok(arguments)
}

/// What a command takes from the file.
struct Taken {
    /// These flags; all for `run`, which so tells of a key that is none.
    names: Option<BTreeSet<String>>,
    /// The file that it names is one that it writes.
    writes_file: bool,
}

impl Taken {
    /// None for a command that takes nothing.
    fn by(command: &str) -> Option<Self> {
        if command == "run" {
            return Some(Self { names: None, writes_file: false });
        }
        let cli = Cli::command();
        let flags = |command: &str| -> BTreeSet<String> {
            let arguments = cli.find_subcommand(command).map(clap::Command::get_arguments);
            arguments.into_iter().flatten().filter_map(|flag| flag.get_long().map(str::to_owned)).collect()
        };
        let mut names: BTreeSet<String> = &flags(command) & &flags("run");
        if command == "join" {
            names.retain(|name| OF_JOIN.contains(&name.as_str()));
        }
        (!names.is_empty()).then_some(Self { names: Some(names), writes_file: command == "join" })
    }

    fn takes(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.contains(name))
    }
}

/// The words before those that belong to a command in a container.
fn words_of_ours(words: &[OsString]) -> &[OsString] {
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    &words[..end]
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
        expanded_for("run", text, arguments)
    }

    fn expanded_for(command: &str, text: &str, arguments: &[&str]) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let config = format!("--config={}", file.path().display());
        let mut words: Vec<OsString> = vec!["coracle".into(), command.into(), config.clone().into()];
        words.extend(arguments.iter().map(OsString::from));
        let expanded = expand(words).unwrap().into_iter().map(|word| word.into_string().unwrap());
        expanded.filter(|word| *word != config).collect()
    }

    #[test]
    fn other_commands_look_where_the_agent_does() {
        let text = "state-dir: /s\ndata-dir: /d\noci-runtime: /r\ncni-bin-dir: [/a, /b]\nserver: https://c\n\
                    pod-max-pids: 9\n";
        for (command, arguments, flags) in [
            ("pods", &[][..], &["--state-dir=/s"][..]),
            ("pods", &["--state-dir=/mine"], &["--state-dir=/mine"]),
            ("images", &["ls"], &["--state-dir=/s", "--data-dir=/d", "ls"]),
            ("check", &[], &["--data-dir=/d", "--oci-runtime=/r", "--cni-bin-dir=/a", "--cni-bin-dir=/b"]),
            ("join", &["--server=https://e"], &["--data-dir=/d", "--server=https://e"]),
            (
                "exec",
                &["p", "--", "x", "--state-dir=/y"],
                &["--state-dir=/s", "p", "--", "x", "--state-dir=/y"],
            ),
            ("version", &[], &[]),
        ] {
            let expanded = expanded_for(command, text, arguments);
            assert_eq!(expanded[..2], ["coracle", command]);
            assert_eq!(expanded[2..], *flags, "{command}");
        }
    }

    #[test]
    fn a_settings_file_that_join_is_to_write_may_be_missing() {
        let words = ["coracle", "join", "--config", "/nonexistent/config.yaml"].map(OsString::from).to_vec();
        assert_eq!(expand(words.clone()).unwrap(), words);
        let words = ["coracle", "run", "--config", "/nonexistent/config.yaml"].map(OsString::from).to_vec();
        assert!(expand(words).is_err());
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
