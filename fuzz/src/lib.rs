//! Fuzz targets: what takes bytes from strangers, each a function that panics where something is wrong.
//!
//! `driver`, which `cargo xtask fuzz` builds, hands them libFuzzer's inputs; the test `corpus` hands them every file of
//! `corpus/NAME` once. No state between calls.

mod streams;

use coracle_kubelet_core::source;
use coracle_kubelet_core::source::validate::{PodRules, validate_pod};
use coracle_runtime::testing::parsers;

/// A parser under attack.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also the folder of its corpus.
    pub name: &'static str,
    /// Takes an input; panics where the parser is wrong.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target { name: "reference", run: reference },
    Target { name: "manifest", run: parsers::image_documents },
    Target { name: "pod", run: pod },
    Target { name: "tar", run: parsers::tar },
    Target { name: "spdy", run: streams::spdy },
    Target { name: "websocket", run: streams::websocket },
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

/// What a reference is read as, it is written as.
fn reference(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(read) = text.parse::<coracle_runtime::image::Reference>() else { return };
    let again = read.to_string().parse();
    assert_eq!(again.as_ref(), Ok(&read), "{text:?} is written as {read}");
}

/// As a node that has joined a cluster has it, which checks most.
const RULES: PodRules = PodRules { allow_object_references: false };

/// Manifests of pods: decoded, defaulted and validated as the folder's are.
fn pod(input: &[u8]) {
    let decoded = match source::decode(input) {
        Ok(decoded) => decoded,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for object in decoded.objects {
        if let source::Object::Pod(mut pod, _) = object {
            source::default_pod(&mut pod);
            for problem in validate_pod(&pod, RULES) {
                assert!(!problem.to_string().is_empty());
            }
        }
    }
}
