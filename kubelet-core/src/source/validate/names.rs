//! Names and other small texts: DNS labels, label keys, environment variables, addresses.
//!
//! Called by the other files of `validate`; pure. The messages are apimachinery's, which quote the regular
//! expressions that the checks here stand for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::field::{Errors, Path};
use crate::api::ObjectMeta;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const UNDERSCORE_LABEL: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
const KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const KEY_MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                           alphanumeric character";

/// An error per thing wrong; none for a good text.
type Messages = Vec<String>;

fn regex_error(message: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{regex}')", examples.join("or "))
}

fn too_long(limit: usize, unit: &str) -> String {
    format!("must be no more than {limit} {unit}")
}

fn inside(text: &str, edge: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    match bytes {
        [] => false,
        [first, .., last] => edge(*first) && edge(*last) && bytes.iter().all(|b| inner(*b)),
        [only] => edge(*only),
    }
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    inside(text, lower, |b| lower(b) || b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

pub(super) fn dns1123_label(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 63 {
        messages.push(too_long(63, "characters"));
    }
    if !is_label(text) {
        messages.push(if is_subdomain(text) {
            "must not contain dots".to_owned()
        } else {
            let message = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
                           must start and end with an alphanumeric character";
            regex_error(message, LABEL, &["my-name", "123-abc"])
        });
    }
    messages
}

pub(super) fn dns1123_subdomain(text: &str) -> Messages {
    subdomain(text, "characters")
}

fn subdomain(text: &str, unit: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 253 {
        messages.push(too_long(253, unit));
    }
    if !is_subdomain(text) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                       and must start and end with an alphanumeric character";
        messages.push(regex_error(message, &format!("{LABEL}(\\.{LABEL})*"), &["example.com"]));
    }
    messages
}

pub(super) fn dns1123_subdomain_with_underscore(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 253 {
        messages.push(too_long(253, "characters"));
    }
    let label = |text: &str| {
        inside(text.strip_prefix('_').unwrap_or(text), lower, |b| lower(b) || b == b'-' || b == b'_')
    };
    if !text.split('.').all(label) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or \
                       '.', and must start and end with an alphanumeric character";
        let regex = format!("{UNDERSCORE_LABEL}(\\.{UNDERSCORE_LABEL})*");
        messages.push(regex_error(message, &regex, &["example.com"]));
    }
    messages
}

fn is_key_name(text: &str) -> bool {
    inside(
        text,
        |b| b.is_ascii_alphanumeric(),
        |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'),
    )
}

/// A label key: a name with an optional DNS prefix. Also called a qualified name.
pub(super) fn qualified_name(text: &str) -> Messages {
    const EXAMPLES: [&str; 3] = ["MyName", "my.name", "123-abc"];
    let (prefix, name) = match text.split('/').collect::<Vec<_>>()[..] {
        [name] => (None, name),
        [prefix, name] => (Some(prefix), name),
        _ => {
            let error = regex_error(KEY_MESSAGE, KEY, &EXAMPLES);
            return vec![format!(
                "a valid label key {error} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    let mut messages = Vec::new();
    match prefix {
        Some("") => messages.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => {
            messages.extend(subdomain(prefix, "bytes").into_iter().map(|m| format!("prefix part {m}")));
        }
        None => {}
    }
    if name.is_empty() {
        messages.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        messages.push(format!("name part {}", too_long(63, "bytes")));
    }
    if !is_key_name(name) {
        messages.push(format!("name part {}", regex_error(KEY_MESSAGE, KEY, &EXAMPLES)));
    }
    messages
}

pub(super) fn label_value(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 63 {
        messages.push(too_long(63, "bytes"));
    }
    if !text.is_empty() && !is_key_name(text) {
        let message = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                       and must start and end with an alphanumeric character";
        messages.push(regex_error(message, &format!("({KEY})?"), &["MyValue", "my_value", "12345"]));
    }
    messages
}

pub(super) fn config_map_key(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 253 {
        messages.push(too_long(253, "characters"));
    }
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !inside(text, good, good) {
        let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        messages.push(regex_error(message, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match text {
        "." => messages.push("must not be '.'".to_owned()),
        ".." => messages.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => messages.push("must not start with '..'".to_owned()),
        _ => {}
    }
    messages
}

/// The name of a variable. Kubernetes since 1.34 takes every printable ASCII character but `=`.
pub(super) fn env_name(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.is_empty() {
        messages.push("environment variable name must be non-empty".to_owned());
    }
    if !text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        let message = "a valid environment variable name must consist only of printable ASCII characters other than \
                       '='";
        messages.push(message.to_owned());
    }
    messages
}

/// A name of a container's port.
pub(super) fn port_name(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 15 {
        messages.push(too_long(15, "characters"));
    }
    if text.is_empty() || !text.bytes().all(|b| lower(b) || b == b'-') {
        messages.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        messages.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        messages.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        messages.push("must not begin or end with a hyphen".to_owned());
    }
    messages
}

pub(super) fn http_header_name(text: &str) -> Messages {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if inside(text, good, good) {
        return Vec::new();
    }
    let message = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(message, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// A number of a port.
pub(super) fn port_number(port: i32) -> Messages {
    in_range(i64::from(port), 1, 65535)
}

/// A user or group.
pub(super) fn user_id(id: i64) -> Messages {
    in_range(id, 0, i64::from(i32::MAX))
}

fn in_range(value: i64, low: i64, high: i64) -> Messages {
    if (low..=high).contains(&value) {
        Vec::new()
    } else {
        vec![format!("must be between {low} and {high}, inclusive")]
    }
}

/// An address of either family. Leading zeros, which an API server still takes, are refused: libc reads them
/// as octal, so that the address meant is not the address used.
pub(super) fn ip_address(text: &str) -> Messages {
    match text.parse::<IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// Metadata of a namespaced object whose name obeys `name_rule`.
pub(super) fn validate_metadata(metadata: &ObjectMeta, name_rule: fn(&str) -> Messages, errors: &mut Errors) {
    let path = Path::Root("metadata");
    if !metadata.generate_name.is_empty() {
        // What is appended makes a trailing dash good.
        let masked = metadata.generate_name.strip_suffix('-').filter(|rest| !rest.is_empty());
        let messages = name_rule(masked.unwrap_or(&metadata.generate_name));
        errors.invalid_each(&path.child("generateName"), &metadata.generate_name, messages);
    }
    if metadata.name.is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else {
        errors.invalid_each(&path.child("name"), &metadata.name, name_rule(&metadata.name));
    }
    if metadata.namespace.is_empty() {
        errors.required(&path.child("namespace"), "");
    } else {
        let messages = dns1123_label(&metadata.namespace);
        errors.invalid_each(&path.child("namespace"), &metadata.namespace, messages);
    }
    validate_labels(&metadata.labels, &path.child("labels"), errors);
    let annotations = path.child("annotations");
    for key in metadata.annotations.keys() {
        errors.invalid_each(&annotations, key, qualified_name(&key.to_lowercase()));
    }
    let size: usize = metadata.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > 256 << 10 {
        errors.too_long(&annotations, 256 << 10);
    }
    for finalizer in &metadata.finalizers {
        errors.invalid_each(&path.child("finalizers"), finalizer, qualified_name(finalizer));
    }
}

/// Labels, or anything else with label keys and label values.
pub(super) fn validate_labels(labels: &BTreeMap<String, String>, path: &Path<'_>, errors: &mut Errors) {
    for (key, value) in labels {
        errors.invalid_each(path, key, qualified_name(key));
        errors.invalid_each(path, value, label_value(value));
    }
}
