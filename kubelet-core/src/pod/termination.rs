//! Termination messages: the last words of a container, from its own file or the end of its log.
//!
//! Called by observation when it first sees a container ended. Reads at most 4 KiB of the file, or the last
//! 2 KiB and 80 lines of the log, as the kubelet does.

use std::io::SeekFrom;
use std::path::Path;

use coracle_cri::v1::ContainerStatus;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::container_config::{TERMINATION_MESSAGE_PATH_ANNOTATION, TERMINATION_MESSAGE_POLICY_ANNOTATION};

const FILE_LIMIT: u64 = 4096;
const LOG_LIMIT: usize = 2048;
const LOG_LINES: usize = 80;
/// Enough of a log's end to hold the lines wanted, whatever their stamps take.
const LOG_WINDOW: u64 = 64 * 1024;

/// The runtime's message and the container's own, joined.
pub(crate) async fn message(status: &ContainerStatus) -> String {
    let falls_back = status.exit_code != 0
        && status.reason != "ContainerCannotRun"
        && status
            .annotations
            .get(TERMINATION_MESSAGE_POLICY_ANNOTATION)
            .is_some_and(|policy| policy == "FallbackToLogsOnError");
    let own = match from_file(status).await {
        Found::Text(text) if !(text.is_empty() && falls_back) => text,
        Found::Error(text) => text,
        _ if falls_back => from_log(Path::new(&status.log_path)).await,
        _ => String::new(),
    };
    match (status.message.is_empty(), own.is_empty()) {
        (_, true) => status.message.clone(),
        (true, false) => own,
        (false, false) => format!("{}: {own}", status.message),
    }
}

enum Found {
    Nothing,
    Text(String),
    Error(String),
}

async fn from_file(status: &ContainerStatus) -> Found {
    let Some(path) = status.annotations.get(TERMINATION_MESSAGE_PATH_ANNOTATION).filter(|p| !p.is_empty())
    else {
        return Found::Nothing;
    };
    let absolute = if path.starts_with('/') { path.clone() } else { format!("/{path}") };
    let Some(mount) = status.mounts.iter().find(|mount| mount.container_path == absolute) else {
        return Found::Nothing;
    };
    match tail(Path::new(&mount.host_path), FILE_LIMIT).await {
        Ok(bytes) => Found::Text(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Found::Nothing,
        Err(error) => Found::Error(format!("Error on reading termination log {}: {error}", mount.host_path)),
    }
}

async fn from_log(path: &Path) -> String {
    match tail(path, LOG_WINDOW).await {
        Ok(bytes) => last_lines(&bytes),
        Err(error) => format!("Error on reading termination message from logs: {error}"),
    }
}

async fn tail(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit))).await?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// The content of the last lines of a log in CRI's format.
fn last_lines(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let entries: Vec<(bool, &str)> = text.lines().filter_map(entry).collect();
    let mut lines = 0;
    let mut from = entries.len();
    for (at, (whole, _)) in entries.iter().enumerate().rev() {
        // A whole line ends one; partial ones before it belong to it.
        lines += usize::from(*whole);
        if lines > LOG_LINES {
            break;
        }
        from = at;
    }
    let mut out = String::new();
    for (whole, content) in entries.get(from..).unwrap_or_default() {
        out.push_str(content);
        if *whole {
            out.push('\n');
        }
    }
    let start = out.len().saturating_sub(LOG_LIMIT);
    let start = (start..=out.len()).find(|at| out.is_char_boundary(*at)).unwrap_or(out.len());
    out.split_off(start)
}

/// `2026-01-01T00:00:00.0Z stdout F content`: whether the line is whole, and its content.
fn entry(line: &str) -> Option<(bool, &str)> {
    let mut parts = line.splitn(4, ' ');
    let stamp = parts.next()?;
    let stream = parts.next()?;
    let tag = parts.next()?;
    let content = parts.next().unwrap_or("");
    let plausible = stamp.contains('T') && matches!(stream, "stdout" | "stderr");
    plausible.then(|| (tag.split(':').next() != Some("P"), content))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use coracle_cri::v1::Mount;

    use super::*;

    fn ended(policy: &str, exit_code: i32, file: &Path, log: &Path) -> ContainerStatus {
        ContainerStatus {
            exit_code,
            log_path: log.display().to_string(),
            mounts: vec![Mount {
                container_path: "/dev/termination-log".into(),
                host_path: file.display().to_string(),
                ..Mount::default()
            }],
            annotations: HashMap::from([
                (TERMINATION_MESSAGE_PATH_ANNOTATION.to_owned(), "/dev/termination-log".to_owned()),
                (TERMINATION_MESSAGE_POLICY_ANNOTATION.to_owned(), policy.to_owned()),
            ]),
            ..ContainerStatus::default()
        }
    }

    #[tokio::test]
    async fn the_file_comes_first_and_its_end_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("file"), dir.path().join("0.log"));
        std::fs::write(&file, format!("{}{}", "x".repeat(5000), "end")).unwrap();
        let mut status = ended("File", 1, &file, &log);
        let text = message(&status).await;
        assert_eq!(text.len(), 4096);
        assert!(text.ends_with("end"));
        std::fs::write(&file, "why").unwrap();
        status.message = "runtime".into();
        assert_eq!(message(&status).await, "runtime: why");
    }

    #[tokio::test]
    async fn the_log_stands_in_after_an_error_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("file"), dir.path().join("0.log"));
        std::fs::write(&file, "").unwrap();
        let mut lines = String::new();
        for n in 0..200 {
            lines.push_str(&format!("2026-01-01T00:00:00.5Z stderr F line {n}\n"));
        }
        lines.push_str("2026-01-01T00:00:00.5Z stdout P par\n2026-01-01T00:00:00.5Z stdout F tial\n");
        std::fs::write(&log, lines).unwrap();
        let text = message(&ended("FallbackToLogsOnError", 1, &file, &log)).await;
        assert_eq!(text.lines().count(), 80);
        assert!(text.ends_with("line 199\npartial\n"), "{text}");
        assert_eq!(message(&ended("FallbackToLogsOnError", 0, &file, &log)).await, "");
        assert_eq!(message(&ended("File", 1, &file, &log)).await, "");
        std::fs::write(&log, format!("2026-01-01T00:00:00.5Z stdout F {}\n", "y".repeat(9000))).unwrap();
        assert_eq!(message(&ended("FallbackToLogsOnError", 1, &file, &log)).await.len(), 2048);
    }
}
