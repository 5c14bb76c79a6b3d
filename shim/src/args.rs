//! The command line. Parsed once, at start, without I/O.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::containerd::{Action, Command};

/// What this process is to be.
#[derive(Debug)]
pub(crate) enum Role {
    /// The shim of a sandbox.
    Serve(Serve),
    /// The first process of a shared PID namespace.
    Hold,
    /// What containerd asks for.
    Containerd(Command),
    /// Prints the release.
    Version,
}

/// How to serve.
#[derive(Debug)]
pub(crate) struct Serve {
    /// Where the API is served; any length.
    pub(crate) socket: PathBuf,
    /// The sandbox.
    pub(crate) id: String,
    /// The OCI runtime's program, then arguments that stand before its options.
    pub(crate) maker: Vec<OsString>,
    /// The OCI runtime's state folder.
    pub(crate) maker_root: PathBuf,
    /// Whether cgroup paths are systemd's `slice:prefix:name`.
    pub(crate) systemd_cgroup: bool,
    /// The shim's own cgroup, as a path from the hierarchies' roots; `None` leaves it where it was started.
    pub(crate) cgroup: Option<String>,
    /// Where the shim tells what went wrong; `None` is nowhere.
    pub(crate) log: Option<PathBuf>,
    /// The soft limit of open files that containers begin with; `None` is the caller's.
    pub(crate) descriptors: Option<u64>,
    /// Serve in this process instead of one of its own.
    pub(crate) foreground: bool,
}

/// How the shim is called.
pub(crate) const USAGE: &str = "\
usage: coracle-shim serve --socket PATH --id SANDBOX --maker PATH [--maker-arg ARG]... --maker-root DIR
                          [--systemd-cgroup] [--cgroup PATH] [--descriptors N] [--log FILE] [--foreground]
       coracle-shim hold
       coracle-shim version
       containerd-shim-coracle-v1 -namespace NAME -id CONTAINER -address SOCKET [-publish-binary PATH] [-bundle DIR]
                          [-debug] start|delete
       containerd-shim-coracle-v1 -info
";

