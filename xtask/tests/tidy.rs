//! Holds of the house style what a machine can hold. The style itself is in CONTRIBUTING.md.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::path::{Path, PathBuf};

/// Crates that other programs depend on.
const LIBRARIES: [&str; 7] = ["cri", "streaming", "shim", "cluster", "bootstrap", "runtime", "kubelet-core"];

/// Files that take data and `now`, and return data.
const PURE: [&str; 31] = [
    "streaming/src/spdy",
    "streaming/src/websocket",
    "streaming/src/channel",
    "kubelet-core/src/node/desired",
    "kubelet-core/src/node/plan",
    "kubelet-core/src/node/pressure",
    "kubelet-core/src/node/flags",
    "kubelet-core/src/server/log_options",
    "kubelet-core/src/server/route",
    "kubelet-core/src/server/stats/types",
    "kubelet-core/src/server/subject",
    "kubelet-core/src/pod/plan",
    "kubelet-core/src/pod/status",
    "kubelet-core/src/eviction/plan",
    "kubelet-core/src/gc/plan",
    "kubelet-core/src/env/",
    "kubelet-core/src/image_pull/access",
    "kubelet-core/src/qos",
    "kubelet-core/src/hosts",
    "kubelet-core/src/resolv",
    "kubelet-core/src/admission",
    "kubelet-core/src/allocation",
    "kubelet-core/src/pod/resize.rs",
    "kubelet-core/src/objects/references",
    "kubelet-core/src/source/api_pod.rs",
    "kubelet-core/src/source/api_table",
    "kubelet-core/src/status_writer/entry",
    "kubelet-core/src/status_writer/mirrors",
    "kubelet-core/src/status_writer/patch",
    "runtime/src/spec/",
    "runtime/src/maker/device_filter",
];

/// The edges of what is otherwise pure: they look at the machine, so that the rest need not.
const EDGES: [&str; 5] = [
    "runtime/src/spec/apparmor.rs",
    "runtime/src/spec/cdi/files.rs",
    "runtime/src/spec/host.rs",
    "runtime/src/spec/observe.rs",
    "runtime/src/spec/user.rs",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file that git knows or would add, relative to the root, with its text.
fn sources() -> Vec<(String, String)> {
    let output = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).unwrap();
    let files = list.lines().filter(|path| repository().join(path).exists());
    files.map(|path| (path.to_owned(), std::fs::read_to_string(repository().join(path)).unwrap())).collect()
}

fn is_test(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "benches" | "testdata"))
}

fn report(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn every_file_opens_with_what_it_owns() {
    let broken: Vec<String> =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(path, _)| path).collect();
    report("a file opens with `//!`: what it owns, who calls it, its concurrency rule", &broken);
}

#[test]
fn no_file_is_too_long_to_read() {
    let broken: Vec<String> = sources()
        .into_iter()
        .filter(|(path, text)| !is_test(path) && text.lines().count() > 700)
        .map(|(path, text)| format!("{path}: {} lines", text.lines().count()))
        .collect();
    report("no file has more than 700 lines", &broken);
}

#[test]
fn libraries_have_errors_of_their_own() {
    let broken: Vec<String> = sources()
        .into_iter()
        .filter(|(path, text)| {
            LIBRARIES.iter().any(|folder| path.starts_with(&format!("{folder}/src/")))
                && text.contains("anyhow")
        })
        .map(|(path, _)| path)
        .collect();
    report("anyhow is for agent, examples, integration-tests and xtask alone", &broken);
}

#[test]
fn unsafe_code_sits_in_one_kind_of_file() {
    let broken: Vec<String> = sources()
        .into_iter()
        .filter(|(path, text)| {
            let allowed = path.ends_with("/sys.rs") || path.contains("/sys/") || is_test(path);
            !allowed && text.contains("allow(unsafe_code")
        })
        .map(|(path, _)| path)
        .collect();
    report("raw system work sits in sys.rs", &broken);
}

#[test]
fn planning_is_pure() {
    const IMPURE: [&str; 7] = [
        "tokio::",
        "std::fs",
        "std::net::Tcp",
        "std::process",
        "Instant::now",
        "SystemTime::now",
        "rustix::",
    ];
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let is_pure = PURE.iter().any(|pure| path.starts_with(pure)) && !EDGES.contains(&path.as_str());
        if is_test(&path) || !is_pure {
            continue;
        }
        // Tests at the end of a file may do as they like.
        let code = text.split("#[cfg(test)]").next().unwrap_or(&text);
        for word in IMPURE {
            if code.contains(word) {
                broken.push(format!("{path}: {word}"));
            }
        }
    }
    report("planning takes data and `now` and imports no tokio, fs, net or clock", &broken);
}

#[test]
fn names_say_what_a_file_owns() {
    let broken: Vec<String> = sources()
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| {
            let stem = Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            matches!(stem, "utils" | "util" | "common" | "manager" | "helpers" | "misc")
        })
        .collect();
    report("a file is named for what it owns", &broken);
}
