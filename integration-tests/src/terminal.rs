//! Commands as a person runs them: on a terminal of their own, with keys that are pressed one after the other.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The size of such a terminal as `stty size` prints it.
pub const SIZE: &str = "33 101";

/// How long a word may take to come.
const LIMIT: Duration = Duration::from_secs(60);

/// The command on a terminal, whose keyboard and screen are pipes.
pub fn on_terminal(command: &Command) -> Command {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let quoted = |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
    let line: Vec<String> = words.map(quoted).collect();
    let mut script = Command::new("script");
    script.args(["-qefc", &format!("stty rows 33 cols 101; exec {}", line.join(" ")), "/dev/null"]);
    script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    script
}

/// A command on a terminal, with somebody before it. It ends with this.
#[derive(Debug)]
pub struct Screen {
    child: Child,
    keyboard: ChildStdin,
    pieces: Receiver<Vec<u8>>,
    shown: String,
}

impl Screen {
    /// Starts a command on a terminal.
    pub fn open(command: &Command) -> Result<Self> {
        let mut child = on_terminal(command).spawn().context("cannot start script; install bsdutils")?;
        let piped = "a pipe of the command is ours";
        let (keyboard, mut output) =
            (child.stdin.take().context(piped)?, child.stdout.take().context(piped)?);
        let (sender, pieces) = channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut piece) {
                if sender.send(piece[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, keyboard, pieces, shown: String::new() })
    }

    /// Presses these keys.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keyboard.write_all(keys.as_bytes()).context("cannot press a key")
    }

    /// Waits until it shows these words, after all that was waited for before.
    pub fn wait_for(&mut self, words: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.shown.find(words) {
                self.shown.drain(..at + words.len());
                return Ok(());
            }
            match self.pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(piece) => self.shown.push_str(&String::from_utf8_lossy(&piece)),
                Err(error) => bail!("{words:?} does not come ({error}), only {:?}", self.shown),
            }
        }
    }

    /// Waits for the end of the command; its exit code, as a shell tells it.
    pub fn end(mut self) -> Result<Option<i32>> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for the command")? {
                return Ok(status.code());
            }
            if Instant::now() > deadline {
                bail!("the command does not end; it shows {:?}", self.shown);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // One that has ended is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
