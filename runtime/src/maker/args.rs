//! The command line of the maker, as runc defines it and containerd's go-runc calls it. Pure, and by hand:
//! this process starts for every container, so it does not pay for an argument parser.

use std::ffi::OsString;
use std::path::PathBuf;

/// Options that stand before the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Globals {
    /// Where the state of containers lives.
    pub root: PathBuf,
    /// Where messages go; standard error without it.
    pub log: Option<PathBuf>,
    /// Messages as JSON objects, one a line.
    pub log_json: bool,
    /// cgroups are asked from systemd.
    pub systemd_cgroup: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Make a container up to the point before its process runs.
    Create(Create),
    /// Let the made process run.
    Start(String),
    /// Send a signal to the first process, or to all.
    Kill { id: String, signal: String, all: bool },
    /// Remove what `create` made.
    Delete { id: String, force: bool },
    /// Print the OCI state.
    State(String),
    /// Run another process in the container.
    Exec(Exec),
    /// Change its limits; the resources come from a file, or standard input for `-`.
    Update { id: String, resources: String },
    /// List its processes.
    Ps { id: String, json: bool },
    /// Freeze it.
    Pause(String),
    /// Thaw it.
    Resume(String),
    /// Print what this runtime can.
    Features,
    /// Print the version.
    Version,
}

/// Options of `create`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Create {
    pub id: String,
    pub bundle: PathBuf,
    pub pid_file: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub preserve_fds: i32,
}

/// Options of `exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Exec {
    pub id: String,
    pub process: Option<PathBuf>,
    pub command: Vec<String>,
    pub tty: bool,
    pub pid_file: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub detach: bool,
    pub preserve_fds: i32,
}

/// Why a command line was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ArgsError {
    #[error("no command given; one of create, start, kill, delete, state, exec, update, ps, pause, resume")]
    NoCommand,
    #[error("unknown command {0:?}")]
    UnknownCommand(String),
    #[error("unknown option {0:?}")]
    UnknownOption(String),
    #[error("option {0} needs a value")]
    NoValue(String),
    #[error("option {option} has a bad value {value:?}")]
    BadValue { option: String, value: String },
    #[error("{0} needs a container id")]
    NoId(&'static str),
    #[error("container id {0:?} may hold only letters, digits, and _ + - .")]
    BadId(String),
    #[error("exec needs --process FILE or a command")]
    NoProcess,
    #[error("update needs --resources FILE or -")]
    NoResources,
    #[error("argument is not UTF-8: {0:?}")]
    NotUtf8(OsString),
}

/// One pass over the arguments: options with `--name value` or `--name=value`, then positions.
struct Words {
    rest: std::collections::VecDeque<String>,
}

enum Word {
    Option(String, Option<String>),
    Position(String),
}

impl Words {
    fn next(&mut self) -> Option<Word> {
        let word = self.rest.pop_front()?;
        match word.strip_prefix("--").or_else(|| word.strip_prefix('-')) {
            None | Some("") => Some(Word::Position(word)),
            Some(option) => Some(match option.split_once('=') {
                Some((name, value)) => Word::Option(name.to_owned(), Some(value.to_owned())),
                None => Word::Option(option.to_owned(), None),
            }),
        }
    }

    fn value(&mut self, option: &str, inline: Option<String>) -> Result<String, ArgsError> {
        inline.or_else(|| self.rest.pop_front()).ok_or_else(|| ArgsError::NoValue(format!("--{option}")))
    }

    fn path(&mut self, option: &str, inline: Option<String>) -> Result<PathBuf, ArgsError> {
        self.value(option, inline).map(PathBuf::from)
    }

    fn number(&mut self, option: &str, inline: Option<String>) -> Result<i32, ArgsError> {
        let value = self.value(option, inline)?;
        value.parse().map_err(|_| ArgsError::BadValue { option: format!("--{option}"), value })
    }
}

