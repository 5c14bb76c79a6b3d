//! Variables from files in volumes (`fileKeyRef`): `NAME='value'` lines, a small part of the shell's syntax.
//!
//! The parser is pure and strict as the kubelet's; reading stays within the volume.

use std::path::Path;

use super::subpath;
use crate::api::{FileKeySelector, Pod};

/// Files of variables may be this large.
const MAX_FILE: u64 = 64 * 1024;

/// The value that a selector names, `None` if the file has no such variable.
pub(crate) fn read_file_key(
    pod: &Pod,
    pod_dir: &Path,
    selector: &FileKeySelector,
) -> Result<Option<String>, String> {
    let no_volume = || format!("cannot find the volume {:?} referenced by FileKeyRef", selector.volume_name);
    let volume = pod.spec.volumes.iter().find(|volume| volume.name == selector.volume_name);
    let dir = volume.and_then(|volume| super::host_dir(pod_dir, volume)).ok_or_else(no_volume)?;
    // The kubelet too tells neither path nor cause, since both may be the host's.
    let failed = || "couldn't parse env file".to_owned();
    let data = subpath::read_within(&dir, &selector.path, MAX_FILE).map_err(|_| failed())?;
    let text = String::from_utf8(data).map_err(|_| failed())?;
    value_of(&text, &selector.key).map_err(|_| failed())
}

/// Text after which the file is not what it must be.
#[derive(Debug, PartialEq, Eq)]
struct Malformed;

fn value_of(text: &str, key: &str) -> Result<Option<String>, Malformed> {
    let blank = [' ', '\t'];
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        rest = after;
        let line = line.trim_start_matches(blank).trim_end_matches('\r');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or(Malformed)?;
        if name.is_empty() || name.ends_with(blank) {
            return Err(Malformed);
        }
        if value.starts_with(blank) {
            // To a shell this is an empty value, and a command.
            if name == key {
                return Ok(None);
            }
            continue;
        }
        let quoted = value.strip_prefix('\'').ok_or(Malformed)?;
        // The closing quote may stand lines further down, so it is looked for in all that is left.
        let start = quoted.as_ptr() as usize - text.as_ptr() as usize;
        let (content, tail) = text[start..].split_once('\'').ok_or(Malformed)?;
        let (tail, after) = tail.split_once('\n').unwrap_or((tail, ""));
        let tail = tail.trim_start_matches(blank).trim_end_matches('\r');
        if !tail.is_empty() && !tail.starts_with('#') {
            return Err(Malformed);
        }
        if name == key {
            return Ok(Some(content.to_owned()));
        }
        rest = after;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_and_may_span_lines() {
        let text = "# c\n  A='1' # one\n\nB='two\nlines'\nC= 'x'\nD='a=b'";
        for (key, value) in [("A", Some("1")), ("B", Some("two\nlines")), ("C", None), ("D", Some("a=b"))] {
            assert_eq!(value_of(text, key).unwrap().as_deref(), value, "{key}");
        }
        assert_eq!(value_of(text, "Z"), Ok(None));
        for bad in ["A=1", "A", "='1'", "A ='1'", "A='1", "A='1'x"] {
            assert_eq!(value_of(bad, "A"), Err(Malformed), "{bad}");
        }
    }
}
