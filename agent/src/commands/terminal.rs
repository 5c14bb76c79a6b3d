//! The terminal of `coracle exec` and `attach`: raw while it belongs to a command in a container, and its size.

use std::io::IsTerminal as _;

use anyhow::{Context, Result};
use coracle_streaming::channel::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Standard input as a terminal that passes every key on. As it was before once dropped.
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// None if standard input is no terminal.
    pub(super) fn begin() -> Result<Option<Self>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(std::io::stdin()).context("cannot look at the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw).context("cannot set the terminal")?;
        Ok(Some(Self { before }))
    }

    /// Its size now.
    pub(super) fn size(&self) -> Option<TerminalSize> {
        let size = tcgetwinsize(std::io::stdin()).ok()?;
        Some(TerminalSize { width: size.ws_col, height: size.ws_row })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.before);
    }
}
