//! One execution of one plugin: environment, standard input, bounded output, deadline.
//!
//! Used by [`super::Cni`]; a dropped call kills its plugin.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::CniError;

/// How long one plugin may take. A kubelet gives the whole sandbox four minutes.
const BOUND: Duration = Duration::from_secs(60);

/// The most output that a plugin may produce; results are a few hundred bytes.
const MAX_OUTPUT: u64 = 1 << 20;

/// One call of a plugin.
pub(super) struct Call<'a> {
    pub(super) plugin: &'a str,
    pub(super) path: PathBuf,
    pub(super) command: &'static str,
    pub(super) environment: [(&'static str, &'a OsStr); 6],
}

impl Call<'_> {
    /// Runs the plugin with `config` on its standard input; answers its result, if it printed one.
    pub(super) async fn run(self, config: &Value) -> Result<Option<Value>, CniError> {
        match tokio::time::timeout(BOUND, self.execute(config)).await {
            Ok(result) => result,
            Err(_) => Err(CniError::Deadline { plugin: self.plugin.into(), seconds: BOUND.as_secs() }),
        }
    }

    async fn execute(&self, config: &Value) -> Result<Option<Value>, CniError> {
        let failed = |source| CniError::Execute { plugin: self.path.clone(), source };
        let mut child = Command::new(&self.path)
            .envs(self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let input = config.to_string();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A plugin that does not read its input says so with its exit code.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let (_, stdout, stderr, status) = tokio::join!(feed, read(stdout), read(stderr), child.wait());
        let status = status.map_err(failed)?;
        let answer: Option<Value> = serde_json::from_slice(&stdout).ok();
        if status.success() {
            return Ok(answer);
        }
        Err(CniError::Plugin {
            plugin: self.plugin.into(),
            command: self.command,
            message: message(answer.as_ref(), &stdout, &stderr, status),
        })
    }
}

/// What a failed plugin said: the error object of the specification, else whatever it printed.
fn message(answer: Option<&Value>, stdout: &[u8], stderr: &[u8], status: std::process::ExitStatus) -> String {
    if let Some(told) = answer.and_then(|answer| answer.get("msg")).and_then(Value::as_str) {
        return match answer.and_then(|answer| answer.get("details")).and_then(Value::as_str) {
            Some(details) if !details.is_empty() => format!("{told}: {details}"),
            _ => told.to_owned(),
        };
    }
    let text = String::from_utf8_lossy(if stderr.is_empty() { stdout } else { stderr });
    if text.trim().is_empty() { status.to_string() } else { format!("{status}: {}", text.trim()) }
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut output = Vec::new();
    if let Some(from) = from {
        let mut bounded = from.take(MAX_OUTPUT);
        // An error ends the output; the exit code tells the rest.
        let _ = bounded.read_to_end(&mut output).await;
        // What exceeds the bound is read and dropped, or the plugin would block for ever.
        let _ = tokio::io::copy(&mut bounded.into_inner(), &mut tokio::io::sink()).await;
    }
    output
}
