//! Fields of a pod as text: `metadata.name`, `metadata.labels['x']`, `status.podIP` and their like.
//!
//! Pure; used by variables and by downwardAPI files, which know fewer fields.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::api::Pod;

/// A field path that cannot be resolved.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// `spec.tolerations['x']` and its like.
    #[error("fieldPath {0:?} does not support subscript")]
    NoSubscript(String),
    /// No such field is offered.
    #[error("unsupported fieldPath: {0}")]
    Unsupported(String),
}

/// A field of the pod that does not depend on where it runs; what downwardAPI volumes offer.
pub fn field(pod: &Pod, path: &str) -> Result<String, FieldError> {
    let metadata = &pod.metadata;
    if let Some((base, key)) = subscripted(path) {
        let map = match base {
            "metadata.annotations" => &metadata.annotations,
            "metadata.labels" => &metadata.labels,
            _ => return Err(FieldError::NoSubscript(path.to_owned())),
        };
        return Ok(map.get(key).cloned().unwrap_or_default());
    }
    match path {
        "metadata.annotations" => Ok(format_map(&metadata.annotations)),
        "metadata.labels" => Ok(format_map(&metadata.labels)),
        "metadata.name" => Ok(metadata.name.clone()),
        "metadata.namespace" => Ok(metadata.namespace.clone()),
        "metadata.uid" => Ok(metadata.uid.to_string()),
        _ => Err(FieldError::Unsupported(path.to_owned())),
    }
}

/// A field of the pod as variables offer it: [`field`], and where it runs.
pub(super) fn env_field(
    pod: &Pod,
    path: &str,
    pod_ips: &[IpAddr],
    host_ips: &[IpAddr],
) -> Result<String, FieldError> {
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    let all = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    match path {
        "spec.nodeName" => Ok(pod.spec.node_name.clone()),
        "spec.serviceAccountName" => Ok(pod.spec.service_account_name.clone()),
        "status.hostIP" => Ok(first(host_ips)),
        "status.hostIPs" => Ok(all(host_ips)),
        "status.podIP" => Ok(first(pod_ips)),
        "status.podIPs" => Ok(all(pod_ips)),
        _ => field(pod, path),
    }
}

/// `metadata.labels['a[b]c']` is `metadata.labels` and `a[b]c`.
fn subscripted(path: &str) -> Option<(&str, &str)> {
    let (base, key) = path.strip_suffix("']")?.split_once("['")?;
    (!base.is_empty()).then_some((base, key))
}

/// One line per key, sorted, values quoted as Go quotes a string.
fn format_map(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}

/// A string literal as Go's `strconv.Quote` writes it: printable characters as they are.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            // Space is the only blank that Go counts as printable; all other blanks and controls are escaped.
            c if c != ' ' && (c.is_control() || c.is_whitespace()) => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
