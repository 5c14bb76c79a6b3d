//! The options of containerd's runtime handler, and their record in each bundle, by which `delete` finds the maker when
//! no shim lives that would know it. Plain data and one small file; called at start and when a container is created.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use coracle_shim::protocol::Any;
use coracle_shim::protocol::bootstrap::{GENERIC_OPTIONS, GenericOptions, RUNC_OPTIONS, RuncOptions};
use prost::Message;
use serde::{Deserialize, Serialize};

/// The maker when no option names one.
const MAKER: &str = "runc";

/// Where makers of containerd's keep their states, each namespace in a folder of its own.
const MAKER_ROOT: &str = "/run/containerd/runc";

/// The record's name in a bundle.
const RECORD: &str = "coracle-shim.json";

/// The most that containerd may write to the standard input.
const MAX_INPUT: u64 = 10 << 20;

/// Options that are not understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionsError {
    #[error("cannot read what containerd says")]
    Input(#[source] io::Error),
    #[error("what containerd says is not understood")]
    Message(#[source] prost::DecodeError),
    #[error("cannot decode the runtime options of type {kind}")]
    Decode {
        kind: String,
        #[source]
        source: prost::DecodeError,
    },
    #[error("runtime options of type {0} are not known here")]
    Type(String),
    #[error("cannot read the runtime options in {path}")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// What a handler's options say, as far as it is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Options {
    /// The OCI runtime, by path or name; empty is runc.
    pub(crate) binary_name: String,
    /// Its state folder; empty is containerd's.
    pub(crate) root: String,
    pub(crate) systemd_cgroup: bool,
    /// The shim's own cgroup; empty leaves it where it was started.
    pub(crate) shim_cgroup: String,
    pub(crate) no_pivot_root: bool,
    pub(crate) no_new_keyring: bool,
}

/// What containerd writes to the standard input.
pub(super) fn input() -> Result<Vec<u8>, OptionsError> {
    let mut input = Vec::new();
    io::stdin().take(MAX_INPUT).read_to_end(&mut input).map_err(OptionsError::Input)?;
    Ok(input)
}

impl Options {
    /// Those that are all that containerd writes, and their message as it came.
    pub(super) fn alone(input: &[u8]) -> Result<(Any, Self), OptionsError> {
        let any = Any::decode(input).map_err(OptionsError::Message)?;
        let options = Self::decode(&any)?;
        Ok((any, options))
    }

    /// Those in a message of either kind.
    pub(crate) fn decode(any: &Any) -> Result<Self, OptionsError> {
        let broken = |source| OptionsError::Decode { kind: any.type_url.clone(), source };
        let bytes = any.value.as_slice();
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "" => Ok(Self::default()),
            RUNC_OPTIONS => RuncOptions::decode(bytes).map(Into::into).map_err(broken),
            GENERIC_OPTIONS => {
                let options = GenericOptions::decode(bytes).map_err(broken)?;
                if options.config_path.is_empty() {
                    return Ok(Self::from_toml(&String::from_utf8_lossy(&options.config_body)));
                }
                let text = fs::read_to_string(&options.config_path);
                let path = options.config_path;
                text.map(|text| Self::from_toml(&text)).map_err(|source| OptionsError::Read { path, source })
            }
            other => Err(OptionsError::Type(other.into())),
        }
    }

    /// Reads the keys of runc's options out of a flat table; what else is in it is no concern of ours.
    fn from_toml(text: &str) -> Self {
        let mut options = Self::default();
        for line in text.lines().map(str::trim).take_while(|line| !line.starts_with('[')) {
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim();
            let word = || value.trim_matches(['"', '\'']).to_owned();
            match key.trim().trim_matches('"') {
                "BinaryName" => options.binary_name = word(),
                "Root" => options.root = word(),
                "ShimCgroup" => options.shim_cgroup = word(),
                "SystemdCgroup" => options.systemd_cgroup = value == "true",
                "NoPivotRoot" => options.no_pivot_root = value == "true",
                "NoNewKeyring" => options.no_new_keyring = value == "true",
                _ => {}
            }
        }
        options
    }

    /// The maker's program.
    pub(crate) fn program(&self) -> OsString {
        if self.binary_name.is_empty() { MAKER.into() } else { self.binary_name.clone().into() }
    }

    /// The maker's state folder for a namespace.
    pub(crate) fn maker_root(&self, namespace: &str) -> PathBuf {
        let root = if self.root.is_empty() { MAKER_ROOT } else { &self.root };
        Path::new(root).join(namespace)
    }

    /// What of them are arguments of the maker's `create`.
    pub(crate) fn create_flags(&self) -> Vec<&'static str> {
        let flags = [(self.no_pivot_root, "--no-pivot"), (self.no_new_keyring, "--no-new-keyring")];
        flags.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag).collect()
    }
}

impl From<RuncOptions> for Options {
    fn from(options: RuncOptions) -> Self {
        Self {
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            shim_cgroup: options.shim_cgroup,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
        }
    }
}

/// What a bundle says about the shim that holds its container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    /// Where the shim listens.
    pub(crate) socket: PathBuf,
    pub(crate) options: Options,
}

impl Record {
    /// Writes it into a bundle.
    pub(crate) fn store(&self, bundle: &Path) -> io::Result<()> {
        fs::write(bundle.join(RECORD), serde_json::to_vec(self)?)
    }

    /// Reads that of a bundle; one that no shim has written is that of no options.
    pub(crate) fn load(bundle: &Path) -> Self {
        let text = fs::read(bundle.join(RECORD)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any<M: Message>(type_url: &str, message: &M) -> Any {
        Any { type_url: type_url.into(), value: message.encode_to_vec() }
    }

    #[test]
    fn options_of_both_kinds_say_the_same() {
        let runc = RuncOptions {
            binary_name: "/bin/crun".into(),
            systemd_cgroup: true,
            no_pivot_root: true,
            ..Default::default()
        };
        let body =
            "BinaryName = '/bin/crun'\nNoPivotRoot = true\nSystemdCgroup = true\n[more]\nRoot = \"/x\"\n";
        let generic = GenericOptions { config_body: body.into(), ..Default::default() };
        let both = [any(RUNC_OPTIONS, &runc), any("types.containerd.io/runtimeoptions.v1.Options", &generic)];
        for options in both.map(|any| Options::decode(&any).unwrap()) {
            assert_eq!(options, Options::from(runc.clone()));
            assert_eq!(options.create_flags(), ["--no-pivot"]);
            assert_eq!(options.maker_root("k8s.io"), Path::new("/run/containerd/runc/k8s.io"));
        }
        assert_eq!(Options::decode(&Any::default()).unwrap().program(), "runc");
        assert!(Options::decode(&any("windows.Options", &runc)).is_err());
    }
}
