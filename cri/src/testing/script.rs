//! How the fake's containers and commands behave: plain data that tests hand in.
//!
//! A queue of scripts serves one container name or image: each new container takes the next one, the last
//! one stays for good.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tonic::Status;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exit {
    /// Its exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The runtime's reason; empty for `Completed` or `Error` by the code, as containerd gives them.
    pub reason: String,
    /// The runtime's message; mostly empty.
    pub message: String,
}

impl Exit {
    /// The kernel's OOM killer ended it.
    pub fn oom() -> Self {
        Exit { code: 137, reason: "OOMKilled".to_owned(), message: String::new() }
    }

    /// Replaces the runtime's reason.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Replaces the runtime's message.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }
}

impl From<i32> for Exit {
    fn from(code: i32) -> Self {
        Exit { code, ..Exit::default() }
    }
}

/// What a container does once it is started, and when it is told to stop.
#[derive(Debug, Clone)]
pub struct Script {
    pub(super) start_error: Option<Status>,
    pub(super) exit: Option<(Duration, Exit)>,
    pub(super) stop: Option<(Duration, i32)>,
}

impl Script {
    /// Runs until stopped, and ends at once with 143 at its stop signal. What every container does that
    /// has no script.
    pub fn runs() -> Self {
        Script { start_error: None, exit: None, stop: Some((Duration::ZERO, 143)) }
    }

    /// Ends as soon as it has started.
    pub fn exits(exit: impl Into<Exit>) -> Self {
        Self::exits_after(Duration::ZERO, exit)
    }

    /// Ends by itself `after` of tokio's clock.
    pub fn exits_after(after: Duration, exit: impl Into<Exit>) -> Self {
        Script { exit: Some((after, exit.into())), ..Self::runs() }
    }

    /// `StartContainer` answers `status`; the container is `Exited` with 128 and `StartError` then.
    pub fn fails_to_start(status: Status) -> Self {
        Script { start_error: Some(status), ..Self::runs() }
    }

    /// Takes `after` from its stop signal to its end with `code`.
    #[must_use]
    pub fn stops_after(mut self, after: Duration, code: i32) -> Self {
        self.stop = Some((after, code));
        self
    }

    /// Only SIGKILL ends it.
    #[must_use]
    pub fn ignores_stop_signal(mut self) -> Self {
        self.stop = None;
        self
    }
}

/// What a command run by `ExecSync` does.
#[derive(Debug, Clone, Default)]
pub struct ExecScript {
    pub(super) error: Option<Status>,
    pub(super) exit_code: i32,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) takes: Duration,
}

impl ExecScript {
    /// Ends with `exit_code` and no output.
    pub fn exits(exit_code: i32) -> Self {
        ExecScript { exit_code, ..Self::default() }
    }

    /// The runtime cannot run it.
    pub fn fails(status: Status) -> Self {
        ExecScript { error: Some(status), ..Self::default() }
    }

    /// What it writes to stdout.
    #[must_use]
    pub fn stdout(mut self, output: impl Into<Vec<u8>>) -> Self {
        self.stdout = output.into();
        self
    }

    /// What it writes to stderr.
    #[must_use]
    pub fn stderr(mut self, output: impl Into<Vec<u8>>) -> Self {
        self.stderr = output.into();
        self
    }

    /// How long it runs; past the request's timeout it answers `DeadlineExceeded`, as containerd does.
    #[must_use]
    pub fn takes(mut self, duration: Duration) -> Self {
        self.takes = duration;
        self
    }
}

/// Queues of scripts by what they apply to.
#[derive(Debug)]
pub(super) struct Queues<T>(HashMap<String, VecDeque<T>>);

impl<T: Clone> Queues<T> {
    pub(super) fn new() -> Self {
        Queues(HashMap::new())
    }

    /// Replaces the queue of `key`.
    pub(super) fn set(&mut self, key: &str, scripts: impl IntoIterator<Item = T>) {
        self.0.insert(key.to_owned(), scripts.into_iter().collect());
    }

    /// The next script of the first of `keys` that has a queue.
    pub(super) fn next(&mut self, keys: &[&str]) -> Option<T> {
        let queue =
            keys.iter().find_map(|key| self.0.get(*key).filter(|queue| !queue.is_empty()).map(|_| *key));
        let queue = self.0.get_mut(queue?)?;
        if queue.len() > 1 { queue.pop_front() } else { queue.front().cloned() }
    }
}