/// Arguments that name no role.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArgsError {
    #[error("no command")]
    NoCommand,
    #[error("unknown command or option {0:?}")]
    Unknown(OsString),
    #[error("{0} needs a value")]
    NoValue(&'static str),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} is not UTF-8")]
    NotText(&'static str),
    #[error("{0} is not a number")]
    NotNumber(&'static str),
    #[error("{0} must be an absolute path")]
    Relative(&'static str),
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Role, ArgsError> {
    let command = arguments.next().ok_or(ArgsError::NoCommand)?;
    match command.to_str() {
        Some("serve") => serve(arguments).map(Role::Serve),
        Some("hold") => Ok(Role::Hold),
        Some("version" | "--version" | "-version" | "-v") => Ok(Role::Version),
        Some(option) if option.starts_with('-') => containerd(command, arguments).map(Role::Containerd),
        _ => Err(ArgsError::Unknown(command)),
    }
}

fn serve(mut arguments: impl Iterator<Item = OsString>) -> Result<Serve, ArgsError> {
    let (mut socket, mut id, mut program, mut root, mut cgroup, mut log) =
        (None, None, None, None, None, None);
    let (mut maker_arguments, mut systemd_cgroup, mut foreground) = (Vec::new(), false, false);
    let mut descriptors = None;
    while let Some(option) = arguments.next() {
        let mut value = |name| arguments.next().ok_or(ArgsError::NoValue(name));
        let text = |name, value: OsString| value.into_string().map_err(|_| ArgsError::NotText(name));
        match option.to_str() {
            Some("--socket") => socket = Some(value("--socket")?),
            Some("--id") => id = Some(text("--id", value("--id")?)?),
            Some("--maker") => program = Some(value("--maker")?),
            Some("--maker-arg") => maker_arguments.push(value("--maker-arg")?),
            Some("--maker-root") => root = Some(value("--maker-root")?),
            Some("--systemd-cgroup") => systemd_cgroup = true,
            Some("--cgroup") => cgroup = Some(text("--cgroup", value("--cgroup")?)?),
            Some("--log") => log = Some(absolute("--log", Some(value("--log")?))?),
            Some("--descriptors") => {
                let number = text("--descriptors", value("--descriptors")?)?;
                descriptors = Some(number.parse().map_err(|_| ArgsError::NotNumber("--descriptors"))?);
            }
            Some("--foreground") => foreground = true,
            _ => return Err(ArgsError::Unknown(option)),
        }
    }
    let mut maker = vec![program.ok_or(ArgsError::Missing("--maker"))?];
    maker.append(&mut maker_arguments);
    Ok(Serve {
        socket: absolute("--socket", socket)?,
        id: id.ok_or(ArgsError::Missing("--id"))?,
        maker,
        maker_root: absolute("--maker-root", root)?,
        systemd_cgroup,
        cgroup,
        log,
        descriptors,
        foreground,
    })
}

/// containerd's arguments, written as Go's programs take them: options with one dash or two, then the action.
fn containerd(first: OsString, rest: impl Iterator<Item = OsString>) -> Result<Command, ArgsError> {
    let mut arguments = std::iter::once(first).chain(rest);
    let (mut namespace, mut id, mut address, mut bundle) = (None, None, None, None);
    let mut action = None;
    while let Some(word) = arguments.next() {
        let text = word.to_str().ok_or(ArgsError::NotText("an argument"))?;
        let Some(option) = text.strip_prefix('-') else {
            action = Some(match text {
                "start" => Action::Start,
                "delete" => Action::Delete,
                _ => return Err(ArgsError::Unknown(word)),
            });
            break;
        };
        let option = option.strip_prefix('-').unwrap_or(option);
        let (name, given) = match option.split_once('=') {
            Some((name, value)) => (name, Some(OsString::from(value))),
            None => (option, None),
        };
        let mut value = |name| given.clone().or_else(|| arguments.next()).ok_or(ArgsError::NoValue(name));
        let text = |name, value: OsString| value.into_string().map_err(|_| ArgsError::NotText(name));
        match name {
            "namespace" => namespace = Some(text("-namespace", value("-namespace")?)?),
            "id" => id = Some(text("-id", value("-id")?)?),
            "address" => address = Some(text("-address", value("-address")?)?),
            "bundle" => bundle = Some(absolute("-bundle", Some(value("-bundle")?))?),
            // Events go over a socket, and there is no second socket for finding faults.
            "publish-binary" | "socket" | "debug-socket" => drop(value("-publish-binary")?),
            "debug" => {}
            "info" => action = Some(Action::Info),
            _ => return Err(ArgsError::Unknown(word)),
        }
    }
    let action = action.ok_or(ArgsError::NoCommand)?;
    if action != Action::Info {
        namespace.as_deref().filter(|name| !name.is_empty()).ok_or(ArgsError::Missing("-namespace"))?;
        id.as_deref().filter(|id| !id.is_empty()).ok_or(ArgsError::Missing("-id"))?;
    }
    let (namespace, id) = (namespace.unwrap_or_default(), id.unwrap_or_default());
    Ok(Command { action, namespace, id, address: address.unwrap_or_default(), bundle })
}

/// The shim's working folder is `/`, so that it keeps no mount busy: a relative path would change its meaning.
fn absolute(name: &'static str, value: Option<OsString>) -> Result<PathBuf, ArgsError> {
    let path = PathBuf::from(value.ok_or(ArgsError::Missing(name))?);
    if path.is_absolute() { Ok(path) } else { Err(ArgsError::Relative(name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Role, ArgsError> {
        parse(words.split_whitespace().map(OsString::from))
    }

    #[test]
    fn serve_takes_what_the_runtime_gives() {
        let line =
            "serve --socket /s --id p --maker /bin/coracle --maker-arg oci --maker-root /r --cgroup /c";
        let Role::Serve(serve) = parse_words(line).unwrap() else { panic!("not serve") };
        assert_eq!(serve.maker, ["/bin/coracle", "oci"]);
        assert_eq!((serve.id.as_str(), serve.cgroup.as_deref()), ("p", Some("/c")));
        assert!(!serve.systemd_cgroup && !serve.foreground);
    }

    #[test]
    fn containerd_calls_it_in_its_own_way() {
        let line =
            "-namespace k8s.io -address /run/c.sock -publish-binary /bin/containerd -id pod -debug start";
        let Role::Containerd(start) = parse_words(line).unwrap() else { panic!("not containerd's") };
        assert_eq!(
            (start.action, start.namespace.as_str(), start.id.as_str()),
            (Action::Start, "k8s.io", "pod")
        );
        let Role::Containerd(delete) = parse_words("--id=a --namespace=n -bundle /b delete").unwrap() else {
            panic!("not containerd's")
        };
        assert_eq!(
            (delete.action, delete.bundle.as_deref()),
            (Action::Delete, Some(std::path::Path::new("/b")))
        );
        assert!(matches!(parse_words("-info"), Ok(Role::Containerd(Command { action: Action::Info, .. }))));
        assert_eq!(parse_words("-namespace n start").unwrap_err().to_string(), "-id is missing");
        assert_eq!(parse_words("-namespace n -id i").unwrap_err().to_string(), "no command");
    }

    #[test]
    fn each_mistake_is_named() {
        for (line, message) in [
            ("", "no command"),
            ("sing", "unknown command or option \"sing\""),
            ("serve --socket", "--socket needs a value"),
            ("serve --socket /s --id p --maker-root /r", "--maker is missing"),
            ("serve --socket s --id p --maker m --maker-root /r", "--socket must be an absolute path"),
            ("serve --colour", "unknown command or option \"--colour\""),
        ] {
            assert_eq!(parse_words(line).unwrap_err().to_string(), message);
        }
    }
}