/// Reads the words after the program's role.
pub(crate) fn parse(args: Vec<OsString>) -> Result<(Globals, Command), ArgsError> {
    let rest =
        args.into_iter().map(|a| a.into_string().map_err(ArgsError::NotUtf8)).collect::<Result<_, _>>()?;
    let mut words = Words { rest };
    let mut globals = Globals {
        root: PathBuf::from("/run/coracle/oci"),
        log: None,
        log_json: false,
        systemd_cgroup: false,
    };
    let command = loop {
        match words.next().ok_or(ArgsError::NoCommand)? {
            Word::Position(command) => break command,
            Word::Option(name, inline) => match name.as_str() {
                "root" => globals.root = words.path(&name, inline)?,
                "log" => globals.log = Some(words.path(&name, inline)?),
                "log-format" => globals.log_json = words.value(&name, inline)? == "json",
                "systemd-cgroup" => globals.systemd_cgroup = inline.as_deref() != Some("false"),
                "debug" => {}
                "rootless" => drop(words.value(&name, inline)?),
                "version" | "v" => return Ok((globals, Command::Version)),
                _ => return Err(ArgsError::UnknownOption(name)),
            },
        }
    };
    let command = match command.as_str() {
        "create" => Command::Create(create(&mut words)?),
        "start" => Command::Start(only_id("start", &mut words)?),
        "kill" => kill(&mut words)?,
        "delete" => {
            let (ids, force) = ids_and_flag(&mut words, &["force", "f"])?;
            Command::Delete { id: checked_id("delete", ids.into_iter().next())?, force }
        }
        "state" => Command::State(only_id("state", &mut words)?),
        "exec" => Command::Exec(exec(&mut words)?),
        "update" => update(&mut words)?,
        "ps" => ps(&mut words)?,
        "pause" => Command::Pause(only_id("pause", &mut words)?),
        "resume" => Command::Resume(only_id("resume", &mut words)?),
        "features" => Command::Features,
        other => return Err(ArgsError::UnknownCommand(other.to_owned())),
    };
    Ok((globals, command))
}

fn checked_id(command: &'static str, id: Option<String>) -> Result<String, ArgsError> {
    let id = id.ok_or(ArgsError::NoId(command))?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    // An id is one path component below the root.
    if id.is_empty() || id.starts_with('.') || !id.chars().all(allowed) {
        return Err(ArgsError::BadId(id));
    }
    Ok(id)
}

fn only_id(command: &'static str, words: &mut Words) -> Result<String, ArgsError> {
    let (ids, _) = ids_and_flag(words, &[])?;
    checked_id(command, ids.into_iter().next())
}

fn ids_and_flag(words: &mut Words, flags: &[&str]) -> Result<(Vec<String>, bool), ArgsError> {
    let (mut positions, mut set) = (Vec::new(), false);
    while let Some(word) = words.next() {
        match word {
            Word::Position(position) => positions.push(position),
            Word::Option(name, None) if flags.contains(&name.as_str()) => set = true,
            Word::Option(name, _) => return Err(ArgsError::UnknownOption(name)),
        }
    }
    Ok((positions, set))
}

fn create(words: &mut Words) -> Result<Create, ArgsError> {
    let mut create = Create { bundle: PathBuf::from("."), ..Create::default() };
    let mut id = None;
    while let Some(word) = words.next() {
        match word {
            Word::Position(position) => id = Some(position),
            Word::Option(name, inline) => match name.as_str() {
                "bundle" | "b" => create.bundle = words.path(&name, inline)?,
                "pid-file" => create.pid_file = Some(words.path(&name, inline)?),
                "console-socket" => create.console_socket = Some(words.path(&name, inline)?),
                "no-pivot" => create.no_pivot = true,
                "no-new-keyring" => create.no_new_keyring = true,
                "preserve-fds" => create.preserve_fds = words.number(&name, inline)?,
                "pidfd-socket" => drop(words.value(&name, inline)?),
                _ => return Err(ArgsError::UnknownOption(name)),
            },
        }
    }
    create.id = checked_id("create", id)?;
    Ok(create)
}

fn kill(words: &mut Words) -> Result<Command, ArgsError> {
    let (positions, all) = ids_and_flag(words, &["all", "a"])?;
    let mut positions = positions.into_iter();
    let id = checked_id("kill", positions.next())?;
    Ok(Command::Kill { id, signal: positions.next().unwrap_or_else(|| "SIGTERM".to_owned()), all })
}

