//! A terminal's sizes: JSON objects one after the other. Called by `server` and `client`.

use serde::{Deserialize, Serialize};

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl TerminalSize {
    /// As the resize stream says it.
    pub fn encode(self) -> Vec<u8> {
        let mut line = serde_json::to_vec(&self).expect("two numbers are JSON");
        line.push(b'\n');
        line
    }
}

/// The longest object that is waited for, in bytes.
const MAX_OBJECT: usize = 256;

/// Reads sizes from however the stream was cut.
#[derive(Debug, Default)]
pub struct ResizeDecoder {
    object: Vec<u8>,
    broken: bool,
}

impl ResizeDecoder {
    /// Takes bytes and returns the last size that they complete: only the newest matters. After something that is no
    /// size there are no more, as with the kubelet.
    pub fn push(&mut self, bytes: &[u8]) -> Option<TerminalSize> {
        let mut newest = None;
        for byte in bytes {
            if self.broken {
                break;
            }
            self.object.push(*byte);
            if *byte == b'}' {
                match serde_json::from_slice(&self.object) {
                    Ok(size) => newest = Some(size),
                    Err(_) => self.broken = true,
                }
                self.object.clear();
            }
            self.broken |= self.object.len() > MAX_OBJECT;
        }
        newest
    }
}
