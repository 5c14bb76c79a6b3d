//! Runtime handlers beside our own, which a RuntimeClass may name: another OCI runtime below our shim, or another shim.
//! Plain data, and its form in settings.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A runtime handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    /// The name by which a RuntimeClass names it.
    pub name: String,
    /// What runs its pods.
    pub kind: HandlerKind,
}

/// What runs the pods of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlerKind {
    /// Our shim, with the OCI runtime at this path.
    Maker(PathBuf),
    /// Another shim.
    Shim(ForeignShim),
}

/// A shim that speaks containerd's shim v2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignShim {
    /// Its type as containerd names it: `io.containerd.runc.v2`.
    pub runtime_type: String,
    /// Its executable; when not given, `containerd-shim-runc-v2` in `PATH`, as the type says.
    pub path: Option<PathBuf>,
    /// The OCI runtime that it calls, for a shim of runc's type.
    pub binary_name: String,
    /// Its own configuration, for a shim of another type.
    pub config_path: String,
}

/// A handler that is not written as it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandlerError {
    /// No name or nothing behind it.
    #[error(
        "{0:?} is not NAME=PATH of an OCI runtime, such as crun=/usr/bin/crun, or NAME=TYPE of a shim, such as \
         runc=io.containerd.runc.v2,BinaryName=/usr/sbin/runc"
    )]
    Form(String),
    /// A name that no RuntimeClass can have.
    #[error("{0:?} is no name for a runtime handler: a DNS label is")]
    Name(String),
    /// A type without a version or a name.
    #[error("{0:?} is no type of a shim: io.containerd.runc.v2 is")]
    Type(String),
    /// An option that no shim has.
    #[error("{0:?} is no option of a shim: Path, BinaryName and ConfigPath are")]
    Option(String),
}

impl FromStr for Handler {
    type Err = HandlerError;

    /// Reads `NAME=/path/of/oci-runtime` or `NAME=TYPE[,Path=…][,BinaryName=…][,ConfigPath=…]`.
    fn from_str(text: &str) -> Result<Handler, HandlerError> {
        let (name, rest) = text.split_once('=').ok_or_else(|| HandlerError::Form(text.into()))?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) || name.starts_with('-') {
            return Err(HandlerError::Name(name.into()));
        }
        let kind = if rest.starts_with('/') {
            HandlerKind::Maker(rest.into())
        } else {
            HandlerKind::Shim(shim(rest)?)
        };
        Ok(Handler { name: name.into(), kind })
    }
}

fn shim(text: &str) -> Result<ForeignShim, HandlerError> {
    let mut words = text.split(',');
    let runtime_type = words.next().unwrap_or_default().to_owned();
    let mut shim = ForeignShim { runtime_type, ..ForeignShim::default() };
    if shim.executable_name().is_none() {
        return Err(HandlerError::Type(shim.runtime_type));
    }
    for word in words {
        match word.split_once('=') {
            Some(("Path", path)) => shim.path = Some(path.into()),
            Some(("BinaryName", name)) => shim.binary_name = name.into(),
            Some(("ConfigPath", path)) => shim.config_path = path.into(),
            _ => return Err(HandlerError::Option(word.into())),
        }
    }
    Ok(shim)
}

impl ForeignShim {
    /// The name of its executable, by the last two words of its type; `None` for what is no type.
    fn executable_name(&self) -> Option<String> {
        let words: Vec<&str> = self.runtime_type.split('.').collect();
        match words.as_slice() {
            [first, .., name, version] if !first.is_empty() && !name.is_empty() && !version.is_empty() => {
                Some(format!("containerd-shim-{name}-{version}"))
            }
            _ => None,
        }
    }

    /// Where its executable is, among the folders of a `PATH`.
    pub(crate) fn find(&self, folders: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
        let is_file = |path: &Path| path.is_file();
        match &self.path {
            Some(path) => is_file(path).then(|| path.clone()),
            None => {
                let name = self.executable_name()?;
                folders.into_iter().map(|folder| folder.join(&name)).find(|path| is_file(path))
            }
        }
    }

    /// Whether its options are runc's.
    pub(crate) fn is_runc(&self) -> bool {
        self.runtime_type == "io.containerd.runc.v2"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_written_with_an_equals_sign() {
        let crun: Handler = "crun=/usr/bin/crun".parse().unwrap();
        assert_eq!(crun.kind, HandlerKind::Maker("/usr/bin/crun".into()));
        let runc: Handler = "runc=io.containerd.runc.v2,BinaryName=/bin/runc,Path=/opt/shim".parse().unwrap();
        let HandlerKind::Shim(shim) = runc.kind else { panic!("not a shim") };
        assert!(shim.is_runc());
        assert_eq!((shim.binary_name.as_str(), shim.path), ("/bin/runc", Some("/opt/shim".into())));
        let kata: Handler = "kata=io.containerd.kata.v2".parse().unwrap();
        let HandlerKind::Shim(shim) = kata.kind else { panic!("not a shim") };
        assert_eq!(shim.executable_name().as_deref(), Some("containerd-shim-kata-v2"));
        for wrong in ["crun", "=/x", "A=/x", "x=", "x=runc", "x=io.containerd.runc.v2,Colour=red"] {
            assert!(wrong.parse::<Handler>().is_err(), "{wrong}");
        }
    }
}