fn exec(words: &mut Words) -> Result<Exec, ArgsError> {
    let mut exec = Exec::default();
    let mut id = None;
    while let Some(word) = words.next() {
        match word {
            Word::Position(position) if id.is_none() => id = Some(position),
            Word::Position(position) => {
                exec.command.push(position);
                exec.command.extend(words.rest.drain(..));
            }
            Word::Option(name, inline) => match name.as_str() {
                "process" | "p" => exec.process = Some(words.path(&name, inline)?),
                "pid-file" => exec.pid_file = Some(words.path(&name, inline)?),
                "console-socket" => exec.console_socket = Some(words.path(&name, inline)?),
                "detach" | "d" => exec.detach = true,
                "tty" | "t" => exec.tty = true,
                "preserve-fds" => exec.preserve_fds = words.number(&name, inline)?,
                _ => return Err(ArgsError::UnknownOption(name)),
            },
        }
    }
    exec.id = checked_id("exec", id)?;
    if exec.process.is_none() && exec.command.is_empty() {
        return Err(ArgsError::NoProcess);
    }
    Ok(exec)
}

fn update(words: &mut Words) -> Result<Command, ArgsError> {
    let (mut id, mut resources) = (None, None);
    while let Some(word) = words.next() {
        match word {
            Word::Position(position) => id = Some(position),
            Word::Option(name, inline) => match name.as_str() {
                "resources" | "r" => resources = Some(words.value(&name, inline)?),
                _ => return Err(ArgsError::UnknownOption(name)),
            },
        }
    }
    Ok(Command::Update { id: checked_id("update", id)?, resources: resources.ok_or(ArgsError::NoResources)? })
}

fn ps(words: &mut Words) -> Result<Command, ArgsError> {
    let (mut id, mut json) = (None, false);
    while let Some(word) = words.next() {
        match word {
            Word::Position(position) if id.is_none() => id = Some(position),
            Word::Position(_) => {}
            Word::Option(name, inline) => match name.as_str() {
                "format" | "f" => json = words.value(&name, inline)? == "json",
                _ => return Err(ArgsError::UnknownOption(name)),
            },
        }
    }
    Ok(Command::Ps { id: checked_id("ps", id)?, json })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_calls_of_containerd_are_understood() {
        let line = "--root /run/r --log /b/log.json --log-format json --systemd-cgroup create --bundle /b \
                    --pid-file /b/init.pid --console-socket /tmp/s abc";
        let (globals, command) = parse(words(line)).unwrap();
        assert!(globals.systemd_cgroup && globals.log_json);
        assert_eq!(globals.root, PathBuf::from("/run/r"));
        let Command::Create(create) = command else { panic!("{command:?}") };
        assert_eq!((create.id.as_str(), create.bundle), ("abc", PathBuf::from("/b")));
        assert_eq!(create.console_socket, Some(PathBuf::from("/tmp/s")));

        let (_, kill) = parse(words("--root=/r kill --all abc 9")).unwrap();
        assert_eq!(kill, Command::Kill { id: "abc".into(), signal: "9".into(), all: true });
        let (_, exec) = parse(words("exec --process p.json --pid-file f -d abc")).unwrap();
        assert!(matches!(exec, Command::Exec(e) if e.detach && e.id == "abc"));
        let (_, update) = parse(words("update --resources - abc")).unwrap();
        assert_eq!(update, Command::Update { id: "abc".into(), resources: "-".into() });
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (line, want) in [
            ("", ArgsError::NoCommand),
            ("frobnicate x", ArgsError::UnknownCommand("frobnicate".into())),
            ("start", ArgsError::NoId("start")),
            ("start ../x", ArgsError::BadId("../x".into())),
            ("delete --bogus x", ArgsError::UnknownOption("bogus".into())),
            ("create --bundle", ArgsError::NoValue("--bundle".into())),
            ("exec x", ArgsError::NoProcess),
        ] {
            assert_eq!(parse(words(line)).unwrap_err(), want, "{line}");
        }
    }
}
